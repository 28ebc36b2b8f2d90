"""From a snapshot and a recipe to a candidate: one MLflow run and its logged model.

A candidate is named by what goes in, so training it again finds it; `candidate.json`, written once, is the commit
point. The fitting itself is in fitting.py, what MLflow gets in mlflow_run.py.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

import pandas as pd
import torch

from xray_pipeline.base import logs, records
from xray_pipeline.base.code import code_digest
from xray_pipeline.base.errors import Damaged, ObjectNotFound, TrainingError
from xray_pipeline.base.progress import Progress
from xray_pipeline.base.scratch import on_disk, scratch
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import Store, open_store
from xray_pipeline.dataset.store import Dataset, Snapshot
from xray_pipeline.models.mlflow_client import MlflowException, calls, metric_log, use
from xray_pipeline.training import launching, mlflow_run, pictures
from xray_pipeline.training.candidate import MAKERS, Candidate, candidate_digest, find_candidate, versions
from xray_pipeline.training.checkpoints import Checkpoints
from xray_pipeline.training.device import has_bfloat16
from xray_pipeline.training.fitting import fit
from xray_pipeline.training.in_use import take_up
from xray_pipeline.training.pretrained import backbone_of
from xray_pipeline.training.recipe import Recipe
from xray_pipeline.training.start import Champions, digest_from, start_of
from xray_pipeline.training.trainer import Trainer

log = logging.getLogger(__name__)


def environment(device: torch.device, weights_digest: str, engine: str, processes: int = 1) -> dict[str, Any]:
    """Return what beside snapshot and recipe can change the weights' bits, for `xray reproduce`.

    `engine` is the name of the one that computes features.
    """
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "engine": engine,
        "cpu": torch.backends.cpu.get_cpu_capability() + (" bfloat16" if has_bfloat16() else ""),
        "threads": torch.get_num_threads(),
        "weights": weights_digest,
        "code": code_digest(*MAKERS),
        "versions": versions(),
        **({"processes": processes} if processes > 1 else {}),
    }


def _note_environment(folder: Store, now: dict[str, Any]) -> None:
    """Keep where a candidate is trained; each further place, when training goes on in another, is added."""
    kept = records.read(folder, "environment.json", list[dict[str, Any]]) if folder.exists("environment.json") else []
    if now not in kept[-1:]:
        records.write(folder, "environment.json", [*kept, now])


def train(
    dataset: Dataset,
    snapshot: Snapshot,
    recipe: Recipe,
    settings: Settings,
    champions: Champions,
    progress: Progress | None = None,
) -> Candidate:
    """Train a candidate, or go on with its training, or return it when it is done; `champions` is for a warm start.

    Raises RadiographErased for a snapshot of which something was erased since, TrainingError (a class without training
    patients, no validation, no such device, interrupted), NonFiniteLoss, OutOfMemory, WeightsError, ConfigError,
    StorageError, RegistryUnavailable.
    """
    with on_disk(settings.cache), calls("training"):
        backbone = backbone_of(recipe, settings)
        digest = candidate_digest(snapshot.digest, recipe, backbone.weights_digest)
        store = open_store(settings.store, settings)
        start = start_of(recipe, settings, store, digest, champions) if recipe.warm_start else None
        digest = digest_from(digest, start)
        logs.about(candidate=digest)
        use(settings.tracking_uri)
        candidate = _trained_before(store, digest, snapshot, recipe)
        if candidate is None:
            dataset.require_whole(snapshot)
            rows = dataset.rows(snapshot)
            _check_rows(rows, settings.classes)
            trainer = Trainer(recipe, backbone, dataset, rows, settings, progress, start)
            candidate = _trained(trainer, store, digest, snapshot, rows)
        mlflow_run.drop_unused(candidate.run_id, candidate.model_uri)
        return candidate


def _trained_before(store: Store, digest: str, snapshot: Snapshot, recipe: Recipe) -> Candidate | None:
    """Return the candidate if it was trained to its end and MLflow still has its model."""
    folder = store.child(f"candidates/{digest}")
    there = take_up(store, digest)
    folder.write("recipe.json", recipe.model_dump_json(indent=1).encode())
    if not folder.exists("candidate.json"):
        return None
    try:
        candidate = find_candidate(store, digest)
    except Damaged as error:
        candidate = _from_mlflow(folder, digest, snapshot, recipe, error)
    if there and mlflow_run.still_logged(candidate.model_uri):
        log.info("candidate %s was trained before: MLflow run %s", digest[:12], candidate.run_id)
        return candidate
    log.warning("candidate %s was trained before, but its model is not in MLflow any more: training again", digest[:12])
    for name in ("run.json", "environment.json", "candidate.json"):  # what says that it was trained goes last
        folder.delete(name)
    return None


def _trained(trainer: Trainer, store: Store, digest: str, snapshot: Snapshot, rows: pd.DataFrame) -> Candidate:
    """Train to the end, log the result with its MLflow run, and commit the candidate."""
    recipe, settings, folder = trainer.recipe, trainer.settings, store.child(f"candidates/{digest}")
    made_of = {"snapshot": snapshot.digest, "recipe": recipe.digest(), "weights": trainer.weights_digest}
    shown = ", ".join(f"{what} {sha[:12]}" for what, sha in made_of.items())
    tags = {"xray.candidate": digest, "xray.digests": shown}
    run_id = mlflow_run.run_of(folder, settings, f"{recipe.name}-{digest[:8]}", tags, snapshot.digest)
    log.info("training candidate %s with recipe %s: MLflow run %s", digest[:12], recipe.name, run_id)
    checkpoints = Checkpoints(folder.child("checkpoints"))
    processes = launching.processes(recipe, settings, trainer.device)
    engine = trainer.extracted.engine.name
    _note_environment(folder, environment(trainer.device, trainer.weights_digest, engine, processes))
    with mlflow_run.system_metrics(run_id):
        if processes > 1:
            launching.fit_in_processes(trainer, checkpoints, run_id, processes)
        fit(trainer, checkpoints, metric_log(run_id))
    classifier = trainer.classifier()
    mlflow_run.log_recipe(run_id, recipe, versions())
    mlflow_run.log_snapshot(run_id, snapshot, rows)
    pictures.keep(trainer, classifier, folder, run_id)
    with scratch("xray-candidate-") as temporary:
        model_digest = classifier.save(temporary / "classifier")
        uri = mlflow_run.log_classifier(run_id, classifier, temporary / "classifier", tags)
    made = Candidate(digest, run_id, uri, model_digest, snapshot.digest, recipe.digest(), classifier.threshold)
    if not records.write(folder, "candidate.json", asdict(made), if_absent=True):
        log.warning("candidate %s was trained by another process meanwhile; its result stands", digest[:12])
    checkpoints.clear()
    return find_candidate(store, digest)


def _from_mlflow(folder: Store, digest: str, snapshot: Snapshot, recipe: Recipe, error: Damaged) -> Candidate:
    """Put a damaged candidate.json back from what MLflow keeps of its run. Raises `error` when that is not enough."""
    try:
        run_id = mlflow_run.recorded_run(folder)
        run, logged = mlflow_run.models_of(run_id)
    except (MlflowException, ObjectNotFound, Damaged) as lost:
        raise error from lost
    ours = [model for model in logged if model.tags.get("xray.candidate") == digest and "xray.model" in model.tags]
    threshold = run.data.metrics.get("operating_threshold")
    if len(ours) != 1 or threshold is None:
        raise error
    model, named = ours[0], (snapshot.digest, recipe.digest())
    candidate = Candidate(digest, run_id, f"models:/{model.model_id}", model.tags["xray.model"], *named, threshold)
    records.write(folder, "candidate.json", asdict(candidate))
    log.warning("%s; it was put back from MLflow run %s", error, run_id)
    return candidate


def _check_rows(rows: pd.DataFrame, classes: tuple[str, ...]) -> None:
    for side in ("train", "validation"):
        present = set(rows.loc[rows["side"] == side, "label"])
        for name in classes:
            if name not in present:
                raise TrainingError(f"no radiograph of class {name} is on side {side}; deliver more patients of it")
