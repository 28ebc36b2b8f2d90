"""What each night did, in one small object: ten years of them are read at once.

    nights/records/2026-03/20260303T020000-<12 hex>-<n>.json   one night; sealed, written once, when it ends
    nights/months/2026-03/<sha256>.json                        a month's records in one file; derived, may be deleted

A run that is cleared and ends a second time leaves a second record; of one run the last counts. The trade-off: whoever
writes a record also lists all of them and bundles each month that is not whole, so that a reader needs one listing and
one file a month; what is in no bundle is read by itself.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime

import msgspec

from xray_pipeline.base import records
from xray_pipeline.base.errors import DatasetError, ObjectNotFound
from xray_pipeline.base.storage import Store
from xray_pipeline.base.text import BARRED, several
from xray_pipeline.evaluation.metric_table import Interval

log = logging.getLogger(__name__)

RECORDS, MONTHS = "nights/records", "nights/months"
FORMAT = 1


@dataclass(frozen=True)
class Model:
    """A model as the night scored it; `version` is None for a candidate that is none yet."""

    version: int | None
    radiographs: int
    figures: Mapping[str, Interval]


@dataclass(frozen=True)
class Arrival:
    """A delivery: `state` is ingested, rejected or unchecked; `drift` has the p value of each channel measured, and
    `labelled` says which label tables named its files, by what, as in `Checked`."""

    name: str
    state: str
    accepted: int = 0
    quarantined: Mapping[str, int] = field(default_factory=dict)
    why: str = ""
    alarms: tuple[str, ...] = ()
    drift: Mapping[str, float] = field(default_factory=dict)
    labelled: str = ""


@dataclass(frozen=True)
class Night:
    """One night. `run` names it where it was started; times are ISO 8601 in UTC; `minutes` is by task.

    `verdict` is registered or refused, "" where nothing was decided; `why` says why. `barred` is whether the policy did
    not let the version be promoted; records that were written before there was such a field say it in `why` alone.
    `in_production` is the champion when the night ended, `since` when that was made champion. `failed` has what is
    known of each task that failed; `alarm` is the one about the champion that stood, `unwatched` why nobody looked for
    one.
    """

    run: str
    who: str
    started: str
    ended: str
    deliveries: tuple[Arrival, ...] = ()
    radiographs: int = 0
    patients: int = 0
    candidate: Model | None = None
    champion: Model | None = None
    verdict: str = ""
    version: int | None = None
    alias: str = ""
    why: str = ""
    in_production: int | None = None
    since: str = ""
    failed: Mapping[str, str] = field(default_factory=dict)
    minutes: Mapping[str, float] = field(default_factory=dict)
    alarm: str = ""
    unwatched: str = ""
    barred: bool = False

    @property
    def accepted(self) -> int:
        """The files that its deliveries brought into the dataset."""
        return sum(arrival.accepted for arrival in self.deliveries)

    @property
    def quarantined(self) -> dict[str, int]:
        """The files that it kept out, by reason."""
        counts: dict[str, int] = {}
        for reason, count in itertools.chain.from_iterable(a.quarantined.items() for a in self.deliveries):
            counts[reason] = counts.get(reason, 0) + count
        return counts


@dataclass(frozen=True)
class Past:
    """The nights, newest first, and what is wrong with each record that can't be believed."""

    nights: tuple[Night, ...]
    damaged: tuple[str, ...] = ()


class _Month(msgspec.Struct, forbid_unknown_fields=True):
    format: int
    nights: dict[str, Night]


def outcome(night: Night) -> str:
    """Return a night in one word: failed, promoted, registered, refused, rejected (a delivery), ingested or quiet."""
    if night.failed:
        return "failed"
    if night.verdict:
        return "promoted" if night.alias == "champion" else night.verdict
    if any(arrival.state != "ingested" for arrival in night.deliveries):
        return "rejected"
    return "ingested" if night.deliveries else "quiet"


def in_words(night: Night) -> str:
    """Say what came of a night, so that it is read in ten seconds."""
    parts = [f"ALARM: {night.alarm.rstrip('.')}"] if night.alarm else []
    parts += [f"failed in {task}{f': {why}' if why else ''}" for task, why in night.failed.items()]
    parts += [_deliveries(night), *_exceptions(night), _candidate(night)]
    if night.unwatched:
        parts.append(f"the champion was not watched: {night.unwatched}")
    if night.in_production is None:
        parts.append("no champion yet")
    else:
        parts.append(f"champion {night.in_production} since {_day(night.since, night.started)}")
    return "; ".join(filter(None, parts))


def _deliveries(night: Night) -> str:
    if not night.deliveries:
        return "no deliveries"
    told = several(len(night.deliveries), "delivery", "deliveries")
    return f"{told}, {night.accepted} accepted, {sum(night.quarantined.values())} quarantined"


_NAMED = 3  # deliveries whose label tables a night's words name


def _exceptions(night: Night) -> list[str]:
    named = {state: [a.name for a in night.deliveries if a.state == state] for state in ("rejected", "unchecked")}
    parts = [f"rejected: {', '.join(named['rejected'])}"] if named["rejected"] else []
    parts += [f"not taken: {', '.join(named['unchecked'])}"] if named["unchecked"] else []
    labelled = [a for a in night.deliveries if a.labelled]
    parts += [f"labels of {a.name}: {a.labelled}" for a in labelled[:_NAMED]]
    parts += [f"labels of {len(labelled) - _NAMED} more by tables"] if len(labelled) > _NAMED else []
    return parts + [f"drift alarm: {a.name} ({', '.join(a.alarms)})" for a in night.deliveries if a.alarms]


