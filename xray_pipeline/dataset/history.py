"""What earlier deliveries brought: the context in which a new one is judged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from functools import cached_property
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xray_pipeline.dataset.amendments import NOTHING, Amended
from xray_pipeline.dataset.erasing import Erased
from xray_pipeline.dataset.fingerprints import Prints
from xray_pipeline.dataset.revisions import CONFLICT, File, contested, counted, files_of, in_force, part_of


class Seen:
    """The files of a delivery that were judged before; of erased ones it knows no path, but knows it again."""

    def __init__(self, files: Iterable[File], erased: Erased | None) -> None:
        self._files, self._erased = frozenset(files), erased
        self._sizes = {(path, size) for path, size, _ in self._files}

    def __contains__(self, file: File) -> bool:
        path, size, version = file
        return file in self._files or (self._hidden(path), size, version) in self._files

    def with_size(self, path: str, size: int) -> bool:
        """Say whether a file of this path and size was judged, in whatever version."""
        return (path, size) in self._sizes or (self._hidden(path), size) in self._sizes

    def _hidden(self, path: str) -> str:
        return self._erased.hidden(path) if self._erased else path


class History:
    """What earlier deliveries brought, by the keys of their `tables`, as amendments correct it: the context in which a
    new one is judged."""

    def __init__(
        self,
        tables: dict[str, pd.DataFrame],
        others: Set[File] = frozenset(),
        amended: Amended = NOTHING,
        erased: Erased | None = None,
    ) -> None:
        self.tables, self._others, self.amended, self.erased = tables, others, amended, erased

    def seen(self, name: str) -> tuple[int, Seen]:
        """Return how many parts of delivery `name` are committed, and their files."""
        parts = [table for key, table in self.tables.items() if part_of(key)[0] == name]
        return len(parts), Seen({file for part in parts for file in files_of(part)} | self._others, self.erased)

    def without(self, name: str, paths: Set[str], others: Set[File] = frozenset()) -> History:
        """Return the history in which what is quarantined at these paths of delivery `name` was never judged.

        `others` count as seen, so that a check leaves them out.
        """

        def less(table: pd.DataFrame) -> pd.DataFrame:
            stays = (table["verdict"] == "accepted") | ~table["file"].isin(paths)
            return table if stays.all() else table[stays].reset_index(drop=True)

        tables = {key: less(t) if part_of(key)[0] == name else t for key, t in self.tables.items()}
        return History(tables, others, self.amended, self.erased)

    def labels(self, digest: str) -> str | None:
        """Return the label of a committed radiograph; None when the dataset doesn't hold it, or not any more."""
        return self._labels.get(digest)

    def side(self, patient: str) -> str | None:
        """Return the side a committed patient is on, withdrawn or not; None for a new patient."""
        return self._sides.get(patient)

    def reference(self) -> pd.DataFrame:
        """Return what a delivery is compared with: digest, patient, label, statistics, age_years of each radiograph."""
        return self._accepted("digest", "patient", "label", "statistics", "age_years")

    def said(self) -> pd.DataFrame:
        """Return digest, label, patient, side, verdict and delivery of each row that says what a radiograph shows: the
        accepted ones and those in a label conflict, but no withdrawn ones."""
        columns = ("digest", "label", "patient", "side", "verdict")
        parts = [
            self._labelled(table, self._said[key], columns).assign(delivery=part_of(key)[0])
            for key, table in self.tables.items()
        ]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*columns, "delivery"])

    def brought(self) -> pd.DataFrame:
        """Return digest, patient and delivery of each row that shows a radiograph, whatever became of it."""
        tables = {key: table.loc[table["digest"] != "", ["digest", "patient"]] for key, table in self.tables.items()}
        parts = [table.assign(delivery=part_of(key)[0]) for key, table in tables.items()]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["digest", "patient", "delivery"])

    @cached_property
    def prints(self) -> Prints:
        """The fingerprints of the committed radiographs, in the order of the manifests' keys. Raises DatasetError."""
        return Prints.joined([Prints.of(t, np.flatnonzero(self._held[key])) for key, t in self.tables.items()])

    @cached_property
    def disputed(self) -> Prints:
        """The fingerprints of what deliveries brought under a label that others contradict. Raises DatasetError."""
        return self._prints({key: self._said[key] & (t["reason"] == CONFLICT) for key, t in self.tables.items()})

    @cached_property
    def contested(self) -> Prints:
        """The fingerprints of radiographs, accepted or not, that label conflicts keep out. Raises DatasetError."""
        out = contested(self.tables, self.amended)
        return self._prints({key: self._said[key] & t["digest"].isin(out) for key, t in self.tables.items() if out})

    @cached_property
    def withdrawn(self) -> Prints:
        """The fingerprints of radiographs that were withdrawn, as far as they are kept. Raises DatasetError."""
        return self._prints(
            {key: self.amended.out(table) & (table["phash"] != "") for key, table in self.tables.items()}
        )

    @cached_property
    def shown(self) -> Prints:
        """The fingerprints of all radiographs of which one is kept, once each, whatever became of them. Raises
        DatasetError."""
        every = self._prints({key: np.asarray(table["phash"] != "") for key, table in self.tables.items()})
        first = {digest: place for place, digest in reversed(list(enumerate(every.digests)))}
        return every.take(sorted(first.values()))

    def _prints(self, rows: dict[str, NDArray[np.bool_]]) -> Prints:
        return Prints.joined([Prints.of(self.tables[key], np.flatnonzero(which)) for key, which in rows.items()])

    @cached_property
    def _labels(self) -> dict[str, str]:
        return dict(self._accepted("digest", "label").itertuples(index=False, name=None))

    @cached_property
    def _sides(self) -> dict[str, str]:
        tables = (table.loc[table["verdict"] == "accepted", ["patient", "side"]] for table in self.tables.values())
        return {patient: side for rows in tables for patient, side in rows.itertuples(index=False, name=None)}

    @cached_property
    def _held(self) -> dict[str, NDArray[np.bool_]]:
        """Which rows of each manifest the dataset holds: accepted, and not withdrawn."""
        return {
            key: np.asarray((table["verdict"] == "accepted") & ~self.amended.out(table))
            for key, table in self.tables.items()
        }

    @cached_property
    def _said(self) -> dict[str, NDArray[np.bool_]]:
        stands = in_force(self.tables)
        return {key: counted(t, stands[key]) & ~self.amended.out(t) for key, t in self.tables.items()}

    def _accepted(self, *columns: str) -> pd.DataFrame:
        tables = [self._labelled(table, self._held[key], columns) for key, table in self.tables.items()]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(columns))

    def _labelled(self, table: pd.DataFrame, which: NDArray[np.bool_], columns: Sequence[str]) -> pd.DataFrame:
        """Return columns of some rows; a label is the one that stands."""
        rows = table.loc[which, list(dict.fromkeys(["digest", "label", *columns]))]
        return rows.assign(label=self.amended.labelled(rows))[list(columns)]


EMPTY: Final = History({})
"""Nothing was ever committed."""
