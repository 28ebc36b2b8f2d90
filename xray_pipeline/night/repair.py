"""Stored radiographs, and thumbnails of others, that are damaged or missing: finding them, and putting back what a
delivery still holds.

A radiograph's name is the SHA-256 of its bytes, so what is made anew from an original is proven by it, whichever
delivery the original lies in and whatever became of that delivery: one of copies only is rejected, and heals all the
same. Nothing else is ever put in place.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import pandas as pd

from xray_pipeline.base.errors import (
    AccessDenied,
    DatasetError,
    RadiographDamaged,
    RadiographError,
    StorageError,
    StorageUnavailable,
)
from xray_pipeline.base.progress import Progress
from xray_pipeline.base.storage import Store, open_store
from xray_pipeline.dataset import thumbnails
from xray_pipeline.dataset.erasing import digests_of
from xray_pipeline.dataset.parquet import from_parquet
from xray_pipeline.dataset.revisions import part_of
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.dataset.thumbnails import Shown
from xray_pipeline.images.radiograph import Normalised
from xray_pipeline.images.raster import Limits
from xray_pipeline.intake import scan as reading
from xray_pipeline.intake import verdicts
from xray_pipeline.night import erasing, identity
from xray_pipeline.night.run import Run

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

SAMPLE = 500
"""Radiographs that a quick look reads; that all are there it sees in a listing."""
SHOWN = 5

Place = tuple[str, str, str]
"""Digest and suffix of a stored radiograph, and ""; or the perceptual hash of one of which a thumbnail is stored."""


@dataclass(frozen=True)
class DamagedRadiograph:
    """A stored radiograph, or thumbnail, that can't be used: why, and the (delivery, row) pairs that brought it."""

    digest: str
    suffix: str
    phash: str
    why: str
    rows: tuple[tuple[str, int], ...]

    def sentence(self) -> str:
        """Say where it came from, without a file's name."""
        rows = ", ".join(f"delivery {key} row {row}" for key, row in self.rows[:SHOWN])
        more = f" and {len(self.rows) - SHOWN} more" if len(self.rows) > SHOWN else ""
        return f"radiograph {self.digest[:12]} of {rows}{more}: {self.why}"


@dataclass(frozen=True)
class Found:
    """What a look at stored radiographs and thumbnails found: how many there are, how many were read, the damaged
    ones."""

    stored: int
    read: int
    damaged: tuple[DamagedRadiograph, ...]


@dataclass(frozen=True)
class Repaired:
    """What a repair did: radiographs read, those put back, and those whose original is nowhere to be found."""

    read: int
    repaired: tuple[DamagedRadiograph, ...]
    lost: tuple[DamagedRadiograph, ...]


def look(dataset: Dataset, quick: bool = False, progress: Progress | None = None) -> Found:
    """Read every stored radiograph and thumbnail, or, for a `quick` look, list all and read some that are drawn anew
    each time.

    Manifests that can't be read are left out. Changes nothing. Raises StorageUnavailable.
    """
    origins = _Origins(dataset)
    places = sorted(origins.stored)
    asked = places
    if quick:
        listed = [entry for folder in ("radiographs", thumbnails.FOLDER) for entry in dataset.store.list(folder)]
        there = {entry.key.rpartition("/")[2] for entry in listed if entry.size and entry.kind == "file"}
        absent = [place for place in places if f"{place[0]}{'.png' if place[2] else place[1]}" not in there]
        asked = sorted({*absent, *random.SystemRandom().sample(places, min(SAMPLE, len(places)))})
    troubles = _troubles(dataset, asked, progress)
    return Found(
        len(places),
        len(asked),
        tuple(DamagedRadiograph(*place, why, origins.rows(place[0])) for place, why in troubles),
    )


def verify(run: Run, quick: bool = False, progress: Progress | None = None) -> tuple[bool, str]:
    """Check that stored radiographs are what their digests say: (holds, a sentence). Raises StorageUnavailable."""
    found = look(Dataset(run.settings), quick, progress)
    how = f"all {found.stored}" if found.read == found.stored else f"{found.read} of {found.stored}, drawn by lot,"
    if not found.damaged:
        return True, f"stored radiographs: {how} were read and match their digests" + (", none is missing" * quick)
    shown = "; ".join(one.sentence() for one in found.damaged[:SHOWN])
    more = f"; and {len(found.damaged) - SHOWN} more" if len(found.damaged) > SHOWN else ""
    return False, f"{len(found.damaged)} of {found.stored} radiographs are damaged, run `xray repair`: {shown}{more}"


