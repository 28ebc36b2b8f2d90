"""The files of a model: downloaded from MLflow, audited against what was recorded, kept in the cache by digest."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from xray_pipeline.base.errors import ModelRefused, RegistryError
from xray_pipeline.base.scratch import scratch
from xray_pipeline.models.audit import artifact_digest, audit, inventory
from xray_pipeline.models.mlflow_client import MlflowClient, mlflow
from xray_pipeline.registry.calls import ask

CACHED_MODELS = 20


@dataclass(frozen=True)
class ModelVersion:
    """A model that can be downloaded: where it is and what it must be.

    `version` is None for a logged model or folder that is asked for directly; `artifact` is the digest over all its
    files (from the ledger where that knows the version, else from MLflow's tags), "" when none is recorded; `source`
    is the logged model of a version.
    """

    uri: str
    version: int | None = None
    candidate: str = ""
    artifact: str = ""
    run_id: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    source: str = ""


def fetch(model: ModelVersion, cache: Path) -> Path:
    """Return a folder with the model's files, audited and equal to what was recorded at logging.

    A folder is audited where it is; another model is downloaded each time and kept below `cache` by its digest. Raises
    RegistryError when files are missing, ModelRefused when they are not to be loaded, RegistryUnavailable.
    """
    if not model.uri.startswith("models:/"):
        folder = Path(model.uri)
        if (folder / "MLmodel").exists():
            audit(folder)
        return folder
    place = cache / model.artifact
    with audited(model, cache) as folder, _alone(cache):
        _keep(folder, place)
        _prune(cache)
    return place


@contextlib.contextmanager
def audited(model: ModelVersion, cache: Path) -> Iterator[Path]:
    """Yield a folder, for a while, with a model's files. Raises as `fetch` does.

    Always asked for anew: a good copy in the cache must not hide that production's own files are gone or changed.
    """
    if not model.artifact:
        raise ModelRefused(f"{model.uri} has no record of its files in its tags: it was not logged here")
    with scratch("loading-", cache) as temporary:
        folder = temporary / "model"
        folder.mkdir()
        _download(model, folder)
        try:
            audit(folder, model.artifact)
        except ModelRefused as error:
            raise ModelRefused(f"{model.uri}: {error}{_changed_files(model, folder)}") from error
        yield folder


def _download(model: ModelVersion, folder: Path) -> None:
    what = f"downloading {model.uri}"
    try:
        ask(what, mlflow.artifacts.download_artifacts, model.uri, dst_path=str(folder))
    except OSError as error:
        raise RegistryError(f"the files of {model.uri} are missing: {error.strerror or error}; restore them") from error
    if not any(folder.iterdir()):
        raise RegistryError(f"files of {model.uri} are missing; restore them from a backup")


def _changed_files(model: ModelVersion, folder: Path) -> str:
    """Name the files that differ from the inventory taken at logging, as far as that is to be trusted."""
    try:
        recorded = msgspec.json.decode(_inventory(model), type=dict[str, str])
        if artifact_digest(recorded) != model.artifact:
            return ""
        present = inventory(folder)
    except (ValueError, ModelRefused, RegistryError):
        return ""
    places = recorded.keys() | present.keys()
    changed = sorted(place for place in places if recorded.get(place) != present.get(place))
    return f" (changed since it was logged: {', '.join(changed[:5])})" if changed else ""


def _inventory(model: ModelVersion) -> str:
    """Return the inventory taken at logging, from the tags of the logged model; versions had it in their own."""
    if "xray.files" in model.tags or not model.source.startswith("models:/"):
        return model.tags.get("xray.files", "{}")
    logged = ask("asking for the inventory", MlflowClient().get_logged_model, model.source.removeprefix("models:/"))
    return str(logged.tags.get("xray.files", "{}"))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time change what the cache holds: a copy that was returned must not be taken away again."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _keep(folder: Path, place: Path) -> None:
    """Move an audited model to its place in the cache, unless an equal one is there."""
    try:
        audit(place, place.name)
    except (ModelRefused, OSError):  # not there, or damaged
        shutil.rmtree(place, ignore_errors=True)
        folder.rename(place)
    os.utime(place)


def _prune(cache: Path) -> None:
    """Delete cached models but the ones used last; never one used within the hour, which a process may be reading."""
    newest = sorted(cache.glob("[0-9a-f]*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in newest[CACHED_MODELS:]:
        if path.stat().st_mtime < time.time() - 3600:
            shutil.rmtree(path, ignore_errors=True)
