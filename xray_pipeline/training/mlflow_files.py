"""The files that trainings left in MLflow: how much they are, and taking them away; runs with their figures stay.

`mlflow gc` would need MLflow's database, which only its server has, and takes whole runs; so files are deleted through
MLflow's own access to them (the server's, where it hands artifacts on) and then the logged models. What MLflow keeps of
those is a row each, which `mlflow gc` removes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mlflow.entities import FileInfo, LifecycleStage, LoggedModel
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from xray_pipeline.base.errors import RegistryError
from xray_pipeline.base.settings import Settings
from xray_pipeline.models.mlflow_client import MlflowClient, MlflowException, calls, use
from xray_pipeline.training.mlflow_run import models_of

TAG = "xray.tidied"


def place_of(settings: Settings) -> str:
    """Return the folder or s3:// prefix of all artifacts, "" where only MLflow's server can reach it, or before any.

    Raises RegistryError, RegistryUnavailable.
    """
    if not settings.tracking_uri.startswith(("http://", "https://")):
        return str(settings.home / "artifacts")
    use(settings.tracking_uri)
    with calls("asking for the experiment"):
        experiment = MlflowClient().get_experiment_by_name(settings.experiment)
    place = str(experiment.artifact_location) if experiment else ""
    return "" if place.startswith("mlflow-artifacts:") else place


def logged(run_id: str) -> list[LoggedModel]:
    """Return the logged models that a run still has, none where MLflow has lost the run.

    Raises RegistryError, RegistryUnavailable.
    """
    with calls("asking for logged models"):
        return models_of(run_id)[1] if _there(run_id) else []


def registered_elsewhere(run_id: str, name: str) -> bool:
    """Whether a version of another registered model than `name` was made of a run. Raises RegistryError and its kin."""
    with calls("searching versions"):
        return any(version.name != name for version in MlflowClient().search_model_versions(f"run_id = '{run_id}'"))


def size(run_id: str, models: Sequence[LoggedModel]) -> tuple[int, int]:
    """Return the files that a run and logged models hold, and their bytes. Raises RegistryError and its kin."""
    with calls("listing artifacts", OSError):
        files = [file for place in _places(run_id, models) for file in _files(place)]
    return len(files), sum(file.file_size or 0 for file in files)


def remove(run_id: str, models: Sequence[LoggedModel], said: str) -> None:
    """Delete the files of a run and of logged models, then the models; the run stays and tells what is `said`.

    May be repeated. Raises RegistryError, RegistryUnavailable.
    """
    client = MlflowClient()
    with calls("removing artifacts", OSError):
        for place in _places(run_id, models):
            get_artifact_repository(place).delete_artifacts()  # type: ignore[no-untyped-call]
        for model in models:
            client.delete_logged_model(model.model_id)
        if _there(run_id):
            client.set_tag(run_id, TAG, said)


def _there(run_id: str) -> str:
    """Return where the files of a run lie, "" for a run that MLflow has lost or somebody deleted."""
    try:
        info = MlflowClient().get_run(run_id).info
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return ""
    return str(info.artifact_uri) if info.lifecycle_stage == LifecycleStage.ACTIVE else ""


def _places(run_id: str, models: Sequence[LoggedModel]) -> list[str]:
    """Return where the files lie. Raises RegistryError for a place that is not of its run or model alone."""
    named = {model.model_id: model.artifact_location for model in models}
    named |= {run_id: place} if (place := _there(run_id)) else {}
    for name, place in named.items():
        if name not in place.split("/"):
            raise RegistryError(f"the files of {name} lie in {place}, which others may share; nothing of it is removed")
    return list(named.values())


def _files(place: str, folder: str | None = None) -> Iterator[FileInfo]:
    for found in get_artifact_repository(place).list_artifacts(folder):
        if found.is_dir:
            yield from _files(place, found.path)
        else:
            yield found
