"""From a snapshot and a recipe to a candidate: one MLflow run and its logged model.

A candidate is named by what goes in, so training it again finds it. The MLflow run is made first and its id kept in
the store, so that a retry goes on with the same run; `candidate.json`, written once, is the commit point. The fitting
itself is in fitting.py.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
import torch
from mlflow.data.pandas_dataset import from_pandas
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

import xray_pipeline
from xray_pipeline.base import logs, records
from xray_pipeline.base.code import code_digest
from xray_pipeline.base.errors import Damaged, ObjectNotFound, TrainingError
from xray_pipeline.base.progress import Progress
from xray_pipeline.base.scratch import on_disk, scratch
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import Store, open_store, reader
from xray_pipeline.dataset.store import Dataset, Snapshot
from xray_pipeline.models import backbones
from xray_pipeline.models.bundle import log_model
from xray_pipeline.models.classifier import Classifier
from xray_pipeline.models.mlflow_client import MlflowClient, MlflowException, calls, metric_log, mlflow, use
from xray_pipeline.training import launching, pictures
from xray_pipeline.training.checkpoints import Checkpoints
from xray_pipeline.training.device import has_bfloat16
from xray_pipeline.training.fitting import Trainer
from xray_pipeline.training.recipe import Recipe, load_recipe
from xray_pipeline.training.start import Champions, digest_from, start_of

__all__ = ["Candidate", "Recipe", "candidate_digest", "find_candidate", "load_recipe", "train"]

log = logging.getLogger(__name__)

CURVES, BATCH, ANSWERS = "learning-curves.png", "training-batch.png", "validation-answers.png"


@dataclass(frozen=True)
class Candidate:
    """A trained model: `digest` names what went in (snapshot, recipe, weights, versions), `model_digest` what came out.

    `model_uri` is MLflow's logged model; `threshold` the operating threshold it ships with (two classes).
    """

    digest: str
    run_id: str
    model_uri: str
    model_digest: str
    snapshot: str
    recipe: str
    threshold: float


def candidate_digest(
    snapshot: str, recipe: Recipe, weights_digest: str, packages: Mapping[str, str] | None = None
) -> str:
    """Return the SHA-256 over all that decides the weights: snapshot, recipe, pretrained weights and versions.

    `packages` are versions on record; None means those installed here.
    """
    return hashlib.sha256(
        json.dumps(
            {
                "snapshot": snapshot,
                "recipe": recipe.digest(),
                "weights": weights_digest,
                "versions": versions() if packages is None else dict(packages),
            },
            sort_keys=True,
        ).encode()
    ).hexdigest()


MAKERS = ("base", "images", "dataset", "models", "training")
"""The rooms whose code decides the weights."""


def versions() -> dict[str, str]:
    """Return the versions of the packages that training depends on."""
    names = ("torch", "torchvision", "timm", "numpy", "openvino")
    return {"xray-retrain": xray_pipeline.__version__, **{name: importlib.metadata.version(name) for name in names}}


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


def find_candidate(store: Store, digest: str) -> Candidate:
    """Return a candidate that was trained. Raises TrainingError when there is none, DatasetError for a damaged one."""
    key = f"candidates/{digest}/candidate.json"
    try:
        found = records.read(store, key, Candidate)
    except ObjectNotFound as error:
        raise TrainingError(f"candidate {digest[:12]} was not trained to its end; run `train` again") from error
    if found.digest != digest:
        raise Damaged(f"{key} in {store.uri} is that of candidate {found.digest[:12]}; restore it from a backup")
    return found


def train(
    dataset: Dataset,
    snapshot: Snapshot,
    recipe: Recipe,
    settings: Settings,
    champions: Champions,
    progress: Progress | None = None,
) -> Candidate:
    """Train a candidate, or go on with its training, or return it when it is done; `champions` is for a warm start.

    Raises TrainingError (a class without training patients, no validation, no such device, interrupted), NonFiniteLoss,
    OutOfMemory, WeightsError, ConfigError, StorageError, RegistryUnavailable.
    """
    with on_disk(settings.cache), calls("training"):
        return _trained(dataset, snapshot, recipe, settings, champions, progress)


def _trained(
    dataset: Dataset,
    snapshot: Snapshot,
    recipe: Recipe,
    settings: Settings,
    champions: Champions,
    progress: Progress | None,
) -> Candidate:
    backbone = backbones.load(recipe.backbone, recipe.weights, reader(settings))
    digest = candidate_digest(snapshot.digest, recipe, backbone.weights_digest)
    store = open_store(settings.store, settings)
    start = start_of(recipe, settings, store, digest, champions) if recipe.warm_start else None
    digest = digest_from(digest, start)
    logs.about(candidate=digest)
    folder = store.child(f"candidates/{digest}")
    use(settings.tracking_uri)
    folder.write("recipe.json", recipe.model_dump_json(indent=1).encode())
    if folder.exists("candidate.json"):
        try:
            found = find_candidate(store, digest)
        except Damaged as error:
            found = _from_mlflow(folder, digest, snapshot, recipe, error)
        if _still_logged(found):
            _drop_unused(found)
            log.info("candidate %s was trained before: MLflow run %s", digest[:12], found.run_id)
            return found
        log.warning("candidate %s was trained before, but MLflow has lost its model: training again", digest[:12])
        folder.delete("candidate.json")
        folder.delete("run.json")
        folder.delete("environment.json")
    rows = dataset.rows(snapshot)
    _check_rows(rows, settings.classes)
    run_id = _run(folder, settings, digest, snapshot, recipe)
    log.info("training candidate %s with recipe %s: MLflow run %s", digest[:12], recipe.name, run_id)
    checkpoints = Checkpoints(folder.child("checkpoints"))
    trainer = Trainer(recipe, backbone, dataset, rows, settings, progress, start)
    processes = launching.processes(recipe, settings, trainer.device)
    engine = trainer.extracted.engine.name
    _note_environment(folder, environment(trainer.device, backbone.weights_digest, engine, processes))
    with _system_metrics(run_id):
        if processes > 1:
            launching.fit(trainer, checkpoints, run_id, processes)
        trainer.fit(checkpoints, metric_log(run_id))
    classifier = trainer.classifier()
    _log_pictures(run_id, trainer, classifier)
    candidate = _log(classifier, digest, run_id, snapshot, recipe, rows)
    if not records.write(folder, "candidate.json", asdict(candidate), if_absent=True):
        log.warning("candidate %s was trained by another process meanwhile; its result stands", digest[:12])
    checkpoints.clear()
    found = find_candidate(store, digest)
    _drop_unused(found)
    return found


def _from_mlflow(folder: Store, digest: str, snapshot: Snapshot, recipe: Recipe, error: Damaged) -> Candidate:
    """Put a damaged candidate.json back from what MLflow keeps of its run. Raises `error` when that is not enough."""
    client, run_id = MlflowClient(), _run_id(folder)
    try:
        run = client.get_run(run_id)
        logged = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    except MlflowException as lost:
        raise error from lost
    ours = [model for model in logged if model.tags.get("xray.candidate") == digest and "xray.model" in model.tags]
    threshold = run.data.metrics.get("operating_threshold")
    if len(ours) != 1 or threshold is None:
        raise error
    model, named = ours[0], (snapshot.digest, recipe.digest())
    found = Candidate(digest, run_id, f"models:/{model.model_id}", model.tags["xray.model"], *named, threshold)
    records.write(folder, "candidate.json", asdict(found))
    log.warning("%s; it was put back from MLflow run %s", error, run_id)
    return found


def _check_rows(rows: pd.DataFrame, classes: tuple[str, ...]) -> None:
    for side in ("train", "validation"):
        present = set(rows.loc[rows["side"] == side, "label"])
        for name in classes:
            if name not in present:
                raise TrainingError(f"no radiograph of class {name} is on side {side}; deliver more patients of it")


def _run(folder: Store, settings: Settings, digest: str, snapshot: Snapshot, recipe: Recipe) -> str:
    """Return the candidate's MLflow run, made when there is none; its id is kept so that a retry goes on with it."""
    client = MlflowClient()
    if folder.exists("run.json"):
        try:
            run_id = _run_id(folder)
            client.get_run(run_id)
            return run_id
        except Damaged as error:
            log.warning("%s; another MLflow run is made", error)
            folder.delete("run.json")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            log.warning("MLflow has lost run %s; another one is made", run_id)
            folder.delete("run.json")
    experiment = _experiment(client, settings)
    tags = {"xray.candidate": digest, "xray.snapshot": snapshot.digest, "xray.recipe": recipe.digest()}
    name = f"{recipe.name}-{digest[:8]}"
    run_id = str(client.create_run(experiment, run_name=name, tags=tags).info.run_id)
    if not records.write(folder, "run.json", {"run_id": run_id}, if_absent=True):
        client.delete_run(run_id)  # another process was first
        return _run_id(folder)
    return run_id


