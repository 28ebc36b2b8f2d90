"""Amending the dataset, for a person: labels corrected, radiographs, patients or deliveries withdrawn, and undone.

What is named is looked up here: a radiograph by its digest or its row in a delivery, a patient by PatientID or file
name. Of a patient's name only the keyed hash is kept, and no message repeats what was named, as it may be such a name.
"""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from xray_pipeline.base.errors import AmendmentError
from xray_pipeline.base.text import SHORTEST_REASON
from xray_pipeline.dataset.amending import Asked, changes
from xray_pipeline.dataset.amendments import Action, Amendment, Change, Subject, in_force
from xray_pipeline.dataset.history import History
from xray_pipeline.dataset.revisions import part_of
from xray_pipeline.dataset.split import patient_hash
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.night.identity import compare, vouch
from xray_pipeline.night.run import Run

log = logging.getLogger(__name__)

SHORTEST_DIGEST = 8
"""Digits of a radiograph's digest that are enough, if they are one radiograph's alone."""

By = Literal["radiograph", "file", "patient", "patient-of", "delivery", "amendment"]
"""How a person names what is meant: a digest, DELIVERY/ROW, a PatientID or file name, the patient of a radiograph (its
digest or DELIVERY/ROW), a delivery's name, an amendment's number."""


@dataclass(frozen=True)
class Named:
    """One correction as a person asks for it: `name` says, in the way `by`, what is meant."""

    action: Action
    by: By
    name: str
    label: str = ""


def amend(run: Run, named: Sequence[Named], why: str) -> dict[str, Any]:
    """Make one amendment of all that is asked for, or none.

    Returns number, who, at, why, and of each change action, subject, name, label, radiographs (how many it holds for),
    left (digests of near copies that stay) and quarantined (deliveries whose quarantined files may be judged anew).
    Raises AmendmentError, naming the first that can't be done, RegistryError, DatasetError, StorageError.
    """
    if not named or len(why.strip()) < SHORTEST_REASON:
        raise AmendmentError(f"reason {why!r}, {len(named)} corrections: name one or more, and a reason")
    compare(run)
    dataset, settings = Dataset(run.settings), run.settings
    dataset.patient_key()  # raises for other settings than the dataset was made with, other classes too
    at = datetime.fromtimestamp(run.store().clock(), UTC).isoformat(timespec="seconds")
    seen: list[History] = []

    def described(history: History) -> Amendment:
        asked = [_asked(dataset, one) for one in named]
        made = changes(asked, history, dataset.commits.amendments(), settings.classes, settings.workers)
        seen[:] = [history]
        return Amendment(run.who, at, why.strip(), made)

    commit = dataset.amend(described)
    vouch(run)
    log.info("amendment %d by %s: %d changes", commit.number, run.who, len(named))
    amendment = commit.amendment
    assert amendment is not None
    said = seen[0].said()
    waiting = said[said["verdict"] != "accepted"]
    told = []
    for change in amendment.changes:
        quarantined = waiting[waiting["digest"].isin(change.radiographs)] if change.action == "relabel" else waiting[:0]
        told.append({**_told(change), "quarantined": sorted(set(quarantined["delivery"]))})
    return {"number": commit.number, "who": run.who, "at": at, "why": amendment.why, "changes": told}


def from_form(run: Run, form_action: str, name: str, label: str, why: str) -> dict[str, Any]:
    """Amend as the form of xray_amend says it, in fields of less than 4 KB; `left` becomes a count.

    Raises AmendmentError for an action that there is not, and as `amend` does.
    """
    ways: dict[str, tuple[Action, By]] = {
        "relabel": ("relabel", "file" if "/" in name else "radiograph"),
        "withdraw": ("withdraw", "file" if "/" in name else "radiograph"),
        "withdraw-patient": ("withdraw", "patient-of"),
        "withdraw-delivery": ("withdraw", "delivery"),
        "undo": ("undo", "amendment"),
    }
    if form_action not in ways:
        raise AmendmentError(f"no action {form_action!r}; there are {', '.join(ways)}")
    done = amend(run, [Named(*ways[form_action], name.strip(), label if form_action == "relabel" else "")], why)
    [change] = done.pop("changes")
    return {**done, **change, "left": len(change["left"]), "quarantined": len(change["quarantined"])}


