from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import SecretStr
from samples import jpeg, picture

from xray_pipeline import night, training
from xray_pipeline.dataset import Dataset
from xray_pipeline.errors import ConfigError, NonFiniteLoss, TrainingError
from xray_pipeline.learning.checkpoints import Checkpoints
from xray_pipeline.learning.fitting import pick_device
from xray_pipeline.learning.recipe import Recipe, load_recipe
from xray_pipeline.night import Run
from xray_pipeline.registry import Registry
from xray_pipeline.rollout import operations
from xray_pipeline.settings import Settings
from xray_pipeline.storage import open_store

SMALL: dict[str, Any] = {"backbone": "mobilenet_v2", "weights": "none", "side": 64, "epochs": 3, "views": 1}


@pytest.fixture
def grown(settings: Settings) -> Settings:
    """A dataset of 80 patients whose classes differ: ill chests have a bright patch. The split is always the same."""
    settings = settings.model_copy(update={"patient_key": SecretStr("of the tests, and no secret")})
    for label, bright in (("NORMAL", 0), ("PNEUMONIA", 120)):
        folder = Path(settings.incoming) / "first" / label
        folder.mkdir(parents=True)
        for seed in range(40):
            pixels = picture(seed + 1000 * bool(bright)).astype(np.int64)
            pixels[30:60, 20:50] += bright
            (folder / f"patient{seed + 100 * bool(bright):04d}_1.jpeg").write_bytes(
                jpeg(np.clip(pixels, 0, 255).astype(np.uint8))
            )
    run = Run(settings)
    for key in night.find_deliveries(run):
        night.check_delivery(run, key)
        night.commit_deliveries(run, [key])
    return settings


def trained(settings: Settings, **overrides: Any) -> training.Candidate:
    dataset = Dataset(settings)
    snapshot = dataset.snapshot()
    assert snapshot is not None
    return training.train(dataset, snapshot, load_recipe("head", {**SMALL, **overrides}), settings)


def fresh(settings: Settings, tmp_path: Path) -> Settings:
    """The same dataset, but no memory of candidates and no cache."""
    import shutil

    store = tmp_path / "fresh"
    shutil.copytree(Path(settings.store) / "dataset", store / "dataset")
    tracking = f"sqlite:///{tmp_path / 'fresh.db'}"
    return settings.model_copy(
        update={"store": str(store), "cache": tmp_path / "fresh-cache", "tracking_uri": tracking}
    )


@pytest.mark.parametrize("mode", ["head", "finetune"])
def test_the_same_inputs_give_the_same_weights(grown: Settings, tmp_path: Path, mode: str) -> None:
    overrides = {"mode": mode, "epochs": 2, "head_first": 1}
    one, two = trained(grown, **overrides), trained(fresh(grown, tmp_path), **overrides)
    assert one.digest == two.digest
    assert one.model_digest == two.model_digest


def test_another_seed_is_another_candidate(grown: Settings) -> None:
    assert trained(grown, epochs=1).digest != trained(grown, epochs=1, seed=1).digest


def test_trained_before_is_found(grown: Settings) -> None:
    first = trained(grown, epochs=1)
    before = set(Path(grown.store).rglob("*"))
    assert trained(grown, epochs=1) == first
    assert set(Path(grown.store).rglob("*")) == before


def test_the_head_learns(grown: Settings) -> None:
    candidate = trained(grown, epochs=10)
    from xray_pipeline.learning.tracking import MlflowClient

    auc = MlflowClient().get_metric_history(candidate.run_id, "validation_auc")
    assert [metric.step for metric in auc] == list(range(1, 11))
    assert auc[-1].value > 0.75


def test_the_run_has_pictures_threshold_and_temperature(grown: Settings) -> None:
    candidate = trained(grown, epochs=2, threshold="sensitivity", sensitivity=0.9)
    from xray_pipeline.learning.tracking import MlflowClient

    run = MlflowClient().get_run(candidate.run_id)
    files = {file.path for file in MlflowClient().list_artifacts(candidate.run_id)}
    assert {"learning-curves.png", "training-batch.png", "validation-answers.png"} <= files
    assert run.data.metrics["operating_threshold"] == candidate.threshold
    assert {"threshold": "sensitivity", "sensitivity": "0.9"}.items() <= run.data.params.items()
    assert run.data.metrics["temperature"] > 0


