"""Files judged together: what a delivery's radiographs are to each other and to the dataset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, Protocol

import pandas as pd

from xray_pipeline.data_quality import near_duplicates
from xray_pipeline.data_quality.near_duplicates import Prints
from xray_pipeline.settings import Settings


class History(Protocol):
    """What the dataset already holds: the context in which a delivery is judged."""

    def seen(self, name: str) -> tuple[int, frozenset[tuple[str, int, str]]]:
        """Return how many parts of delivery `name` are committed, and their files as (file, size, version)."""

    def labels(self, digest: str) -> str | None:
        """Return the label of a committed radiograph, None when there is none."""

    def side(self, patient: str) -> str | None:
        """Return the side of the split that a committed patient is on, None for a new one."""

    def reference(self) -> pd.DataFrame:
        """Return what a delivery is compared with: digest, patient, label, statistics, age_years of each radiograph."""

    @property
    def prints(self) -> Prints:
        """The fingerprints of the committed radiographs."""


class _NoHistory:
    def seen(self, name: str) -> tuple[int, frozenset[tuple[str, int, str]]]:
        return 0, frozenset()

    def labels(self, digest: str) -> str | None:
        return None

    def side(self, patient: str) -> str | None:
        return None

    def reference(self) -> pd.DataFrame:
        return pd.DataFrame(columns=["digest", "patient", "label", "statistics", "age_years"])

    @property
    def prints(self) -> Prints:
        return Prints.joined([])


EMPTY: Final[History] = _NoHistory()


def rejudge(table: pd.DataFrame, history: History, settings: Settings) -> pd.DataFrame:
    """Judge the accepted rows of an intake table once more against each other and the dataset.

    Quarantines label conflicts, duplicates, patients on two sides and copies across the split, and notes near copies on
    the same side; rows that are quarantined already stay so. Raises DatasetError.
    """
    table = table.copy()
    accepted = table.loc[table["verdict"] == "accepted", ["digest", "label", "patient", "side", "given_split"]]
    found = _same_images(accepted, history)
    found |= _two_sides(accepted.drop(index=list(found)), history)
    rest = accepted.drop(index=list(found))
    copies, kept = _near_copies(table, rest.index, history, settings.workers)
    found |= {row: ("copy-across-split", detail) for row, (_, detail) in copies.items()}
    near = kept | {row: digest for row, (digest, _) in copies.items()}
    found |= _two_labels(rest, near, history)
    table.loc[rest.index, "near_copy"] = [near.get(row, "") for row in rest.index]
    if found:
        out = list(found)
        table.loc[out, ["verdict", "side"]] = ["quarantined", ""]
        table.loc[out, "reason"] = [found[row][0] for row in out]
        table.loc[out, "detail"] = [found[row][1] for row in out]
    return table


_Findings = dict[int, tuple[str, str]]
_KEPT_FIRST: Final = ("held-out", "validation", "train")


def _same_images(accepted: pd.DataFrame, history: History) -> _Findings:
    by_digest: dict[str, list[tuple[int, str, str, str]]] = {}
    for row, digest, *said in accepted[["digest", "label", "side", "given_split"]].itertuples(name=None):
        by_digest.setdefault(digest, []).append((row, *said))
    found: _Findings = {}
    for digest, same in by_digest.items():
        known = history.labels(digest)
        labels = sorted({label for _, label, *_ in same} | ({known} if known else set()))
        if len(labels) > 1:
            where = "in the dataset and here" if known else "in this delivery"
            found |= {row: ("label-conflict", f"labelled {' and '.join(labels)} {where}") for row, *_ in same}
        elif known:
            found |= _copies(same, history.prints.side.get(digest, ""), "the dataset holds this image")
        else:
            row, _, side, _ = min(same, key=_stays_before)
            found |= _copies([one for one in same if one[0] != row], side, f"the same image as row {row}")
    return found


def _stays_before(copy: tuple[int, str, str, str]) -> tuple[int, int]:
    """Order exact copies: a side that the delivery gave counts, one that was drawn does not; then the first path."""
    row, _, side, given = copy
    return (_KEPT_FIRST.index(side) if given == side else len(_KEPT_FIRST), row)


def _copies(copies: Iterable[tuple[int, str, str, str]], kept: str, detail: str) -> _Findings:
    """Return the findings for exact copies (row, label, side, given side) of an image that stays on side `kept`.

    It is a leak when the delivery itself puts the copy on another side. A side drawn for a patient of whom nothing is
    known but this file says nothing: that is an image delivered again.
    """
    return {
        row: ("copy-across-split", f"{detail}, in {kept}") if kept and kept != given == side else ("duplicate", detail)
        for row, _, side, given in copies
    }


def _near_copies(
    table: pd.DataFrame, accepted: pd.Index, history: History, workers: int
) -> tuple[_Findings, dict[int, str]]:
    """Return the rows that a near copy on another side puts out, as (digest of that copy, detail), and for the other
    accepted ones the digest of a near copy on their own side. The dataset's stay, then held-out before the rest."""
    out: _Findings = {}
    kept: dict[int, str] = {}
    known, staying = history.prints.by_side, dict[str, Prints]()
    for side in _KEPT_FIRST:
        rows = accepted[table.loc[accepted, "side"] == side].tolist()
        mine = Prints.of(table, rows)
        for other in _KEPT_FIRST:
            if other != side:
                for where, prints in (("the dataset", known), ("this delivery", staying)):
                    for row, digest in _copied(rows, mine, prints.get(other), workers):
                        out.setdefault(row, (digest, f"near copy of an image in {other}, in {where}"))
        left = [at for at, row in enumerate(rows) if row not in out]
        rows, mine = [rows[at] for at in left], mine.take(left)
        for same in (known.get(side), mine):
            for row, digest in _copied(rows, mine, same, workers):
                kept.setdefault(row, digest)
        staying[side] = mine
    return out, kept


