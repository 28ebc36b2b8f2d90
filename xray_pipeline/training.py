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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
import torch

import xray_pipeline
from xray_pipeline import backbones, logs
from xray_pipeline.dataset import Dataset, Snapshot
from xray_pipeline.errors import ObjectNotFound, TrainingError
from xray_pipeline.learning import launching, pictures, starting
from xray_pipeline.learning.checkpoints import Checkpoints
from xray_pipeline.learning.fitting import Progress, Trainer
from xray_pipeline.learning.precision import has_bfloat16
from xray_pipeline.learning.provenance import code_digest
from xray_pipeline.learning.recipe import Recipe, load_recipe
from xray_pipeline.learning.tracking import MlflowClient, MlflowException, calls, metric_log, mlflow, use
from xray_pipeline.scratch import on_disk, scratch
from xray_pipeline.serving import Classifier, log_model
from xray_pipeline.settings import Settings
from xray_pipeline.storage import Store, open_store

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


def versions() -> dict[str, str]:
    """Return the versions of the packages that training depends on."""
    names = ("torch", "torchvision", "timm", "numpy")
    return {"xray-retrain": xray_pipeline.__version__, **{name: importlib.metadata.version(name) for name in names}}


def environment(device: torch.device, weights_digest: str, processes: int = 1) -> dict[str, Any]:
    """Return what beside snapshot and recipe can change the weights' bits, for `xray reproduce`."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": torch.backends.cpu.get_cpu_capability() + (" bfloat16" if has_bfloat16() else ""),
        "threads": torch.get_num_threads(),
        "weights": weights_digest,
        "code": code_digest(),
        "versions": versions(),
        **({"processes": processes} if processes > 1 else {}),
    }


def _note_environment(folder: Store, now: dict[str, Any]) -> None:
    """Keep where a candidate is trained; each further place, when training goes on in another, is added."""
    kept = json.loads(folder.read("environment.json")) if folder.exists("environment.json") else []
    if now not in kept[-1:]:
        folder.write("environment.json", json.dumps([*kept, now], indent=1).encode())


def find_candidate(store: Store, digest: str) -> Candidate:
    """Return a candidate that was trained. Raises TrainingError when there is none."""
    try:
        return Candidate(**json.loads(store.read(f"candidates/{digest}/candidate.json")))
    except ObjectNotFound as error:
        raise TrainingError(f"candidate {digest[:12]} was not trained to its end; run `train` again") from error


def train(
    dataset: Dataset, snapshot: Snapshot, recipe: Recipe, settings: Settings, progress: Progress | None = None
) -> Candidate:
    """Train a candidate, or go on with its training, or return it when it is done.

    Raises TrainingError (a class without training patients, no validation, no such device, interrupted), NonFiniteLoss,
    OutOfMemory, WeightsError, ConfigError, StorageError, RegistryUnavailable.
    """
    with on_disk(settings.cache), calls("training"):
        return _trained(dataset, snapshot, recipe, settings, progress)


def _trained(
    dataset: Dataset, snapshot: Snapshot, recipe: Recipe, settings: Settings, progress: Progress | None
) -> Candidate:
    backbone = backbones.load(recipe.backbone, recipe.weights)
    digest = candidate_digest(snapshot.digest, recipe, backbone.weights_digest)
    store = open_store(settings.store, settings)
    start = starting.champion(recipe, settings, store, digest) if recipe.warm_start else None
    digest = starting.digest_from(digest, start)
    logs.about(candidate=digest)
    folder = store.child(f"candidates/{digest}")
    use(settings.tracking_uri)
    if folder.exists("candidate.json"):
        found = find_candidate(store, digest)
        if _still_logged(found):
            log.info("candidate %s was trained before: MLflow run %s", digest[:12], found.run_id)
            return found
        log.warning("candidate %s was trained before, but MLflow has lost its model: training again", digest[:12])
        folder.delete("candidate.json")
        folder.delete("run.json")
        folder.delete("environment.json")
    rows = dataset.rows(snapshot)
    _check_rows(rows, settings.classes)
    folder.write("recipe.json", recipe.model_dump_json(indent=1).encode())
    run_id = _run(folder, settings, digest, snapshot, recipe)
    log.info("training candidate %s with recipe %s: MLflow run %s", digest[:12], recipe.name, run_id)
    checkpoints = Checkpoints(folder.child("checkpoints"))
    trainer = Trainer(recipe, backbone, dataset, rows, settings, progress, start)
    processes = launching.processes(recipe, settings, trainer.device)
    _note_environment(folder, environment(trainer.device, backbone.weights_digest, processes))
    with _system_metrics(run_id):
        if processes > 1:
            launching.fit(trainer, checkpoints, run_id, processes)
        trainer.fit(checkpoints, metric_log(run_id))
    classifier = trainer.classifier()
    _log_pictures(run_id, trainer, classifier)
    candidate = _log(classifier, digest, run_id, snapshot, recipe, rows)
    if not folder.write_if_absent("candidate.json", json.dumps(asdict(candidate), indent=1).encode()):
        log.warning("candidate %s was trained by another process meanwhile; its result stands", digest[:12])
    checkpoints.clear()
    return find_candidate(store, digest)


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
        run_id = str(json.loads(folder.read("run.json"))["run_id"])
        try:
            client.get_run(run_id)
            return run_id
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            log.warning("MLflow has lost run %s; another one is made", run_id)
            folder.delete("run.json")
    experiment = _experiment(client, settings)
    tags = {"xray.candidate": digest, "xray.snapshot": snapshot.digest, "xray.recipe": recipe.digest()}
    name = f"{recipe.name}-{digest[:8]}"
    run_id = str(client.create_run(experiment, run_name=name, tags=tags).info.run_id)
    if not folder.write_if_absent("run.json", json.dumps({"run_id": run_id}).encode()):
        client.delete_run(run_id)  # another process was first
        return str(json.loads(folder.read("run.json"))["run_id"])
    return run_id


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
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

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
    from mlflow.data.pandas_dataset import from_pandas

    table = rows[["label", "side"]].value_counts().rename("radiographs").reset_index()
    mlflow.log_input(
        from_pandas(table.astype({"radiographs": float}), name="snapshot", digest=snapshot.digest[:36]),
        context="training",
    )


def _still_logged(candidate: Candidate) -> bool:
    try:
        MlflowClient().get_logged_model(candidate.model_uri.removeprefix("models:/"))
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True
