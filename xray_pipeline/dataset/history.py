"""What earlier deliveries brought: the context in which a new one is judged."""

from __future__ import annotations

from collections.abc import Set
from functools import cached_property
from typing import Final

import numpy as np
import pandas as pd

from xray_pipeline.dataset.fingerprints import Prints
from xray_pipeline.dataset.revisions import File, contested, counted, files_of, in_force, part_of


class History:
    """What earlier deliveries brought: the context in which a new one is judged."""

    def __init__(self, tables: dict[str, pd.DataFrame], others: Set[File] = frozenset()) -> None:
        self._tables, self._others = tables, others

    def seen(self, name: str) -> tuple[int, frozenset[tuple[str, int, str]]]:
        """Return how many parts of delivery `name` are committed, and their files as (file, size, version)."""
        parts = [table for key, table in self._tables.items() if part_of(key)[0] == name]
        return len(parts), frozenset(file for part in parts for file in files_of(part)) | self._others

    def without(self, name: str, paths: Set[str], others: Set[File] = frozenset()) -> History:
        """Return the history in which what is quarantined at these paths of delivery `name` was never judged.

        `others` count as seen, so that a check leaves them out.
        """

        def less(table: pd.DataFrame) -> pd.DataFrame:
            stays = (table["verdict"] == "accepted") | ~table["file"].isin(paths)
            return table if stays.all() else table[stays].reset_index(drop=True)

        return History({key: less(t) if part_of(key)[0] == name else t for key, t in self._tables.items()}, others)

    def labels(self, digest: str) -> str | None:
        """Return the label of a committed radiograph; None when the dataset doesn't hold it."""
        return self._labels.get(digest)

    def side(self, patient: str) -> str | None:
        """Return the side a committed patient is on; None for a new patient."""
        return self._sides.get(patient)

    def reference(self) -> pd.DataFrame:
        """Return what a delivery is compared with: digest, patient, label, statistics, age_years of each radiograph."""
        return self._accepted("digest", "patient", "label", "statistics", "age_years")

    @cached_property
    def prints(self) -> Prints:
        """The fingerprints of the committed radiographs, in the order of the manifests' keys. Raises DatasetError."""
        return Prints.joined([Prints.of(t, np.flatnonzero(t["verdict"] == "accepted")) for t in self._tables.values()])

    @cached_property
    def contested(self) -> Prints:
        """The fingerprints of radiographs, accepted or not, that label conflicts keep out. Raises DatasetError."""
        out, stands = contested(self._tables), in_force(self._tables)
        rows = {key: counted(t, stands[key]) & t["digest"].isin(out) for key, t in self._tables.items() if out}
        return Prints.joined([Prints.of(self._tables[key], np.flatnonzero(which)) for key, which in rows.items()])

    @cached_property
    def _labels(self) -> dict[str, str]:
        return dict(self._accepted("digest", "label").itertuples(index=False, name=None))

    @cached_property
    def _sides(self) -> dict[str, str]:
        return dict(self._accepted("patient", "side").itertuples(index=False, name=None))

    def _accepted(self, *columns: str) -> pd.DataFrame:
        tables = [t.loc[t["verdict"] == "accepted", list(columns)] for t in self._tables.values()]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(columns))


EMPTY: Final = History({})
"""Nothing was ever committed."""
