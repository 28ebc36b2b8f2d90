"""Amendments: what a person corrected in the dataset, and what all amendments say together.

An amendment is a commit of its own kind. It takes the next place in the chain as a manifest does, and what it says
stands in the commit itself, so that one write-if-absent makes all of it and nothing is left to be finished:

    commits/41: manifest mon      commits/42: amendment                     commits/43: manifest tue
    (a and b are PNEUMONIA)       (a is NORMAL; it found a and b;           (judged with a and b NORMAL)
                                   who, when, why)

No manifest is changed, erasures aside: what amendments say is laid over its rows when they are read. A change names the
radiographs that it found when it was made, copies included, so that it means the same for ever. A later amendment
counts before an earlier one; one that is undone counts as never made, from the next snapshot on. Patients are named by
their keyed hash.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xray_pipeline.base.records import aware, canonical, digest_of

Action = Literal["relabel", "withdraw", "undo"]
Subject = Literal["radiograph", "patient", "delivery", "amendment"]


class Change(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One correction: what is done to which subject, and the radiographs (digests) that it found and so holds for.

    `name` is the digest of a radiograph, the keyed hash of a patient, the name of a delivery or the number of an
    amendment; `label` is the one that a relabelling gives; `left` are what a withdrawal leaves in: copies, near or
    exact, that another delivery brought; `erase` says that what is withdrawn is erased, too (erasing.py).
    """

    action: Action
    subject: Subject
    name: str
    label: str = ""
    radiographs: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    erase: bool = False

    def __post_init__(self) -> None:
        if self.action == "undo" and not (self.name.isascii() and self.name.isdigit()):
            raise ValueError(f"{self.name!r} is no number of an amendment that could be undone")


class Amendment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Corrections that one person made at once, when (ISO 8601) and why.

    `manifests` are those that an erasure rewrote, by key: the SHA-256 of what they are from now on.
    """

    who: str
    at: str
    why: str
    changes: tuple[Change, ...]
    manifests: dict[str, str] = {}

    def __post_init__(self) -> None:
        aware(self.at)

    @property
    def erases(self) -> bool:
        """Whether it erases something."""
        return any(change.erase for change in self.changes)

    def undoes(self) -> set[int]:
        """Return the numbers of the amendments that this one undoes."""
        return {int(change.name) for change in self.changes if change.action == "undo"}


@dataclass(frozen=True)
class Amended:
    """What amendments say together: labels by the digest of a radiograph, and which radiographs (digests), patients
    (keyed hashes) and deliveries (names) are withdrawn, with the number of the amendment that says so.

    Of a withdrawn delivery the radiographs that it alone had brought are among the withdrawn ones; its name is for what
    is added to it later.
    """

    labels: Mapping[str, str] = field(default_factory=dict)
    withdrawn: Mapping[str, int] = field(default_factory=dict)
    patients: Mapping[str, int] = field(default_factory=dict)
    deliveries: Mapping[str, int] = field(default_factory=dict)

    def digest(self) -> str:
        """Return the SHA-256 of all this says."""
        return digest_of(
            canonical([dict(part) for part in (self.labels, self.withdrawn, self.patients, self.deliveries)])
        )

    def labelled(self, table: pd.DataFrame) -> pd.Series:
        """Return the label of each row: the one that a person settled, else the one it was delivered with."""
        if not self.labels:
            return table["label"]
        return table["digest"].map(self.labels).fillna(table["label"]).astype("str")

    def by(self, table: pd.DataFrame, delivery: str = "") -> NDArray[np.int64]:
        """Return for each row the number of the amendment that withdrew its radiograph or its patient, else of the one
        that withdrew `delivery` (its name), 0 for none."""
        by_digest, by_patient = table["digest"].map(self.withdrawn), table["patient"].map(self.patients)
        return np.asarray(by_digest.fillna(by_patient).fillna(self.deliveries.get(delivery, 0)), np.int64)

    def out(self, table: pd.DataFrame) -> NDArray[np.bool_]:
        """Return which rows are withdrawn."""
        if not (self.withdrawn or self.patients):
            return np.zeros(len(table), np.bool_)
        return self.by(table) > 0


NOTHING: Final = Amended()
"""No amendment was ever made."""


def standing(amendments: Mapping[int, Amendment]) -> set[int]:
    """Return the numbers of the amendments that nothing undid; what undoes others can't be undone."""
    return set(amendments) - {number for amendment in amendments.values() for number in amendment.undoes()}


def in_force(amendments: Mapping[int, Amendment]) -> dict[int, Amendment]:
    """Return the amendments, by number, that stand: none that is undone, and none that only undoes others."""
    return {
        number: amendments[number]
        for number in sorted(standing(amendments))
        if any(change.action != "undo" for change in amendments[number].changes)
    }


def together(amendments: Mapping[int, Amendment]) -> Amended:
    """Return what amendments, by number, say together."""
    labels: dict[str, str] = {}
    withdrawn: dict[str, int] = {}
    patients: dict[str, int] = {}
    deliveries: dict[str, int] = {}
    for number, change in _changes(in_force(amendments)):
        if change.action == "relabel":
            labels |= dict.fromkeys(change.radiographs, change.label)
        elif change.action == "withdraw":
            for digest in change.radiographs:
                withdrawn.setdefault(digest, number)
            if change.subject == "patient":
                patients.setdefault(change.name, number)
            if change.subject == "delivery":
                deliveries.setdefault(change.name, number)
    return Amended(labels, withdrawn, patients, deliveries)


def _changes(amendments: Mapping[int, Amendment]) -> Iterable[tuple[int, Change]]:
    return ((number, change) for number in sorted(amendments) for change in amendments[number].changes)