def listed(run: Run) -> list[dict[str, Any]]:
    """Return all amendments, oldest first: as `amend`, without `quarantined`, and whether each stands."""
    amendments = Dataset(run.settings).commits.amendments()
    standing = in_force(amendments)
    return [
        {
            **{"number": number, "who": one.who, "at": one.at, "why": one.why, "stands": number in standing},
            "changes": [_told(change) for change in one.changes],
        }
        for number, one in amendments.items()
    ]


def _told(change: Change) -> dict[str, Any]:
    return {
        **{"action": change.action, "subject": change.subject, "name": change.name, "label": change.label},
        **{"radiographs": len(change.radiographs), "left": list(change.left)},
    }


def of_table(action: Action, text: str) -> list[Named]:
    """Read corrections from CSV: columns radiograph and file, to withdraw also patient and delivery, one of which each
    line fills; and to relabel `label`. Raises AmendmentError, naming the line, but never a patient."""
    of_both: tuple[By, ...] = ("radiograph", "file")
    names: tuple[By, ...] = of_both if action == "relabel" else (*of_both, "patient", "delivery")
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
        found.append(Named(action, *given[0], line.get("label", "").strip()))
    return found


def subject(dataset: Dataset, by: By, name: str) -> Asked:
    """Return what a person means, as something to withdraw. Raises AmendmentError when that is nothing, or several."""
    return _asked(dataset, Named("withdraw", by, name.strip()))


def _asked(dataset: Dataset, named: Named) -> Asked:
    what, find = _WAYS[named.by]
    return Asked(named.action, what, find(dataset, named.name), named.label)


def _radiograph(dataset: Dataset, digest: str) -> str:
    if len(digest) < SHORTEST_DIGEST or re.fullmatch("[0-9a-f]{1,64}", digest) is None:
        raise AmendmentError(f"that is no digest of a radiograph: give {SHORTEST_DIGEST} to 64 of its digits")
    known = (table["digest"] for table in _tables(dataset))
    return _one({d for digests in known for d in digests[digests.str.startswith(digest)]}, "radiographs of this digest")


def _file(dataset: Dataset, place: str) -> str:
    key, _, row = place.rpartition("/")
    if key not in dataset.manifests() or not row.isdecimal():
        raise AmendmentError("that is no row of a committed delivery; write DELIVERY/ROW, as `xray quarantine` does")
    table = dataset.manifest(key)
    digest = table["digest"].iloc[int(row)] if int(row) < len(table) else ""
    if not digest:
        raise AmendmentError(f"row {row} of delivery {key} shows no radiograph: it was never read, or is not there")
    return str(digest)


def _patient_of(dataset: Dataset, name: str) -> str:
    digest = (_file if "/" in name else _radiograph)(dataset, name)
    tables = _tables(dataset)
    return _one({p for table in tables for p in table.loc[table["digest"] == digest, "patient"]}, "patients of it")


def _patient(dataset: Dataset, name: str) -> str:
    """Return the keyed hash of the patient who has this PatientID, or whose file has this name."""
    key, last = dataset.patient_key(), name.rpartition("/")[2]
    ids = {name}
    if match := re.search(dataset.settings.rules.patient_pattern, last):
        ids.add(match[match.lastindex or 0])
    by_id = {patient_hash(key, f"patient:{one}") for one in ids}
    found = set()
    for table in _tables(dataset):
        files = table["file"]
        named = (files == name) | (files.str.rpartition("/")[2] == last)
        found |= set(table.loc[(named | table["patient"].isin(by_id)) & (table["patient"] != ""), "patient"])
    return _one(found, "patients of this name")


def _delivery(dataset: Dataset, name: str) -> str:
    return _one({part_of(key)[0] for key in dataset.manifests() if part_of(key)[0] == name}, "deliveries of this name")


def _tables(dataset: Dataset) -> list[Any]:
    return [dataset.manifest(key) for key in dataset.manifests()]


def _one(found: Iterable[str], what: str) -> str:
    """Return the only one of what was found; a patient's name is not repeated. Raises AmendmentError."""
    distinct = sorted(set(found))
    if len(distinct) != 1:
        raise AmendmentError(
            f"the dataset knows {len(distinct)} {what}; name one, as `xray quarantine` and the report do: a digest, or "
            f"DELIVERY/ROW"
        )
    return distinct[0]


_WAYS: Final[Mapping[By, tuple[Subject, Callable[[Dataset, str], str]]]] = {
    "radiograph": ("radiograph", _radiograph),
    "file": ("radiograph", _file),
    "patient": ("patient", _patient),
    "patient-of": ("patient", _patient_of),
    "delivery": ("delivery", _delivery),
    "amendment": ("amendment", lambda _, number: number),
}
