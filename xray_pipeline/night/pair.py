"""Candidate and champion on the same held-out radiographs: the evidence, and after the decision the report.

Both models are loaded from the registry's artifacts, audited, with this package's own code. What they answered is kept
in the store, so a later step that looks at the same pair neither scores nor loads anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from xray_pipeline.base.errors import DatasetError, EvaluationError, TrainingError
from xray_pipeline.base.progress import Progress
from xray_pipeline.dataset.pixels import PixelCache
from xray_pipeline.dataset.store import Dataset, Snapshot
from xray_pipeline.evaluation import predictions
from xray_pipeline.evaluation.bootstrap import Resampling
from xray_pipeline.evaluation.cases import Answers, Cases, prepare
from xray_pipeline.evaluation.metrics import Comparison, Evaluation, evaluate
from xray_pipeline.models.classifier import Classifier
from xray_pipeline.night import kept_rows
from xray_pipeline.night.run import Run
from xray_pipeline.registry import loading, tidied
from xray_pipeline.registry.mlflow_registry import Registry
from xray_pipeline.training import candidate as training
from xray_pipeline.training.candidate import Candidate
from xray_pipeline.training.features import kept_scorer
from xray_pipeline.training.in_use import take_up


@dataclass(frozen=True, eq=False)
class Measured:
    """A pair's cases, and what they come to: an evaluation of each model, and their comparison where there are two."""

    cases: list[Cases]
    resampling: Resampling
    evaluations: tuple[Evaluation, ...]
    comparison: Comparison | None


@dataclass(frozen=True, eq=False)
class Pair:
    """A candidate beside the champion on the held-out radiographs `rows`; the candidate always comes first."""

    run: Run
    registry: Registry
    candidate: Candidate
    champion: int | None
    snapshot: Snapshot
    rows: pd.DataFrame
    progress: Progress | None = None

    @cached_property
    def models(self) -> list[Classifier]:
        """The candidate's model and, if there is a champion, its: loaded and audited when first asked for.

        Raises EvaluationError for a model that knows other classes, RegistryError, ModelRefused.
        """
        digest, classes = self.candidate.digest, self.run.settings.classes
        logged = self.registry.resolve(self.candidate.model_uri)
        if logged.tags.get("xray.candidate", digest) != digest:
            raise EvaluationError(f"{logged.uri} is not a model of candidate {digest[:12]}; see its candidate.json")
        models = [loading.load_exactly(self.registry, logged, self.candidate.model_digest)]
        if self.champion is not None:
            models.append(loading.load(self.registry, self.champion))
        for model in models:
            if model.classes != classes:
                raise EvaluationError(f"model {model.digest[:12]} knows classes {model.classes}, the dataset {classes}")
        return models

    @cached_property
    def tables(self) -> list[np.ndarray]:
        """Probabilities [N, C] of `rows` for each model: as an earlier step scored them, else by the models themselves.

        Raises as `models`, DatasetError.
        """
        store, classes = self.run.store(), self.run.settings.classes
        recorded = [predictions.recorded(digest, classes, self.rows, store) for digest in self.model_digests()]
        whole = [table for table in recorded if table is not None]
        if len(whole) == len(recorded):
            return whole
        return [scored(self.run, model, self.rows, self.progress) for model in self.models]

    @cached_property
    def measured(self) -> Measured:
        """Both models on `rows`, each at its threshold. Raises as `tables`."""
        answers = [
            Answers(table, model.threshold, model.digest) for model, table in zip(self.models, self.tables, strict=True)
        ]
        cases = prepare(answers, self.rows["label"], self.rows["patient"], self.run.settings.classes)
        resampling = Resampling(self.run.settings.bootstrap)
        return Measured(cases, resampling, *evaluate(cases, resampling, self.snapshot.digest))

    def model_digests(self) -> list[str]:
        """The digests of both models by the records of their training, "" for a champion that has none."""
        if self.champion is None:
            return [self.candidate.model_digest]
        entry = self.registry.ledger.state().registered.get(self.champion)
        try:
            champion = training.find_candidate(self.run.store(), entry.candidate).model_digest if entry else ""
        except (TrainingError, DatasetError):
            champion = ""
        return [self.candidate.model_digest, champion]


def scored(run: Run, model: Classifier, rows: pd.DataFrame, progress: Progress | None = None) -> np.ndarray:
    """Return a model's probabilities [N, C] of rows, by features that training kept here where there are any. Raises as
    `predictions.score`."""
    settings, store, read = run.settings, run.store(), Dataset(run.settings).read
    if kept := kept_scorer(model, settings):
        scores = predictions.score(kept, rows, kept, read, store, progress)
    else:
        scores = predictions.score(
            model, rows, PixelCache(settings.cache, model.side, model.fit), read, store, progress
        )
    return np.asarray(scores[[f"p_{name}" for name in model.classes]])


def pair(
    run: Run,
    registry: Registry,
    digest: str,
    champion: int | None,
    progress: Progress | None = None,
    snapshot: Snapshot | None = None,
) -> Pair:
    """Put a candidate beside a champion, on the held-out radiographs of a snapshot, by default the candidate's.

    Raises EvaluationError when there are none, and for a candidate that `xray tidy` removed; DatasetError.
    """
    dataset = Dataset(run.settings)
    kept_rows.drop_erased(dataset)
    candidate = training.find_candidate(run.store(), digest)
    _take_up(run, candidate)
    snapshot = snapshot or dataset.open_snapshot(candidate.snapshot)
    rows = dataset.rows(snapshot)
    rows = rows[rows["side"] == "held-out"].reset_index(drop=True)
    if rows.empty:
        raise EvaluationError(f"snapshot {snapshot.digest[:12]} has no held-out radiographs; deliver more patients")
    return Pair(run, registry, candidate, champion, snapshot, rows, progress)


def _take_up(run: Run, candidate: Candidate) -> None:
    """Say that a candidate is worked on, so that its files stay. Raises EvaluationError where they are gone."""
    stays, about = take_up(run.store(), candidate.digest), f"candidate {candidate.digest[:12]} can't be scored"
    for removal in tidied.of_candidate(run.store(), candidate.digest):
        if removal.model == candidate.model_uri:
            raise EvaluationError(f"{about}: {removal.sentence()}")
    if not stays:
        raise EvaluationError(f"{about}: `xray tidy` was about to remove it; let it end, or run it again, then repeat")
