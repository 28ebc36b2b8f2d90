"""The rules of the dataset, written anew and plainly: what a delivery's rows become, and what a snapshot holds.

It is simple because near copies are known here: two radiographs are if they are of one chest. Nothing of the package's
tables, fingerprints and searches is used; what the two say must agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from universe import Radiograph

STAY_FIRST = ("held-out", "validation", "train")


@dataclass
class Row:
    """One file of a committed delivery: "" as its reason when it was accepted."""

    one: Radiograph
    label: str
    reason: str = ""
    delivery: str = ""


@dataclass
class Kept:
    """All commits so far."""

    rows: list[Row] = field(default_factory=list)
    amendments: dict[int, list[dict[str, Any]]] = field(default_factory=dict)

    def _standing(self) -> list[dict[str, Any]]:
        undone = {int(ch["name"]) for changes in self.amendments.values() for ch in changes if ch["action"] == "undo"}
        return [ch for number, changes in sorted(self.amendments.items()) if number not in undone for ch in changes]

    def settled(self) -> dict[str, str]:
        """Return the labels that people gave, by digest; the latest counts."""
        return {d: ch["label"] for ch in self._standing() if ch["action"] == "relabel" for d in ch["radiographs"]}

    def out(self, one: Radiograph) -> bool:
        """Whether a radiograph, or its patient, is withdrawn."""
        for change in self._standing():
            if change["action"] == "withdraw":
                by_patient = change["subject"] == "patient" and change["name"] == one.patient
                if by_patient or one.digest in change.get("radiographs", ()):
                    return True
        return False

    def erased(self, row: Row) -> bool:
        """Whether nothing may be left of what a row shows, and whom."""
        for change in [ch for changes in self.amendments.values() for ch in changes if ch.get("erase")]:
            by_delivery = change["subject"] == "delivery" and change["name"] == row.delivery
            by_patient = change["subject"] == "patient" and change["name"] == row.one.patient
            if row.one.digest in change.get("radiographs", ()) or by_patient:
                return True
            if by_delivery and row.one.digest not in change.get("left", ()):
                return True
        return False

    def known(self) -> list[Row]:
        """Return the rows by which a near copy is known: what they show is kept."""
        return [row for row in self.rows if row.reason != "withdrawn" and not self.erased(row)]

    def label(self, row: Row) -> str:
        return self.settled().get(row.one.digest, row.label)

    def held(self) -> list[Row]:
        return [row for row in self.rows if not row.reason and not self.out(row.one)]

    def contested(self) -> set[int]:
        """Return the chests whose radiographs, accepted or in conflict, have two labels."""
        said = [row for row in self.rows if row.reason in ("", "label-conflict") and not self.out(row.one)]
        settled = self.settled()
        decided = {row.one.chest for row in said if row.one.digest in settled}
        labels: dict[int, set[str]] = {}
        for row in said:
            if row.one.digest in settled or row.one.chest not in decided:
                labels.setdefault(row.one.chest, set()).add(self.label(row))
        return {chest for chest, given in labels.items() if len(given) > 1}

    def snapshot(self) -> dict[str, tuple[str, str]]:
        """Return label and side of each radiograph that a snapshot of now holds, by digest."""
        contested = self.contested()
        rows = (row for row in self.held() if row.one.chest not in contested)
        return {row.one.digest: (self.label(row), row.one.side) for row in rows}

    def judged(self, delivery: str, files: Sequence[tuple[Radiograph, str]]) -> list[Row]:
        """Return what the files of a delivery, in the order of their paths, become."""
        rows = [Row(one, label, delivery=delivery) for one, label in files]
        withdrawn = {row.one.chest for row in self.known() if self.out(row.one)}
        for row in rows:
            if self.out(row.one) or row.one.chest in withdrawn:
                row.reason = "withdrawn"
        self._same_images([row for row in rows if not row.reason])
        rest = [row for row in rows if not row.reason]
        disputed = {row.one.chest for row in rows if row.reason == "label-conflict"}
        held = self.held()
        staying: list[Row] = []
        for side in STAY_FIRST:
            for row in [row for row in rest if row.one.side == side]:
                if any(self._across(row, other) for other in [*held, *staying]):
                    row.reason = "copy-across-split"
            staying += [row for row in rest if row.one.side == side and not row.reason]
        two_labels = disputed | self.contested()
        for chest in {row.one.chest for row in rest}:
            labels = {self.label(row) for row in [*rest, *held] if row.one.chest == chest}
            if len(labels) > 1 or chest in two_labels:
                for row in rest:
                    row.reason = "label-conflict" if row.one.chest == chest else row.reason
        return rows

    def _across(self, row: Row, other: Row) -> bool:
        return other.one.chest == row.one.chest and other.one.side != row.one.side

    def _same_images(self, rows: list[Row]) -> None:
        contested = self.contested()
        known = {row.one.digest: self.label(row) for row in self.held()}
        for digest in {row.one.digest for row in rows}:
            same = [row for row in rows if row.one.digest == digest]
            labels = {self.label(row) for row in same} | ({known[digest]} if digest in known else set())
            seen = any(r.one.digest == digest and r.reason in ("", "label-conflict") for r in self.rows)
            if len(labels) > 1 or (same[0].one.chest in contested and seen):
                _set(same, "label-conflict")
            else:
                _set(same if digest in known else same[1:], "duplicate")


def _set(rows: Iterable[Row], reason: str) -> None:
    for row in rows:
        row.reason = reason
