"""Every engine gives torch's features; the same bits in any company and with any number of threads."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from small_models import BACKBONE, small_classifier

from xray_pipeline.base.errors import EvaluationError
from xray_pipeline.models import backbones, engine, framing
from xray_pipeline.models.backbones import Network
from xray_pipeline.models.engine import Wanted, engine_for, engine_name
from xray_pipeline.training.device import has_bfloat16

CPU = torch.device("cpu")


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (7, 64, 64), np.uint8))


def network(weights: str = "none", crop: int = 0, levels: bool = True) -> Network:
    return Network(backbones.load(BACKBONE, weights), 2, crop, levels)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_openvino_is_the_engine_of_a_cpu() -> None:
    assert engine_name(CPU).startswith("openvino 2")
    assert engine_name(CPU, torch.bfloat16).endswith(" bfloat16")
    assert engine_for(network()).name == engine_name(CPU)
    assert engine_name(CPU, wanted="torch") == f"torch {torch.__version__} float32"
    assert engine_name(torch.device("cuda")) == f"torch {torch.__version__} float32"


def test_without_the_package_torch_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "openvino", None)
    assert engine_for(network()).name == f"torch {torch.__version__} float32"


def test_a_classifier_answers_by_the_engine_that_is_asked_for() -> None:
    assert small_classifier()._engine.name.startswith("openvino ")
    assert small_classifier(engine="torch")._engine.name.startswith("torch ")


@pytest.mark.parametrize("wanted", ["auto", "torch"])
def test_threads_that_ask_at_once_get_what_one_gets(
    pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch, wanted: Wanted
) -> None:
    monkeypatch.setattr(engine, "_kept", kept := {})
    made = network()
    asked = engine_for(made, wanted=wanted)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(asked.features, [pixels] * 8))
    expected = engine_for(made, wanted=wanted).features(pixels)
    assert all(torch.equal(one, expected) for one in found)
    assert len(kept) == (wanted == "auto")


@pytest.mark.parametrize(("crop", "levels"), [(0, True), (0, False), (48, True)])
def test_features_are_those_of_the_network(pixels: torch.Tensor, crop: int, levels: bool) -> None:
    made = network(crop=crop, levels=levels)
    with torch.inference_mode():
        expected = made.eval().features(pixels)
    for wanted in ("auto", "torch"):
        found = engine_for(made, wanted=wanted).features(pixels)
        assert found.dtype == torch.float32
        assert torch.linalg.vector_norm(found - expected) <= 1e-4 * torch.linalg.vector_norm(expected)


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        *(("efficientnet_lite0", False), ("resnet18", False), ("vit_b_16", False), ("convnext_tiny", False)),
        *(("timm/vit_small_patch16_224", True), ("timm/swin_tiny_patch4_window7_224", True), ("alexnet", True)),
    ],
)
def test_networks_of_every_kind_are_compiled_and_compared_with_torch(name: str, levels: bool) -> None:
    made = Network(backbones.build(name), 2, levels=levels)
    found = engine_for(made).features(torch.full((1, 224, 224), 90, dtype=torch.uint8))
    assert found.shape == (1, made.head.in_features)


@pytest.mark.parametrize("wanted", ["auto", "torch"])
def test_features_of_several_views_are_their_mean(pixels: torch.Tensor, wanted: Wanted) -> None:
    made = network(levels=True).eval()
    with torch.inference_mode():
        each = [made.features(view) for view in framing.views(pixels.unsqueeze(1), 3)]
    found = engine_for(made, wanted=wanted, views=3).features(pixels)
    assert torch.linalg.vector_norm(found - torch.stack(each).mean(0)) <= 1e-4 * torch.linalg.vector_norm(found)
    one = engine_for(made, wanted=wanted).features(pixels)
    assert not torch.allclose(found, one, rtol=1e-2)
    assert torch.allclose(one, each[0], rtol=1e-3, atol=1e-4)


def test_views_are_always_the_same_and_begin_with_the_radiograph(pixels: torch.Tensor) -> None:
    batch = pixels.unsqueeze(1)
    made, again, more = framing.views(batch, 4), framing.views(batch, 4), framing.views(batch, 6)
    assert made[0] is batch
    assert all(one.shape == batch.shape for one in made)
    assert all(0 <= float(one.min()) <= float(one.max()) <= 255 for one in made)
    assert all(torch.equal(one, two) for one, two in zip(made, [*again, *more][:4], strict=True))
    assert all(torch.equal(one, two) for one, two in zip(made, more, strict=False))
    assert all(not torch.allclose(one.float(), two.float(), atol=5) for one, two in itertools.combinations(more, 2))


def test_a_radiographs_bits_depend_on_nothing_around_it(pixels: torch.Tensor) -> None:
    """Not on its place, its company, floats for bytes, another batch's shape, or the number of threads."""
    made = network()
    together = engine_for(made).features(pixels)
    alone = torch.cat([engine_for(made).features(one[None, None].float()) for one in pixels])
    assert torch.equal(together, alone)
    for count in (1, 2, 3):
        with threads(count):
            assert torch.equal(engine_for(made).features(pixels.flip(0)).flip(0), together)


