from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from candidates import fresh, promoted, trained
from forks import forked
from PIL import Image
from samples import jpeg

from xray_pipeline.base import records
from xray_pipeline.base.errors import ConfigError, NonFiniteLoss, TrainingError
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import open_store
from xray_pipeline.models.mlflow_client import MlflowClient
from xray_pipeline.night import intake_steps
from xray_pipeline.night.run import Run
from xray_pipeline.registry.loading import load
from xray_pipeline.registry.mlflow_registry import Registry
from xray_pipeline.training import candidate as training
from xray_pipeline.training import mlflow_run, overrides
from xray_pipeline.training.checkpoints import Checkpoints
from xray_pipeline.training.device import pick_device
from xray_pipeline.training.recipe import Recipe, load_recipe


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
    auc = MlflowClient().get_metric_history(candidate.run_id, "validation_auc")
    assert [metric.step for metric in auc] == list(range(1, 11))
    assert auc[-1].value > 0.75


@pytest.mark.parametrize("shared", [False, True])
def test_pictures_are_kept_in_the_store_and_in_mlflow_only_where_the_setting_says_so(
    grown: Settings, shared: bool
) -> None:
    candidate = trained(grown.model_copy(update={"mlflow_pictures": shared}), epochs=1)
    names = {"training-batch.png", "validation-answers.png"}
    files = {file.path for file in MlflowClient().list_artifacts(candidate.run_id)}
    assert files & names == (names if shared else set())
    for name in names:
        Image.open(Path(grown.store) / "candidates" / candidate.digest / name).verify()


def test_the_run_has_threshold_and_temperature(grown: Settings) -> None:
    candidate = trained(grown, epochs=2, threshold="sensitivity", sensitivity=0.9)
    run = MlflowClient().get_run(candidate.run_id)
    assert run.data.metrics["operating_threshold"] == candidate.threshold
    assert {"threshold": "sensitivity", "sensitivity": "0.9"}.items() <= run.data.params.items()
    assert run.data.metrics["temperature"] > 0


@pytest.mark.parametrize("mode", ["head", "finetune"])
def test_both_sides_have_loss_accuracy_and_auc_by_epoch(grown: Settings, mode: str) -> None:
    candidate = trained(grown, mode=mode, epochs=2)
    client = MlflowClient()
    for name in [f"{side}_{metric}" for side in ("train", "validation") for metric in ("loss", "accuracy", "auc")]:
        points = {point.step: point.value for point in client.get_metric_history(candidate.run_id, name)}
        assert points.keys() == {1, 2}, name
        assert all(0 <= value <= 1 for value in points.values()) or name.endswith("loss"), name


def test_the_input_of_the_run_is_the_snapshot(grown: Settings) -> None:
    candidate = trained(grown, epochs=1)
    (given,) = MlflowClient().get_run(candidate.run_id).inputs.dataset_inputs
    assert given.dataset.digest == candidate.snapshot[:36]


def logged_models(settings: Settings, candidate: training.Candidate) -> list[str]:
    client = MlflowClient(settings.tracking_uri)
    experiment = client.get_run(candidate.run_id).info.experiment_id
    return [f"models:/{model.model_id}" for model in client.search_logged_models([experiment])]


