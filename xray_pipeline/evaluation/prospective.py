"""The prospective record: what a model said of each delivery before any model learned from it.

    prospective/rows/<candidate>/<delivery>/<sha256>.parquet   a row per radiograph; written once, named by its digest
    prospective/acknowledged/<candidate>/<n>.json              who acknowledged an alarm, when and why; written once
    prospective/told/<candidate>/<delivery>.json               that people were told of the alarm that it raised

A row holds a radiograph's digest and the model's probabilities, and nothing else: label, patient, site and scanner are
what the dataset says of the digest when the record is read, so that amendments count, and what was withdrawn or erased
falls out. A file that is not what its name says is not believed; it is as if it were not there, and made anew.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass

import pandas as pd
from pyarrow import ArrowInvalid

from xray_pipeline.base import records
from xray_pipeline.base.errors import Damaged, DatasetError, EvaluationError, ObjectNotFound
from xray_pipeline.base.storage import Store
from xray_pipeline.dataset.erasing import Trace
from xray_pipeline.dataset.parquet import facts_of, from_parquet, to_parquet
from xray_pipeline.evaluation.cases import Floats, check_probabilities, named

log = logging.getLogger(__name__)

ROWS, ACKNOWLEDGED, TOLD = "prospective/rows", "prospective/acknowledged", "prospective/told"


@dataclass(frozen=True, eq=False)
class Said:
    """What a model said of a delivery: probabilities [N, C] of radiographs (by digest), and its operating threshold.

    `candidate` is the digest that names the model everywhere, `model` that of its weights; `snapshot` is the dataset's
    when it was asked, `at` when the delivery was committed (ISO 8601 in UTC).
    """

    candidate: str
    model: str
    delivery: str
    snapshot: str
    at: str
    threshold: float
    classes: tuple[str, ...]
    digests: Sequence[str]
    probabilities: Floats


@dataclass(frozen=True)
class Acknowledgement:
    """That a person has looked at an alarm: who, when (ISO 8601), why, and the last delivery that counted for it."""

    delivery: str
    alarm: str
    who: str
    at: str
    why: str


def keep(store: Store, said: Said) -> None:
    """Keep what was said of a delivery. Raises StorageUnavailable."""
    table = pd.DataFrame(said.probabilities, columns=[f"p_{name}" for name in said.classes])
    table.insert(0, "digest", pd.Series(list(said.digests), dtype="str"))
    facts = {name: getattr(said, name) for name in _FACTS}
    data = to_parquet(table, {**facts, "threshold": repr(said.threshold)})
    store.write(_key(said.candidate, said.delivery, data), data)


def recorded(store: Store, candidate: str) -> dict[str, str]:
    """Return the deliveries that the record of a candidate has, each with the key of its file: the first one by name
    where two nights at once wrote one each. Raises StorageUnavailable."""
    files: dict[str, str] = {}
    for key in sorted(entry.key for entry in store.list(f"{ROWS}/{candidate}")):
        files.setdefault(key.split("/")[3], key)
    return files


def read(store: Store, candidate: str, deliveries: Set[str] | None = None) -> tuple[list[Said], list[str]]:
    """Return what a candidate said of each delivery, or of some, and what is wrong with each file that can't be
    believed."""
    found, damaged = [], []
    keys = [key for of, key in recorded(store, candidate).items() if deliveries is None or of in deliveries]
    for key, data in zip(keys, records.read_all(store, keys), strict=True):
        try:
            found.append(_read(store, key, data))
        except (Damaged, DatasetError, EvaluationError) as error:
            damaged.append(str(error))
    return found, damaged


def whole(store: Store, candidate: str) -> set[str]:
    """Return the deliveries that the record of a candidate has; files that can't be believed are deleted. Raises
    StorageUnavailable."""
    deliveries, files = set(), recorded(store, candidate)
    for (delivery, key), data in zip(files.items(), records.read_all(store, list(files.values())), strict=True):
        try:
            records.checked(data, _digest(key), f"{key} in {store.uri}", "its name")
        except Damaged as error:
            log.warning("%s; the delivery is scored again", error)
            store.delete(key)
        else:
            deliveries.add(delivery)
    return deliveries


def answered(parts: Iterable[Said]) -> pd.DataFrame:
    """Return all that was said, a row per radiograph: digest, delivery, at, named (the class, by its number), and p_ of
    each class. A radiograph that two deliveries brought counts once, with the first."""
    tables = [
        pd.DataFrame(part.probabilities, columns=[f"p_{name}" for name in part.classes]).assign(
            digest=pd.Series(list(part.digests), dtype="str"),
            delivery=part.delivery,
            at=part.at,
            named=named(part.probabilities, part.threshold),
        )
        for part in parts
    ]
    return pd.concat(tables, ignore_index=True).drop_duplicates("digest", ignore_index=True)


def traces(store: Store, digests: Set[str]) -> Iterator[Trace]:
    """Yield the files that have a row of some radiographs (digests), each with the rest of it to keep: the delivery
    stays one that was asked about. One that can't be believed goes. Raises StorageUnavailable."""
    for key in sorted(entry.key for entry in store.list(ROWS)):
        try:
            data = records.exactly(store, key, _digest(key), "its name")
            table = from_parquet(data, key)
        except ObjectNotFound:
            continue
        except DatasetError as error:
            log.warning("%s", error)
            yield Trace(key)
            continue
        if (out := table["digest"].isin(digests)).any():
            told_of = facts_of(data)
            facts = {name: told_of.get(name, "") for name in (*_FACTS, "threshold")}
            kept = to_parquet(table[~out].reset_index(drop=True), facts)
            yield Trace(key, {_key(facts["candidate"], facts["delivery"], kept): kept})


