"""Every file of every delivery, exactly once: the balance of a table, the quarantine as a list, judging it anew.

A file's standing verdict is that of the last manifest that has it: a file that was quarantined may be accepted by a
later part of its delivery, after a rule changed or a label conflict was settled; the manifest that quarantined it stays
as it was. Files are named by delivery and row, because a path may name a patient; only who asks for paths gets them.
The trade-off: listing the quarantine reads every manifest, as everything about the dataset does.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from xray_pipeline.base.errors import DatasetError, DeliveryError
from xray_pipeline.dataset.revisions import CONFLICT, File, files_of, part_of, standing
from xray_pipeline.intake.layout import LITTER, escape, is_litter
from xray_pipeline.night import steps as night
from xray_pipeline.night.steps import Checked, Progress, Run

if TYPE_CHECKING:
    from xray_pipeline.dataset.store import Dataset
    from xray_pipeline.intake.check import Delivery

log = logging.getLogger(__name__)

NOT_FILES = ("missing",)
"""Reasons of rows that stand for no file: labels.csv names it, the delivery does not hold it."""


@dataclass(frozen=True)
class Balance:
    """How a delivery's files add up.

    `files` were listed, and `litter` beside them; `missing` are only named in labels.csv; `digest` is the SHA-256 over
    every row's path, size, version, content digest and verdict, so that equal digests mean equal bookkeeping. `holds`
    says that each listed file has one row and each row one verdict.
    """

    files: int
    accepted: int
    quarantined: int
    missing: int
    litter: int
    digest: str
    holds: bool


def balance(table: Any, files: int | None = None) -> Balance:
    """Add up an intake table or manifest; `files` is the number of files and litter listed, None: not known."""
    columns = ["file", "size", "version", "source_digest", "verdict", "reason"]
    rows = table[columns].sort_values("file").to_numpy().tolist()
    counts = Counter(row[4] for row in rows)
    missing, litter = int(table["reason"].isin(NOT_FILES).sum()), int((table["reason"] == LITTER).sum())
    once = table["file"].is_unique and set(counts) <= {"accepted", "quarantined"}
    reasoned = all(bool(row[5]) is (row[4] == "quarantined") for row in rows)
    listed = len(rows) - missing if files is None else files
    return Balance(
        files=listed - litter,
        accepted=counts["accepted"],
        quarantined=counts["quarantined"] - missing - litter,
        missing=missing,
        litter=litter,
        digest=hashlib.sha256("\n".join(json.dumps(row) for row in rows).encode()).hexdigest(),
        holds=bool(once and reasoned and listed == len(rows) - missing),
    )


def of_delivery(run: Run, key: str) -> dict[str, Any] | None:
    """Return the balance of a delivery: of its manifest, else of its last check, else None. Raises DatasetError."""
    from xray_pipeline.dataset.store import Dataset

    dataset, store = Dataset(run.settings), run.store()
    verdict = night.checked(store, key)
    files = int(verdict.delivery["files"]) if verdict else None
    if key in dataset.manifests():
        return asdict(balance(dataset.manifest(key), files))
    if verdict is None or not verdict.table:
        return None
    return asdict(balance(night.checked_table(store, verdict), files))


def quarantine(run: Run, delivery: str = "", reason: str = "", paths: bool = False) -> list[dict[str, Any]]:
    """Return the quarantined files of the dataset: delivery, row, reason, detail, size and content digest of each.

    `delivery` (a name, or the key of one part) and `reason` narrow the list; `paths` adds the path inside the delivery,
    which may name a patient. What counts of a file is its latest judgement. Of a delivery that is asked for by name,
    parts that were rejected are listed too; `committed` tells them. Raises DeliveryError for a delivery that was
    neither committed nor judged file by file, DatasetError.
    """
    from xray_pipeline.dataset.store import Dataset

    dataset = Dataset(run.settings)
    tables = {key: dataset.manifest(key) for key in dataset.manifests()}
    keys = [key for key in tables if not delivery or delivery in (key, part_of(key)[0])]
    rejected = [one for one in night.rejected(run) if delivery in (one.key, part_of(one.key)[0])] if delivery else []
    if delivery and not keys and not rejected:
        raise DeliveryError(f"no delivery {delivery} is committed or rejected; `xray check` judges one that waits")
    found = []
    for key, row in itertools.chain(_standing(tables, keys), _kept_out(run.store(), rejected, bool(keys))):
        if reason in ("", row.reason):
            said = {"delivery": key, "row": int(row.Index), "reason": row.reason, "detail": row.detail}
            said["committed"] = key in keys
            path = {"file": row.file} if paths else {}
            found.append({**said, "size": int(row.size), "source_digest": row.source_digest, **path})
    return found


def _standing(tables: Mapping[str, Any], keys: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Yield (key, row) of the quarantined rows of manifests `keys` that stand: the latest judgement of their files."""
    stands = standing(tables)
    for key in keys:
        table = tables[key]
        for row in table[stands[key] & (table["verdict"] != "accepted")].itertuples():
            yield key, row


