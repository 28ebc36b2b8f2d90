"""Radiographs that are at odds with each other: copies, one chest under two labels, one patient on two sides.

Each file was judged by itself; here the accepted ones are compared with each other and with the dataset, in this order:

    what was withdrawn   the same image, a near copy of it, the same patient or delivery: out (withdrawn)
    the same image       under two labels: all are out (label-conflict); else one stays (duplicate, copy-across-split)
    the same patient     on two sides of the split: the dataset's stays; where it has none, all are out
    near copies          across the split: one side stays (copy-across-split)
    near copies          under two labels: all are out, the dataset's too (label-conflict)

The last is the hardest. A chest has one label, and near copies show one chest, so the radiographs that near copies
connect must agree, however long the way between two of them. Take two deliveries (N: NORMAL, P: PNEUMONIA):

    in the dataset         a:N ─── b:N                d:P
    in this delivery                │       e:N ─── f:P      g:N
                                   c:P

    c is a near copy of b:       {a, b, c} disagree. c is out, and its row says "withdraws a b", so that snapshots leave
                                 them out from now on. Both are named although c is no near copy of a.
    e and f are near copies:     {e, f} disagree. Both are out, and withdraw nothing.
    d and g have no near copy:   they are in.

Where a person settled the label of an image by an amendment, that one is compared, not the delivered one.

When c is deleted from its delivery and that is judged anew, its row stands no more, {a, b} agree, and both come back
(`dataset/revisions.contested` works that out from the commits alone). To find the groups without comparing everything
with everything, a search starts where a disagreement is possible, and follows near copies from there
(`near_copies.links`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import pandas as pd

from xray_pipeline.base.settings import Settings
from xray_pipeline.dataset import near_copies
from xray_pipeline.dataset.amendments import NOTHING
from xray_pipeline.dataset.fingerprints import Prints
from xray_pipeline.dataset.history import History
from xray_pipeline.dataset.revisions import CONFLICT, WITHDRAWN
from xray_pipeline.dataset.split import side_of
from xray_pipeline.dataset.table import PERSONAL


def mark_conflicts(table: pd.DataFrame, history: History, settings: Settings, delivery: str = "") -> pd.DataFrame:
    """Judge the accepted rows of an intake table once more against each other and the dataset; `delivery` is the name.

    Returns a copy in which what was withdrawn, label conflicts, duplicates, patients on two sides and copies across the
    split are quarantined, and near copies on the same side and what a label conflict takes out of the dataset are
    noted; rows that are quarantined already stay so, but for conflicts and copies that an earlier look found: a commit
    since may have ended, or begun, a conflict. Of what was erased a row keeps no more than `Erased` says. Raises
    DatasetError.
    """
    table, delivered = table.copy(), table["label"]
    _take_back(table, settings)
    _mark_withdrawn(table, history, settings.workers, delivery)
    table["label"] = history.amended.labelled(table)
    history.expect(table["digest"], table["patient"])
    accepted = table.loc[table["verdict"] == "accepted", ["digest", "label", "patient", "side", "given_split"]]
    out = _same_images(accepted, history)
    out |= _two_sides(accepted.drop(index=list(out)), history)
    rest = accepted.drop(index=list(out)).index
    across, near = _near_copies(table, rest, history, settings.workers)
    near |= {row: copy for row, (copy, _) in across.items()}
    disputed = [row for row, (reason, _) in out.items() if reason == CONFLICT]
    differing, withdrawn = _two_labels(table, rest.tolist(), disputed, near, history, settings.workers)
    out |= {row: (ACROSS, detail) for row, (_, detail) in across.items()}
    out |= {row: (CONFLICT, detail) for row, (_, detail) in differing.items()}
    near |= {row: copy for row, (copy, _) in differing.items()}
    table.loc[rest, "near_copy"] = [near.get(row, "") for row in rest]
    if withdrawn:
        table.loc[list(withdrawn), "withdraws"] = list(withdrawn.values())
    if out:
        table.loc[list(out), ["verdict", "side"]] = ["quarantined", ""]
        table.loc[list(out), ["reason", "detail"]] = list(out.values())
    table["label"] = delivered
    return history.erased.of_table(table, delivery) if history.erased else table


def _take_back(table: pd.DataFrame, settings: Settings) -> None:
    """Accept rows again that an earlier look found to be at odds or copies, as they were before it."""
    rows = table.index[table["reason"].isin([CONFLICT, DUPLICATE, TWO_SIDES, ACROSS]) & (table["digest"] != "")]
    if len(rows):
        split = (settings.split_mode, settings.split_validation, settings.split_held_out)
        of = table.loc[rows, ["patient", "given_split"]].itertuples(index=False, name=None)
        table.loc[rows, ["verdict", "reason", "detail", "near_copy", "withdraws"]] = ["accepted", "", "", "", ""]
        table.loc[rows, "side"] = [side_of(patient, given, *split) for patient, given in of]


def _mark_withdrawn(table: pd.DataFrame, history: History, workers: int, delivery: str) -> None:
    """Quarantine the accepted rows of withdrawn radiographs, patients and deliveries, and near copies of the first; of
    what they show nothing is kept."""
    if history.amended == NOTHING:
        return
    accepted = np.asarray(table["verdict"] == "accepted")
    by = np.where(accepted, history.amended.by(table, delivery), 0)
    out = {row: f"withdrawn by amendment {number}" for row, number in zip(table.index, by, strict=True) if number}
    rest = table.index[accepted & (by == 0)].tolist()
    for row, _ in _copied(rest, Prints.of(table, rest), history.withdrawn, workers):
        out[row] = "near copy of a radiograph that was withdrawn"
    if out:
        table.loc[list(out), ["verdict", "side", "reason"]] = ["quarantined", "", WITHDRAWN]
        table.loc[list(out), "detail"] = list(out.values())
        table.loc[list(out), list(PERSONAL)] = ""
        table.loc[list(out), "age_years"] = float("nan")


_Reasons = dict[int, tuple[str, str]]
"""The reason and the detail for which a row is out, by row."""
_Copies = dict[int, tuple[str, str]]
"""The digest of a near copy, and the detail, for which a row is out, by row."""
DUPLICATE: Final = "duplicate"
TWO_SIDES: Final = "patient-on-two-sides"
ACROSS: Final = "copy-across-split"
_STAY_FIRST: Final = ("held-out", "validation", "train")


def _same_images(accepted: pd.DataFrame, history: History) -> _Reasons:
    """Return the rows that are out because their very image is there already, or has two labels."""
    by_digest: dict[str, list[tuple[int, str, str, str]]] = {}
    for row, digest, *said in accepted[["digest", "label", "side", "given_split"]].itertuples(name=None):
        by_digest.setdefault(digest, []).append((row, *said))
    out: _Reasons = {}
    for digest, same in by_digest.items():
        known = history.labels(digest)
        labels = sorted({label for _, label, *_ in same} | ({known} if known else set()))
        if history.contested.side(digest) is not None:
            detail = "it, or a near copy, was delivered under two labels before"
            out |= {row: (CONFLICT, detail) for row, *_ in same}
        elif len(labels) > 1:
            where = "in the dataset and here" if known else "in this delivery"
            out |= {row: (CONFLICT, f"labelled {' and '.join(labels)} {where}") for row, *_ in same}
        elif known:
            out |= _exact_copies(same, history.side_of(digest), "the dataset holds this image")
        else:
            row, _, side, _ = min(same, key=_stays_before)
            out |= _exact_copies([one for one in same if one[0] != row], side, f"the same image as row {row}")
    return out


def _stays_before(copy: tuple[int, str, str, str]) -> tuple[int, int]:
    """Order exact copies: a side that the delivery gave counts, one that was drawn does not; then the first path."""
    row, _, side, given = copy
    return (_STAY_FIRST.index(side) if given == side else len(_STAY_FIRST), row)


def _exact_copies(copies: Iterable[tuple[int, str, str, str]], stays_on: str, detail: str) -> _Reasons:
    """Return why exact copies (row, label, side, given side) of an image that stays on side `stays_on` are out.

    It is a leak when the delivery itself puts the copy on another side. A side drawn for a patient of whom nothing is
    known but this file says nothing: that is an image delivered again.
    """
    return {
        row: (ACROSS, f"{detail}, in {stays_on}") if stays_on and stays_on != given == side else (DUPLICATE, detail)
        for row, _, side, given in copies
    }


def _near_copies(
    table: pd.DataFrame, accepted: pd.Index, history: History, workers: int
) -> tuple[_Copies, dict[int, str]]:
    """Return the rows that a near copy on another side puts out, and for the other accepted ones the digest of a near
    copy on their own side. The dataset's stay, then held-out before the rest."""
    out: _Copies = {}
    on_same_side: dict[int, str] = {}
    known, staying = history.prints.by_side, dict[str, Prints]()
    for side in _STAY_FIRST:
        rows = accepted[table.loc[accepted, "side"] == side].tolist()
        mine = Prints.of(table, rows)
        for other in _STAY_FIRST:
            if other != side:
                for where, prints in (("the dataset", known), ("this delivery", staying)):
                    for row, digest in _copied(rows, mine, prints.get(other), workers):
                        out.setdefault(row, (digest, f"near copy of an image in {other}, in {where}"))
        left = [at for at, row in enumerate(rows) if row not in out]
        rows, mine = [rows[at] for at in left], mine.take(left)
        for same in (known.get(side), mine):
            for row, digest in _copied(rows, mine, same, workers):
                on_same_side.setdefault(row, digest)
        staying[side] = mine
    return out, on_same_side