@pytest.mark.slow
def test_another_process_with_other_threads_computes_the_same_bits(pixels: torch.Tensor) -> None:
    code = """
import hashlib, sys, torch
sys.path.insert(0, "tests/builders")
from test_engine import network, engine_for
import numpy as np
pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (7, 64, 64), np.uint8))
print(torch.get_num_threads(), hashlib.sha256(engine_for(network()).features(pixels).numpy().tobytes()).hexdigest())
"""
    here = hashlib.sha256(engine_for(network()).features(pixels).numpy().tobytes()).hexdigest()
    for count in ("1", "2"):
        environment = {**os.environ, "OMP_NUM_THREADS": count, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
        assert done.stdout.split() == [count, here]


def test_what_becomes_of_the_network_changes_no_answer(pixels: torch.Tensor) -> None:
    made = network().train()
    frozen = engine_for(made)
    before = frozen.features(pixels)
    assert made.training
    with torch.no_grad():
        for tensor in made.state_dict().values():
            tensor.mul_(2)
    assert torch.equal(frozen.features(pixels), before)
    assert not torch.equal(engine_for(made).features(pixels), before)
    assert torch.equal(engine_for(network()).features(pixels), before)


def test_models_with_the_same_frozen_part_are_compiled_once(
    pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_kept", kept := {})
    for seed in range(3):
        torch.manual_seed(seed)  # another head
        engine_for(network()).features(pixels)
    assert len(kept) == 1
    for crop in range(32, 32 + engine.KEPT + 1):
        engine_for(network(crop=crop)).features(pixels)
    assert len(kept) == engine.KEPT
    monkeypatch.setattr(engine, "KEPT_WEIGHTS", sum(one.weights for one in kept.values()) // 2)
    engine_for(network(crop=31)).features(pixels)
    assert len(kept) == engine.KEPT // 2


@pytest.mark.skipif(not has_bfloat16(), reason="this CPU does not multiply bfloat16")
def test_bfloat16_is_near(pixels: torch.Tensor) -> None:
    made = Network(backbones.load("efficientnet_lite0"), 2, levels=True)
    exact = engine_for(made).features(pixels)
    for wanted in ("auto", "torch"):
        found = engine_for(made, torch.bfloat16, wanted).features(pixels)
        off = torch.linalg.vector_norm(found - exact) / torch.linalg.vector_norm(exact)
        assert 1e-4 < off < 0.1


@pytest.mark.parametrize(("wanted", "dtype"), [("auto", None), ("torch", torch.bfloat16)])
def test_an_engine_that_computes_something_else_is_refused(
    pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch, wanted: Wanted, dtype: torch.dtype | None
) -> None:
    monkeypatch.setattr(engine, "_kept", {})
    monkeypatch.setitem(engine.TOLERANCES, dtype, 1e-12)
    with pytest.raises(EvaluationError, match=r"other features than torch .* set XRAY_ENGINE=torch"):
        engine_for(network(), dtype, wanted).features(pixels)


def test_a_network_that_openvino_cannot_compile_is_named(pixels: torch.Tensor) -> None:
    class Odd(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return torch.linalg.svdvals(pixels[:, 0])

    made = network(levels=False)
    made.backbone = Odd()
    with pytest.raises(EvaluationError, match=r"openvino .* can't compile this network .* set XRAY_ENGINE=torch"):
        engine_for(made).features(pixels)


def test_a_server_without_the_engine_answers_what_was_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (5, 64, 64), np.uint8)
    judged = small_classifier().probabilities(pixels)
    monkeypatch.setattr(engine, "openvino", None)
    assert np.abs(small_classifier().probabilities(pixels) - judged).max() <= 1e-5
