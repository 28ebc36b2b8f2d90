"""What the kept features say of a snapshot: drift of its deliveries, and suspects among its radiographs.

It runs where the training ran, because there the features of recipe `head` lie in the cache and cost nothing; the
intake, which may run on a small machine without torch, has compared pixels and labels already. Other recipes look with
their own frozen backbone, once. Only training and validation radiographs are looked at.

    intake/<key>/drift-features.json     once a delivery
    suspects/<snapshot>.json             once a snapshot
"""

from __future__ import annotations

import logging
from dataclasses import asdict

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xray_pipeline.base import records
from xray_pipeline.base.progress import Progress
from xray_pipeline.dataset.store import Dataset, Snapshot
from xray_pipeline.evaluation import suspects
from xray_pipeline.intake import alarms, drift
from xray_pipeline.night import review
from xray_pipeline.night.judging import alarms_hold_up
from xray_pipeline.night.run import Run
from xray_pipeline.training.pretrained import backbone_of
from xray_pipeline.training.recipe import Recipe
from xray_pipeline.training.trainer import Trainer

log = logging.getLogger(__name__)


def screen(run: Run, snapshot: Snapshot, recipe: Recipe, progress: Progress | None = None) -> None:
    """Compare deliveries whose features were never compared, and list the suspects of a snapshot that has no list.

    A delivery is compared with those compared before it (of several new ones, in order of their keys), so that its
    outcome stays what it was. Raises DatasetError, StorageUnavailable, WeightsError, TrainingError.
    """
    store, dataset = run.store(), Dataset(run.settings)
    new = [key for key in snapshot.manifests if not alarms.features_compared(store, key)]
    if not new and review.listed(store, snapshot.digest) is not None:
        return
    rows = dataset.rows(snapshot)
    rows = rows[rows["side"].isin(("train", "validation"))].reset_index(drop=True)
    vectors = features(run, dataset, rows, recipe, progress)
    by_digest = dict(zip(rows["digest"], vectors, strict=True))
    before = [key for key in snapshot.manifests if key not in new]
    holds_up = alarms_hold_up(run.settings)
    for key in new:
        kept = rows[rows["delivery"].isin(before)]
        found = drift.of_features(rows[rows["delivery"] == key], kept, by_digest, run.settings.rules)
        alarms.keep(store, key, dataset.fingerprint(key), found, alarms.FEATURES)
        log.info("delivery %s: %s", key, _says(found))
        for line in alarms.lines(store, [key], holds_up):
            log.warning("%s", line)
        before.append(key)
    worst = suspects.find(rows, vectors, run.settings.classes)
    log.info("%d suspects among %d radiographs of snapshot %s", len(worst), len(rows), snapshot.digest[:12])
    records.write(store, f"suspects/{snapshot.digest}.json", [asdict(suspect) for suspect in worst])


def _says(found: drift.Drift) -> str:
    channel = found.channels[0]
    return channel.text if channel.p is None else f"its features compared with the dataset's: p = {channel.p:.4f}"


def features(
    run: Run, dataset: Dataset, rows: pd.DataFrame, recipe: Recipe, progress: Progress | None = None
) -> NDArray[np.float32]:
    """Return features [N, F] of the rows, from a fresh network with the recipe's pretrained backbone.

    Those that are missing on this machine are computed and kept.
    """
    backbone = backbone_of(recipe, run.settings)
    trainer = Trainer(recipe, backbone, dataset, rows, run.settings, progress)
    missing = set(trainer.extracted.cache().missing(rows["digest"]))
    trainer.decode(rows[rows["digest"].isin(missing)])
    found = trainer.extracted.rows(list(rows["digest"]), progress=trainer.progress)
    return np.asarray(found.part(0, len(found)), np.float32)