def _copied(rows: Sequence[int], mine: Prints, others: Prints | None, workers: int) -> Iterator[tuple[int, str]]:
    """Yield the rows that have a near copy among the others, with its digest."""
    if others is not None:
        for row, place in zip(rows, near_copies.nearest(mine, others, workers, itself=mine is others), strict=True):
            if place >= 0:
                yield row, others.digest(place)


def _two_labels(
    table: pd.DataFrame,
    accepted: Sequence[int],
    disputed: Sequence[int],
    near: Collection[int],
    history: History,
    workers: int,
) -> tuple[_Copies, dict[int, str]]:
    """Return the rows that are out because the near copies they are connected with do not share one label; and for
    these and the `disputed` rows (the same image under two labels) the earlier deliveries' radiographs that are out
    with them. `near` are the rows that have a near copy."""
    here = [*accepted, *disputed]
    mine, known, contested = Prints.of(table, here), history.prints, history.contested
    starts = set(range(len(accepted), len(here)))
    starts |= {at for at, _ in _copied(range(len(here)), mine, contested, workers)}
    starts |= _under_another_label(table.loc[here, "label"], near, mine, history, workers)
    if not starts:
        return {}, {}
    links = near_copies.links(sorted(starts), Prints.joined([mine, known, contested]), workers)
    rows_of: dict[str, list[int]] = {}
    for row, digest in sorted(zip(here, mine.texts(), strict=True)):
        rows_of.setdefault(digest, []).append(row)
    already_out, out, withdrawn = set(disputed), _Copies(), dict[int, str]()
    for group in _groups(links, rows_of):
        rows = [(row, digest) for digest in group for row in rows_of.get(digest, ())]
        earlier = group.keys() - rows_of.keys()
        labels = {*table.loc[[row for row, _ in rows], "label"], *map(history.labels, group)} - {None}
        where = "in the dataset and here" if any(map(history.labels, earlier)) else "in this delivery"
        detail = f"near copies labelled {' and '.join(sorted(labels))} {where}"
        if len(labels) == 1:
            detail = "near copy of an image that was delivered under two labels before"
        for number, (row, digest) in enumerate(rows):
            if row not in already_out:
                out[row] = (group[digest], detail)
            withdrawn[row] = " ".join(sorted(earlier if number == 0 else earlier & links[digest]))
    return out, withdrawn


