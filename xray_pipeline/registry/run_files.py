"""Files of MLflow runs, also of runs that somebody deleted, whose files stay until `mlflow gc`."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path

from mlflow.entities import Experiment, ViewType
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from xray_pipeline.base.scratch import scratch
from xray_pipeline.base.settings import Settings
from xray_pipeline.models.mlflow_client import Missing, MlflowClient, use
from xray_pipeline.registry.calls import ask


class RunFiles:
    """The files right under the artifacts of runs; a key is the run's id and the file's name. Everything raises
    RegistryError, RegistryUnavailable."""

    def __init__(self, settings: Settings) -> None:
        self._client, self._name = MlflowClient(use(settings.tracking_uri)), settings.experiment

    def of_candidate(self, candidate: str) -> set[str]:
        """Return the ids of all runs that trained a candidate: a model that is gone is trained anew, in another run."""
        there = self._experiment
        if there is None or not re.fullmatch("[0-9a-f]{64}", candidate):
            return set()
        query = f"tags.`xray.candidate` = '{candidate}'"
        runs = ask("asking for runs", self._client.search_runs, [there.experiment_id], query, ViewType.ALL)
        return {run.info.run_id for run in runs}

    @cached_property
    def _experiment(self) -> Experiment | None:
        return ask("asking for the experiment", self._client.get_experiment_by_name, self._name)

    def list(self, run_id: str) -> list[str]:
        """Return the keys of a run's files, none where MLflow has lost the run."""
        try:
            files = ask("listing artifacts", self._of(run_id).list_artifacts)
        except Missing:
            return []
        return [f"{run_id}/{file.path}" for file in files if not file.is_dir]

    def read(self, key: str) -> bytes:
        """Return a file."""
        run_id, _, name = key.partition("/")
        with scratch("xray-run-") as folder:
            return Path(ask(f"reading {name}", self._of(run_id).download_artifacts, name, str(folder))).read_bytes()

    def write(self, key: str, data: bytes) -> None:
        """Keep a file in place of the one that is there."""
        run_id, _, name = key.partition("/")
        with scratch("xray-run-") as folder:
            (folder / name).write_bytes(data)
            ask(f"keeping {name}", self._of(run_id).log_artifact, str(folder / name))

    def delete(self, key: str) -> None:
        """Delete a file."""
        run_id, _, name = key.partition("/")
        ask(f"deleting {name}", self._of(run_id).delete_artifacts, name)

    def _of(self, run_id: str) -> ArtifactRepository:
        run = ask("asking for a run", self._client.get_run, run_id)
        return get_artifact_repository(run.info.artifact_uri)