def _run_id(folder: Store) -> str:
    return records.read(folder, "run.json", dict[str, str])["run_id"]


def _experiment(client: MlflowClient, settings: Settings) -> str:
    """Return the id of the experiment, made when absent."""
    found = client.get_experiment_by_name(settings.experiment)
    if found is not None:
        return str(found.experiment_id)
    # Without a server nobody but us says where artifacts go, and MLflow's default is the working directory.
    place = None if "://" in settings.tracking_uri.replace("sqlite://", "") else (settings.home / "artifacts").as_uri()
    try:
        return str(client.create_experiment(settings.experiment, artifact_location=place))
    except MlflowException:
        found = client.get_experiment_by_name(settings.experiment)  # another process was first
        if found is None:
            raise
        return str(found.experiment_id)


def _log(
    classifier: Classifier, digest: str, run_id: str, snapshot: Snapshot, recipe: Recipe, rows: pd.DataFrame
) -> Candidate:
    sides = rows["side"].value_counts()
    with scratch("xray-candidate-") as temporary:
        folder = temporary / "classifier"
        model_digest = classifier.save(folder)
        with mlflow.start_run(run_id=run_id):
            described = recipe.model_dump()
            described |= {f"augmentation.{name}": value for name, value in described.pop("augmentation").items()}
            mlflow.log_params(described)
            mlflow.log_params({f"version.{name}": version for name, version in versions().items()})
            mlflow.log_metrics({"temperature": classifier.temperature, "operating_threshold": classifier.threshold})
            mlflow.log_metrics({f"{side}_radiographs".replace("-", "_"): int(n) for side, n in sides.items()})
            _log_dataset(snapshot, rows)
            tags = {"xray.candidate": digest, "xray.snapshot": snapshot.digest, "xray.recipe": recipe.digest()}
            uri = log_model(folder, tags)
    return Candidate(digest, run_id, uri, model_digest, snapshot.digest, recipe.digest(), classifier.threshold)


