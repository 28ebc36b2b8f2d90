"""What a person asks to be amended, and the radiographs that it holds for: those named, and their copies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd
from scipy.cluster.hierarchy import DisjointSet

from xray_pipeline.base.errors import AmendmentError
from xray_pipeline.dataset import near_copies
from xray_pipeline.dataset.amendments import Action, Amendment, Change, Subject, in_force
from xray_pipeline.dataset.fingerprints import Prints
from xray_pipeline.dataset.history import History


@dataclass(frozen=True)
class Asked:
    """One correction that is asked for; the fields are those of `amendments.Change`."""

    action: Action
    subject: Subject
    name: str
    label: str = ""


def changes(
    asked: Sequence[Asked], history: History, amendments: dict[int, Amendment], classes: Sequence[str], workers: int = 0
) -> tuple[Change, ...]:
    """Return what is asked for as changes, each with the radiographs that it finds in the dataset of this moment.

    A radiograph stands for all that near copies connect it with, as they show one chest, also for those that are
    withdrawn already: that may be undone. A patient's are withdrawn with their copies, too, and whatever comes of the
    patient later; of a delivery only those that it alone brought, and the others are named as left. Raises
    AmendmentError, for the first that can't be done: none of them is.
    """
    said = history.said()
    found = [_named(one, said, history) for one in asked]
    copies = _copies({digest for digests in found for digest in digests}, history, workers)
    made = [_change(one, digests, copies, said, amendments, classes) for one, digests in zip(asked, found, strict=True)]
    labels: dict[str, str] = {}
    for change in made:
        if change.action == "relabel":
            for digest in change.radiographs:
                if labels.setdefault(digest, change.label) != change.label:
                    raise AmendmentError(
                        f"radiograph {change.name[:12]} would be both {labels[digest]} and {change.label}: it, or a "
                        f"near copy of it, is named twice; give one label"
                    )
    return tuple(made)


def _named(asked: Asked, said: pd.DataFrame, history: History) -> set[str]:
    """Return the radiographs that are asked about by themselves. Raises AmendmentError when there are none."""
    if asked.action == "undo":
        return set()
    column = {"radiograph": "digest", "patient": "patient", "delivery": "delivery"}[asked.subject]
    rows = said[said[column] == asked.name]
    out = history.withdrawn_of(asked.name) if (asked.action, asked.subject) == ("withdraw", "patient") else None
    if out is not None and asked.name not in history.amended.patients:
        return {*rows["digest"], *out}  # none may stand now, or be accepted: the patient is withdrawn all the same
    if rows.empty:
        shown = asked.name if asked.subject == "delivery" else asked.name[:12]
        number = {"radiograph": history.amended.withdrawn, "patient": history.amended.patients}.get(asked.subject, {})
        why = f"amendment {number[asked.name]} withdrew it" if asked.name in number else "the dataset holds none of it"
        raise AmendmentError(f"{asked.subject} {shown} can't be amended: {why}")
    if asked.subject == "delivery":  # what another delivery brought, too, is not this one's alone
        taken = set(said.loc[(said["delivery"] != asked.name) & (said["verdict"] == "accepted"), "digest"])
        return set(rows["digest"]) - taken
    return set(rows["digest"])


def _copies(digests: Iterable[str], history: History, workers: int) -> DisjointSet:
    """Return radiographs, all that near copies connect them with, as groups that show one chest each."""
    known = Prints.joined([history.prints, history.disputed, history.withdrawn])
    place_of = {digest: place for place, digest in enumerate(known.digests)}
    wanted = sorted(set(digests))
    chests = DisjointSet(wanted)
    places = [place_of[digest] for digest in wanted if digest in place_of]  # not of what came in withdrawn already
    for one, others in near_copies.links(places, known, workers).items():
        for other in (one, *others):
            chests.add(other)
            chests.merge(one, other)
    return chests


def _change(
    asked: Asked,
    named: set[str],
    copies: DisjointSet,
    said: pd.DataFrame,
    amendments: dict[int, Amendment],
    classes: Sequence[str],
) -> Change:
    if asked.action == "undo":
        return _undo(asked, amendments)
    all_of_them = {copy for digest in named for copy in copies.subset(digest)}
    if asked.action == "withdraw":
        left = (all_of_them - named).intersection(said["digest"]) if asked.subject == "delivery" else set()
        return Change("withdraw", asked.subject, asked.name, "", tuple(sorted(all_of_them - left)), tuple(sorted(left)))
    if asked.subject != "radiograph" or asked.label not in classes:
        raise AmendmentError(
            f"{asked.subject} {asked.name[:12]} can't be relabelled so: name a radiograph and one of the classes "
            f"{', '.join(classes)}"
        )
    if set(said.loc[said["digest"].isin(all_of_them), "label"]) == {asked.label}:
        raise AmendmentError(f"radiograph {asked.name[:12]} and its copies are labelled {asked.label} already")
    return Change("relabel", "radiograph", asked.name, asked.label, tuple(sorted(all_of_them)))


def _undo(asked: Asked, amendments: dict[int, Amendment]) -> Change:
    standing = in_force(amendments)
    if not asked.name.isdecimal() or int(asked.name) not in standing:
        there = ", ".join(map(str, standing)) or "none"
        named = asked.name if asked.name.isdecimal() else "of that number"  # anything may have been typed, a name too
        raise AmendmentError(f"no amendment {named} stands that could be undone; there are: {there}")
    return Change("undo", "amendment", str(int(asked.name)))
