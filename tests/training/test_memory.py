from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xray_pipeline.base.errors import OutOfMemory
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import open_store
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.models import backbones
from xray_pipeline.training.checkpoints import Checkpoints
from xray_pipeline.training.device import halving
from xray_pipeline.training.fitting import fit
from xray_pipeline.training.recipe import load_recipe
from xray_pipeline.training.trainer import Trainer

STAGES_FIXED: dict[str, Any] = {"backbone": "shufflenet_v2_x0_5", "weights": "none", "mode": "partial", "side": 64}


@contextmanager
def room_for(module: nn.Module, most: int) -> Iterator[list[int]]:
    """Let a module run out of memory above a batch size; give the sizes it was asked for."""
    asked: list[int] = []

    def check(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        asked.append(len(inputs[0]))
        if len(inputs[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = module.register_forward_pre_hook(check)
    try:
        yield asked
    finally:
        hook.remove()


def trainer(settings: Settings) -> Trainer:
    """All of the backbone stays fixed, so its normalisation does not depend on the size of a part."""
    dataset = Dataset(settings)
    snapshot = dataset.snapshot()
    assert snapshot is not None
    backbone = backbones.load("shufflenet_v2_x0_5", "none")
    recipe = load_recipe("head", {**STAGES_FIXED, "fixed_share": 1, "epochs": 1, "batch_size": 8})
    each_step = settings.model_copy(update={"checkpoint_steps": 1})
    return Trainer(recipe, backbone, dataset, dataset.rows(snapshot), each_step)


def fitted(asked: Trainer, checkpoints: Checkpoints) -> Tensor:
    fit(asked, checkpoints, lambda epoch, metrics: None)
    return asked.network.head.weight.detach()


def test_parts_keep_the_batch(grown: Settings, tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    expected = fitted(trainer(grown), Checkpoints(open_store(tmp_path / "whole")))
    small = trainer(grown)
    with room_for(small.network.backbone, 3) as asked:
        found = fitted(small, Checkpoints(open_store(tmp_path / "parts")))
    assert torch.allclose(found, expected, atol=1e-5)
    assert asked[:4] == [8, 4, 2, 2]
    assert "8 radiographs at once do not fit cpu; going on with 4" in caplog.text
    state = Checkpoints(open_store(tmp_path / "parts")).load()
    assert state is not None
    assert state["micro"] == 2


def test_when_nothing_fits_the_error_says_so(grown: Settings, tmp_path: Any) -> None:
    full = trainer(grown)
    with room_for(full.network.backbone, 0), pytest.raises(OutOfMemory, match="not even 1 radiographs at once fit cpu"):
        fitted(full, Checkpoints(open_store(tmp_path / "none")))


def test_halving_joins_the_parts_in_order() -> None:
    sizes = []

    def double(part: Tensor) -> Tensor:
        sizes.append(len(part))
        if len(part) > 3:
            raise torch.OutOfMemoryError
        return 2 * part

    assert torch.equal(halving(double, torch.arange(10)), 2 * torch.arange(10))
    assert sizes == [10, 5, 3, 3, 3, 1]


def test_other_errors_pass() -> None:
    def broken(_: Tensor) -> Tensor:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        halving(broken, torch.arange(3))