def acknowledge(store: Store, candidate: str, given: Acknowledgement) -> None:
    """Keep that a person has looked at the alarm about a candidate. Raises StorageUnavailable."""
    content = {name: getattr(given, name) for name in Acknowledgement.__annotations__}
    for number in itertools.count(sum(1 for _ in store.list(f"{ACKNOWLEDGED}/{candidate}")) + 1):
        if records.write(store, f"{ACKNOWLEDGED}/{candidate}/{number:04d}.json", content, if_absent=True):
            return


def acknowledgements(store: Store, candidate: str) -> tuple[list[Acknowledgement], list[str]]:
    """Return who has looked at alarms about a candidate, oldest first, and what is wrong with each file that can't be
    believed. Raises StorageUnavailable."""
    found, damaged = [], []
    for key in sorted(entry.key for entry in store.list(f"{ACKNOWLEDGED}/{candidate}")):
        try:
            found.append(records.read(store, key, Acknowledgement))
        except DatasetError as error:
            damaged.append(str(error))
    return found, damaged


def tell(store: Store, candidate: str, delivery: str) -> None:
    """Keep that people were told of the alarm about a candidate that a delivery raised. Raises StorageUnavailable."""
    records.write(store, f"{TOLD}/{candidate}/{delivery}.json", {"at": records.moment()}, if_absent=True)


def told(store: Store, candidate: str, delivery: str) -> bool:
    """Return whether people were told of the alarm about a candidate that a delivery raised."""
    return store.exists(f"{TOLD}/{candidate}/{delivery}.json")


_FACTS = ("candidate", "model", "delivery", "snapshot", "at")


def _key(candidate: str, delivery: str, data: bytes) -> str:
    return f"{ROWS}/{candidate}/{delivery}/{records.digest_of(data)}.parquet"


def _read(store: Store, key: str, data: bytes) -> Said:
    records.checked(data, _digest(key), f"{key} in {store.uri}", "its name")
    table = from_parquet(data, key)
    try:
        classes = tuple(name.removeprefix("p_") for name in table.columns[1:])
        told_of = facts_of(data)
        facts = {name: told_of.get(name, "") for name in _FACTS}
        threshold, probabilities = float(told_of.get("threshold", "")), table.iloc[:, 1:].to_numpy(float)
    except (ArrowInvalid, ValueError, LookupError) as error:
        raise Damaged(f"{key} in {store.uri} is no part of a prospective record ({error}); restore it") from error
    check_probabilities(probabilities, len(table), len(classes))
    if (facts["candidate"], facts["delivery"]) != tuple(key.split("/")[2:4]):
        raise Damaged(f"{key} in {store.uri} tells of another model or delivery; restore it from a backup")
    return Said(
        **facts, threshold=threshold, classes=classes, digests=list(table["digest"]), probabilities=probabilities
    )


def _digest(key: str) -> str:
    return key.rpartition("/")[2].removesuffix(".parquet")
