"""Amending the dataset, for a person: labels corrected, radiographs, patients or deliveries withdrawn, and undone.

What is withdrawn may be erased, too: the amendment says so, then all traces of it are removed (night/erasing).
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from xray_pipeline.base import records
from xray_pipeline.base.errors import AmendmentError, XrayError
from xray_pipeline.base.text import SHORTEST_REASON
from xray_pipeline.dataset.amending import Asked, changes
from xray_pipeline.dataset.amendments import Action, Amendment, Change, standing
from xray_pipeline.dataset.history import History
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.night import erasing
from xray_pipeline.night.identity import compare, vouch
from xray_pipeline.night.naming import SUBJECTS, By, Names
from xray_pipeline.night.run import Run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Named:
    """One correction as a person asks for it: `name` says, in the way `by`, what is meant; `erase` is of a withdrawal.

    `line` is that of a list, 0 without one.
    """

    action: Action
    by: By
    name: str
    label: str = ""
    erase: bool = False
    line: int = 0


def amend(run: Run, named: Sequence[Named], why: str) -> dict[str, Any]:
    """Make one amendment of all that is asked for, or none; remove what it erases.

    Returns number, who, at, why, and of each change action, subject, name ("" of a patient), label, radiographs (how
    many it holds for), left (digests of copies that stay), erase and quarantined (deliveries whose quarantined files
    may be judged anew); removed (files by what they were, of an erasure), and warnings: what was left to the next
    night, in sentences. Raises AmendmentError, naming the first that can't be done, RegistryError, DatasetError,
    StorageError: nothing is amended then.
    """
    if not named or len(why.strip()) < SHORTEST_REASON:
        raise AmendmentError(f"reason {why!r}, {len(named)} corrections: name one or more, and a reason")
    compare(run)
    dataset, settings = Dataset(run.settings), run.settings
    dataset.patient_key()  # raises for other settings than the dataset was made with, other classes too
    at = records.moment(run.store().clock())
    seen: list[History] = []

    def described(history: History) -> Amendment:
        asked = meant(Names(dataset), named)
        made = changes(asked, history, dataset.commits.amendments(), settings.classes, settings.workers)
        seen[:] = [history]
        return Amendment(run.who, at, why.strip(), made)

    commit = dataset.amend(described)
    amendment = commit.amendment
    assert amendment is not None
    log.info("amendment %d by %s: %d changes", commit.number, run.who, len(named))
    removed, warnings = _followed(run)
    said = seen[0].said()
    waiting = said[said["verdict"] != "accepted"].groupby("digest")["delivery"].agg(set)
    told = []
    for change in amendment.changes:
        again = waiting.index.intersection(change.radiographs if change.action == "relabel" else [])
        told.append({**_told(change), "quarantined": sorted(set().union(*waiting[again]))})
    done = {"number": commit.number, "who": run.who, "at": at, "why": amendment.why, "changes": told}
    return {**done, "removed": removed, "warnings": warnings}


def _followed(run: Run) -> tuple[dict[str, int], list[str]]:
    """Do what follows from an amendment that is made: remove what is erased, tell the registry of the newest commit.

    Returns the files removed by what they were, and what the next night must do instead, in sentences.
    """
    removed: dict[str, int] = {}
    left_over = []
    try:
        removed = erasing.finish(run)
    except XrayError as error:
        left_over.append(f"not all is erased yet, the next night or `xray repair` goes on: {error}")
    try:
        vouch(run)
    except XrayError as error:
        left_over.append(f"MLflow does not know of the newest commit yet, the next night tells it: {error}")
    for text in left_over:
        log.warning("the amendment is made, but %s", text)
    return removed, [f"the amendment is made, but {text}" for text in left_over]


def from_form(run: Run, form_action: str, name: str, label: str, why: str) -> dict[str, Any]:
    """Amend as the form of xray_amend says it, in fields of less than 4 KB; `left` becomes a count.

    Raises AmendmentError for an action that there is not, and as `amend` does.
    """
    of_radiograph: By = "file" if "/" in name else "radiograph"
    ways: dict[str, tuple[Action, By]] = {
        "relabel": ("relabel", of_radiograph),
        "withdraw": ("withdraw", of_radiograph),
        "withdraw-patient": ("withdraw", "patient-of"),
        "withdraw-delivery": ("withdraw", "delivery"),
        "undo": ("undo", "amendment"),
    }
    erase = form_action.startswith("erase")
    way = form_action.replace("erase", "withdraw", 1) if erase else form_action
    if way not in ways:
        raise AmendmentError(f"no action {form_action!r}; there are {', '.join(ways)}, and erase for withdraw")
    action, by = ways[way]
    done = amend(run, [Named(action, by, name.strip(), label if action == "relabel" else "", erase)], why)
    [change] = done.pop("changes")
    return {**done, **change, "left": len(change["left"]), "quarantined": len(change["quarantined"])}


def listed(run: Run) -> list[dict[str, Any]]:
    """Return all amendments, oldest first: as `amend`, without what follows from them, and whether each stands."""
    amendments = Dataset(run.settings).commits.amendments()
    stand = standing(amendments)
    return [
        {
            **{"number": number, "who": one.who, "at": one.at, "why": one.why, "stands": number in stand},
            "changes": [_told(change) for change in one.changes],
        }
        for number, one in amendments.items()
    ]


def _told(change: Change) -> dict[str, Any]:
    name = "" if change.subject == "patient" else change.name  # a hash of a patient is for the dataset alone
    return {
        **{"action": change.action, "subject": change.subject, "name": name, "label": change.label},
        **{"radiographs": len(change.radiographs), "left": list(change.left), "erase": change.erase},
    }


def of_table(action: Action, text: str, erase: bool = False) -> list[Named]:
    """Read corrections from CSV: columns radiograph and file, to withdraw also patient, patient-of and delivery, one of
    which each line fills; and to relabel `label`. Raises AmendmentError, naming the line, but never a patient."""
    of_both: tuple[By, ...] = ("radiograph", "file")
    names: tuple[By, ...] = of_both if action == "relabel" else (*of_both, "patient", "patient-of", "delivery")
    lines = csv.DictReader(io.StringIO(text.removeprefix("\ufeff")), restkey="", restval="")
    columns = {*names, "label"} if action == "relabel" else set(names)
    if not lines.fieldnames or not set(lines.fieldnames) <= columns:
        raise AmendmentError(f"the columns of a list to {action} are of {', '.join(sorted(columns))}; correct line 1")
    found = []
    for line in lines:
        given = [(by, line[by].strip()) for by in names if line.get(by, "").strip()]
        if len(given) != 1 or line.get("", "") or (action == "relabel") != bool(line.get("label", "").strip()):
            wanted = f"one of {', '.join(names)}" + (", and a label" if action == "relabel" else "")
            raise AmendmentError(f"line {lines.line_num} of the list must give {wanted}")
        found.append(Named(action, *given[0], line.get("label", "").strip(), erase, lines.line_num))
    return found


def subject(dataset: Dataset, by: By, name: str) -> Asked:
    """Return what a person means, as something to withdraw. Raises AmendmentError when that is nothing, or several."""
    return Asked("withdraw", SUBJECTS[by], Names(dataset).find(by, name.strip()))


def meant(names: Names, named: Sequence[Named]) -> list[Asked]:
    """Return what a person means. Raises AmendmentError, naming the line of a list."""
    found = []
    for one in named:
        asked = Asked(one.action, SUBJECTS[one.by], "", one.label, one.erase, one.line)
        try:
            name = names.find(one.by, one.name, known=one.action != "withdraw")
        except AmendmentError as error:
            raise asked.refused(str(error)) from error
        found.append(replace(asked, name=name))
    return found
