"""What simulations run on must answer as the real ones do: one set of cases for both.

The bucket in memory goes through all cases of a store beside a directory and SeaweedFS (tests/base/test_storage.py).
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from memory_mlflow import MemoryMlflow
from memory_s3 import MemoryS3, Object
from mlflow.entities import ViewType
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow_server import lay_database, run_postgres

from xray_pipeline.base import s3_store
from xray_pipeline.base.errors import StorageUnavailable
from xray_pipeline.base.storage import Store, open_store
from xray_pipeline.models.mlflow_client import MlflowClient, MlflowException, mlflow


@dataclass(frozen=True)
class Server:
    """MLflow, real or in memory: its client, and what lies beside that."""

    client: Any
    log_model: Callable[..., str]
    download: Callable[[str], dict[str, bytes]]
    artifacts: Callable[[str], Any]
    run: str


def _real(uri: str, folder: Path) -> Server:
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    client = MlflowClient(uri, uri)
    experiment = client.create_experiment(uuid.uuid4().hex, artifact_location=(folder / "artifacts").as_uri())

    def log_model(run_id: str, tags: dict[str, str], files: dict[str, bytes]) -> str:
        model = client.create_logged_model(experiment, source_run_id=run_id, tags=tags)
        saved = folder / uuid.uuid4().hex
        saved.mkdir()
        for name, data in files.items():
            (saved / name).write_bytes(data)
        client.log_model_artifacts(model.model_id, str(saved))
        client.finalize_logged_model(model.model_id, "READY")
        return f"models:/{model.model_id}"

    def download(uri: str) -> dict[str, bytes]:
        place = folder / uuid.uuid4().hex
        place.mkdir()
        mlflow.artifacts.download_artifacts(uri, dst_path=str(place))
        return {file.name: file.read_bytes() for file in place.iterdir() if file.name != "registered_model_meta"}

    run = client.create_run(experiment, run_name="one", tags={"a": "b"}).info.run_id
    return Server(client, log_model, download, get_artifact_repository, run)


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with run_postgres() as uri:
        yield uri


@pytest.fixture(params=["memory", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("sqlite", "postgresql"))])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Server:
    """MLflow in memory, then the real one on each kind of database."""
    if request.param == "memory":
        numbers = itertools.count(1)
        memory = MemoryMlflow(
            lambda what, about: "", time.time, lambda what, before, after: None, lambda: f"{next(numbers):032x}"
        )
        run = memory.create_run("1", run_name="one", tags={"a": "b"}).info.run_id
        return Server(memory, memory.log_model, memory.download, memory.artifacts, run)
    if request.param == "postgresql":
        return _real(request.getfixturevalue("postgres"), tmp_path)
    lay_database(request.getfixturevalue("empty_mlflow"), tmp_path)
    return _real(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path)


@pytest.fixture
def name(server: Server) -> str:
    """A registered model with two versions of one logged model."""
    made = f"m{uuid.uuid4().hex}"
    server.client.create_registered_model(made, {"t": "1"}, "described")
    uri = server.log_model(server.run, {"xray.candidate": "c"}, {"weights": b"1"})
    for candidate in ("c" * 64, "d" * 64):
        assert _version(server, made, uri, candidate).tags == {"xray.candidate": candidate}
    return made


def _version(server: Server, name: str, uri: str, candidate: str) -> Any:
    return server.client.create_model_version(
        name, source=uri, run_id=server.run, tags={"xray.candidate": candidate},
        model_id=uri.removeprefix("models:/"), await_creation_for=0,
    )  # fmt: skip


def _code(call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(MlflowException) as raised:
        call(*arguments)
    return str(raised.value.error_code)


def test_a_registered_model_has_tags_and_aliases_and_is_made_once(server: Server, name: str) -> None:
    client = server.client
    assert _code(client.create_registered_model, name, {}, "") == "RESOURCE_ALREADY_EXISTS"
    assert _code(client.get_registered_model, "another") == "RESOURCE_DOES_NOT_EXIST"
    client.set_registered_model_tag(name, "t", "2")
    client.set_registered_model_alias(name, "champion", "1")
    client.set_registered_model_alias(name, "champion", "2")
    model = client.get_registered_model(name)
    assert (dict(model.tags), {k: int(v) for k, v in model.aliases.items()}) == ({"t": "2"}, {"champion": 2})
    assert int(client.get_model_version_by_alias(name, "champion").version) == 2
    client.delete_registered_model_alias(name, "champion")
    client.delete_registered_model_alias(name, "champion")
    client.delete_registered_model_tag(name, "t")
    model = client.get_registered_model(name)
    assert (dict(model.tags), dict(model.aliases)) == ({}, {})


def test_an_alias_names_a_version_that_is_there(server: Server, name: str) -> None:
    client = server.client
    assert _code(client.set_registered_model_alias, name, "champion", "3") == "RESOURCE_DOES_NOT_EXIST"
    assert _code(client.get_model_version_by_alias, name, "champion") == "INVALID_PARAMETER_VALUE"


def test_the_number_of_a_deleted_version_is_not_given_again(server: Server, name: str) -> None:
    client = server.client
    client.set_registered_model_alias(name, "challenger", "2")
    client.delete_model_version(name, "2")
    assert dict(client.get_registered_model(name).aliases) == {}, "its alias goes with it"
    assert _code(client.get_model_version, name, "2") == "RESOURCE_DOES_NOT_EXIST"
    assert _code(client.delete_model_version, name, "2") == "RESOURCE_DOES_NOT_EXIST"
    assert _code(client.set_model_version_tag, name, "2", "a", "b") == "RESOURCE_DOES_NOT_EXIST"
    uri = client.get_model_version(name, "1").source
    assert int(_version(server, name, uri, "e" * 64).version) == 3


def test_versions_are_found_by_model_candidate_and_run(server: Server, name: str) -> None:
    client = server.client

    def found(query: str, **more: Any) -> list[int]:
        return sorted(int(one.version) for one in client.search_model_versions(query, **more))

    assert found(f"name = '{name}'") == [1, 2]
    assert found(f"name = '{name}' and tags.`xray.candidate` = '{'d' * 64}'") == [2]
    assert found(f"run_id = '{server.run}'") == [1, 2]
    assert len(found(f"name = '{name}'", max_results=1)) == 1
    client.delete_model_version(name, "1")
    assert found(f"name = '{name}'") == [2]
    assert found(f"run_id = '{server.run}'") == [2]


def test_a_version_keeps_what_is_written_on_it(server: Server, name: str) -> None:
    client = server.client
    client.set_model_version_tag(name, "1", "xray.status", "champion")
    client.update_model_version(name, "1", "why it is")
    version = client.get_model_version(name, "1")
    assert (version.tags["xray.status"], version.description, version.run_id) == ("champion", "why it is", server.run)
    assert _code(client.get_model_version, name, "9") == "RESOURCE_DOES_NOT_EXIST"


def test_the_files_of_a_version_are_those_of_its_logged_model(server: Server, name: str) -> None:
    assert server.download(f"models:/{name}/1") == {"weights": b"1"}
    source = server.client.get_model_version(name, "1").source
    model = server.client.get_logged_model(source.removeprefix("models:/"))
    assert (model.tags["xray.candidate"], model.source_run_id) == ("c", server.run)
    assert model.model_id in model.artifact_location.split("/")
    files = server.artifacts(model.artifact_location)
    assert [(file.path, file.file_size) for file in files.list_artifacts(None)] == [("weights", 1)]
    files.delete_artifacts()
    files.delete_artifacts()
    assert list(files.list_artifacts(None)) == []


def test_a_deleted_logged_model_is_gone_and_its_versions_stay(server: Server, name: str) -> None:
    client = server.client
    model_id = client.get_model_version(name, "1").source.removeprefix("models:/")
    experiment = client.get_run(server.run).info.experiment_id
    query = f"source_run_id = '{server.run}'"
    assert [one.model_id for one in client.search_logged_models([experiment], query)] == [model_id]
    client.delete_logged_model(model_id)
    assert list(client.search_logged_models([experiment], query)) == []
    assert _code(client.get_logged_model, model_id) == "RESOURCE_DOES_NOT_EXIST"
    client.delete_logged_model(model_id)
    assert _code(client.delete_logged_model, "m-" + "0" * 32) == "RESOURCE_DOES_NOT_EXIST"
    assert int(client.get_model_version(name, "1").version) == 1


def test_a_deleted_run_is_there_and_says_so(server: Server) -> None:
    client = server.client
    client.set_tag(server.run, "told", "yes")
    assert client.get_run(server.run).info.lifecycle_stage == "active"
    client.delete_run(server.run)
    assert client.get_run(server.run).info.lifecycle_stage == "deleted"
    experiment = client.get_run(server.run).info.experiment_id
    for value, found in (("b", [server.run]), ("c", [])):
        runs = client.search_runs([experiment], f"tags.`a` = '{value}'", ViewType.ALL)
        assert [run.info.run_id for run in runs] == found
    assert _code(client.get_run, "f" * 32) == "RESOURCE_DOES_NOT_EXIST"


# How the stand-ins fail


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Store]:
    """A store on a bucket in memory whose calls fail as listed, one after the other."""

    def make(*faults: str) -> Store:
        left = list(faults)
        bucket = MemoryS3(
            {"r/there": Object(b"old", 0.0)},
            lambda what, about: left.pop(0) if left else "",
            time.time,
            lambda key, before, after: None,
        )
        monkeypatch.setattr(s3_store, "_client", lambda endpoint: bucket)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        return open_store("s3://memory/r")

    return make


def test_a_lost_answer_is_an_error_though_it_is_done(failing: Callable[..., Store]) -> None:
    store = failing("lost")
    with pytest.raises(StorageUnavailable):
        store.write_if_absent("new", b"1")
    assert store.read("new") == b"1"


def test_a_conditional_write_that_is_repeated_below_us_finds_itself(failing: Callable[..., Store]) -> None:
    assert failing("again").write_if_absent("new", b"1")


def test_what_is_refused_is_not_done(failing: Callable[..., Store]) -> None:
    store = failing("refused")
    with pytest.raises(StorageUnavailable, match="SlowDown"):
        store.write("there", b"new")
    assert store.read("there") == b"old"


def test_a_conflict_is_waited_for(failing: Callable[..., Store]) -> None:
    assert failing("conflict", "conflict").write_if_absent("new", b"1")


def test_calls_of_mlflow_fail_before_or_after_what_they_do() -> None:
    faults = ["refused", "lost", "busy", "again"]
    memory = MemoryMlflow(
        lambda what, about: faults.pop(0) if faults else "", time.time, lambda what, before, after: None, lambda: "r"
    )
    assert _code(memory.create_registered_model, "m", {}, "") == "INTERNAL_ERROR"
    assert _code(memory.create_registered_model, "m", {}, "") == "INTERNAL_ERROR"
    assert _code(memory.set_registered_model_tag, "m", "a", "b") == "TEMPORARILY_UNAVAILABLE"
    memory.runs["r"] = {}
    uri = memory.log_model("r", {}, {})  # done twice
    assert dict(memory.get_registered_model("m").tags) == {}
    assert uri in {f"models:/{model_id}" for model_id in memory.logged}
