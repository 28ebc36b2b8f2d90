from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from candidates import promoted, trained
from commands import Run as Command

import xray_pipeline
from xray_pipeline.base import records
from xray_pipeline.base.errors import LedgerError
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import DirectoryStore
from xray_pipeline.night.reproduce import reproduce
from xray_pipeline.registry import decisions as operations
from xray_pipeline.registry.mlflow_registry import Registry
from xray_pipeline.training.candidate import Candidate


def registered(settings: Settings, **overrides: Any) -> Candidate:
    candidate = trained(settings, **{"epochs": 2, **overrides})
    entry = operations.register(
        Registry(settings),
        candidate,
        who="schedule",
        why="accuracy 0.95 above 0.94",
        decision={"verdict": "registered", "may_promote": True, "automatic": True},
        champion_before=None,
    )
    assert entry.version == 1
    return candidate


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("mode", ["head", "finetune"])
def test_it_proves_a_version_and_changes_nothing(grown: Settings, mode: str) -> None:
    registered(grown, mode=mode)
    before = files(Path(grown.store)), set((grown.home / "artifacts").rglob("*"))
    found = reproduce(grown, 1)
    assert (found.reproduced, found.trained, found.inputs, found.outputs) == (True, True, (), ())
    assert (files(Path(grown.store)), set((grown.home / "artifacts").rglob("*"))) == before
    assert not list(grown.cache.glob("reproduce-*"))


def test_a_warm_start_is_proved_from_the_champion_of_then(grown: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another champion by now, or no word of the one it started from, are told apart; also after an upgrade."""
    first = promoted(grown, trained(grown, mode="finetune", epochs=1), None)
    with monkeypatch.context() as then:
        then.setattr(xray_pipeline, "__version__", "0.0.1")
        warm = trained(grown, mode="finetune", epochs=1, learning_rate=1e-3, warm_start=True)
    second = promoted(grown, warm, first)
    found = reproduce(grown, second)
    assert (found.reproduced, found.trained, found.outputs) == (True, True, ())
    assert found.inputs == (f"version of xray-retrain: {xray_pipeline.__version__}, recorded 0.0.1",)
    for path in Path(grown.store).glob("candidates/*/start.json"):
        path.unlink()
    found = reproduce(grown, second)
    assert (found.reproduced, found.trained) == (False, False)
    assert "which champion it started from is not known: candidates/" in "\n".join(found.lines())


def test_the_recorded_threads_are_used(grown: Settings) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        registered(grown)
    finally:
        torch.set_num_threads(before)
    assert reproduce(grown, 1).reproduced
    assert torch.get_num_threads() == before


def test_the_recorded_engine_is_used(grown: Settings) -> None:
    registered(grown.model_copy(update={"engine": "torch"}))
    found = reproduce(grown, 1)
    assert (found.reproduced, found.inputs) == (True, ())


def test_another_engine_than_the_recorded_one_is_named(grown: Settings) -> None:
    candidate = registered(grown)
    store = DirectoryStore(Path(grown.store) / "candidates" / candidate.digest)
    environment = records.read(store, "environment.json", list[dict[str, Any]])
    assert environment[0]["engine"] == f"openvino {version('openvino')} float32"
    environment[0]["engine"] = "openvino 2025.1.0 float32"
    records.write(store, "environment.json", environment)
    (said,) = reproduce(grown, 1).inputs
    assert said == f"engine: openvino {version('openvino')} float32, recorded openvino 2025.1.0 float32"


def test_it_names_what_went_in_and_came_out_differently(grown: Settings) -> None:
    candidate = registered(grown)
    store = DirectoryStore(Path(grown.store) / "candidates" / candidate.digest)
    environment = records.read(store, "environment.json", list[dict[str, Any]])
    environment[0]["versions"]["torch"] = "1.0"
    environment[0]["device"] = "NVIDIA T4"
    environment[0]["engine"] = "torch float32"  # which answers otherwise by the last bits
    records.write(store, "environment.json", environment)
    found = reproduce(grown, 1)
    assert (found.reproduced, found.trained) == (False, True)
    said = "\n".join(found.lines())
    for text in ("recorded 1.0", "device: cpu, recorded NVIDIA T4", "tensor head.weight is another"):
        assert text in said
    assert "tensor backbone" not in said


def test_missing_parts_are_named(grown: Settings) -> None:
    registered(grown)
    for pattern, message in (
        ("dataset/snapshots/*.json", "no snapshot"),
        ("dataset/manifests/*.parquet", "manifests/first.parquet, committed as commits/00000001.json, is missing"),
        ("candidates/*/recipe.json", "no recipe this version can read"),
        ("dataset/radiographs/*/*", "is missing"),
    ):
        lost = {path: path.read_bytes() for path in Path(grown.store).glob(pattern)}
        for path in lost:
            path.unlink()
        found = reproduce(grown, 1)
        assert (found.reproduced, found.trained) == (False, False)
        assert message in "\n".join(found.lines())
        for path, data in lost.items():
            path.write_bytes(data)


def test_another_recipe_than_the_recorded_one_is_not_trained(grown: Settings) -> None:
    path = Path(grown.store) / "candidates" / registered(grown).digest / "recipe.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "penalty": 1.0}))
    found = reproduce(grown, 1)
    assert (found.reproduced, found.trained) == (False, False)
    assert "/recipe.json has digest " in found.inputs[0]


def test_an_unknown_version_is_an_error(grown: Settings) -> None:
    with pytest.raises(LedgerError, match="version 7 was never registered; there are: none"):
        reproduce(grown, 7)


def test_the_command_answers_with_its_exit_code(grown: Settings, xray: Command) -> None:
    candidate = registered(grown)
    where = {"XRAY_HOME": str(grown.home), "XRAY_PATIENT_KEY": grown.patient_key.get_secret_value()}
    done = xray("reproduce", 1, "--json", **where)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["reproduced"] is True
    (Path(grown.store) / "candidates" / candidate.digest / "recipe.json").unlink()
    done = xray("reproduce", 1, **where)
    assert done.returncode == 3
    assert "version 1 can't be trained again" in done.stdout
    assert xray("reproduce", 2, **where).returncode == 1