def _copied(rows: Sequence[int], mine: Prints, others: Prints | None, workers: int) -> Iterator[tuple[int, str]]:
    """Yield the rows that have a near copy among the others, with its digest."""
    if others is not None:
        for row, place in zip(rows, near_duplicates.nearest(mine, others, workers, itself=mine is others), strict=True):
            if place >= 0:
                yield row, others.digests[place]


def _two_labels(accepted: pd.DataFrame, near: Mapping[int, str], history: History) -> _Findings:
    """Return the findings for near copies under different labels: both are out, as for the same image."""
    here = {digest: (row, label) for row, digest, label in accepted[["digest", "label"]].itertuples(name=None)}
    found: _Findings = {}
    for row, digest in near.items():
        label = accepted.at[row, "label"]
        other, theirs = here.get(digest, (-1, history.labels(digest) or label))
        if theirs != label:
            where = "in this delivery" if digest in here else "in the dataset and here"
            detail = f"near copies labelled {' and '.join(sorted((label, theirs)))} {where}"
            found |= {at: ("label-conflict", detail) for at in (row, other) if at >= 0}
    return found


def _two_sides(accepted: pd.DataFrame, history: History) -> _Findings:
    by_patient: dict[str, list[tuple[int, str]]] = {}
    for row, patient, side in zip(accepted.index, accepted["patient"], accepted["side"], strict=True):
        by_patient.setdefault(patient, []).append((row, side))
    found: _Findings = {}
    for patient, images in by_patient.items():
        known = history.side(patient)
        sides = sorted({side for _, side in images})
        if known:
            detail = f"the dataset has this patient in {known}"
            found |= {row: ("patient-on-two-sides", detail) for row, side in images if side != known}
        elif len(sides) > 1:
            found |= {row: ("patient-on-two-sides", f"given as {' and '.join(sides)}") for row, _ in images}
    return found