@pytest.mark.parametrize("mode", ["head", "finetune"])
def test_both_sides_have_loss_accuracy_and_auc_by_epoch(grown: Settings, mode: str) -> None:
    candidate = trained(grown, mode=mode, epochs=2)
    from xray_pipeline.learning.tracking import MlflowClient

    client = MlflowClient()
    for name in [f"{side}_{metric}" for side in ("train", "validation") for metric in ("loss", "accuracy", "auc")]:
        points = {point.step: point.value for point in client.get_metric_history(candidate.run_id, name)}
        assert points.keys() == {1, 2}, name
        assert all(0 <= value <= 1 for value in points.values()) or name.endswith("loss"), name


def test_the_input_of_the_run_is_the_snapshot(grown: Settings) -> None:
    candidate = trained(grown, epochs=1)
    from xray_pipeline.learning.tracking import MlflowClient

    (given,) = MlflowClient().get_run(candidate.run_id).inputs.dataset_inputs
    assert given.dataset.digest == candidate.snapshot[:36]


def test_patience_ends_training_early(grown: Settings) -> None:
    """At this rate nothing changes, so no epoch after the first is better."""
    candidate = trained(grown, mode="finetune", epochs=9, patience=2, learning_rate=1e-12, average=0.9)
    from xray_pipeline.learning.tracking import MlflowClient

    assert len(MlflowClient().get_metric_history(candidate.run_id, "validation_auc")) <= 4


def promoted(settings: Settings, candidate: training.Candidate, before: int | None) -> int:
    registry = Registry(settings)
    facts = {
        "who": "a test",
        "why": "a test",
        "decision": {"verdict": "registered", "may_promote": True, "automatic": True},
    }
    version = operations.register(registry, candidate, champion_before=before, **facts).version
    assert version
    operations.promote(registry, version, expected_champion=before, promotion="auto", **facts)
    return version


def test_a_warm_start_is_the_champion_then_and_stays_that_one(grown: Settings) -> None:
    first = promoted(grown, trained(grown, mode="finetune", epochs=1), None)
    overrides = {"mode": "finetune", "epochs": 1, "learning_rate": 1e-12, "warm_start": True}
    warm = trained(grown, **overrides)
    registry = Registry(grown)
    champion, found = (registry.load(uri).network.head.weight for uri in (first, warm.model_uri))
    assert torch.allclose(champion, found, atol=1e-6)
    promoted(grown, warm, first)
    assert trained(grown, **overrides) == warm


def test_a_warm_start_without_champion_is_a_cold_one(grown: Settings) -> None:
    overrides = {"mode": "finetune", "epochs": 1}
    warm = trained(grown, **overrides, warm_start=True)
    assert warm.model_digest == trained(grown, **overrides).model_digest


def test_a_warm_start_of_mode_head_is_refused(grown: Settings) -> None:
    with pytest.raises(TrainingError, match="warm_start is of no use to mode head"):
        trained(grown, warm_start=True)


SCRIPT = """
import sys
from xray_pipeline.dataset import Dataset
from xray_pipeline import training
from xray_pipeline.learning.recipe import load_recipe
from xray_pipeline.settings import Settings
import json
# A checkpoint after each step, so that a kill between any two is likely.
settings = Settings(**json.loads(sys.argv[1]), checkpoint_steps=1)
dataset = Dataset(settings)
print("started", flush=True)
training.train(dataset, dataset.snapshot(), load_recipe("head", json.loads(sys.argv[2])), settings)
print("done", flush=True)
"""


def subprocess_of(settings: Settings, overrides: dict[str, Any]) -> subprocess.Popen[str]:
    values = json.loads(settings.model_dump_json(exclude={"checkpoint_steps"})) | {
        "patient_key": settings.patient_key.get_secret_value()
    }
    command = [sys.executable, "-c", SCRIPT, json.dumps(values), json.dumps({**SMALL, **overrides})]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def candidates(settings: Settings) -> Path:
    return next(iter((Path(settings.store) / "candidates").iterdir()))


