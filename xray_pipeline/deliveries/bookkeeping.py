"""Every file of every delivery, exactly once: the balance of a table, the quarantine as a list, judging it anew.

A file's standing verdict is that of the last manifest that has it: a file that was quarantined may be accepted by a
later part of its delivery, after a rule changed; the manifest that quarantined it stays as it was. Files are named by
delivery and row, because a path may name a patient; only who asks for paths gets them. The trade-off: listing the
quarantine reads every manifest, as everything about the dataset does.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from xray_pipeline import night
from xray_pipeline.errors import DatasetError, DeliveryError
from xray_pipeline.night import Checked, Progress, Run

log = logging.getLogger(__name__)

NOT_FILES = ("missing",)
"""Reasons of rows that stand for no file: labels.csv names it, the delivery does not hold it."""


@dataclass(frozen=True)
class Balance:
    """How a delivery's files add up.

    `files` were listed, `missing` are only named in labels.csv; `digest` is the SHA-256 over every row's path, size,
    version, content digest and verdict, so that equal digests mean equal bookkeeping. `holds` says that each listed
    file has one row and each row one verdict.
    """

    files: int
    accepted: int
    quarantined: int
    missing: int
    digest: str
    holds: bool


def balance(table: Any, files: int | None = None) -> Balance:
    """Add up an intake table or manifest; `files` is the number of files that were listed, None: not known."""
    columns = ["file", "size", "version", "source_digest", "verdict", "reason"]
    rows = table[columns].sort_values("file").to_numpy().tolist()
    counts = Counter(row[4] for row in rows)
    missing = int(table["reason"].isin(NOT_FILES).sum())
    once = table["file"].is_unique and set(counts) <= {"accepted", "quarantined"}
    reasoned = all(bool(row[5]) is (row[4] == "quarantined") for row in rows)
    listed = len(rows) - missing if files is None else files
    return Balance(
        files=listed,
        accepted=counts["accepted"],
        quarantined=counts["quarantined"] - missing,
        missing=missing,
        digest=hashlib.sha256("\n".join(json.dumps(row) for row in rows).encode()).hexdigest(),
        holds=bool(once and reasoned and listed == len(rows) - missing),
    )


def of_delivery(run: Run, key: str) -> dict[str, Any] | None:
    """Return the balance of a delivery: of its manifest, else of its last check, else None. Raises DatasetError."""
    from xray_pipeline.dataset import Dataset, from_parquet
    from xray_pipeline.night import checked

    dataset, store, name = Dataset(run.settings), run.store(), f"intake/{key}/table.parquet"
    verdict = checked(store, key)
    files = int(verdict.delivery["files"]) if verdict else None
    if key in dataset.manifests():
        return asdict(balance(dataset.manifest(key), files))
    if verdict is None or not store.exists(name):
        return None
    return asdict(balance(from_parquet(store.read(name), f"intake table of {key}"), files))


def quarantine(run: Run, delivery: str = "", reason: str = "", paths: bool = False) -> list[dict[str, Any]]:
    """Return the quarantined files of the dataset: delivery, row, reason, detail, size and content digest of each.

    `delivery` (a name, or the key of one part) and `reason` narrow the list; `paths` adds the path inside the delivery,
    which may name a patient. Files that a later part accepted are left out. Of a delivery that is asked for by name,
    parts that were rejected are listed too; `committed` tells them. Raises DeliveryError for a delivery that was
    neither committed nor judged file by file, DatasetError.
    """
    from xray_pipeline.dataset import Dataset

    dataset = Dataset(run.settings)
    keys = [key for key in dataset.manifests() if not delivery or delivery in (key, _name(key))]
    rejected = [one for one in night.rejected(run) if delivery in (one.key, _name(one.key))] if delivery else []
    if delivery and not keys and not rejected:
        raise DeliveryError(f"no delivery {delivery} is committed or rejected; `xray check` judges one that waits")
    found = []
    for key, row in itertools.chain(_standing(dataset, keys), _kept_out(run.store(), rejected, bool(keys))):
        if reason in ("", row.reason):
            said = {"delivery": key, "row": int(row.Index), "reason": row.reason, "detail": row.detail}
            said["committed"] = key in keys
            path = {"file": row.file} if paths else {}
            found.append({**said, "size": int(row.size), "source_digest": row.source_digest, **path})
    return found


def _standing(dataset: Any, keys: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield (key, row) of quarantined files that no part of their delivery accepted."""
    accepted: dict[str, set[tuple[str, int, str]]] = {}
    for key in dataset.manifests():
        table = dataset.manifest(key)
        taken = table[table["verdict"] == "accepted"]
        accepted.setdefault(_name(key), set()).update(
            zip(taken["file"], taken["size"].tolist(), taken["version"], strict=True)
        )
    for key in keys:
        table = dataset.manifest(key)
        for row in table[table["verdict"] != "accepted"].itertuples():
            if (row.file, int(row.size), row.version) not in accepted[_name(key)]:
                yield key, row


def _kept_out(store: Any, rejected: Sequence[Checked], more: bool) -> Iterator[tuple[str, Any]]:
    """Yield (key, row) of quarantined files of rejected deliveries; one that was not judged by file is an error unless
    there is `more` to tell."""
    from xray_pipeline.dataset import from_parquet

    for verdict in rejected:
        name = f"intake/{verdict.key}/table.parquet"
        if store.exists(name):
            table = from_parquet(store.read(name), f"intake table of {verdict.key}")
            for row in table[table["verdict"] != "accepted"].itertuples():
                yield verdict.key, row
        elif not more:
            raise DeliveryError(f"delivery {verdict.key} is rejected as a whole, no file was judged: {verdict.why}")