@contextmanager
def _system_metrics(run_id: str) -> Iterator[None]:
    """Record load, memory and GPU use of this machine with the run while it trains."""

    monitor = SystemMetricsMonitor(run_id, resume_logging=True)  # type: ignore[no-untyped-call]
    monitor.start()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        monitor.finish()  # type: ignore[no-untyped-call]


def _log_pictures(run_id: str, trainer: Trainer, classifier: Classifier) -> None:
    """Log a training batch as it is augmented, the learning curves, and validation answers beside the truth."""
    client, metrics = (
        MlflowClient(),
        [f"{side}_{metric}" for side in ("train", "validation") for metric in ("loss", "accuracy", "auc")],
    )
    found = {name: [(m.step, m.value) for m in client.get_metric_history(run_id, name)] for name in metrics}
    client.log_figure(run_id, pictures.curves({name: points for name, points in found.items() if points}), CURVES)
    batch, labels = trainer.sample("train")
    client.log_figure(run_id, pictures.gallery(trainer.augmented(batch), labels), BATCH)
    shown, truth = trainer.sample("validation")
    probabilities = classifier.probabilities(shown)
    said = classifier.label(probabilities)
    titles = [f"{label}, said {name} {p:.2f}" for label, name, p in zip(truth, said, probabilities.max(1), strict=True)]
    wrong = [label != name for label, name in zip(truth, said, strict=True)]
    client.log_figure(run_id, pictures.gallery(shown, titles, wrong), ANSWERS)


def _log_dataset(snapshot: Snapshot, rows: pd.DataFrame) -> None:
    """Log the snapshot as the run's input: labels and sides by digest, nothing of patients."""

    table = rows[["label", "side"]].value_counts().rename("radiographs").reset_index()
    mlflow.log_input(
        from_pandas(table.astype({"radiographs": float}), name="snapshot", digest=snapshot.digest[:36]),
        context="training",
    )


def _drop_unused(candidate: Candidate) -> None:
    """Delete what else was logged to the candidate's run: by another process at once, or by one that was killed.

    Never what a version of a registered model is made of, nor what a process may still be logging.
    """
    client, yesterday = MlflowClient(), (time.time() - 86_400) * 1000
    experiment = client.get_run(candidate.run_id).info.experiment_id
    logged = client.search_logged_models([experiment], f"source_run_id = '{candidate.run_id}'")
    used = {candidate.model_uri, *(v.source for v in client.search_model_versions(f"run_id = '{candidate.run_id}'"))}
    for model in logged:
        whole = "xray.artifact" in model.tags or model.creation_timestamp < yesterday
        if whole and f"models:/{model.model_id}" not in used:
            log.warning("run %s logged model %s, which nothing uses; deleting it", candidate.run_id, model.model_id)
            client.delete_logged_model(model.model_id)


def _still_logged(candidate: Candidate) -> bool:
    try:
        MlflowClient().get_logged_model(candidate.model_uri.removeprefix("models:/"))
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True
