"""MLflow in memory: what registry, training and tidying ask of its client and of its files, and nothing else.

It answers with MLflow's own entities and errors. Before each call it asks whose turn it is, and is told how this call
fails, if it does:

    refused    the server did not answer after all repeats: nothing was done
    busy       the server asks to be tried again: nothing was done
    lost       done, but no answer ever came
    again      done twice: MLflow's HTTP client repeats a call whose answer was lost, whatever it does
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, TypeVar

from mlflow.entities import FileInfo, LifecycleStage, LoggedModel, ViewType
from mlflow.entities.model_registry import ModelVersion, ModelVersionTag, RegisteredModel, RegisteredModelTag
from mlflow.entities.model_registry.registered_model_alias import RegisteredModelAlias
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2 as codes

T = TypeVar("T")
Turn = Callable[[str, str], str]
Changed = Callable[[str, Any, Any], None]
"""Told of each change: a name like "alias champion", "version 3" or "files m-...", what was there and what is."""

EXPERIMENT = "1"


@dataclass
class Version:
    """A row of MLflow's versions; a deleted one stays, as its number is never given again."""

    number: int
    source: str
    run_id: str
    tags: dict[str, str]
    description: str = ""
    deleted: bool = False


@dataclass
class Model:
    """A registered model."""

    tags: dict[str, str]
    aliases: dict[str, int] = field(default_factory=dict)
    versions: dict[int, Version] = field(default_factory=dict)


@dataclass
class Logged:
    """A logged model, and its files."""

    run_id: str
    tags: dict[str, str]
    created: float
    files: dict[str, bytes]
    deleted: bool = False


