"""What a person asks to be amended, and the radiographs that it holds for: those named, and their copies.

A radiograph is found whatever became of it, quarantined or withdrawn before, as it may come back; to relabel, something
must stand that says what it shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
from scipy.cluster.hierarchy import DisjointSet

from xray_pipeline.base.errors import AmendmentError
from xray_pipeline.dataset import near_copies
from xray_pipeline.dataset.amendments import Action, Amendment, Change, Subject, in_force
from xray_pipeline.dataset.history import History


@dataclass(frozen=True)
class Asked:
    """One correction that is asked for; action to erase are the fields of `amendments.Change`.

    `line` is that of a list, for messages; 0 without one.
    """

    action: Action
    subject: Subject
    name: str
    label: str = ""
    erase: bool = False
    line: int = 0

    def refused(self, why: str) -> AmendmentError:
        """Return the error that says why it can't be done."""
        return AmendmentError(f"line {self.line} of the list: {why}" if self.line else why)


def changes(
    asked: Sequence[Asked],
    history: History,
    amendments: Mapping[int, Amendment],
    classes: Sequence[str],
    workers: int = 0,
) -> tuple[Change, ...]:
    """Return what is asked for as changes, each with the radiographs that it finds in the dataset of this moment.

    A radiograph stands for all that near copies connect it with, as they show one chest. A patient's are withdrawn with
    their copies, too, and whatever comes of the patient later, also of one who is not known yet; of a delivery only
    those that it alone brought, and what is added to it later: others are named as left. Raises AmendmentError, for the
    first that can't be done: none of them is.
    """
    known = _Known(history, amendments)
    for one in asked:
        if one.action == "relabel" and (one.subject != "radiograph" or one.label not in classes):
            raise one.refused(
                f"{one.subject} {one.name[:12]} can't be relabelled so: name a radiograph and one of the classes "
                f"{', '.join(classes)}"
            )
    found = [_named(one, known, amendments) for one in asked]
    copies = _copies({digest for digests in found for digest in digests}, history, workers)
    made = [_change(one, digests, copies, known) for one, digests in zip(asked, found, strict=True)]
    labels: dict[str, str] = {}
    for one, change in zip(asked, made, strict=True):
        for digest in change.radiographs if change.action == "relabel" else ():
            if labels.setdefault(digest, change.label) != change.label:
                raise one.refused(
                    f"radiograph {change.name[:12]} would be both {labels[digest]} and {change.label}: it, or a near "
                    f"copy of it, is named twice; give one label"
                )
    return tuple(made)


class _Known:
    """What a history knows, each table of it gone through once, however much is asked for."""

    def __init__(self, history: History, amendments: Mapping[int, Amendment]) -> None:
        self.history, self.amendments = history, amendments

    @cached_property
    def labels(self) -> dict[str, set[str]]:
        """The labels by digest of what says what a radiograph shows."""
        rows = self.history.said()
        return grouped(zip(rows["digest"], rows["label"], strict=True))

    @cached_property
    def brought(self) -> dict[Subject, dict[str, set[str]]]:
        """The digests by patient and by delivery, and by themselves."""
        rows = self._rows
        digests = {digest: {digest} for digest in rows["digest"]}
        patients, deliveries = (grouped(zip(rows[of], rows["digest"], strict=True)) for of in ("patient", "delivery"))
        return {"radiograph": digests, "patient": patients, "delivery": deliveries}

    @cached_property
    def erased(self) -> dict[Subject, dict[str, int]]:
        """What was erased, by kind and name, and the number of the amendment that did it: the latest."""
        found: dict[Subject, dict[str, int]] = {}
        for number, amendment in self.amendments.items():
            for change in amendment.changes if amendment.erases else ():
                if change.erase:
                    found.setdefault(change.subject, {})[change.name] = number
                    found.setdefault("radiograph", {}).update(dict.fromkeys(change.radiographs, number))
        return found

    @cached_property
    def deliveries(self) -> dict[str, set[str]]:
        """The deliveries by digest."""
        return grouped(zip(self._rows["digest"], self._rows["delivery"], strict=True))

    @cached_property
    def _rows(self) -> pd.DataFrame:
        return self.history.brought()


def grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    """Return the values by key."""
    found: dict[str, set[str]] = {}
    for key, value in pairs:
        found.setdefault(key, set()).add(value)
    return found


def _named(asked: Asked, known: _Known, amendments: Mapping[int, Amendment]) -> Set[str]:
    """Return the radiographs that are asked about by themselves. Raises AmendmentError when nothing is to be done."""
    if asked.action == "undo":
        _check_undo(asked, amendments)
        return set()
    shown = asked.name if asked.subject == "delivery" else asked.name[:12]
    amended, refused = known.history.amended, f"{asked.subject} {shown} can't be amended: "
    withdrawn = {"radiograph": amended.withdrawn, "patient": amended.patients, "delivery": amended.deliveries}
    out = (known.erased if asked.erase else withdrawn).get(asked.subject, {})
    if asked.name in out:
        raise asked.refused(f"{refused}amendment {out[asked.name]} {'erased' if asked.erase else 'withdrew'} it")
    if asked.action == "relabel":
        found: Set[str] = known.labels.keys() & {asked.name}
    else:
        found = known.brought[asked.subject].get(asked.name, set())
    if not found and (asked.action, asked.subject) not in (("withdraw", "patient"), ("withdraw", "delivery")):
        raise asked.refused(f"{refused}the dataset holds none of it")
    if asked.subject == "delivery":
        return {digest for digest in found if known.deliveries[digest] == {asked.name}}
    return found


def _check_undo(asked: Asked, amendments: Mapping[int, Amendment]) -> None:
    standing = in_force(amendments)
    if not asked.name.isdecimal() or int(asked.name) not in standing:
        there = ", ".join(map(str, standing)) or "none"
        named = asked.name if asked.name.isdecimal() else "of that number"  # anything may have been typed, a name too
        raise asked.refused(f"no amendment {named} stands that could be undone; there are: {there}")
    if standing[int(asked.name)].erases:
        raise asked.refused(f"amendment {int(asked.name)} erased what it withdrew: nothing of it can come back")


def _copies(digests: Iterable[str], history: History, workers: int) -> DisjointSet:
    """Return radiographs, all that near copies connect them with, as groups that show one chest each."""
    wanted = sorted(set(digests))
    chests = DisjointSet(wanted)
    if not wanted:
        return chests
    known = history.shown
    place_of = {digest: place for place, digest in enumerate(known.texts())}
    places = [place_of[digest] for digest in wanted if digest in place_of]  # not of what came in withdrawn already
    for one, others in near_copies.links(places, known, workers).items():
        for other in (one, *others):
            chests.add(other)
            chests.merge(one, other)
    return chests


def _change(asked: Asked, named: Set[str], copies: DisjointSet, known: _Known) -> Change:
    if asked.action == "undo":
        return Change("undo", "amendment", str(int(asked.name)))
    group = {copy for digest in named for copy in copies.subset(digest)}
    if asked.action == "withdraw":
        left: set[str] = set()
        if asked.subject == "delivery":
            left = {digest for digest in group - named if digest in known.labels}
            left |= known.brought["delivery"].get(asked.name, set()) - named
        radiographs = tuple(sorted(group - left if asked.subject != "delivery" else named))
        return Change("withdraw", asked.subject, asked.name, "", radiographs, tuple(sorted(left)), asked.erase)
    if {label for digest in group for label in known.labels.get(digest, ())} == {asked.label}:
        raise asked.refused(f"radiograph {asked.name[:12]} and its copies are labelled {asked.label} already")
    return Change("relabel", "radiograph", asked.name, asked.label, tuple(sorted(group)))