def _kept_out(store: Any, rejected: Sequence[Checked], more: bool) -> Iterator[tuple[str, Any]]:
    """Yield (key, row) of quarantined files of rejected deliveries; one that was not judged by file is an error unless
    there is `more` to tell."""

    for verdict in rejected:
        if verdict.table:
            table = night.checked_table(store, verdict)
            for row in table[table["verdict"] != "accepted"].itertuples():
                yield verdict.key, row
        elif not more:
            raise DeliveryError(f"delivery {verdict.key} is rejected as a whole, no file was judged: {verdict.why}")


def verify(run: Run) -> tuple[bool, str]:
    """Check that every file of every committed delivery ended once: (holds, a sentence). Raises DatasetError."""
    from xray_pipeline.dataset.store import Dataset

    dataset = Dataset(run.settings)
    if altered := dataset.altered():
        return False, f"missing, or not what was committed: the manifests of {', '.join(altered[:5])}"
    taken: Counter[tuple[Any, ...]] = Counter()
    digests: Counter[str] = Counter()
    files: set[tuple[Any, ...]] = set()
    for key in dataset.manifests():
        table = dataset.manifest(key)
        found = balance(table)
        if not found.holds:
            return False, f"the rows of manifest {key} do not add up: {asdict(found)}"
        accepted = table["verdict"] == "accepted"
        digests.update(table.loc[accepted, "digest"])
        rows = [(part_of(key)[0], *file) for file in files_of(table)]
        taken.update(row for row, is_in in zip(rows, accepted, strict=True) if is_in)
        files.update(row for row, reason in zip(rows, table["reason"], strict=True) if reason not in NOT_FILES)
    twice = sum(count > 1 for counts in (taken, digests) for count in counts.values())
    if twice:
        return False, f"{twice} files or radiographs were accepted more than once"
    deliveries = len({part_of(key)[0] for key in dataset.manifests()})
    return True, f"{len(files)} files of {deliveries} deliveries, each accepted or quarantined once"


def split(run: Run) -> tuple[bool, str]:
    """Check that no patient is on two sides of the split: (holds, a sentence). Raises DatasetError."""
    from xray_pipeline.dataset.store import Dataset

    dataset = Dataset(run.settings)
    sides: dict[str, set[str]] = {}
    for key in dataset.manifests():
        table = dataset.manifest(key)
        accepted = table.loc[table["verdict"] == "accepted", ["patient", "side"]].drop_duplicates()
        for patient, side in accepted.itertuples(index=False, name=None):
            sides.setdefault(patient, set()).add(side)
    both = sum(len(found) > 1 for found in sides.values())
    if both:
        return False, f"{both} patients are on two sides of the split"
    return True, f"{len(sides)} patients, each on one side of the split"


def rejudge(run: Run, name: str, progress: Progress | None = None) -> dict[str, Any]:
    """Judge the quarantined files of a committed delivery anew, under the rules and the dataset of now.

    What is accepted now becomes an addition to the delivery with a manifest of its own, and so does what settles a
    label conflict: a file of it that is out for another reason now, or gone from the delivery. The manifests there are
    stay as they are, and what else is quarantined stays there. New files of the delivery are left to the next night and
    decide nothing here.
    Returns key ("" when nothing changed), judged, accepted, gone, quarantined (counts by reason), fit and why: a
    delivery whose folder is gone changes nothing. Raises DeliveryError when the delivery was never committed or can't
    be judged as a whole, DatasetError, StorageError.
    """
    from xray_pipeline.base.storage import open_store
    from xray_pipeline.dataset.store import Dataset, accounting
    from xray_pipeline.dataset.table import by_file
    from xray_pipeline.intake.scan import listing

    night.compare(run)
    dataset = Dataset(run.settings)
    dataset.settle()
    tables = {key: dataset.manifest(key) for key in dataset.manifests() if part_of(key)[0] == name}
    if not tables:
        raise DeliveryError(f"no delivery {name} is committed; `xray check` judges one that waits")
    outcome = {"key": "", "judged": 0, "accepted": 0, "gone": 0, "quarantined": {}, "fit": True, "why": ""}
    nothing = f"nothing in delivery {name} is quarantined and still there"
    delivery = _find(run, name)
    if delivery is None:
        return {**outcome, "why": nothing}
    listed = {(escape(e.key), e.size, e.version) for e in listing(open_store(delivery.uri, run.settings))}
    waiting = _waiting(tables)
    delivery, judged = _judged(run, dataset, delivery, waiting, listed, progress)
    taken = judged[judged["verdict"] == "accepted"].reset_index(drop=True)
    settling, gone = _settling(judged, waiting), _gone(waiting, listed)
    still = accounting([judged[judged["verdict"] != "accepted"]])
    outcome |= {"judged": len(judged), "gone": len(gone), "quarantined": still}
    if not (len(taken) or len(settling) or len(gone)):
        return {**outcome, "why": "every one of them is quarantined again" if len(judged) else nothing}
    table = by_file(taken, settling, gone)
    addition = replace(delivery, part=len(tables) + 1, files=len(table), bytes=int(table["size"].sum()))
    return {**outcome, **_commit(run, dataset, addition, table, len(gone), progress)}


