"""What `xray tidy` removed, told by records that stay: each written once, before the first file goes.

    tidied/<candidate>/<artifact digest>.json     a trained candidate; the digest is that of its logged model's files
    tidied/<candidate>/no-model-<day>.json        one without a model: checkpoints that nobody trained on from

The ledger names both digests of a version, so what became of a version is known without MLflow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from xray_pipeline.base import records
from xray_pipeline.base.errors import ObjectNotFound
from xray_pipeline.base.storage import Store
from xray_pipeline.registry.entries import Entry

PREFIX = "tidied"


@dataclass(frozen=True)
class Tidied:
    """One removal: of which candidate, logged model (models:/m-...) and MLflow run, by whom, when (ISO 8601), how much.

    `artifact` is the digest of the model's files, "" where no model was logged; `version` what the candidate was
    registered as, None when it was not; `bytes` are by kind, as they were counted before.
    """

    candidate: str
    artifact: str
    model: str
    run_id: str
    version: int | None
    who: str
    at: str
    files: int
    bytes: Mapping[str, int]

    def sentence(self) -> str:
        """Say what happened and what to do next."""
        return (
            f"its files were removed by tidy on {self.at[:10]}, by {self.who}; ledger and evidence stay, and a night "
            f"with its recipe makes a model like it of the newest data"
        )


def keep(store: Store, removal: Tidied) -> None:
    """Write the record of a removal; one that is there stays. Raises StorageUnavailable."""
    name = removal.artifact or f"no-model-{removal.at[:10]}"
    key = _key(removal.candidate, name)
    records.write(store, key, asdict(removal), if_absent=True)


def of_model(store: Store, candidate: str, artifact: str) -> Tidied | None:
    """Return the record of a candidate's logged model, by the digest of its files; None while that is kept.

    Raises DatasetError, StorageUnavailable.
    """
    try:
        return records.read(store, _key(candidate, artifact), Tidied) if candidate and artifact else None
    except ObjectNotFound:
        return None


def of_candidate(store: Store, candidate: str) -> list[Tidied]:
    """Return all records of a candidate, oldest first. Raises DatasetError, StorageUnavailable."""
    keys = [entry.key for entry in store.list(f"{PREFIX}/{candidate}")]
    found = [records.opened(data, Tidied, key) for key, data in zip(keys, records.read_all(store, keys), strict=True)]
    return sorted(found, key=lambda removal: removal.at)


def of_versions(store: Store, registered: Mapping[int, Entry]) -> dict[int, Tidied]:
    """Return the records of versions, whose first entries are given. Raises DatasetError, StorageUnavailable."""
    there = {entry.key for entry in store.list(PREFIX)}
    named = {version: _key(entry.candidate, entry.artifact) for version, entry in registered.items()}
    keys = {version: key for version, key in named.items() if key in there}
    contents = records.read_all(store, list(keys.values()))
    return {
        version: records.opened(data, Tidied, key) for (version, key), data in zip(keys.items(), contents, strict=True)
    }


def _key(candidate: str, name: str) -> str:
    return f"{PREFIX}/{candidate}/{name}.json"
