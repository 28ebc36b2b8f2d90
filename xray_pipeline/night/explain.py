"""Draws what a person reviews after a night: what both models say of suspects and disagreements, where that comes from,
and which radiographs are most alike. It runs where the models are loaded; the page only reads it (`night/review`)."""

from __future__ import annotations

import base64
import logging
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from xray_pipeline.base.progress import Progress
from xray_pipeline.dataset.pixels import PixelCache
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.models.classifier import Classifier
from xray_pipeline.night import lineage, review, screening
from xray_pipeline.night.pair import Pair
from xray_pipeline.night.review import MAP_SIDE, Explained, Material, Opinion
from xray_pipeline.night.run import Run
from xray_pipeline.report import examples, gradcam

log = logging.getLogger(__name__)

MISLABELS, OUTLIERS, DISAGREEMENTS = 40, 10, 20
"""How many of each kind are explained: those that a person looks at first. A map takes a pass through the network."""
ALIKE = 4
"""Radiographs of other patients shown beside one."""


def draw(run: Run, both: Pair, progress: Progress | None = None) -> None:
    """Keep what there is to review of a pair, unless that is kept already. Raises as `Pair.models`, DatasetError."""
    store, models = run.store(), tuple(both.model_digests())
    kept = review.material(store)
    if kept and (kept.snapshot, kept.models) == (both.snapshot.digest, models):
        return
    dataset = Dataset(run.settings)
    rows = dataset.rows(both.snapshot).set_index("digest", drop=False)
    differ = _disagreements(both)
    shown = list(dict.fromkeys([*differ[:DISAGREEMENTS], *_first_suspects(run, both.snapshot.digest)]))
    part = rows.loc[shown]
    opinions = [_opinions(both, model, part, dataset) for model in both.models] if shown else []
    alike = _alike(run, both, dataset, rows, part, progress) if shown else []
    explained = {
        digest: Explained(opinions[0][i], opinions[1][i] if len(opinions) > 1 else None, alike[i])
        for i, digest in enumerate(shown)
    }
    at = datetime.fromtimestamp(store.clock(), UTC).isoformat(timespec="seconds")
    about = (both.candidate.digest, both.champion, models, both.snapshot.digest, at, run.settings.classes)
    review.keep(store, Material(*about, tuple(differ), explained))
    log.info("%d radiographs explained for review; %d named differently by the models", len(shown), len(differ))


def _disagreements(both: Pair) -> list[str]:
    if both.champion is None:
        return []
    truth = np.array([both.run.settings.classes.index(label) for label in both.rows["label"]], np.int64)
    says = [np.array(model.label(table)) for model, table in zip(both.models, both.tables, strict=True)]
    for_truth = [table[np.arange(len(truth)), truth] for table in both.tables]
    return [str(digest) for digest in both.rows["digest"].iloc[examples.differing(says, for_truth)]]


def _first_suspects(run: Run, snapshot: str) -> list[str]:
    labels = review.overview(Dataset(run.settings)).labels()
    found = review.open_suspects(run.store(), snapshot, labels) or []
    by_kind = {kind: [one.digest for one in found if one.kind == kind] for kind in ("mislabel", "outlier")}
    return [*by_kind["mislabel"][:MISLABELS], *by_kind["outlier"][:OUTLIERS]]


def _opinions(both: Pair, model: Classifier, part: pd.DataFrame, dataset: Dataset) -> list[Opinion]:
    """Return what a model says of some of the snapshot's rows."""
    said = both.scored(model, part)
    labels = model.label(said)
    cache = PixelCache(both.run.settings.cache, model.side)
    cache.ensure(part, dataset.read, both.run.settings.workers)
    targets = [model.classes.index(label) for label in labels]
    maps = gradcam.maps(model.network, cache.get(list(part["digest"])), targets)
    return [
        Opinion(label, tuple(round(float(p), 5) for p in row), "" if maps is None else _small(maps[i]))
        for i, (label, row) in enumerate(zip(labels, said, strict=True))
    ]


def _small(heat: npt.NDArray[np.float32]) -> str:
    small = Image.fromarray(heat).resize((MAP_SIDE, MAP_SIDE), Image.Resampling.BILINEAR)
    return base64.b64encode((np.asarray(small).clip(0, 1) * 255).round().astype(np.uint8).tobytes()).decode()


def _alike(
    run: Run, both: Pair, dataset: Dataset, rows: pd.DataFrame, part: pd.DataFrame, progress: Progress | None
) -> list[tuple[str, ...]]:
    """Return for each row of `part` the nearest radiographs of other patients, in the features of a frozen backbone.

    Those are the ones that suspects are found by; looked among are training and validation radiographs.
    """
    pool = rows[rows["side"] != "held-out"]
    recipe = lineage.recipe_of(run.store(), both.candidate.digest)
    asked = pd.concat([pool, part[part["side"] == "held-out"]], ignore_index=True)
    vectors = StandardScaler().fit_transform(screening.features(run, dataset, asked, recipe, progress))
    place = {digest: at for at, digest in enumerate(asked["digest"])}
    patients = asked["patient"].to_numpy()
    wanted = min(len(pool), ALIKE + int(pool["patient"].value_counts().max()))
    near = NearestNeighbors(n_neighbors=wanted).fit(vectors[: len(pool)])
    own: Sequence[int] = [place[digest] for digest in part["digest"]]
    found = near.kneighbors(vectors[own], return_distance=False)
    return [
        tuple(str(asked["digest"].iloc[n]) for n in others if patients[n] != patients[at])[:ALIKE]
        for at, others in zip(own, found, strict=True)
    ]