class MemoryMlflow:
    """One server; the calls of `MlflowClient` and of the functions beside it."""

    def __init__(self, turn: Turn, now: Callable[[], float], changed: Changed, token: Callable[[], str]) -> None:
        self.models: dict[str, Model] = {}
        self.logged: dict[str, Logged] = {}
        self.runs: dict[str, dict[str, str]] = {}
        self.deleted_runs: set[str] = set()
        self.experiments: dict[str, str] = {}
        self._turn, self._now, self._changed, self._token = turn, now, changed, token

    def copied(self) -> dict[str, Any]:
        """Return a copy of all it holds, as a backup is."""
        names = ("models", "logged", "runs", "deleted_runs", "experiments")
        return copy.deepcopy({name: getattr(self, name) for name in names})

    def put_back(self, backup: dict[str, Any]) -> None:
        """Hold what a copy holds, and nothing else."""
        vars(self).update(copy.deepcopy(backup))

    # The registered model

    def get_registered_model(self, name: str) -> RegisteredModel:
        self._ask("get model", name)
        return self._entity(name)

    def create_registered_model(self, name: str, tags: Mapping[str, str], description: str) -> RegisteredModel:
        def create() -> RegisteredModel:
            if name in self.models:
                raise _error(codes.RESOURCE_ALREADY_EXISTS, f"Registered Model (name={name}) already exists.")
            self.models[name] = Model(dict(tags))
            self._changed("model", None, dict(tags))
            return self._entity(name)

        return self._do("create model", name, create)

    def set_registered_model_tag(self, name: str, key: str, value: str) -> None:
        def tag() -> None:
            tags = self._model(name).tags
            before, tags[key] = tags.get(key), value
            self._changed(f"model tag {key}", before, value)

        self._do("tag model", key, tag)

    def delete_registered_model_tag(self, name: str, key: str) -> None:
        def untag() -> None:
            before = self._model(name).tags.pop(key, None)
            self._changed(f"model tag {key}", before, None)

        self._do("untag model", key, untag)

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        def point() -> None:
            number = self._version(name, int(version)).number
            aliases = self._model(name).aliases
            before, aliases[alias] = aliases.get(alias), number
            self._changed(f"alias {alias}", before, number)

        self._do("set alias", f"{alias} {version}", point)

    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        def clear() -> None:
            before = self._model(name).aliases.pop(alias, None)
            self._changed(f"alias {alias}", before, None)

        self._do("delete alias", alias, clear)

    # Versions

    def create_model_version(
        self,
        name: str,
        *,
        source: str,
        run_id: str,
        tags: Mapping[str, str],
        model_id: str,
        await_creation_for: int = 0,
    ) -> ModelVersion:
        def create() -> ModelVersion:
            self._logged(model_id)
            versions = self._model(name).versions
            made = Version(max(versions, default=0) + 1, source, run_id, dict(tags))
            versions[made.number] = made
            self._changed(f"version {made.number}", None, made)
            return self._version_entity(name, made)

        return self._do("create version", tags.get("xray.candidate", "")[:8], create)

    def delete_model_version(self, name: str, version: str) -> None:
        def delete() -> None:
            found = self._version(name, int(version))
            found.deleted = True
            model = self._model(name)
            for alias in [alias for alias, number in model.aliases.items() if number == found.number]:
                del model.aliases[alias]
                self._changed(f"alias {alias}", found.number, None)
            self._changed(f"version {found.number}", found, None)

        self._do("delete version", version, delete)

    def get_model_version(self, name: str, version: str) -> ModelVersion:
        self._ask("get version", version)
        return self._version_entity(name, self._version(name, int(version)))

    def get_model_version_by_alias(self, name: str, alias: str) -> ModelVersion:
        self._ask("get alias", alias)
        number = self._model(name).aliases.get(alias)
        if number is None:
            raise _error(codes.INVALID_PARAMETER_VALUE, f"Registered model alias {alias} not found.")
        return self._version_entity(name, self._version(name, number))

    def search_model_versions(self, filter_string: str = "", max_results: int = 10_000) -> list[ModelVersion]:
        self._ask("search versions", filter_string)
        wanted = dict(re.findall(r"(name|run_id|tags\.`[^`]+`) = '([^']*)'", filter_string))
        found = []
        for name, model in self.models.items():
            for version in model.versions.values():
                values = {"name": name, "run_id": version.run_id}
                values |= {f"tags.`{key}`": value for key, value in version.tags.items()}
                if not version.deleted and all(values.get(key) == value for key, value in wanted.items()):
                    found.append(self._version_entity(name, version))
        return found[::-1][:max_results]

    def set_model_version_tag(self, name: str, version: str, key: str, value: str) -> None:
        def tag() -> None:
            self._version(name, int(version)).tags[key] = value

        self._do("tag version", f"{version} {key}", tag)

    def update_model_version(self, name: str, version: str, description: str) -> None:
        def describe() -> None:
            self._version(name, int(version)).description = description

        self._do("describe version", version, describe)

    # Runs and logged models

    def get_experiment_by_name(self, name: str) -> Any:
        self._ask("get experiment", name)
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name: str, artifact_location: str | None = None) -> str:
        def create() -> str:
            if name in self.experiments:
                raise _error(codes.RESOURCE_ALREADY_EXISTS, f"Experiment(name={name}) already exists.")
            self.experiments[name] = EXPERIMENT
            return EXPERIMENT

        return self._do("create experiment", name, create)

    def create_run(self, experiment_id: str, run_name: str, tags: Mapping[str, str]) -> Any:
        def create() -> Any:
            run_id = self._token()
            self.runs[run_id] = dict(tags)
            return self._run_entity(run_id)

        return self._do("create run", run_name, create)

    def get_run(self, run_id: str) -> Any:
        self._ask("get run", run_id)
        return self._run_entity(run_id)

    def search_runs(self, experiment_ids: list[str], filter_string: str, view: int) -> list[Any]:
        """Return runs by one of their tags, deleted ones too."""
        self._ask("search runs", filter_string)
        matched = re.fullmatch(r"tags\.`([^`]+)` = '([^']*)'", filter_string)
        assert matched, filter_string
        assert view == ViewType.ALL
        return [self._run_entity(run) for run, tags in self.runs.items() if tags.get(matched[1]) == matched[2]]

    def delete_run(self, run_id: str) -> None:
        def delete() -> None:
            self._run_entity(run_id)
            self.deleted_runs.add(run_id)

        self._do("delete run", run_id, delete)

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        def tag() -> None:
            self._run_entity(run_id)
            self.runs[run_id][key] = value

        self._do("tag run", key, tag)

    def log_model(self, run_id: str, tags: Mapping[str, str], files: Mapping[str, bytes]) -> str:
        """Make a logged model of files and return its URI: what `models/bundle.log_model` does in several calls."""

        def log() -> str:
            self._run_entity(run_id)
            model_id = f"m-{self._token()}"
            self.logged[model_id] = Logged(run_id, dict(tags), self._now(), dict(files))
            return f"models:/{model_id}"

        return self._do("log model", run_id, log)

    def get_logged_model(self, model_id: str) -> LoggedModel:
        self._ask("get logged", model_id)
        return self._logged_entity(model_id)

    def search_logged_models(self, experiment_ids: list[str], filter_string: str) -> list[LoggedModel]:
        self._ask("search logged", filter_string)
        run_id = filter_string.split("'")[1]
        found = [m for m, one in self.logged.items() if one.run_id == run_id and not one.deleted]
        return [self._logged_entity(model_id) for model_id in found]

    def delete_logged_model(self, model_id: str) -> None:
        def delete() -> None:
            if model_id not in self.logged:
                self._logged(model_id)
            one = self.logged[model_id]
            one.deleted = True
            self._changed(f"logged {model_id}", one, None)

        self._do("delete logged", model_id, delete)

    # Files

    def download(self, uri: str) -> dict[str, bytes]:
        """Return the files of a model by its URI: a version's or a logged model's. Empty where they were deleted."""
        self._ask("download", uri)
        match = re.fullmatch(r"models:/(?:(m-\w+)|([^/]+)/(\d+))", uri)
        assert match, uri
        model_id, name, number = match.groups()
        if not model_id:
            model_id = self._version(name, int(number)).source.removeprefix("models:/")
        return dict(self._logged(model_id).files)

    def artifacts(self, place: str) -> Any:
        """Return how the files at a place are listed and deleted, as `get_artifact_repository` does."""
        *_, name, _ = place.split("/")

        def delete() -> None:
            if name in self.logged:
                before, self.logged[name].files = self.logged[name].files, {}
                self._changed(f"files {name}", before, {})

        def listed(_: str | None = None) -> list[FileInfo]:
            self._ask("list files", name)
            files = self.logged[name].files if name in self.logged else {}
            return [FileInfo(path, False, len(data)) for path, data in files.items()]

        return SimpleNamespace(delete_artifacts=lambda: self._do("delete files", name, delete), list_artifacts=listed)

    # Inside

    def _ask(self, what: str, about: str) -> None:
        self._fail(self._turn(what, about))

    def _do(self, what: str, about: str, effect: Callable[[], T]) -> T:
        fault = self._turn(f"{what}!", about)
        if fault != "lost":
            self._fail(fault)
        answer = effect()
        if fault == "again":
            answer = effect()
        if fault == "lost":
            self._fail("refused")
        return answer

    def _fail(self, fault: str) -> None:
        if fault == "busy":
            raise _error(codes.TEMPORARILY_UNAVAILABLE, "the database is locked")
        if fault == "refused":
            raise _error(codes.INTERNAL_ERROR, "API request failed after all retries")

    def _model(self, name: str) -> Model:
        if name not in self.models:
            raise _error(codes.RESOURCE_DOES_NOT_EXIST, f"Registered Model with name={name} not found")
        return self.models[name]

    def _version(self, name: str, number: int) -> Version:
        found = self._model(name).versions.get(number)
        if found is None or found.deleted:
            raise _error(codes.RESOURCE_DOES_NOT_EXIST, f"Model Version (name={name}, version={number}) not found")
        return found

    def _logged(self, model_id: str) -> Logged:
        found = self.logged.get(model_id)
        if found is None or found.deleted:
            raise _error(codes.RESOURCE_DOES_NOT_EXIST, f"Logged model with ID '{model_id}' not found.")
        return found

    def _entity(self, name: str) -> RegisteredModel:
        model = self._model(name)
        return RegisteredModel(
            name,
            tags=[RegisteredModelTag(key, value) for key, value in model.tags.items()],
            aliases=[RegisteredModelAlias(alias, str(number)) for alias, number in model.aliases.items()],
        )

    def _version_entity(self, name: str, version: Version) -> ModelVersion:
        return ModelVersion(
            name,
            str(version.number),
            0,
            description=version.description,
            source=version.source,
            run_id=version.run_id,
            tags=[ModelVersionTag(key, value) for key, value in version.tags.items()],
        )

    def _run_entity(self, run_id: str) -> Any:
        if run_id not in self.runs:
            raise _error(codes.RESOURCE_DOES_NOT_EXIST, f"Run with id={run_id} not found")
        stage = LifecycleStage.DELETED if run_id in self.deleted_runs else LifecycleStage.ACTIVE
        info = SimpleNamespace(
            run_id=run_id,
            experiment_id=EXPERIMENT,
            artifact_uri=f"memory:/{run_id}/artifacts",
            lifecycle_stage=stage,
        )
        return SimpleNamespace(info=info, data=SimpleNamespace(metrics={"operating_threshold": 0.5}))

    def _logged_entity(self, model_id: str) -> LoggedModel:
        one = self._logged(model_id)
        place, created = f"memory:/{model_id}/artifacts", int(one.created * 1000)
        return LoggedModel(
            EXPERIMENT, model_id, "model", place, created, created, source_run_id=one.run_id, tags=one.tags
        )


def _error(code: int, text: str) -> MlflowException:
    return MlflowException(text, error_code=code)