def repair(run: Run, progress: Progress | None = None) -> Repaired:
    """Read every stored radiograph and put back the damaged ones whose original lies in a delivery; first finish an
    erasure that was killed.

    Running it again changes nothing more. Raises DatasetError, StorageError, RegistryError.
    """
    identity.compare(run)
    erasing.finish(run, again=True)
    dataset = Dataset(run.settings)
    dataset.finish()
    found, origins = look(dataset, progress=progress), _Origins(dataset)
    if origins.unreadable:
        raise DatasetError(
            f"manifest {origins.unreadable[0]} can't be read, so nobody knows what it brought; see `xray verify`"
        )
    back = []
    for one in found.damaged:
        if _put_back(dataset, one, origins.originals(one.digest)):
            log.info("put back from a delivery: %s", one.sentence())
            back.append(one)
    return Repaired(found.read, tuple(back), tuple(one for one in found.damaged if one not in back))


def mending(step: Callable[Concatenate[Run, P], T]) -> Callable[Concatenate[Run, P], T]:
    """Let a step that met a damaged radiograph begin again once what can be put back is."""

    @wraps(step)
    def mended(run: Run, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return step(run, *args, **kwargs)
        except RadiographDamaged as error:
            log.warning("%s; looking for the original", error)
            if not repair(run).repaired:
                raise
        return step(run, *args, **kwargs)

    return mended


def heal(dataset: Dataset, delivery: Store, table: pd.DataFrame, known: Callable[[str], object]) -> int:
    """Put back what the dataset holds damaged and a delivery, just judged, brings again; return how many.

    `known(digest)` is None for what the dataset does not hold. Raises StorageUnavailable.
    """
    again = table[table["digest"].map(lambda digest: bool(digest) and known(digest) is not None)]
    rows = {row.digest: row for row in again.drop_duplicates("digest").itertuples()}
    damaged = [
        DamagedRadiograph(*place, why, ())
        for place, why in _troubles(dataset, [(row.digest, row.suffix, "") for row in rows.values()], None)
    ]
    healed = [one for one in damaged if _put_back(dataset, one, [(delivery, rows[one.digest])])]
    for one in healed:
        log.warning("radiograph %s was damaged and is put back: it was delivered again", one.digest[:12])
    return len(healed)


def _troubles(dataset: Dataset, places: Iterable[Place], progress: Progress | None) -> list[tuple[Place, str]]:
    """Return the radiographs that can't be used, each with why."""

    def trouble(place: Place) -> str:
        try:
            _read(dataset, *place)
        except RadiographDamaged as error:
            return str(error).partition("; ")[0]
        return ""

    asked, found = list(places), []
    with ThreadPoolExecutor(dataset.settings.workers or os.cpu_count()) as pool:
        for done, (place, why) in enumerate(zip(asked, pool.map(trouble, asked), strict=True), 1):
            found += [(place, why)] if why else []
            if progress:
                progress(done, len(asked), "reading radiographs")
    return found


def _read(dataset: Dataset, digest: str, suffix: str, phash: str) -> None:
    """Raise RadiographDamaged when a stored radiograph or thumbnail is not what it was; StorageUnavailable."""
    if phash:
        dataset.thumbnails.check(Shown(digest, suffix, phash, accepted=False))
    else:
        dataset.read(digest, suffix)


def _put_back(dataset: Dataset, one: DamagedRadiograph, originals: Iterable[tuple[Store, Any]]) -> bool:
    """Make a radiograph anew from the first of some rows (each with its delivery's store) that gives its digest."""
    limits = Limits.of(dataset.settings.rules)
    for delivery, row in originals:
        # Rules that came since don't matter: what comes out is proven. But no file may take more memory than it did.
        room = max(limits.max_pixels, row.width * row.height)
        size = max(limits.max_file_bytes, row.size)
        eased = replace(limits, max_file_bytes=size, max_pixels=room, min_side=1, max_aspect=float("inf"))
        try:
            made = reading.reread(delivery, row.file, eased)
        except (StorageError, RadiographError) as error:
            if isinstance(error, StorageUnavailable) and not isinstance(error, AccessDenied):
                raise  # it may lie there
            log.debug("row %d is no original any more: %s", row.Index, type(error).__name__)
            continue
        if made.digest == one.digest:
            return _put(dataset, one, made)
    return False


def _put(dataset: Dataset, one: DamagedRadiograph, made: Normalised) -> bool:
    try:
        if one.phash:
            dataset.thumbnails.put(one.digest, made.pixels)
        else:
            dataset.put(one.digest, one.suffix, made.data)
        _read(dataset, one.digest, one.suffix, one.phash)
    except StorageUnavailable:
        raise
    except (StorageError, RadiographDamaged) as error:  # a folder, say, stands in its place
        log.error("the original of radiograph %s is there, but: %s", one.digest[:12], error)
        return False
    return True


class _Origins:
    """Which deliveries brought what: the dataset's manifests, and the tables of deliveries that were only checked."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._store = open_store(dataset.settings.store, dataset.settings)
        self._tables: dict[str, pd.DataFrame] = {}
        self.unreadable: list[str] = []
        for key in dataset.manifests():
            try:
                self._tables[key] = dataset.manifest(key)
            except DatasetError:  # `verify` names it
                self.unreadable.append(key)

    @cached_property
    def stored(self) -> set[Place]:
        """Every accepted radiograph that was not erased, and the others of which a thumbnail is kept."""
        erased = digests_of(self._dataset.commits.amendments())
        accepted, shown = set[Place](), set[Place]()
        for table in self._tables.values():
            held = table["verdict"] == "accepted"
            digests, phashes = table["digest"], table["phash"].where(~held, "")
            places = pd.Series(zip(digests, table["suffix"], phashes, strict=True), table.index, dtype=object)
            accepted.update(places[held & ~digests.isin(erased)])
            shown.update(places[(phashes != "") & (table["thumbnail"] == "")])
        stored = {digest for digest, *_ in accepted}
        return accepted | {place for place in shown if place[0] not in stored}

    def rows(self, digest: str) -> tuple[tuple[str, int], ...]:
        """Return the (delivery, row) pairs of manifests that brought a radiograph, the one that was accepted first."""
        found = [(row.verdict, key, row.Index) for key, row in _rows(self._tables, digest)]
        return tuple((key, int(at)) for _, key, at in sorted(found))

    def originals(self, digest: str) -> Iterator[tuple[Store, Any]]:
        """Yield every row that brought a radiograph, with the store of its delivery, wherever that may lie."""
        yield from self._at_places(_rows(self._tables, digest))
        yield from self._at_places(_rows(self._checked, digest))

    @cached_property
    def _checked(self) -> dict[str, pd.DataFrame]:
        found = {}
        for entry in self._store.child("intake").list():
            key, _, name = entry.key.partition("/")
            if name == "table.parquet" and key not in self._tables:
                try:
                    found[key] = from_parquet(self._store.read(f"intake/{entry.key}"), f"intake table of {key}")
                except DatasetError as error:  # it is made anew with the next check
                    log.warning("%s", error)
        return found

    def _at_places(self, rows: Iterator[tuple[str, Any]]) -> Iterator[tuple[Store, Any]]:
        """Yield rows with where their delivery lay when it was checked, and with the folder of its name of now."""
        settings = self._dataset.settings
        for key, row in rows:
            verdict = verdicts.checked(self._store, key)
            there = [verdict.delivery["uri"]] if verdict else []
            folder = there[0].rstrip("/").rpartition("/")[2] if there else part_of(key)[0]
            for uri in dict.fromkeys([*there, open_store(settings.incoming, settings).child(folder).uri]):
                yield open_store(uri, settings), row


def _rows(tables: Mapping[str, pd.DataFrame], digest: str) -> Iterator[tuple[str, Any]]:
    for key, table in tables.items():
        for row in table[table["digest"] == digest].itertuples():
            yield key, row
