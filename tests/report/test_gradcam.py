"""Maps point at what a network looks at, and follow its weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from xray_pipeline.models import backbones
from xray_pipeline.models.backbones import Backbone, Network
from xray_pipeline.models.stages import SideBySide
from xray_pipeline.report.gradcam import maps


def pictures(count: int, side: int = 224, seed: int = 0) -> Any:
    """Smooth noise with one bright blob each, in a place of its own."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    found, places = [], []
    for _ in range(count):
        cy, cx = rng.uniform(0.25, 0.75, size=2)
        blob = 120 * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 0.004)
        waves = sum(15 * np.cos(2 * np.pi * (rng.normal() * 3 * x + rng.normal() * 3 * y)) for _ in range(5))
        found.append(np.clip(90 + waves + blob, 0, 255))
        places.append((cy, cx))
    return np.array(found, dtype=np.uint8), places


class Bright(nn.Module):
    """A backbone of one feature: how much lies above mid-grey, pooled over a picture of 14 x 14."""

    def __init__(self) -> None:
        super().__init__()
        self.picture = nn.Sequential(nn.AvgPool2d(16), nn.Conv2d(3, 1, 1), nn.ReLU())
        convolution: Any = self.picture[1]
        nn.init.constant_(convolution.weight, 1.0)
        nn.init.constant_(convolution.bias, -1.5)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        pooled: torch.Tensor = self.picture(pixels).mean(dim=(2, 3))
        return pooled


def bright(crop: int = 0) -> Network:
    network = Network(Backbone("bright", Bright(), 1, 224, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), 2, crop=crop)
    with torch.no_grad():
        network.head.weight.copy_(torch.tensor([[-1.0], [1.0]]))
        network.head.bias.zero_()
    return network


def test_the_map_points_at_what_counts() -> None:
    pixels, places = pictures(6)
    found = maps(bright(), pixels, [1] * 6)
    assert found is not None
    assert found.shape == (6, 224, 224)
    assert found.dtype == np.float32
    for one, (cy, cx) in zip(found, places, strict=True):
        assert one.min() >= 0
        assert one.max() > 0.9
        top, left = np.unravel_index(one.argmax(), one.shape)
        assert abs(top / 224 - cy) < 0.08
        assert abs(left / 224 - cx) < 0.08


def test_what_speaks_for_one_class_does_not_speak_for_the_other() -> None:
    pixels, _ = pictures(2)
    found = maps(bright(), pixels, [0, 1])
    assert found is not None
    assert found[0].max() == 0
    assert found[1].max() > 0.9


def test_a_network_that_crops_has_no_evidence_outside_its_crop() -> None:
    pixels, _ = pictures(3, side=256)
    found = maps(bright(crop=224), pixels, [1] * 3)
    assert found is not None
    assert found.shape == (3, 256, 256)
    edge = np.ones((256, 256), dtype=bool)
    edge[16:240, 16:240] = False
    assert found[:, edge].max() == 0
    assert found.max() > 0.9


def test_batches_change_nothing_and_frozen_weights_do_not_matter() -> None:
    pixels, _ = pictures(5)
    network = bright()
    whole = maps(network, pixels, [1] * 5)
    network.requires_grad_(False)
    parts = maps(network, pixels, [1] * 5, batch_size=2)
    assert whole is not None
    assert parts is not None
    np.testing.assert_allclose(whole, parts, atol=1e-6)


def test_maps_change_when_the_weights_are_randomised() -> None:
    """Adebayo et al. 2018: a map that survives random weights shows the picture, not the model."""
    pixels, _ = pictures(6)
    torch.manual_seed(2)
    trained = Network(backbones.load("efficientnet_lite0"), 2)
    random = Network(backbones.load("efficientnet_lite0", "none"), 2)
    random.head.load_state_dict(trained.head.state_dict())
    before, again, after = (maps(network, pixels, [1] * 6) for network in (trained, trained, random))
    assert before is not None
    assert again is not None
    assert after is not None
    np.testing.assert_array_equal(before, again)
    likeness = [
        stats.spearmanr(one[::8, ::8].ravel(), two[::8, ::8].ravel()).statistic
        for one, two in zip(before, after, strict=True)
        if np.ptp(one) > 0 and np.ptp(two) > 0  # an empty map is unlike any other
    ]
    assert np.sum(np.abs(likeness)) < 0.5 * len(before)


@pytest.mark.parametrize("name", ["timm/test_vit", "timm/swin_tiny_patch4_window7_224", "swin_t", "vgg16"])
def test_tokens_and_other_layouts_have_maps(name: str) -> None:
    """A transformer answers from its class token: its last tokens have no gradient, those before them have one."""
    network = Network(backbones.load(name, "none"), 2)
    pixels, _ = pictures(1, side=backbones.build(name).side)
    both = [maps(network, pixels, [target]) for target in (0, 1)]
    assert all(one is not None and one.shape == pixels.shape for one in both)
    assert max(float(one.max()) for one in both if one is not None) > 0.9
    assert any(np.ptp(one) > 0.5 for one in both if one is not None)


def test_of_networks_side_by_side_the_first_has_the_map() -> None:
    """The second sees each whole picture as one cell."""
    pixels, _ = pictures(2)
    alone = maps(bright(), pixels, [1, 1])
    module = SideBySide([Bright(), nn.Sequential(nn.AvgPool2d(224), nn.Flatten())], [[0.0] * 3] * 2, [[1.0] * 3] * 2)
    both = Network(Backbone("both", module, 4, 224, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), 2)
    with torch.no_grad():
        both.head.weight.copy_(torch.tensor([[-1.0, 0, 0, 0], [1.0, 5, 5, 5]]))
    found = maps(both, pixels, [1, 1])
    assert alone is not None
    assert found is not None
    np.testing.assert_allclose(found, alone, atol=1e-5)


def test_a_network_without_a_picture_has_no_map() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    network = Network(Backbone("flat", flat, 4, 8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), 2)
    assert maps(network, np.zeros((2, 8, 8), np.uint8), [0, 1]) is None
