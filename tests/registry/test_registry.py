from __future__ import annotations

import os
import shutil
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import MlflowServer, run_mlflow
from ports import free_port
from small_models import Candidate, logged

from xray_pipeline.base.errors import ModelRefused, RegistryError, RegistryUnavailable
from xray_pipeline.base.settings import Settings
from xray_pipeline.models.classifier import Classifier
from xray_pipeline.models.mlflow_client import MlflowClient, mlflow
from xray_pipeline.registry.entries import Move
from xray_pipeline.registry.ledger import Ledger
from xray_pipeline.registry.loading import load
from xray_pipeline.registry.mlflow_registry import Registry
from xray_pipeline.registry.registered_model import RegisteredModel


@pytest.fixture
def candidate(model: Candidate) -> Candidate:
    """A logged model that no test changes."""
    return model


@pytest.fixture
def settings(mlflow_server: MlflowServer, tmp_path: Path) -> Settings:
    """The shared server with a registered model of the test's own."""
    return Settings(home=tmp_path / "home", tracking_uri=mlflow_server.uri, model_name=f"m{uuid.uuid4().hex}")


@pytest.fixture
def registry(settings: Settings) -> Registry:
    return Registry(settings)


@pytest.fixture
def client(settings: Settings, registry: Registry) -> MlflowClient:
    """Somebody who opens MLflow and does as he pleases."""
    return MlflowClient(settings.tracking_uri)


def another(registry: Registry) -> Registry:
    """The same registry and ledger as another process has them."""
    return Registry(registry.settings)


def add(registry: Registry, candidate: Candidate, digest: str | None = None) -> int:
    tags = registry.resolve(candidate.model_uri).tags
    return registry.add(digest or candidate.digest, candidate.model_uri, candidate.run_id, tags)


def record(registry: Registry, kind: Any, version: int, **fields: Any) -> None:
    registry.ledger.append(Move(kind, who="alice", why="because", version=version, **fields))


@pytest.fixture
def three(registry: Registry, candidate: Candidate) -> Registry:
    """Version 1 was champion, version 2 is, version 3 is the challenger."""
    artifact = registry.resolve(candidate.model_uri).artifact
    for version in (1, 2, 3):
        assert add(registry, candidate, f"{version:064x}") == version
        record(registry, "registered", version, candidate=f"{version:064x}", artifact=artifact)
        if version < 3:
            record(registry, "promoted", version)
    registry.follow()
    return registry


# Versions


def test_a_candidate_is_registered_once(registry: Registry, candidate: Candidate) -> None:
    assert add(registry, candidate) == 1
    assert add(another(registry), candidate) == 1
    assert {v: tags["xray.candidate"] for v, tags in registry.versions().items()} == {1: candidate.digest}


def test_of_two_versions_of_a_candidate_the_lowest_stays(
    registry: Registry, candidate: Candidate, client: MlflowClient
) -> None:
    add(registry, candidate, "a" * 64)
    for _ in range(2):
        client.create_model_version(
            registry.name, candidate.model_uri, candidate.run_id, {"xray.candidate": candidate.digest},
            model_id=candidate.model_uri.removeprefix("models:/"),
        )  # fmt: skip
    assert add(registry, candidate) == 2
    assert list(registry.versions()) == [1, 2]


def test_a_candidate_digest_is_one(registry: Registry, candidate: Candidate) -> None:
    with pytest.raises(RegistryError, match="not a candidate digest"):
        add(registry, candidate, "' or 1=1")
    assert registry.versions() == {}


def test_all_versions_are_listed(registry: Registry, candidate: Candidate) -> None:
    for number in range(1, 5):
        add(registry, candidate, f"{number:064x}")
    assert {v: tags["xray.candidate"] for v, tags in registry.versions().items()} == {
        number: f"{number:064x}" for number in range(1, 5)
    }


# Aliases


