"""Every file of every delivery, exactly once: the balance of a table, the quarantine as a list, judging it anew.

A file's standing verdict is that of the last manifest that has it: a file that was quarantined may be accepted by a
later part of its delivery, after a rule changed or a label conflict ended; the manifest that quarantined it stays
as it was. Files are named by delivery and row, because a path may name a patient; only who asks for paths gets them.
The trade-off: listing the quarantine reads every manifest, as everything about the dataset does.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from xray_pipeline.base.errors import DeliveryError
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import open_store
from xray_pipeline.dataset.revisions import files_of, in_force, part_of
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.intake import verdicts
from xray_pipeline.intake.layout import LITTER
from xray_pipeline.intake.verdicts import Checked

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


def of_delivery(settings: Settings, key: str) -> dict[str, Any] | None:
    """Return the balance of a delivery: of its manifest, else of its last check, else None. Raises DatasetError."""
    dataset, store = Dataset(settings), open_store(settings.store, settings)
    verdict = verdicts.checked(store, key)
    files = int(verdict.delivery["files"]) if verdict else None
    if key in dataset.manifests():
        return asdict(balance(dataset.manifest(key), files))
    if verdict is None or not verdict.table:
        return None
    return asdict(balance(verdicts.checked_table(store, verdict), files))


def quarantine(settings: Settings, delivery: str = "", reason: str = "", paths: bool = False) -> list[dict[str, Any]]:
    """Return the quarantined files of the dataset: delivery, row, reason, detail, size and content digest of each.

    `delivery` (a name, or the key of one part) and `reason` narrow the list; `paths` adds the path inside the delivery,
    which may name a patient. What counts of a file is its latest judgement. Of a delivery that is asked for by name,
    parts that were rejected are listed too; `committed` tells them. Raises DeliveryError for a delivery that was
    neither committed nor judged file by file, DatasetError.
    """
    dataset, store = Dataset(settings), open_store(settings.store, settings)
    tables = {key: dataset.manifest(key) for key in dataset.manifests()}
    keys = [key for key in tables if not delivery or delivery in (key, part_of(key)[0])]
    rejected = (
        [one for one in verdicts.rejected(settings) if delivery in (one.key, part_of(one.key)[0])] if delivery else []
    )
    if delivery and not keys and not rejected:
        raise DeliveryError(f"no delivery {delivery} is committed or rejected; `xray check` judges one that waits")
    listed = []
    for key, row in itertools.chain(_standing(tables, keys), _kept_out(store, rejected, bool(keys))):
        if reason in ("", row.reason):
            said = {"delivery": key, "row": int(row.Index), "reason": row.reason, "detail": row.detail}
            said["committed"] = key in keys
            path = {"file": row.file} if paths else {}
            listed.append({**said, "size": int(row.size), "source_digest": row.source_digest, **path})
    return listed


def _standing(tables: Mapping[str, Any], keys: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Yield (key, row) of the quarantined rows of manifests `keys` that stand: the latest judgement of their files."""
    stands = in_force(tables)
    for key in keys:
        table = tables[key]
        for row in table[stands[key] & (table["verdict"] != "accepted")].itertuples():
            yield key, row


def _kept_out(store: Any, rejected: Sequence[Checked], more: bool) -> Iterator[tuple[str, Any]]:
    """Yield (key, row) of quarantined files of rejected deliveries; one that was not judged by file is an error unless
    there is `more` to tell."""
    for verdict in rejected:
        if verdict.table:
            table = verdicts.checked_table(store, verdict)
            for row in table[table["verdict"] != "accepted"].itertuples():
                yield verdict.key, row
        elif not more:
            raise DeliveryError(f"delivery {verdict.key} is rejected as a whole, no file was judged: {verdict.why}")


def verify(settings: Settings) -> tuple[bool, str]:
    """Check that every file of every committed delivery ended once: (holds, a sentence). Raises DatasetError."""
    dataset = Dataset(settings)
    if altered := dataset.altered():
        return False, f"missing, or not what was committed: the manifests of {', '.join(altered[:5])}"
    taken: Counter[tuple[Any, ...]] = Counter()
    digests: Counter[str] = Counter()
    files: set[tuple[Any, ...]] = set()
    for key in dataset.manifests():
        table = dataset.manifest(key)
        added_up = balance(table)
        if not added_up.holds:
            return False, f"the rows of manifest {key} do not add up: {asdict(added_up)}"
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


def amended(settings: Settings) -> tuple[bool, str]:
    """Check that nothing that was withdrawn came in again: (holds, a sentence). Raises DatasetError."""
    dataset = Dataset(settings)
    said, again = dataset.amended(), 0
    for commit in dataset.commits.manifests():
        table = dataset.manifest(commit.manifest)
        by, of_delivery = said.by(table), said.deliveries.get(part_of(commit.manifest)[0], commit.number)
        late = ((by > 0) & (by < commit.number)) | (of_delivery < commit.number)
        again += int(((table["verdict"] == "accepted") & late).sum())
    if again:
        return False, f"{again} radiographs were accepted after they, or their patients or deliveries, were withdrawn"
    count = len(dataset.commits.amendments())
    return True, f"{count} amendments; of {len(said.withdrawn)} withdrawn radiographs none came in again"


def split(settings: Settings) -> tuple[bool, str]:
    """Check that no patient is on two sides of the split: (holds, a sentence). Raises DatasetError."""
    dataset = Dataset(settings)
    sides: dict[str, set[str]] = {}
    for key in dataset.manifests():
        table = dataset.manifest(key)
        known = (table["verdict"] == "accepted") & (table["patient"] != "")  # but for what was erased
        accepted = table.loc[known, ["patient", "side"]].drop_duplicates()
        for patient, side in accepted.itertuples(index=False, name=None):
            sides.setdefault(patient, set()).add(side)
    both = sum(len(taken) > 1 for taken in sides.values())
    if both:
        return False, f"{both} patients are on two sides of the split"
    return True, f"{len(sides)} patients, each on one side of the split"
