"""Which of the files that nobody has labelled would teach most: those that the model in production is unsure of and
that lie far from what is known. It reads deliveries, and runs where the network is."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from xray_pipeline.base import records
from xray_pipeline.base.errors import AccessDenied, ObjectNotFound, RadiographError
from xray_pipeline.base.progress import Progress
from xray_pipeline.base.storage import open_store
from xray_pipeline.dataset.fingerprints import fingerprint
from xray_pipeline.dataset.pixels import PixelCache
from xray_pipeline.dataset.revisions import part_of
from xray_pipeline.dataset.split import id_in_name
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.images import radiograph
from xray_pipeline.images.raster import Limits
from xray_pipeline.intake.labelled import UNLABELLED
from xray_pipeline.intake.layout import unescape
from xray_pipeline.intake.scan import patient_told
from xray_pipeline.models.classifier import Classifier
from xray_pipeline.night import review
from xray_pipeline.night.review import Overview, ToLabel, Unlabelled
from xray_pipeline.night.run import Run
from xray_pipeline.training.features import kept_scorer

log = logging.getLogger(__name__)

MOST_FILES, MOST_KNOWN = 500, 2000
"""Unlabelled files that are read; training radiographs that they are compared with."""


class _File(NamedTuple):
    delivery: str
    row: int
    source_digest: str
    digest: str
    thumbnail: str
    patient: str
    pixels: NDArray[np.uint8]


def rank(run: Run, model: Classifier, progress: Progress | None = None) -> ToLabel:
    """Keep and return the unlabelled files of all deliveries, those first that would teach most, as `model` sees them.

    A file's score is the mean of its rank by uncertainty (1 less the difference of the two largest probabilities) and
    of that by distance to the nearest training radiograph in the network's features, both from 0 to 1. What is there
    already or withdrawn, can't be read, or is no radiograph, is left out. Raises DatasetError, StorageUnavailable.
    """
    dataset, store = Dataset(run.settings), run.store()
    now = review.overview(dataset)
    places = _places(dataset, now)
    kept = review.to_label(store)
    if kept and kept.model == model.digest and set(kept.places) == set(places):
        return kept
    known = now.radiographs.index
    amended, earlier = dataset.amended(), set(kept.places) if kept else set()
    may = [place for place in places if part_of(place[0])[0] not in amended.deliveries]
    may.sort(key=lambda place: place not in earlier)  # what is in readers' hands stays on the list
    found_there = (one for one in _read(dataset, may, model, progress) if one.digest not in known)
    new = (one for one in found_there if one.digest not in amended.withdrawn and one.patient not in amended.patients)
    files = list({one.digest: one for one in itertools.islice(new, MOST_FILES)}.values())
    found = ToLabel(model.digest, tuple(places), tuple(_ranked(run, dataset, model, files)) if files else ())
    review.keep_to_label(store, found)
    if places:
        log.info("%d of %d unlabelled files are ranked by what they would teach", len(files), len(places))
    return found


def _places(dataset: Dataset, now: Overview) -> list[tuple[str, int]]:
    """Return delivery and row of each file that has no label, of committed deliveries and of those that wait."""
    found = list(now.unlabelled)
    store = open_store(dataset.settings.store, dataset.settings)
    for key, counts in review.waiting(store, now.quarantined).items():
        if set(UNLABELLED) & counts.keys():
            out = review.kept_out(dataset, key)
            found += [(key, int(row)) for row in out.index[out["reason"].isin(UNLABELLED)]]
    return sorted(found)


def _read(
    dataset: Dataset, places: list[tuple[str, int]], model: Classifier, progress: Progress | None
) -> Iterator[_File]:
    settings, patient_key = dataset.settings, dataset.patient_key()
    limits, incoming = Limits.of(settings.rules), open_store(settings.incoming, settings)
    tables: dict[str, pd.DataFrame] = {}
    for done, (key, row) in enumerate(places, 1):
        if key not in tables:
            tables = {key: review.table_of(dataset, key)}
        file = tables[key]["file"][row]
        try:
            data = incoming.child(part_of(key)[0]).read(unescape(file))
            read = radiograph.normalise(data, limits)
        except (RadiographError, ObjectNotFound, AccessDenied):
            continue
        named = id_in_name(settings.rules.patient_pattern, file)
        patient = patient_told(patient_key, read.facts.patient_id) or str(tables[key]["patient"][row])
        patient = patient or patient_told(patient_key, "", "", named)
        seen = (fingerprint(read.pixels).thumbnail, patient, radiograph.fitted(read.pixels, model.side, model.fit))
        yield _File(key, row, records.digest_of(data), read.digest, *seen)
        if progress:
            progress(done, len(places), "reading unlabelled files")


def _ranked(run: Run, dataset: Dataset, model: Classifier, files: list[_File]) -> list[Unlabelled]:
    vectors = _features(model, np.stack([one.pixels for one in files]))
    said = model.of_features(torch.from_numpy(vectors))
    two = np.sort(said, axis=1)[:, -2:]
    unsure = 1 - (two[:, 1] - two[:, 0])
    far = _distances(run, dataset, model, vectors)
    scores = (_share(unsure) + _share(far)) / 2
    names = model.label(said)
    order = np.lexsort((np.array([one.digest for one in files]), -scores))
    return [
        Unlabelled(
            *(files[at].delivery, files[at].row, files[at].source_digest, files[at].digest, files[at].thumbnail),
            *(names[at], round(float(said[at].max()), 4), round(float(far[at]), 3), round(float(scores[at]), 4)),
            files[at].patient,
        )
        for at in order.tolist()
    ]


def _features(model: Classifier, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.concatenate([part.cpu().numpy() for part in model.features(pixels)])


def _share(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return the rank of each value as a share, above 0 to 1; equal values share one."""
    return np.asarray(rankdata(values) / len(values))


def _distances(run: Run, dataset: Dataset, model: Classifier, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return how far features are from the nearest of at most MOST_KNOWN training radiographs, standardised by them."""
    snapshot = dataset.snapshot()
    if snapshot is None:
        return np.zeros(len(vectors))
    rows = dataset.rows(snapshot)
    rows = rows[rows["side"] == "train"]
    rows = rows.iloc[np.sort(np.random.default_rng(0).permutation(len(rows))[:MOST_KNOWN])].reset_index(drop=True)
    if rows.empty:
        return np.zeros(len(vectors))
    if kept := kept_scorer(model, run.settings):
        kept.ensure(rows, dataset.read)
        known = kept.get(list(rows["digest"]))
    else:
        cache = PixelCache(run.settings.cache, model.side, model.fit)
        cache.ensure(rows, dataset.read, run.settings.workers)
        known = _features(model, cache.get(list(rows["digest"])))
    scaled = StandardScaler().fit(known)
    nearest = NearestNeighbors(n_neighbors=1).fit(scaled.transform(known))
    return np.asarray(nearest.kneighbors(scaled.transform(vectors))[0][:, 0], np.float64)