def test_an_alias_that_another_process_moved_meanwhile_is_not_moved_back(
    three: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A night follows the ledger just while a person promotes version 3."""
    three.ledger.state()
    moves: list[tuple[Any, ...]] = []
    move, get = Registry._move, RegisteredModel._get

    def promoted_meanwhile(self: RegisteredModel) -> Any:
        monkeypatch.setattr(RegisteredModel, "_get", get)
        record(another(three), "promoted", 3)
        another(three).follow()
        monkeypatch.setattr(Registry, "_move", lambda self, *move_: (moves.append(move_), move(self, *move_)))
        return get(self)

    monkeypatch.setattr(RegisteredModel, "_get", promoted_meanwhile)
    assert three.follow().champion == 3
    assert [(alias, found, wanted) for alias, found, wanted in moves if found != wanted] == []


def test_aliases_follow_the_ledger(three: Registry) -> None:
    assert three.aliases() == {"champion": 2, "challenger": 3}
    record(three, "promoted", 3)
    assert three.manual_change(pause=0) is None  # a crash before the alias is explained
    assert three.follow().champion == 3
    assert another(three).aliases() == {"champion": 3, "challenger": None}


@pytest.mark.parametrize("done", [["champion"], ["challenger"], ["champion", "challenger"]])
def test_a_crash_between_two_aliases_is_not_a_change_by_hand(
    three: Registry, client: MlflowClient, done: list[str]
) -> None:
    record(three, "promoted", 3)
    if "champion" in done:
        client.set_registered_model_alias(three.name, "champion", "3")
    if "challenger" in done:
        client.delete_registered_model_alias(three.name, "challenger")
    assert three.manual_change(pause=0) is None
    three.follow()
    assert three.aliases() == {"champion": 3, "challenger": None}


def test_a_moved_alias_is_found(three: Registry, client: MlflowClient) -> None:
    client.set_registered_model_alias(three.name, "champion", "1")
    assert three.manual_change(pause=0) == {"champion": 1}


def test_a_removed_alias_is_found(three: Registry, client: MlflowClient) -> None:
    client.delete_registered_model_alias(three.name, "champion")
    assert three.manual_change(pause=0) == {"champion": None}


def test_a_champion_set_by_hand_before_there_was_one_is_found(
    registry: Registry, candidate: Candidate, client: MlflowClient
) -> None:
    add(registry, candidate)
    record(registry, "registered", 1, candidate=candidate.digest)
    registry.follow()
    client.set_registered_model_alias(registry.name, "champion", "1")
    assert registry.manual_change(pause=0) is not None


def test_an_alias_that_is_put_right_within_the_pause_is_no_change(three: Registry, client: MlflowClient) -> None:
    import threading

    client.set_registered_model_alias(three.name, "champion", "1")
    threading.Timer(0.3, client.set_registered_model_alias, (three.name, "champion", "2")).start()
    assert three.manual_change(pause=1.5) is None


def test_there_is_always_a_champion_while_it_changes(three: Registry, client: MlflowClient) -> None:
    import threading

    seen: list[str] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            seen.append(client.get_model_version_by_alias(three.name, "champion").version)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for version in (3, 1, 2, 3):
        record(three, "promoted", version)
        three.follow()
    until, answers = time.monotonic() + 30, len(seen) + 2  # the first of them may have been asked for before
    while watcher.is_alive() and len(seen) < answers and time.monotonic() < until:
        time.sleep(0.01)
    stop.set()
    watcher.join()
    assert {"3", "1"} <= set(map(str, seen))  # an alias that is missing for a moment would have raised in the thread
    assert str(seen[-1]) == "3"


# Another store


def test_an_empty_store_is_not_a_fresh_start(three: Registry, settings: Settings, tmp_path: Path) -> None:
    elsewhere = settings.model_copy(update={"tracking_uri": f"sqlite:///{tmp_path}/empty.db"})
    for ask in (Registry.aliases, Registry.manual_change, Registry.follow):
        with pytest.raises(RegistryError, match=r"holds no model .* but the ledger knows 3 versions"):
            ask(Registry(elsewhere))


def test_a_store_of_another_ledger_is_refused(three: Registry, settings: Settings, tmp_path: Path) -> None:
    elsewhere = settings.model_copy(update={"store": str(tmp_path / "other-store")})
    with pytest.raises(RegistryError, match="belongs to ledger"):
        Registry(elsewhere).aliases()
    with pytest.raises(RegistryError, match="belongs to ledger"):
        Registry(elsewhere).add("a" * 64, "models:/m-" + "0" * 32, "run")
    assert not (tmp_path / "other-store").exists()  # asking does not begin a ledger


def test_a_model_that_was_there_before_with_versions_is_not_taken_over(
    settings: Settings, candidate: Candidate, client: MlflowClient
) -> None:
    client.create_registered_model(settings.model_name)
    client.create_model_version(
        settings.model_name, candidate.model_uri, model_id=candidate.model_uri.removeprefix("models:/")
    )
    with pytest.raises(RegistryError, match="choose another XRAY_MODEL_NAME"):
        add(Registry(settings), candidate)


def test_a_model_made_by_hand_without_versions_is_used(
    settings: Settings, candidate: Candidate, client: MlflowClient
) -> None:
    client.create_registered_model(settings.model_name)
    assert add(Registry(settings), candidate) == 1


def test_a_ledger_that_lost_its_last_entry_is_noticed(three: Registry) -> None:
    files = sorted(Path(three.ledger.store.uri).iterdir())
    files[-1].unlink()
    with pytest.raises(RegistryError, match="followed the ledger to entry 5"):
        another(three).follow()


def test_a_ledger_whose_last_entry_was_replaced_is_noticed(three: Registry) -> None:
    last = sorted(Path(three.ledger.store.uri).iterdir())[-1]
    last.write_text(last.read_text().replace("alice", "mallory"))
    with pytest.raises(RegistryError, match="followed the ledger to entry 5"):
        another(three).aliases()


def test_a_version_deleted_by_hand_is_named(three: Registry, client: MlflowClient) -> None:
    record(three, "rolled-back", 1)
    client.delete_model_version(three.name, "1")
    with pytest.raises(RegistryError, match="setting champion to version 1"):
        three.follow()


# Artifacts


def test_a_model_is_found_by_number_alias_and_id(three: Registry, candidate: Candidate) -> None:
    by_number = three.resolve(2)
    assert three.resolve(f"models:/{three.name}/2") == by_number
    assert three.resolve(f"models:/{three.name}@champion") == by_number
    assert (by_number.version, by_number.candidate, by_number.run_id) == (2, f"{2:064x}", candidate.run_id)
    assert three.resolve(candidate.model_uri).artifact == by_number.artifact


@pytest.mark.parametrize(
    "uri", ["models:/", "models:/a", "models:/a/latest", "models:/a/0", "models:/a/b/c", "models:/m-1"]
)
def test_what_names_no_model_is_refused(registry: Registry, uri: str) -> None:
    with pytest.raises(RegistryError, match="names no model"):
        registry.resolve(uri)


def test_a_missing_version_or_alias_is_named(three: Registry) -> None:
    with pytest.raises(RegistryError, match="/9"):
        three.resolve(9)
    with pytest.raises(RegistryError, match="staging"):
        three.resolve(f"models:/{three.name}@staging")


def test_equal_models_are_kept_once(three: Registry) -> None:
    first = three.download(1)
    assert isinstance(load(three, 1), Classifier)
    before = first.stat().st_ino
    assert three.download(3) == first
    assert first.stat().st_ino == before
    assert [path.name for path in first.parent.iterdir()] == [first.name]


def test_a_damaged_copy_in_the_cache_is_replaced(three: Registry) -> None:
    folder = three.download(1)
    (folder / "served.py").write_text("print('hello')")
    assert "ServedClassifier" in (three.download(1) / "served.py").read_text()


def test_many_at_once_each_get_a_whole_copy(three: Registry) -> None:
    """A night, a trial and a promotion share the cache: none may take away what another was just given."""

    def fetched(_: int) -> str:
        return Classifier.load(three.download(1)).digest

    with ThreadPoolExecutor(4) as pool:
        for _ in range(12):
            shutil.rmtree(three.settings.cache / "models", ignore_errors=True)
            assert len(set(pool.map(fetched, range(4)))) == 1


def test_models_not_used_for_long_leave_the_cache(three: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xray_pipeline.registry.model_files.CACHED_MODELS", 2)
    folder = three.settings.cache / "models"
    for age, name in enumerate(("a", "b", "c")):
        (folder / name).mkdir(parents=True)
        os.utime(folder / name, (time.time() - 5000 * age,) * 2)
    kept = three.download(1)
    assert {path.name for path in folder.iterdir()} == {kept.name, "a"}


def test_what_killed_downloads_left_goes_after_a_day(three: Registry) -> None:
    folder = three.settings.cache / "models"
    for name, age in (("loading-dead", 2 * 86_400), ("loading-busy", 60)):
        (folder / name / "model").mkdir(parents=True)
        os.utime(folder / name, (time.time() - age,) * 2)
    kept = three.download(1)
    assert {path.name for path in folder.iterdir()} == {kept.name, "loading-busy"}


def test_a_folder_is_audited_where_it_is(three: Registry, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(three.download(1), tmp_path / "copy"))
    assert load(three, str(folder)).digest == load(three, 1).digest
    (folder / "model.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelRefused, match=r"model\.pkl"):
        load(three, str(folder))


@pytest.fixture
def spoilt(registry: Registry, mlflow_server: MlflowServer) -> tuple[Registry, Path]:
    """A version of a model that only this test has, and where the server keeps its files."""
    own = logged(registry.settings, seed=7)
    add(registry, own)
    [folder] = mlflow_server.artifacts.rglob(own.model_uri.removeprefix("models:/"))
    return registry, folder / "artifacts"


def test_a_pickle_planted_in_the_artifact_is_refused(spoilt: tuple[Registry, Path]) -> None:
    registry, folder = spoilt
    (folder / "python_model.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelRefused, match=r"/1: 'python_model.pkl' does not belong"):
        load(registry, 1)


def test_a_changed_file_is_refused_and_named(spoilt: tuple[Registry, Path]) -> None:
    registry, folder = spoilt
    path = folder / "artifacts" / "classifier" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelRefused, match=r"recorded is .*changed since.*model\.safetensors"):
        load(registry, 1)


def test_a_good_copy_in_the_cache_does_not_hide_missing_files(spoilt: tuple[Registry, Path]) -> None:
    registry, folder = spoilt
    load(registry, 1)
    shutil.rmtree(folder)
    with pytest.raises(RegistryError, match=r"files of .* are missing"):
        load(registry, 1)


def test_missing_files_are_an_error_of_the_registry(spoilt: tuple[Registry, Path]) -> None:
    registry, folder = spoilt
    shutil.rmtree(folder)
    with pytest.raises(RegistryError, match=r"files of .* are missing"):
        load(registry, 1)


def test_a_model_of_unknown_origin_is_refused(registry: Registry, candidate: Candidate, client: MlflowClient) -> None:
    client.create_registered_model(registry.name)
    client.create_model_version(
        registry.name, candidate.model_uri, model_id=candidate.model_uri.removeprefix("models:/")
    )
    with pytest.raises(ModelRefused, match="no record of its files"):
        load(registry, f"models:/{registry.name}/1")


def test_tags_edited_in_mlflow_do_not_outweigh_the_ledger(three: Registry, client: MlflowClient) -> None:
    client.set_model_version_tag(three.name, "2", "xray.digests", f"artifact {'f' * 64}")
    assert three.resolve(2).artifact != "f" * 64
    load(three, 2)


# Without a server, and without an answer


@pytest.mark.slow
def test_it_works_on_a_database_without_a_server(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    (tmp_path / "home").mkdir()
    mlflow.set_tracking_uri(settings.tracking_uri)
    mlflow.create_experiment(settings.experiment, artifact_location=str(tmp_path / "artifacts"))
    registry = Registry(settings)
    candidate = logged(settings)
    assert add(registry, candidate) == 1
    record(registry, "registered", 1, candidate=candidate.digest, artifact=registry.resolve(1).artifact)
    record(registry, "promoted", 1)
    registry.follow()
    assert load(registry, "models:/chest-xray@champion").digest == candidate.model_digest


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")


@pytest.mark.usefixtures("impatient")
@pytest.mark.timeout(120)
def test_a_server_that_is_down_is_named_and_not_waited_for(tmp_path: Path) -> None:
    registry = Registry(Settings(home=tmp_path, tracking_uri=f"http://127.0.0.1:{free_port()}"))
    for ask in (Registry.aliases, Registry.follow, lambda r: r.add("a" * 64, "models:/m-" + "0" * 32, "r")):
        with pytest.raises(RegistryUnavailable, match="did not answer"):
            ask(registry)
    assert not Ledger(registry.ledger.store).entries()


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_a_server_that_comes_back_is_used_again(tmp_path: Path) -> None:
    port = free_port()
    settings = Settings(home=tmp_path / "home", tracking_uri=f"http://127.0.0.1:{port}")
    with run_mlflow(tmp_path / "server", port):
        candidate = logged(settings)
        registry = Registry(settings)
        add(registry, candidate)
        record(registry, "registered", 1, candidate=candidate.digest)
    with pytest.raises(RegistryUnavailable):
        registry.follow()
    with run_mlflow(tmp_path / "server", port):
        assert registry.follow().challenger == 1
        assert registry.aliases() == {"champion": None, "challenger": 1}
