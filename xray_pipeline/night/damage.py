"""Records of the store that are not what was written, whichever room keeps them; radiographs are repair's matter."""

from __future__ import annotations

from xray_pipeline.base.errors import DatasetError, ObjectNotFound
from xray_pipeline.base.records import exactly, unsealed
from xray_pipeline.base.storage import Store

NAMED_BY_DIGEST = ("dataset/snapshots", "evidence", "predictions", "stress", "nights/months", "prospective/rows")
SEALED = (
    *("candidates", "intake", "suspects", "nights/records", "scores", "asked-again", "tidied", "erased"),
    *("prospective/acknowledged", "prospective/told", "prospective/turns", "prospective/watched"),
)
_UNSEALED = ("recipe.json", "expectations.json")  # among the sealed: the digest of the one is in another record


def damaged(store: Store) -> list[str]:
    """Read all that is named by its digest or sealed; say of each file that is not whole what it is.

    Raises StorageUnavailable.
    """
    broken = []
    for folder in (*NAMED_BY_DIGEST, *SEALED):
        for entry in store.list(folder):
            name = entry.key.rpartition("/")[2]
            try:
                if folder in NAMED_BY_DIGEST:
                    exactly(store, entry.key, name.partition(".")[0], "its name")
                elif name.endswith(".json") and name not in _UNSEALED:
                    unsealed(store.read(entry.key), f"{entry.key} in {store.uri}")
            except ObjectNotFound:
                continue  # it was replaced or deleted since it was listed
            except DatasetError as error:
                broken.append(str(error))
    return sorted(broken)
