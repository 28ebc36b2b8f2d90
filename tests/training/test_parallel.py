from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from candidates import fresh, trained

from xray_pipeline.base.errors import TrainingError
from xray_pipeline.base.settings import Settings
from xray_pipeline.models.mlflow_client import MlflowClient
from xray_pipeline.registry.loading import load
from xray_pipeline.registry.mlflow_registry import Registry
from xray_pipeline.training import candidate as training

# 60 radiographs are on side train: the second batch of an epoch has one, so one of two processes has none.
NETWORK: dict[str, Any] = {
    "mode": "partial",
    "backbone": "efficientnet_lite0",
    "weights": "",
    "fixed_stages": 8,  # the last layer alone learns: on a CPU batch normalisation sees parts
    "batch_size": 59,
    "epochs": 2,
    "optimizer": "sgd",
    "learning_rate": 0.01,
    "average": 0.9,
    "head_first": 1,
    "augmentation": {"degrees": 5, "noise": 0.05, "blur": 1},
}


def weights(settings: Settings, candidate: training.Candidate) -> dict[str, torch.Tensor]:
    return load(Registry(settings), candidate.model_uri).network.state_dict()


def history(candidate: training.Candidate, name: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in MlflowClient().get_metric_history(candidate.run_id, name)]


def test_two_processes_train_what_one_does(grown: Settings, tmp_path: Path) -> None:
    alone = trained(grown, **NETWORK)
    expected = weights(grown, alone)
    curves = {name: history(alone, name) for name in ("train_loss", "train_auc", "validation_loss")}
    both = fresh(grown, tmp_path).model_copy(update={"train_processes": 2})
    together = trained(both, **NETWORK)
    assert together.digest == alone.digest
    for name, tensor in weights(both, together).items():
        assert torch.allclose(tensor.float(), expected[name].float(), rtol=1e-3, atol=1e-5), name
    for name, points in curves.items():
        assert history(together, name) == [(step, pytest.approx(value, rel=1e-3)) for step, value in points]


MANY_STEPS: dict[str, Any] = {
    "mode": "finetune",
    "backbone": "shufflenet_v2_x0_5",
    "batch_size": 30,
    "epochs": 10,
    "optimizer": "sgd",
    "learning_rate": 1e-4,
}

STEPS_AN_EPOCH = 3  # 61 radiographs to train on, 30 at once


def step_of(settings: Settings) -> int:
    """The step of the newest checkpoint."""
    names = [path.name for path in Path(settings.store).glob("candidates/*/checkpoints/*.pt")]
    return max((int(name.partition("-")[0]) for name in names), default=0)


@contextmanager
def after_a_step(settings: Settings, act: Callable[[dict[str, psutil.Process]], object]) -> Iterator[None]:
    """Once two processes have taken a step together, do something to them, by number; at the end they are gone."""
    by_number: dict[str, psutil.Process] = {}
    before, ended = step_of(settings), threading.Event()

    def watch() -> None:
        while step_of(settings) <= before and not ended.wait(0.01):
            continue
        for child in psutil.Process().children(recursive=True):
            program, *given = child.cmdline()[1:]
            if program == "-m":
                by_number[given[-1]] = child
        act(by_number)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        both = [by_number[number] for number in ("0", "1")]
        assert not psutil.wait_procs(both, timeout=30)[1]


def test_a_killed_process_ends_the_others_and_is_named(grown: Settings, caplog: pytest.LogCaptureFixture) -> None:
    both = grown.model_copy(update={"train_processes": 2, "checkpoint_steps": 1})
    with (
        pytest.raises(TrainingError, match=r"process \d+ was ended by SIGKILL; the others were stopped"),
        after_a_step(both, lambda processes: processes["1"].kill()),
    ):
        trained(both, **MANY_STEPS)
    with (
        pytest.raises(TrainingError, match=r"told to stop in epoch .* a checkpoint is kept"),
        after_a_step(both, lambda processes: os.kill(os.getpid(), signal.SIGTERM)),
    ):
        trained(both, **MANY_STEPS)
    kept = step_of(both)
    caplog.set_level("INFO", "xray_pipeline")
    caplog.clear()
    trained(grown, **MANY_STEPS)  # in one process
    [place] = re.findall(r"going on from epoch (\d+), step (\d+)", caplog.text)
    assert int(place[0]) * STEPS_AN_EPOCH + int(place[1]) == kept


FULL_ABOVE_16 = """
import sys

if "xray_pipeline.training.launching" in sys.orig_argv:
    import torch

    def check(module, inputs):
        if module.training and len(inputs[0]) > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")

    torch.nn.modules.module.register_module_forward_pre_hook(check)
"""


def test_a_part_that_does_not_fit_is_halved_in_all_processes(
    grown: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "sitecustomize.py").write_text(FULL_ABOVE_16)  # read by each process that starts from here on
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    trained(grown.model_copy(update={"train_processes": 2}), **{**MANY_STEPS, "batch_size": 60, "epochs": 1})
    assert "60 radiographs at once do not fit cpu; going on with 30" in caplog.text
