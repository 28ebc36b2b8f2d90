"""Candidate and champion on the same held-out radiographs: the evidence, and after the decision the report.

Both models are loaded from the registry's artifacts, audited, with this package's own code. Predictions are kept in the
store, so looking at the same pair again scores nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from xray_pipeline.base.errors import EvaluationError
from xray_pipeline.base.progress import Progress
from xray_pipeline.dataset.pixels import PixelCache
from xray_pipeline.dataset.store import Dataset, Snapshot
from xray_pipeline.evaluation import predictions
from xray_pipeline.models.classifier import Classifier
from xray_pipeline.night.run import Run
from xray_pipeline.registry.mlflow_registry import Registry
from xray_pipeline.training import candidate as training
from xray_pipeline.training.candidate import Candidate
from xray_pipeline.training.features import kept_scorer


@dataclass(frozen=True, eq=False)
class Pair:
    """A candidate beside the champion: `models` and `tables` (probabilities [N, C] of `rows`) have it first, the
    champion, if there is one, second."""

    candidate: Candidate
    champion: int | None
    snapshot: Snapshot
    rows: pd.DataFrame
    models: list[Classifier]
    tables: list[np.ndarray]


def pair(
    run: Run,
    registry: Registry,
    digest: str,
    champion: int | None,
    progress: Progress | None = None,
    snapshot: Snapshot | None = None,
) -> Pair:
    """Load both models and score them on the held-out radiographs of a snapshot, by default the candidate's.

    Raises EvaluationError when there are none or the models know other classes, RegistryError, ModelRefused,
    DatasetError.
    """
    store, dataset = run.store(), Dataset(run.settings)
    candidate = training.find_candidate(store, digest)
    snapshot = snapshot or dataset.open_snapshot(candidate.snapshot)
    rows = dataset.rows(snapshot)
    rows = rows[rows["side"] == "held-out"].reset_index(drop=True)
    if rows.empty:
        raise EvaluationError(f"snapshot {snapshot.digest[:12]} has no held-out radiographs; deliver more patients")
    logged = registry.resolve(candidate.model_uri)
    if logged.tags.get("xray.candidate", digest) != digest:
        raise EvaluationError(f"{logged.uri} is not a model of candidate {digest[:12]}; see its candidate.json")
    models = [registry.load_exactly(logged, candidate.model_digest)]
    if champion is not None:
        models.append(registry.load(champion))
    tables = []
    for model in models:
        if model.classes != run.settings.classes:
            raise EvaluationError(
                f"model {model.digest[:12]} knows classes {model.classes}, the dataset {run.settings.classes}"
            )
        if kept := kept_scorer(model, run.settings):
            scores = predictions.score(kept, rows, kept, dataset.read, store, progress)
        else:
            cache = PixelCache(run.settings.cache, model.side)
            scores = predictions.score(model, rows, cache, dataset.read, store, progress)
        tables.append(scores[[f"p_{name}" for name in model.classes]].to_numpy())
    return Pair(candidate, champion, snapshot, rows, models, tables)
