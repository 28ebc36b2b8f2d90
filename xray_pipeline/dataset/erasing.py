"""What was erased for data protection: which rows tell of it, what stays of them, and where else it may lie.

Of an erased row stay digests, verdict and side of the split, so that books and old snapshots add up; its path stays as
a keyed hash, so that the file is known again where it still lies. What it shows, and whom, is gone.

Rooms that keep something of radiographs each say where that is, as traces. Removing them all is the erasure, and none
to be found is the proof of it (night/erasing).
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xray_pipeline.dataset.amendments import Amendment
from xray_pipeline.dataset.revisions import part_of
from xray_pipeline.dataset.split import id_in_name, patient_hash
from xray_pipeline.dataset.table import COLUMNS

STAYS = (
    *("file", "size", "version", "source_digest", "side", "verdict", "reason", "detail", "digest", "suffix"),
    *("near_copy", "withdraws"),
)
"""Columns of which an erased row keeps something; of `file` a keyed hash."""
_TEXT = tuple(name for name in COLUMNS if name not in (*STAYS, "width", "height", "bits", "age_years"))
_HIDDEN = re.compile("erased:[0-9a-f]{32}")
DETAIL = "erased"


class Place(Protocol):
    """Where traces lie: a store, or another that keeps files by key."""

    def write(self, key: str, data: bytes) -> None: ...
    def delete(self, key: str) -> None: ...


@dataclass(frozen=True)
class Trace:
    """A file that tells of what was erased: its key, and what comes in its place, by key; nothing where all goes."""

    key: str
    instead: Mapping[str, bytes] = field(default_factory=dict)

    def remove(self, place: Place) -> None:
        """Put what is without it in its place, then delete it. May be repeated. Raises what the place raises."""
        for key, data in self.instead.items():
            place.write(key, data)
        if self.key not in self.instead:
            place.delete(self.key)


@dataclass(frozen=True)
class Erased:
    """All that was erased: radiographs (digests), patients (keyed hashes), and deliveries with the digests of theirs
    that stay, as others brought them too.

    `key` is that of the patient hash, and `pattern` finds a patient in a file's name (`IntakeRules.patient_pattern`).
    """

    digests: frozenset[str]
    patients: frozenset[str]
    deliveries: Mapping[str, frozenset[str]]
    key: bytes
    pattern: str

    def hidden(self, path: str) -> str:
        """Return what stays of the path of an erased file: a keyed hash."""
        return f"erased:{hmac.new(self.key, f'path:{path}'.encode(), hashlib.sha256).hexdigest()[:32]}"

    def rows(self, table: pd.DataFrame, delivery: str) -> NDArray[np.bool_]:
        """Return which rows of an intake table of a delivery (its name) tell of what was erased, and are to go."""
        out = table["digest"].isin(self.digests) | table["patient"].isin(self.patients)
        if self.patients:
            unknown = table["patient"] == ""
            out |= unknown & table["file"].where(unknown, "").map(self._patient_in).isin(self.patients)
        if delivery in self.deliveries:
            out |= ~table["digest"].isin(self.deliveries[delivery])
        bare = hidden(table["file"]) & (table[list(_TEXT)] == "").all(axis=1)
        return np.asarray(out & ~bare, np.bool_)

    def redacted(self, table: pd.DataFrame, which: NDArray[np.bool_], paths: Iterable[str] = ()) -> pd.DataFrame:
        """Return a table in which some rows are erased, and further paths (of the same delivery) hidden."""
        if not which.any() and not table["file"].isin(set(paths)).any():
            return table
        table = table.copy()
        named = which | np.asarray(table["file"].isin(set(paths)))
        table.loc[named, "file"] = table.loc[named, "file"].map(self.hidden)
        table.loc[which, list(_TEXT)] = ""
        table.loc[which, ["width", "height", "bits"]] = 0
        table.loc[which, "age_years"] = float("nan")
        table.loc[which & np.asarray(table["detail"] != ""), "detail"] = DETAIL
        return table

    def of_table(self, table: pd.DataFrame, delivery: str) -> pd.DataFrame:
        """Return an intake table of a delivery as it may be kept: without what was erased."""
        return self.redacted(table, self.rows(table, delivery))

    def of_tables(self, tables: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, pd.DataFrame]]:
        """Yield those manifests, by key, that tell of what was erased, as they may be kept.

        A path is hidden in all parts of its delivery.
        """
        which = {key: self.rows(table, part_of(key)[0]) for key, table in tables.items()}
        paths: dict[str, set[str]] = {}
        for key, table in tables.items():
            paths.setdefault(part_of(key)[0], set()).update(table["file"][which[key]])
        for key, table in tables.items():
            kept = self.redacted(table, which[key], paths[part_of(key)[0]])
            if kept is not table:
                yield key, kept

    def _patient_in(self, file: str) -> str:
        """Return the keyed hash of the patient whom a file's name names, "" for none, as the intake tells it."""
        named = id_in_name(self.pattern, file)
        return patient_hash(self.key, f"patient:{named}") if named else ""


def hidden(files: pd.Series) -> NDArray[np.bool_]:
    """Return which paths of an intake table are those of erased files."""
    return np.asarray(files.str.fullmatch(_HIDDEN), np.bool_)


def digests_of(amendments: Mapping[int, Amendment]) -> frozenset[str]:
    """Return the digests of all erased radiographs."""
    changes = (change for amendment in amendments.values() for change in amendment.changes)
    return frozenset(digest for change in changes if change.erase for digest in change.radiographs)


def erased_by(amendments: Mapping[int, Amendment], key: bytes, pattern: str) -> Erased:
    """Return what amendments erased. `key` and `pattern` are as in `Erased`."""
    changes = [change for amendment in amendments.values() for change in amendment.changes if change.erase]
    deliveries = {change.name: frozenset(change.left) for change in changes if change.subject == "delivery"}
    patients = frozenset(change.name for change in changes if change.subject == "patient")
    return Erased(digests_of(amendments), patients, deliveries, key, pattern)