def wait_for_checkpoint(settings: Settings, process: subprocess.Popen[str], seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        if list(Path(settings.store).glob("candidates/*/checkpoints/*.pt")):
            return
        time.sleep(0.01)
    raise AssertionError(f"no checkpoint: {process.communicate()}")


@pytest.mark.parametrize("mode", ["head", "finetune"])
def test_killed_at_random_steps_it_ends_as_if_it_had_not_been(grown: Settings, tmp_path: Path, mode: str) -> None:
    overrides = {"mode": mode, "epochs": 4, "batch_size": 8}
    random = np.random.default_rng(os.getpid())
    killed = 0
    for _ in range(4):
        process = subprocess_of(grown, overrides)
        wait_for_checkpoint(grown, process, 120)
        time.sleep(random.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        if (candidates(grown) / "candidate.json").exists():
            break
    assert killed
    interrupted = trained(grown, **overrides)
    whole = trained(fresh(grown, tmp_path), **overrides)
    assert interrupted.model_digest == whole.model_digest


def test_sigterm_keeps_a_checkpoint(grown: Settings) -> None:
    process = subprocess_of(grown, {"mode": "finetune", "epochs": 50, "batch_size": 8})
    wait_for_checkpoint(grown, process, 120)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert "TrainingError: told to stop" in errors
    assert list(Path(grown.store).glob("candidates/*/checkpoints/*.pt"))


def test_broken_checkpoints_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(open_store(tmp_path))
    for step in (1, 2, 3):
        checkpoints.save(step, {"value": torch.tensor(step)})
    newest = max(tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) == 2
    data = bytearray(newest.read_bytes())
    data[100] ^= 1
    newest.write_bytes(data)
    kept = checkpoints.load()
    assert kept is not None
    assert int(kept["value"]) == 2
    assert "is broken" in caplog.text
    newest.write_bytes(bytes(data[:50]))
    assert int((checkpoints.load() or {})["value"]) == 2


def test_nan_in_the_loss_stops(grown: Settings) -> None:
    with pytest.raises(NonFiniteLoss, match=r"epoch \d+, step \d+"):
        trained(grown, mode="finetune", optimizer="sgd", learning_rate=10, epochs=20, batch_size=4, weight_decay=10)
    assert not list(Path(grown.store).glob("candidates/*/candidate.json"))


def test_a_missing_class_is_named(settings: Settings) -> None:
    folder = Path(settings.incoming) / "first" / "NORMAL"
    folder.mkdir(parents=True)
    for seed in range(30):
        (folder / f"patient{seed:04d}_1.jpeg").write_bytes(jpeg(seed=seed))
    run = Run(settings)
    for key in night.find_deliveries(run):
        night.check_delivery(run, key)
    night.commit_deliveries(run, ["first"])
    with pytest.raises(TrainingError, match="class PNEUMONIA is on side train"):
        trained(settings)


def test_a_gpu_that_is_not_there_is_an_error_and_auto_is_not() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(TrainingError, match="'cuda' is not there"):
        pick_device("cuda")
    assert pick_device("auto").type == "cpu"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs: .*got 0"),
        ({"epoch": 3}, "epoch: Extra inputs"),
        ({"mode": "magic"}, "mode: .*'magic'"),
        ({"augmentation": {"flip": 2}}, "augmentation.flip: .*got 2"),
    ],
)
def test_bad_recipe_values_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe("head", values)


def test_an_unknown_recipe_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"one of .*head"):
        load_recipe("haed")


@pytest.mark.parametrize("name", night.recipe_names())
def test_shipped_recipes_are_whole(name: str) -> None:
    assert load_recipe(name).name == name


def test_the_name_is_not_part_of_the_digest() -> None:
    assert Recipe(name="a").digest() == Recipe(name="b").digest() != Recipe(seed=1).digest()
