"""Draws what a person reviews after a night: what both models say of suspects and disagreements, where that comes from,
and which radiographs are most alike. It runs where the models are loaded; the page only reads it (`night/review`)."""

from __future__ import annotations

import base64
import logging
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from xray_pipeline.base import records
from xray_pipeline.base.progress import Progress
from xray_pipeline.dataset.pixels import PixelCache
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.night import compose_report, lineage, review, screening
from xray_pipeline.night.pair import Pair, scored
from xray_pipeline.night.review import MAP_SIDE, Explained, Material, Opinion
from xray_pipeline.night.run import Run
from xray_pipeline.report import examples
from xray_pipeline.report.examples import Example

log = logging.getLogger(__name__)

MISLABELS, OUTLIERS = 24, 6
"""How many suspects of each kind are explained: those that a person looks at first. A map takes a pass through the
network and back; those of disagreements are drawn for the report anyway."""
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
    suspects = rows.loc[_first_suspects(both, rows["label"].to_dict())]
    differ = compose_report.explain(run, both)[0] if both.champion is not None else ()
    said = {example.digest: _opinions(example) for example in (*_explained(both, suspects, dataset), *differ)}
    alike = _alike(run, both, dataset, rows, rows.loc[list(said)], progress) if said else {}
    explained = {digest: Explained(of[0], of[1] if len(of) > 1 else None, alike[digest]) for digest, of in said.items()}
    at = records.moment(store.clock())
    about = (both.candidate.digest, both.champion, models, both.snapshot.digest, at, run.settings.classes)
    review.keep(store, Material(*about, tuple(_disagreements(both)), explained))
    log.info("%d radiographs explained for review", len(explained))


def _disagreements(both: Pair) -> list[str]:
    if both.champion is None:
        return []
    truth = np.array([both.run.settings.classes.index(label) for label in both.rows["label"]], np.int64)
    says = [np.array(model.label(table)) for model, table in zip(both.models, both.tables, strict=True)]
    for_truth = [table[np.arange(len(truth)), truth] for table in both.tables]
    return [str(digest) for digest in both.rows["digest"].iloc[examples.differing(says, for_truth)]]


def _first_suspects(both: Pair, labels: Mapping[str, str]) -> list[str]:
    found = review.open_suspects(both.run.store(), both.snapshot.digest, labels) or []
    by_kind = {kind: [one.digest for one in found if one.kind == kind] for kind in ("mislabel", "outlier")}
    return [*by_kind["mislabel"][:MISLABELS], *by_kind["outlier"][:OUTLIERS]]


def _explained(both: Pair, part: pd.DataFrame, dataset: Dataset) -> tuple[Example, ...]:
    """Return what the models say of some of the snapshot's rows; without rows none is loaded."""
    if part.empty:
        return ()
    caches = [(model, PixelCache(both.run.settings.cache, model.side, model.fit)) for model in both.models]
    tables = [scored(both.run, model, part, both.progress) for model in both.models]
    return examples.explained(caches, part, tables, dataset.read)


def _opinions(example: Example) -> tuple[Opinion, ...]:
    """Return what both models say of a radiograph."""
    said = [(example.candidate_says, example.candidate, example.candidate_map)]
    if example.champion is not None:
        said.append((example.champion_says, example.champion, example.champion_map))
    return tuple(
        Opinion(label, tuple(round(p, 5) for p in probabilities), "" if heat is None else _small(heat))
        for label, probabilities, heat in said
    )


def _small(heat: npt.NDArray[np.float32]) -> str:
    small = Image.fromarray(heat).resize((MAP_SIDE, MAP_SIDE), Image.Resampling.BILINEAR)
    return base64.b64encode((np.asarray(small).clip(0, 1) * 255).round().astype(np.uint8).tobytes()).decode()


def _alike(
    run: Run, both: Pair, dataset: Dataset, rows: pd.DataFrame, part: pd.DataFrame, progress: Progress | None
) -> dict[str, tuple[str, ...]]:
    """Return for each row of `part`, by digest, the nearest radiographs of other patients.

    Near is meant in the features that suspects are found by; looked among are training and validation radiographs.
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
    return {
        str(asked["digest"].iloc[at]): tuple(
            str(asked["digest"].iloc[n]) for n in others if patients[n] != patients[at]
        )[:ALIKE]
        for at, others in zip(own, found, strict=True)
    }