def _waiting(tables: Mapping[str, Any]) -> dict[File, str]:
    """Return the files of one delivery whose quarantine stands, litter aside, with its reason."""
    stands, found = standing(tables), dict[File, str]()
    for key, table in tables.items():
        out = table[stands[key] & (table["verdict"] != "accepted")]
        found |= {file: why for file, why in zip(files_of(out), out["reason"], strict=True) if not is_litter(file[0])}
    return found


def _judged(
    run: Run,
    dataset: Dataset,
    delivery: Delivery,
    waiting: Mapping[File, str],
    listed: Set[File],
    progress: Progress | None,
) -> tuple[Delivery, Any]:
    """Judge what waits and is still there; return it as a delivery, the given one when there is nothing, and its table.

    To what is not in the dataset yet nothing is compared: a verdict that follows from it could never be undone.
    """
    from xray_pipeline.dataset.table import of_rows
    from xray_pipeline.intake import check as intake

    if not listed & waiting.keys():
        return delivery, of_rows(())
    history = dataset.history().without(delivery.name, {file[0] for file in waiting}, listed - waiting.keys())
    delivery = intake.at(delivery.uri, run.settings, history, time.time())
    found = intake.check(delivery, run.settings, history, dataset.patient_key(), progress).table
    return delivery, found[[file in waiting for file in files_of(found)]]


def _settling(judged: Any, waiting: Mapping[File, str]) -> Any:
    """Return the rows that are still out, but no longer for the label conflict that their path is in."""
    disputed = {file[0] for file, reason in waiting.items() if reason == CONFLICT}
    # Only what was read, or that labels.csv no longer names, can settle a conflict: not a file that can't be opened.
    known = (judged["digest"] != "") | (judged["reason"] == "not-listed")
    out = (judged["verdict"] != "accepted") & (judged["reason"] != CONFLICT)
    return judged[judged["file"].isin(disputed) & known & out]


def _gone(waiting: Mapping[File, str], listed: Set[File]) -> Any:
    """Return one row for each path in a label conflict at which nothing is any more."""
    from xray_pipeline.dataset.table import Row, of_rows

    there = {file[0] for file in listed}
    gone = {file[0]: file for file, reason in waiting.items() if reason == CONFLICT and file[0] not in there}
    detail = "gone from the delivery; it was in a label conflict"
    return of_rows(Row(*file, reason="vanished", detail=detail) for file in gone.values())


def _commit(
    run: Run, dataset: Dataset, addition: Delivery, table: Any, gone: int, progress: Progress | None
) -> dict[str, Any]:
    """Commit an addition unless what is accepted in it is unfit; return what changes in the outcome of `rejudge`."""
    from xray_pipeline.intake import alarms, drift, expectations
    from xray_pipeline.intake import check as intake
    from xray_pipeline.intake.scan import judged_by

    store, key = run.store(), addition.key
    taken = table[table["verdict"] == "accepted"].reset_index(drop=True)
    found = intake.Intake(addition, table, True, (), {}, "")
    if len(taken):
        unlike = drift.of_table(taken, dataset.history().reference(), run.settings.rules)
        alarms.keep(store, key, addition.fingerprint, unlike)
        settled = alarms.acknowledged(store, key, addition.fingerprint)
        verdict = expectations.judge(addition, taken, run.settings, (), unlike, settled)
        if not verdict.fit:
            return {"fit": False, "why": " ".join(verdict.failures)}
        found = intake.Intake(addition, table, True, (), verdict.result, verdict.page, verdict.warnings, unlike)
    night.keep(store, found, judged_by(run.settings, dataset.patient_key()))
    manifest = dataset.commit(found, progress)
    night.vouch(run)
    if set(files_of(dataset.manifest(key))) != set(files_of(table)):
        raise DatasetError(f"part {key} of delivery {addition.name} was committed by another run; run it again")
    log.info("delivery %s: %d files accepted, %d settled in a label conflict", key, len(taken), len(table) - len(taken))
    why = f"{gone} in a label conflict are gone from the delivery and no longer count" if gone else ""
    return {"key": key, "accepted": manifest.accepted, "why": why}


def _find(run: Run, name: str) -> Any:
    from xray_pipeline.base.storage import open_store
    from xray_pipeline.intake import check as intake
    from xray_pipeline.intake.compare_rows import EMPTY

    incoming = open_store(run.settings.incoming, run.settings)
    found = intake.find(incoming, EMPTY, run.settings.settle_seconds, time.time(), run.settings.classes, [])
    return next((delivery for delivery in found if delivery.name == name), None)