def _under_another_label(
    labels_here: pd.Series, near: Collection[int], mine: Prints, history: History, workers: int
) -> set[int]:
    """Return the places of rows that have a near copy under another label than their own, here or in the dataset.

    Where a group of copies has two labels, two of them are near copies of each other. So it is enough to ask, for each
    row that has a copy at all (`near`), among the radiographs of all other labels.
    """
    copied = [at for at, row in enumerate(labels_here.index) if row in near]
    if not copied:
        return set()
    everything = Prints.joined([mine, history.prints])
    held, names = history.held_labels
    names = list(dict.fromkeys((*names, *labels_here)))
    labels = np.concatenate([[names.index(label) for label in labels_here], held])
    found = set()
    for label in np.unique(labels[copied]).tolist():
        asked = [at for at in copied if labels[at] == label]
        others = everything.take(np.flatnonzero(labels != label))
        found |= {at for at, _ in _copied(asked, mine.take(asked), others, workers)}
    return found


def _groups(links: Mapping[str, set[str]], starts: Iterable[str]) -> Iterator[dict[str, str]]:
    """Yield what is connected with each of `starts`, each with one that it is linked to, so that these links alone
    connect the group."""
    done: set[str] = set()
    for start in starts:
        if start in links and start not in done:
            group = {start: min(links[start])}
            left = [start]
            while left:
                one = left.pop()
                new = sorted(links[one] - group.keys())
                group |= dict.fromkeys(new, one)
                left += new
            done |= group.keys()
            yield group


def _two_sides(accepted: pd.DataFrame, history: History) -> _Reasons:
    """Return the rows of patients who are on two sides of the split, but for those on the dataset's side."""
    by_patient: dict[str, list[tuple[int, str]]] = {}
    for row, patient, side in accepted[["patient", "side"]].itertuples(name=None):
        by_patient.setdefault(patient, []).append((row, side))
    out: _Reasons = {}
    for patient, rows in by_patient.items():
        known = history.side(patient)
        sides = sorted({side for _, side in rows})
        if known:
            detail = f"the dataset has this patient in {known}"
            out |= {row: (TWO_SIDES, detail) for row, side in rows if side != known}
        elif len(sides) > 1:
            out |= {row: (TWO_SIDES, f"given as {' and '.join(sides)}") for row, _ in rows}
    return out
