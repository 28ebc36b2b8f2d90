"""Files judged together: what a delivery's radiographs are to each other and to the dataset."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final

import pandas as pd

from xray_pipeline.base.settings import Settings
from xray_pipeline.dataset import near_copies
from xray_pipeline.dataset.fingerprints import Prints
from xray_pipeline.dataset.history import History


def rejudge(table: pd.DataFrame, history: History, settings: Settings) -> pd.DataFrame:
    """Judge the accepted rows of an intake table once more against each other and the dataset.

    Quarantines label conflicts, duplicates, patients on two sides and copies across the split, and notes near copies on
    the same side and what a label conflict takes out of the dataset; rows that are quarantined already stay so. Raises
    DatasetError.
    """
    table = table.copy()
    accepted = table.loc[table["verdict"] == "accepted", ["digest", "label", "patient", "side", "given_split"]]
    found = _same_images(accepted, history)
    found |= _two_sides(accepted.drop(index=list(found)), history)
    rest = accepted.drop(index=list(found))
    copies, kept = _near_copies(table, rest.index, history, settings.workers)
    near = kept | {row: digest for row, (digest, _) in copies.items()}
    disputed = [row for row, (reason, _) in found.items() if reason == "label-conflict"]
    disputed += table.index[(table["reason"] == "label-conflict") & (table["digest"] != "")].tolist()
    both, withdrawn = _two_labels(table, rest.index.tolist(), disputed, near, history, settings.workers)
    found |= {row: ("copy-across-split", detail) for row, (_, detail) in copies.items()}
    found |= {row: ("label-conflict", detail) for row, (_, detail) in both.items()}
    near |= {row: digest for row, (digest, _) in both.items()}
    table.loc[rest.index, "near_copy"] = [near.get(row, "") for row in rest.index]
    if withdrawn:
        table.loc[list(withdrawn), "withdraws"] = list(withdrawn.values())
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
        if digest in history.contested.side:
            found |= {
                row: ("label-conflict", "it, or a near copy, was delivered under two labels before") for row, *_ in same
            }
        elif len(labels) > 1:
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
        for row, place in zip(rows, near_copies.nearest(mine, others, workers, itself=mine is others), strict=True):
            if place >= 0:
                yield row, others.digests[place]


def _two_labels(
    table: pd.DataFrame,
    accepted: Sequence[int],
    disputed: Sequence[int],
    near: Collection[int],
    history: History,
    workers: int,
) -> tuple[_Findings, dict[int, str]]:
    """Return the rows that are out because the near copies they are connected with do not share one label, as (digest
    of such a copy, detail), and for these and the `disputed` rows (the same image under two labels) the earlier
    deliveries' radiographs that are out with them. `near` are the rows that have a near copy."""
    here, known, contested = [*accepted, *disputed], history.prints, history.contested
    mine = Prints.of(table, here)
    starts = set(range(len(accepted), len(here)))
    starts |= {at for at, _ in _copied(range(len(here)), mine, contested, workers)}
    # Where the copies of one image have two labels, two of them are near copies of each other: each that has a copy at
    # all is asked for one under another label.
    if copied := [at for at, row in enumerate(here) if row in near]:
        both = Prints.joined([mine, known])
        labels = [*table.loc[here, "label"], *map(history.labels, known.digests)]
        for label in sorted({labels[at] for at in copied}):
            asked = [at for at in copied if labels[at] == label]
            others = both.take([at for at, other in enumerate(labels) if other != label])
            starts |= {at for at, _ in _copied(asked, mine.take(asked), others, workers)}
    if not starts:
        return {}, {}
    links = _links(sorted(starts), Prints.joined([mine, known, contested]), workers)
    rows_of: dict[str, list[int]] = {}
    for row, digest in sorted(zip(here, mine.digests, strict=True)):
        rows_of.setdefault(digest, []).append(row)
    settled, out, withdrawn = set(disputed), _Findings(), dict[int, str]()
    for group in _groups(links, rows_of):
        rows = [(row, digest) for digest in group for row in rows_of.get(digest, ())]
        earlier = group.keys() - rows_of.keys()
        said = {*table.loc[[row for row, _ in rows], "label"], *map(history.labels, group)} - {None}
        where = "in the dataset and here" if any(map(history.labels, earlier)) else "in this delivery"
        detail = f"near copies labelled {' and '.join(sorted(said))} {where}"
        if len(said) == 1:
            detail = "near copy of an image that was delivered under two labels before"
        for number, (row, digest) in enumerate(rows):
            if row not in settled:
                out[row] = (group[digest], detail)
            withdrawn[row] = " ".join(sorted(earlier if number == 0 else earlier & links[digest]))
    return out, withdrawn


def _links(places: Sequence[int], every: Prints, workers: int) -> dict[str, set[str]]:
    """Return the near copies, by digest, of all that those at `places` are connected with."""
    links: dict[str, set[str]] = {}
    reached = {every.digests[at]: at for at in places}
    asking = list(reached.values())
    while asking:
        further = {}
        for at, other in near_copies.every(every.take(asking), every, workers):
            one, two = every.digests[asking[at]], every.digests[other]
            if one != two:
                links.setdefault(one, set()).add(two)
                links.setdefault(two, set()).add(one)
                if two not in reached:
                    further[two] = other
        reached |= further
        asking = list(further.values())
    return links


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