def test_of_two_that_train_at_once_one_models_stays(grown: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process logs its model and commits while ours is between logging and committing."""
    log_ours = mlflow_run.log_classifier

    def another_first(*given: Any) -> str:
        monkeypatch.setattr(mlflow_run, "log_classifier", log_ours)
        ours, theirs = log_ours(*given), trained(grown)
        assert ours != theirs.model_uri
        return ours

    monkeypatch.setattr(mlflow_run, "log_classifier", another_first)
    candidate = trained(grown)
    assert logged_models(grown, candidate) == [candidate.model_uri]


def test_what_a_killed_process_had_logged_is_dropped_but_not_what_a_version_is_made_of(
    grown: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_ours = mlflow_run.log_classifier

    def killed(*given: Any) -> str:
        lost.append(log_ours(*given))
        raise KeyboardInterrupt

    lost: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(mlflow_run, "log_classifier", killed)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                trained(grown)
    client = MlflowClient(grown.tracking_uri)
    client.create_registered_model("theirs")
    client.create_model_version("theirs", lost[0], model_id=lost[0].removeprefix("models:/"))
    candidate = trained(grown)
    assert set(logged_models(grown, candidate)) == {candidate.model_uri, lost[0]}
    assert trained(grown) == candidate


def test_patience_ends_training_early(grown: Settings) -> None:
    """At this rate hardly anything but the running means of batch norm changes."""
    candidate = trained(grown, mode="finetune", epochs=9, patience=2, learning_rate=1e-12, average=0.9)
    values = {each.step: each.value for each in MlflowClient().get_metric_history(candidate.run_id, "validation_auc")}
    assert len(values) < 9
    assert max(values) - max(values, key=values.__getitem__) == 2


def test_a_warm_start_is_the_champion_then_and_stays_that_one(grown: Settings) -> None:
    first = promoted(grown, trained(grown, mode="finetune", epochs=1), None)
    overrides = {"mode": "finetune", "epochs": 1, "learning_rate": 1e-12, "warm_start": True}
    warm = trained(grown, **overrides)
    registry = Registry(grown)
    champion, found = (load(registry, uri).network.head.weight for uri in (first, warm.model_uri))
    assert torch.allclose(champion, found, atol=1e-6)
    promoted(grown, warm, first)
    assert trained(grown, **overrides) == warm


def test_a_warm_start_from_a_number_that_means_another_model_now_is_refused(grown: Settings) -> None:
    version = promoted(grown, trained(grown, mode="finetune", epochs=1), None)
    trained(grown, mode="finetune", epochs=1, learning_rate=1e-3, warm_start=True)
    [start] = Path(grown.store).glob("candidates/*/start.json")
    records.write(open_store(start.parent), start.name, {"version": version, "model": "f" * 64})
    with pytest.raises(TrainingError, match=r"version 1 is another model .*start\.json .*delete it"):
        trained(grown, mode="finetune", epochs=1, learning_rate=1e-3, warm_start=True)


def test_a_warm_start_without_champion_is_a_cold_one(grown: Settings) -> None:
    overrides = {"mode": "finetune", "epochs": 1}
    warm = trained(grown, **overrides, warm_start=True)
    assert warm.model_digest == trained(grown, **overrides).model_digest


def test_a_warm_start_of_mode_head_is_refused(grown: Settings) -> None:
    with pytest.raises(ConfigError, match="warm_start is of no use to mode head"):
        trained(grown, warm_start=True)


def train_here(settings: Settings, changes: dict[str, Any], said: Path) -> None:
    """Train in this process, with a checkpoint after each step, so that a kill between any two is likely."""
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
    trained(settings.model_copy(update={"checkpoint_steps": 1}), **changes)


@contextmanager
def training_elsewhere(settings: Settings, changes: dict[str, Any]) -> Iterator[tuple[BaseProcess, Path]]:
    """Train in a process that has come as far as a checkpoint; give it and the file of what it says of errors."""
    said = settings.home / "said.txt"
    process = forked(train_here, settings, changes, said)
    process.start()
    until = time.monotonic() + 120
    while not list(Path(settings.store).glob("candidates/*/checkpoints/*.pt")):
        assert process.is_alive(), said.read_text()
        assert time.monotonic() < until
        time.sleep(0.01)
    yield process, said
    process.join(60)


def candidates(settings: Settings) -> Path:
    return next(iter((Path(settings.store) / "candidates").iterdir()))


@pytest.mark.parametrize("mode", ["head", "finetune"])
def test_killed_at_random_steps_it_ends_as_if_it_had_not_been(grown: Settings, tmp_path: Path, mode: str) -> None:
    overrides = {"mode": mode, "epochs": 4, "batch_size": 8}
    random = np.random.default_rng(int(os.environ["TEST_SEED"]))
    killed = 0
    for _ in range(4):
        with training_elsewhere(grown, overrides) as (process, _):
            time.sleep(random.uniform(0, 0.5))
            process.kill()
        killed += process.exitcode == -signal.SIGKILL
        if (candidates(grown) / "candidate.json").exists():
            break
    assert killed
    interrupted = trained(grown, **overrides)
    whole = trained(fresh(grown, tmp_path), **overrides)
    assert interrupted.model_digest == whole.model_digest


def test_sigterm_keeps_a_checkpoint(grown: Settings) -> None:
    with training_elsewhere(grown, {"mode": "finetune", "epochs": 50, "batch_size": 8}) as (process, said):
        process.terminate()
    errors = said.read_text()
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
    for key in intake_steps.find_deliveries(run):
        intake_steps.check_delivery(run, key)
    intake_steps.commit_deliveries(run, ["first"])
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
        ({"epoch": 3}, r"epoch is no value of a recipe; did you mean epochs\?"),
        ({"augmentation.flipp": 1}, r"augmentation.flipp is no value of a recipe; did you mean augmentation.flip\?"),
        ({"utterly": 3}, "utterly is no value of a recipe$"),
        ({"backbone": "resnet81"}, r"backbone 'resnet81' is not known; .*did you mean resnet18\?"),
        ({"backbone": "timm/vit_smal_patch16_224"}, r"not known; .*did you mean timm/vit_small_patch16_224\?"),
        ({"backbone": "vit_small_patch16_224"}, r"not known; .*did you mean timm/vit_small_patch16_224\?"),
        ({"backbones": ["resnet18", "resnet81"]}, r"backbone 'resnet81' is not known; .*did you mean resnet18\?"),
        ({"backbones": ["resnet18", 5]}, "backbone: .*string"),
        ({"backbones": ["resnet18", "resnet34"], "weights": ["", "", "none"]}, "are 3, but .* is 2 networks"),
        ({"backbones": ["resnet18", "resnet34"], "mean": [0.5], "std": [0.5]}, "its own mean and std"),
        ({"mode": "magic"}, "mode: .*'magic'"),
        ({"augmentation": {"flip": 2}}, "augmentation.flip: .*got 2"),
    ],
)
def test_bad_recipe_values_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe("head", values)


def test_an_unknown_recipe_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"one of .*head.*; did you mean head\?"):
        load_recipe("haed")


@pytest.mark.parametrize("name", overrides.recipe_names())
def test_shipped_recipes_are_whole(name: str) -> None:
    assert load_recipe(name).name == name


def test_the_name_is_not_part_of_the_digest() -> None:
    assert Recipe(name="a").digest() == Recipe(name="b").digest() != Recipe(seed=1).digest()
