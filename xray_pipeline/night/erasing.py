"""Erasing for data protection: every trace of what amendments erased is removed, and looked for.

The amendment is the commit point (dataset/amendments): it says what is erased, and names what the manifests are without
it. What is left then are traces, in the rooms that OWNERS lists, in MLflow and in the cache of each machine. Removing
them may be killed and repeated; what is left after a kill, and what a night that had begun before leaves later, the
next night, amendment or repair removes:

    erased/<number>.json    what the last look, two days after that amendment, removed; no night looks again then

Each machine drops the erased rows from its own cache (night/kept_rows).
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Final

import pandas as pd

from xray_pipeline.base import records
from xray_pipeline.base.errors import Damaged, DatasetError, DeliveryError, ObjectNotFound
from xray_pipeline.base.storage import Store, sweep, unfinished
from xray_pipeline.dataset.erasing import Erased, Place, Trace, hidden
from xray_pipeline.dataset.revisions import part_of
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.evaluation import predictions, prospective
from xray_pipeline.intake import labelled, verdicts
from xray_pipeline.intake.labelled import UNLABELLED
from xray_pipeline.night import kept_rows
from xray_pipeline.night.run import Run
from xray_pipeline.registry.run_files import RunFiles
from xray_pipeline.report import redacting
from xray_pipeline.report.places import PAGE
from xray_pipeline.training import candidate as training

log = logging.getLogger(__name__)

PREFIX = "erased"
UNFINISHED_SECONDS = 900.0
"""Age from which a write to the store that has not ended counts as one that never will."""


@dataclass(frozen=True)
class Site:
    """Where to look, for what, and whether a snapshot (its digest) holds some of it."""

    store: Store
    dataset: Dataset
    erased: Erased
    holds: Callable[[str], bool]

    @cached_property
    def trained(self) -> list[tuple[str, str, str]]:
        """Each candidate with its MLflow run and its snapshot, as `training.trained_on` yields them."""
        return list(training.trained_on(self.store))

    @cached_property
    def committed(self) -> set[str]:
        """The deliveries that are committed, by key."""
        return set(self.dataset.manifests())

    @cached_property
    def sources(self) -> set[str]:
        """The SHA-256 of each erased file."""
        tables = (self.dataset.manifest(key) for key in self.committed)
        return {digest for table in tables for digest in table.loc[hidden(table["file"]), "source_digest"]} - {""}


def _of_suspects(site: Site) -> Iterator[Trace]:
    for entry in site.store.list("suspects"):
        try:
            listed = records.read(site.store, entry.key, list[dict[str, object]])
        except ObjectNotFound:
            continue
        except Damaged:  # nobody knows what it tells of; it is listed anew
            yield Trace(entry.key)
            continue
        kept = [suspect for suspect in listed if suspect["digest"] not in site.erased.digests]
        if len(kept) < len(listed):
            yield Trace(entry.key, {entry.key: records.sealed(kept)})


def _of_reviews(site: Site) -> Iterator[Trace]:
    """What is derived goes as a whole and is drawn anew; what people said of a radiograph goes with it."""
    for entry in site.store.list("reviews"):
        if entry.key.startswith("reviews/readings/"):
            if entry.key.rpartition("/")[2].partition(".")[0] in site.erased.digests:
                yield Trace(entry.key)
            continue
        try:
            data = site.store.read(entry.key)
            listed = records.opened(data, dict[str, Any], entry.key)
        except ObjectNotFound:
            continue
        except Damaged:
            yield Trace(entry.key)
            continue
        words = re.findall(r"\b(?:[0-9a-f]{64}|[0-9a-f]{32})\b", data.decode())
        told = not (site.erased.digests | site.erased.patients).isdisjoint(words)
        if told or _is_told(site, listed):
            yield Trace(entry.key)


def _is_told(site: Site, listed: Mapping[str, Any]) -> bool:
    """Whether a list of files to be labelled tells of what was erased, or nobody can tell: a delivery may have been
    judged anew since the list was made, so that another file has a row."""
    files: dict[str, list[Mapping[str, Any]]] = {}
    for file in listed.get("files", ()):
        files.setdefault(file["delivery"], []).append(file)
    for key, those in files.items():
        committed = key in site.committed
        table = site.dataset.manifest(key) if committed else _waiting(site.store, key)
        if table is None:
            return True
        now, then = set(table.index[table["reason"].isin(UNLABELLED)]), {at for of, at in listed["places"] if of == key}
        gone, sources = site.erased.rows(table, part_of(key)[0]) | hidden(table["file"]), table["source_digest"]
        if not (committed or now == then) or any(
            file["row"] not in now or gone[file["row"]] or sources[file["row"]] not in ("", file["source_digest"])
            for file in those
        ):
            return True
    return False


def _waiting(store: Store, key: str) -> pd.DataFrame | None:
    """Return the intake table of a delivery that waits, None where there is none, or a damaged one."""
    verdict = verdicts.checked(store, key)
    try:
        return verdicts.checked_table(store, verdict) if verdict and verdict.table else None
    except DeliveryError:
        return None


def _of_labels(site: Site) -> Iterator[Trace]:
    for key in labelled.keys(site.store):
        if labelled.source_of(key) in site.sources:
            yield Trace(key)


def _of_candidates(site: Site) -> Iterator[Trace]:
    for candidate, _, snapshot in site.trained:
        if site.holds(snapshot):
            yield from training.traces(site.store, candidate)


OWNERS: Final[dict[str, Callable[[Site], Iterator[Trace]]]] = {
    "reviews": _of_reviews,
    "labels": _of_labels,
    "deliveries' results": lambda site: verdicts.traces(site.store, site.committed, site.erased),
    "predictions": lambda site: predictions.traces(site.store, site.erased.digests),
    "prospective record": lambda site: prospective.traces(site.store, site.erased.digests),
    "suspects": _of_suspects,
    "reports": lambda site: redacting.traces(site.store, site.erased.digests),
    "candidates": _of_candidates,
}
"""Who keeps something of radiographs in the store, beside the dataset, by what it is."""


def finish(run: Run, again: bool = False) -> dict[str, int]:
    """Remove what is left of what was erased; return how many files were changed or deleted, by what they were.

    Looks nowhere when nothing was erased, or when a look after `kept_rows.AGAIN_SECONDS` is done, but `again`. Raises
    DatasetError, RegistryError, StorageError: it is to be finished later then.
    """
    store, dataset = run.store(), Dataset(run.settings)
    newest, age = kept_rows.newest_erasure(dataset)
    if not newest:
        return {}
    key = f"{PREFIX}/{newest}.json"
    if store.exists(key) and not again:
        return {}
    dataset.finish()
    removed = Counter({"cache": kept_rows.drop_erased(dataset, again=True)})
    for kind, place, trace in _traces(run, dataset):
        trace.remove(place)
        removed[kind] += 1
    removed["unfinished writes"] = sweep(run.settings, UNFINISHED_SECONDS)
    done = {kind: count for kind, count in sorted(removed.items()) if count}
    if age > kept_rows.AGAIN_SECONDS:
        records.write(store, key, done, if_absent=True)
    log.info("erased by amendment %d: %s", newest, done or "nothing more")
    return done


def verify(run: Run) -> tuple[bool, str]:
    """Look for what was erased wherever it may be left: (nothing is left, a sentence). Raises as `finish` does."""
    dataset = Dataset(run.settings)
    erased = dataset.erased()
    if erased is None:
        return True, "nothing was ever erased"
    left = [f"{trace.key} ({kind})" for kind, _, trace in _traces(run, dataset)]
    left += [f"manifest {key}" for key, _ in erased.of_tables({k: dataset.manifest(k) for k in dataset.manifests()})]
    left += [f"{path} (cache)" for path in kept_rows.left(dataset)]
    left += [f"{path} (unfinished write)" for path in unfinished(run.settings, UNFINISHED_SECONDS)]
    if left:
        return False, f"{len(left)} files tell of what was erased, run `xray repair`: {', '.join(left[:5])}"
    return True, f"nothing is left of {len(erased.digests)} erased radiographs, in the store, MLflow or this cache"


def _traces(run: Run, dataset: Dataset) -> Iterator[tuple[str, Place, Trace]]:
    """Yield each trace with what it is of and where it lies: MLflow's first, as the store tells where to look there."""
    store, erased = run.store(), dataset.erased()
    assert erased is not None

    @cache
    def holds(snapshot: str) -> bool:
        try:
            return dataset.holds_erased(dataset.open_snapshot(snapshot))
        except DatasetError:  # nobody knows what was in it
            return True

    site, runs = Site(store, dataset, erased, holds), RunFiles(run.settings)
    for candidate, run_id, snapshot in site.trained:
        for one in sorted({run_id, *runs.of_candidate(candidate)} - {""}) if holds(snapshot) else ():
            log.debug("looking at MLflow run %s of candidate %s", one, candidate[:12])
            yield from (("MLflow", runs, trace) for trace in _of_run(runs, one, erased))
    named = verdicts.named(store, site.committed, erased)  # before the tables that name them go
    yield from (("dataset", dataset.store, trace) for trace in dataset.traces(named))
    for kind, find in OWNERS.items():
        yield from ((kind, store, trace) for trace in find(site))


def _of_run(runs: RunFiles, run_id: str, erased: Erased) -> Iterator[Trace]:
    for key in runs.list(run_id):
        name = key.partition("/")[2]
        if name in (training.BATCH, training.ANSWERS):
            yield Trace(key)
        elif name == PAGE:
            page = runs.read(key).decode(errors="replace")
            if (kept := redacting.redacted(page, erased.digests)) != page:
                yield Trace(key, {key: kept.encode()})
