"""What a snapshot's file holds: manifests, and what amendments said of their rows when it was made.

What they said stands in the file itself, so that an old snapshot stays what it was whatever is amended later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pandas as pd

from xray_pipeline.dataset.amendments import NOTHING, Amended
from xray_pipeline.dataset.revisions import counted, in_force


class Named(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a snapshot's file holds: `dataset` is that of dataset.json, `manifests` are keys to SHA-256; `labels` by
    digest and `withdrawn` digests are what amendments said of the rows of these manifests when it was made."""

    format: int
    dataset: dict[str, Any]
    manifests: dict[str, str]
    labels: dict[str, str] = {}
    withdrawn: tuple[str, ...] = ()

    def amended(self) -> Amended:
        """Return what the amendments said."""
        return Amended(self.labels, dict.fromkeys(self.withdrawn, 1))


def said_of(tables: Mapping[str, pd.DataFrame], amended: Amended) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return what amendments say of the radiographs in manifests: labels by digest, and the digests that are out."""
    if amended == NOTHING:
        return {}, ()
    stands = in_force(tables)
    rows = pd.concat(
        [table.loc[counted(table, stands[key]), ["digest", "patient"]] for key, table in tables.items()],
        ignore_index=True,
    )
    withdrawn = set(rows.loc[amended.out(rows), "digest"])
    labels = {digest: amended.labels[digest] for digest in set(rows["digest"]) - withdrawn if digest in amended.labels}
    return labels, tuple(sorted(withdrawn))
