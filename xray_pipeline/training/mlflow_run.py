"""What a training leaves in MLflow: one run, with the recipe, the curves and the snapshot, and its logged model.

The run is made first and its id kept in the store, so that a retry goes on with the same run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from mlflow.entities import LoggedModel, Run
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from xray_pipeline.base import records
from xray_pipeline.base.errors import Damaged
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import Store
from xray_pipeline.dataset.store import Snapshot
from xray_pipeline.models.bundle import log_model
from xray_pipeline.models.classifier import Classifier
from xray_pipeline.models.mlflow_client import MlflowClient, MlflowException, mlflow
from xray_pipeline.models.mlflow_figures import Seen, log_data
from xray_pipeline.training.recipe import Recipe

log = logging.getLogger(__name__)


def recorded_run(folder: Store) -> str:
    """Return the id of the run that the store names for a candidate. Raises ObjectNotFound, Damaged."""
    return records.read(folder, "run.json", dict[str, str])["run_id"]


def run_of(folder: Store, settings: Settings, name: str, tags: Mapping[str, str], snapshot: str) -> str:
    """Return the id of a candidate's run, made when there is none; it is kept so that a retry goes on with it, beside
    the snapshot that the candidate is trained on."""
    client = MlflowClient()
    if folder.exists("run.json"):
        try:
            run_id = recorded_run(folder)
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
    run_id = str(client.create_run(_experiment(client, settings), run_name=name, tags=dict(tags)).info.run_id)
    if not records.write(folder, "run.json", {"run_id": run_id, "snapshot": snapshot}, if_absent=True):
        client.delete_run(run_id)  # another process was first
        return recorded_run(folder)
    return run_id


def _experiment(client: MlflowClient, settings: Settings) -> str:
    """Return the id of the experiment, made when absent."""
    there = client.get_experiment_by_name(settings.experiment)
    if there is not None:
        return str(there.experiment_id)
    # Without a server nobody but us says where artifacts go, and MLflow's default is the working directory.
    place = None if "://" in settings.tracking_uri.replace("sqlite://", "") else (settings.home / "artifacts").as_uri()
    try:
        return str(client.create_experiment(settings.experiment, artifact_location=place))
    except MlflowException:
        there = client.get_experiment_by_name(settings.experiment)  # another process was first
        if there is None:
            raise
        return str(there.experiment_id)


@contextmanager
def system_metrics(run_id: str) -> Iterator[None]:
    """Record load, memory and GPU use of this machine with the run while it trains."""
    monitor = SystemMetricsMonitor(run_id, resume_logging=True)  # type: ignore[no-untyped-call]
    monitor.start()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        monitor.finish()  # type: ignore[no-untyped-call]


def log_recipe(run_id: str, recipe: Recipe, versions: Mapping[str, str]) -> None:
    """Log all values of the recipe, and the versions of packages, as the run's parameters."""
    described = recipe.model_dump()
    described |= {f"augmentation.{name}": value for name, value in described.pop("augmentation").items()}
    with mlflow.start_run(run_id=run_id):
        mlflow.log_params(described | {f"version.{name}": version for name, version in versions.items()})


def log_classifier(run_id: str, classifier: Classifier, saved: Path, tags: Mapping[str, str]) -> str:
    """Log a classifier, saved in a folder, with its temperature and threshold; return the logged model's URI."""
    with mlflow.start_run(run_id=run_id):
        mlflow.log_metrics({"temperature": classifier.temperature, "operating_threshold": classifier.threshold})
        return log_model(saved, tags)


def log_snapshot(run_id: str, snapshot: Snapshot, rows: pd.DataFrame) -> None:
    """Log the snapshot as the run's input: how many radiographs and patients each side has, nothing of patients."""
    sides = {str(side).replace("-", "_"): part for side, part in rows.groupby("side")}
    with mlflow.start_run(run_id=run_id):
        mlflow.log_metrics({f"{side}_radiographs": float(len(part)) for side, part in sides.items()})
    profile: dict[str, int | str] = {"radiographs": len(rows), "patients": rows["patient"].nunique()}
    profile |= {
        side: f"{len(part)} radiographs of {part['patient'].nunique()} patients" for side, part in sides.items()
    }
    log_data(run_id, Seen("snapshot", snapshot.digest, "training", profile))


def models_of(run_id: str) -> tuple[Run, list[LoggedModel]]:
    """Return a run and the models that were logged to it. Raises MlflowException."""
    client = MlflowClient()
    run = client.get_run(run_id)
    return run, list(client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'"))


def drop_unused(run_id: str, model_uri: str) -> None:
    """Delete what else was logged to the candidate's run: by another process at once, or by one that was killed.

    Never what a version of a registered model is made of, nor what a process may still be logging.
    """
    client, yesterday = MlflowClient(), (time.time() - 86_400) * 1000
    used = {model_uri, *(version.source for version in client.search_model_versions(f"run_id = '{run_id}'"))}
    for model in models_of(run_id)[1]:
        whole = "xray.artifact" in model.tags or model.creation_timestamp < yesterday
        if whole and f"models:/{model.model_id}" not in used:
            log.warning("run %s logged model %s, which nothing uses; deleting it", run_id, model.model_id)
            client.delete_logged_model(model.model_id)


def still_logged(model_uri: str) -> bool:
    """Say whether MLflow still has a logged model."""
    try:
        MlflowClient().get_logged_model(model_uri.removeprefix("models:/"))
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True