def _name(key: str) -> str:
    """Return the name of the delivery whose part a key is: names hold no `+`."""
    return key.partition("+")[0]


def verify(run: Run) -> tuple[bool, str]:
    """Check that every file of every committed delivery ended once: (holds, a sentence). Raises DatasetError."""
    from xray_pipeline.dataset import Dataset

    dataset = Dataset(run.settings)
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
        rows = [(_name(key), *row) for row in table[["file", "size", "version"]].itertuples(index=False, name=None)]
        taken.update(row for row, is_in in zip(rows, accepted, strict=True) if is_in)
        files.update(row for row, reason in zip(rows, table["reason"], strict=True) if reason not in NOT_FILES)
    twice = sum(count > 1 for counts in (taken, digests) for count in counts.values())
    if twice:
        return False, f"{twice} files or radiographs were accepted more than once"
    deliveries = len({_name(key) for key in dataset.manifests()})
    return True, f"{len(files)} files of {deliveries} deliveries, each accepted or quarantined once"


class _Reopened:
    """The dataset's history in which some files of one delivery were never seen."""

    def __init__(self, history: Any, name: str, files: set[tuple[str, int, str]]) -> None:
        self._history, self._name, self._files = history, name, files

    def __getattr__(self, name: str) -> Any:
        return getattr(self._history, name)

    def seen(self, name: str) -> tuple[int, frozenset[tuple[str, int, str]]]:
        parts, files = self._history.seen(name)
        return parts, files - self._files if name == self._name else files


def rejudge(run: Run, name: str, progress: Progress | None = None) -> dict[str, Any]:
    """Judge the quarantined files of a committed delivery anew, under the rules and the dataset of now.

    What is accepted now becomes an addition to the delivery with a manifest of its own; the manifests there are stay as
    they are, and what is still quarantined stays there. New files of the delivery are left to the next night. Returns
    key ("" when nothing changed), judged, accepted, quarantined (counts by reason), fit and why. Raises DeliveryError
    when the delivery was never committed or its folder is gone, DatasetError, StorageError.
    """
    from xray_pipeline import expectations, intake
    from xray_pipeline.dataset import Dataset, accounting

    dataset = Dataset(run.settings)
    keys = [key for key in dataset.manifests() if _name(key) == name]
    if not keys:
        raise DeliveryError(f"no delivery {name} is committed; `xray check` judges one that waits")
    files = {(row.file, int(row.size), row.version) for _, row in _standing(dataset, keys)}
    history = _Reopened(dataset.history(), name, files)
    delivery = _find(run, name, history)
    empty = {"key": "", "judged": 0, "accepted": 0, "quarantined": {}, "fit": True, "why": ""}
    if delivery is None:
        return {**empty, "why": f"nothing in delivery {name} is quarantined and still there"}
    found = intake.check(delivery, run.settings, history, dataset.patient_key(), progress)
    judged = found.table[
        [row in files for row in found.table[["file", "size", "version"]].itertuples(index=False, name=None)]
    ]
    taken = judged[judged["verdict"] == "accepted"].reset_index(drop=True)
    still = accounting([judged[judged["verdict"] != "accepted"]])
    outcome = {**empty, "judged": len(judged), "quarantined": still}
    if taken.empty:
        return {**outcome, "why": "every one of them is quarantined again"}
    addition = replace(delivery, files=len(taken), bytes=int(taken["size"].sum()))
    verdict = expectations.judge(addition, taken, run.settings)
    why = " ".join(verdict.failures)
    if not verdict.fit:
        return {**outcome, "fit": False, "why": why}
    kept = intake.Intake(addition, taken, verdict.fit, verdict.failures, verdict.result, verdict.page)
    keep(run, kept, accounting([taken]))
    manifest = dataset.commit(kept, progress)
    if manifest.accepted + manifest.quarantined != len(taken):
        raise DatasetError(f"part {delivery.key} of delivery {name} was committed by another run; run it again")
    log.info("delivery %s: %d quarantined files are accepted now", delivery.key, manifest.accepted)
    return {**outcome, "key": delivery.key, "accepted": manifest.accepted}


def keep(run: Run, found: Any, counts: dict[str, int]) -> None:
    """Keep the verdict on an addition beside its delivery's intake, as the night does for what it checks."""
    from xray_pipeline.dataset import to_parquet

    store, key = run.store(), found.delivery.key
    verdict = Checked(key, asdict(found.delivery), run.settings.rules.digest(), True, counts["accepted"], {}, "")
    store.write(f"intake/{key}/table.parquet", to_parquet(found.table, {"delivery": found.delivery.name}))
    store.write(f"intake/{key}/page.html", found.page.encode())
    store.write(f"intake/{key}/checked.json", json.dumps(verdict.to_dict(), sort_keys=True, indent=1).encode())


def _find(run: Run, name: str, history: Any) -> Any:
    from xray_pipeline import intake
    from xray_pipeline.storage import open_store

    incoming = open_store(run.settings.incoming, run.settings)
    found = intake.find(incoming, history, run.settings.settle_seconds, time.time(), run.settings.classes)
    return next((delivery for delivery in found if delivery.name == name), None)