def _candidate(night: Night) -> str:
    if night.candidate is None:
        return "" if night.failed else night.why
    scored = f"candidate {_accuracy(night.candidate)}".rstrip()
    against = f" against {_accuracy(night.champion)}" if night.champion else ""
    if night.verdict == "refused":
        return f"{scored} refused{against}"
    if night.version is None:
        return scored + against
    barred = night.barred or BARRED in night.why
    role = "is the champion" if night.alias == "champion" else "not to be promoted" if barred else "waits"
    return f"{scored}{against}, registered as version {night.version}, {role}"


def _accuracy(model: Model) -> str:
    figure = model.figures.get("accuracy")
    return f"{figure.value:.3f}".removeprefix("0") if figure else ""


def _day(at: str, seen: str) -> str:
    day = datetime.fromisoformat(at)
    return f"{day.day} {day:%B}" + (f" {day.year}" if at[:4] != seen[:4] else "")


def moment() -> str:
    """Return now as a record tells it; fine enough that two nights started by hand, one after the other, differ."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def keep(store: Store, night: Night) -> None:
    """Write a night's record, once; a repeat that has nothing else to say adds nothing.

    An earlier record of this run that is damaged stays, and counts as one that said something else. Raises
    StorageUnavailable.
    """
    stem = f"{RECORDS}/{night.started[:7]}/{_stem(night)}"
    for number in itertools.count(1):
        key = f"{stem}-{number}.json"
        if records.write(store, key, asdict(night), if_absent=True):
            break
        try:
            earlier = records.read(store, key, Night)
        except DatasetError as error:
            log.warning("%s; the night's record is written beside it", error)
            continue
        if replace(earlier, ended=night.ended) == _as_read(night):
            return
    log.info("the night's record is %s in %s", key, store.uri)
    _bundle(store)


def read(store: Store) -> Past:
    """Return all nights, of each run its last record. Raises StorageUnavailable."""
    keys, bundles = _listed(store)
    nights = _unbundled(store, bundles)
    damaged, alone = [], sorted(keys - nights.keys())
    for key, data in zip(alone, records.read_all(store, alone), strict=True):
        try:
            nights[key] = records.opened(data, Night, f"{key} in {store.uri}")
        except DatasetError as error:
            damaged.append(str(error))
    last = {nights[key].run or _begun(key): nights[key] for key in sorted(keys & nights.keys(), key=_order)}
    return Past(tuple(sorted(last.values(), key=lambda night: night.started, reverse=True)), tuple(damaged))


def _as_read(night: Night) -> Night:
    return msgspec.convert(msgspec.json.decode(msgspec.json.encode(asdict(night))), Night)


def _stem(night: Night) -> str:
    began = night.started[:19].replace("-", "").replace(":", "")
    return f"{began}-{hashlib.sha256((night.run or night.started).encode()).hexdigest()[:12]}"


def _begun(key: str) -> str:
    return key.rpartition("-")[0]


def _order(key: str) -> tuple[str, int]:
    return _begun(key), int(key.removesuffix(".json").rpartition("-")[2])


def _listed(store: Store) -> tuple[set[str], dict[str, list[str]]]:
    """Return the keys of the records, and those of each month's bundles."""
    keys, bundles = set(), dict[str, list[str]]()
    for entry in store.list("nights"):
        folder, _, _ = entry.key.rpartition("/")
        if folder.startswith(f"{RECORDS}/"):
            keys.add(entry.key)
        elif folder.startswith(f"{MONTHS}/"):
            bundles.setdefault(folder.rpartition("/")[2], []).append(entry.key)
    return keys, bundles


def _unbundled(store: Store, bundles: Mapping[str, list[str]]) -> dict[str, Night]:
    """Return the records that bundles hold, by key; without those that a writer replaced meanwhile or are damaged."""
    keys = [key for month in bundles.values() for key in month]
    try:
        contents = records.read_all(store, keys)
    except ObjectNotFound:
        return {}
    nights: dict[str, Night] = {}
    for key, data in zip(keys, contents, strict=True):
        if records.digest_of(data) != key.rpartition("/")[2].removesuffix(".json"):
            log.warning("%s in %s is damaged; it is made anew from the records by the next night", key, store.uri)
            continue
        try:
            month = msgspec.json.decode(data, type=_Month)
        except msgspec.DecodeError:  # of another shape: it is made anew
            continue
        nights |= month.nights if month.format == FORMAT else {}
    return nights


def _bundle(store: Store) -> None:
    """Make the file of each month that does not hold all its records, and delete what it replaces."""
    keys, bundles = _listed(store)
    bundled = _unbundled(store, bundles)
    for month in sorted({key.split("/")[2] for key in keys - bundled.keys()}):
        wanted = sorted(key for key in keys if key.startswith(f"{RECORDS}/{month}/"))
        nights = {key: bundled[key] for key in wanted if key in bundled}
        nights |= dict(_whole(store, [key for key in wanted if key not in nights]))
        data = msgspec.json.encode(_Month(FORMAT, nights))
        store.write(name := f"{MONTHS}/{month}/{records.digest_of(data)}.json", data)
        for replaced in bundles.get(month, []):
            if replaced != name:
                store.delete(replaced)


def _whole(store: Store, keys: list[str]) -> Iterable[tuple[str, Night]]:
    """Yield the records that can be believed; a damaged one stays out of the month's file, so that `read` names it."""
    for key, data in zip(keys, records.read_all(store, keys), strict=True):
        try:
            yield key, records.opened(data, Night, key)
        except DatasetError as error:
            log.warning("%s", error)
