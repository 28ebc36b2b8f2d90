"""Parts, stages and levels of networks that no line of ours names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from xray_pipeline.models import backbones
from xray_pipeline.models.backbones import Backbone, Network
from xray_pipeline.models.stages import level_modules, parts, picture, stages, summary

FAMILIES = [
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3"),
    *("maxvit_t", "mnasnet1_0", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18"),
    *("resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_0", "swin_t", "swin_v2_t", "vgg16", "vgg16_bn", "vit_b_16"),
    "wide_resnet50_2",
]
OF_TIMM = [
    *("test_vit", "test_resnet", "test_convnext", "test_efficientnet", "test_byobnet", "swin_tiny_patch4_window7_224"),
    *("mixer_s32_224", "davit_tiny"),
]
RECIPES = Path(__file__).parents[2] / "docs" / "recipes.md"


def looked_at(backbone: Backbone) -> tuple[list[nn.Module], list[list[Tensor]], Tensor]:
    """Run a network once; give its parts in the order they ran, what its levels handed on, and its features."""
    ran: list[nn.Module] = []
    handed: list[list[Tensor]] = []

    def note(part: nn.Module, inputs: Any, output: Any) -> None:
        ran.append(part)

    def look(part: nn.Module, inputs: Any, output: Any) -> None:
        handed.append(summary(output))

    hooks = [part.register_forward_hook(note) for part in parts(backbone.module)]
    hooks += [part.register_forward_hook(look) for part in level_modules(backbone.module)]
    with torch.inference_mode():
        features = backbone.module.eval()(torch.zeros(1, 3, backbone.side, backbone.side))
    for hook in hooks:
        hook.remove()
    return ran, handed, features


def check(backbone: Backbone) -> tuple[list[int], list[int]]:
    """Check what must hold of every network; give the parameters of each stage and the channels of each level."""
    ran, handed, features = looked_at(backbone)
    assert features.shape == (1, backbone.features)
    places = [next(at for at, part in enumerate(parts(backbone.module)) if part is one) for one in ran]
    assert places == sorted(places), "parts are not in the order in which they run"
    found = stages(backbone.module)
    held = [id(parameter) for stage in found for parameter in stage.parameters()]
    assert sorted(held) == sorted(id(parameter) for parameter in backbone.module.parameters())
    assert len(found) >= 4
    assert len(handed) >= 3
    assert all(len(values) == 2 for values in handed)
    return [sum(p.numel() for p in stage.parameters()) for stage in found], [values[0].shape[1] for values in handed]


def line(name: str, sizes: list[int], levels: list[int]) -> str:
    thousands = " ".join(f"{round(size / 1000)}" for size in sizes)
    return f"| `{name}` | {len(sizes)} | {thousands} | {' '.join(map(str, levels))} |"


def test_the_families_are_all_of_torchvision() -> None:
    """A family is a module of torchvision.models; a new one has to be looked at."""
    names = torchvision.models.list_models(module=torchvision.models)
    of = {name: torchvision.models.get_model_builder(name).__module__ for name in names}
    assert {of[name] for name in FAMILIES} == set(of.values())


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_of_torchvision_has_stages_and_levels(name: str) -> None:
    """The table in docs/recipes.md holds these lines."""
    made = line(name, *check(backbones.build(name)))
    assert made in RECIPES.read_text(encoding="utf-8"), made


@pytest.mark.parametrize("name", OF_TIMM)
def test_networks_of_timm_have_stages_and_levels(name: str) -> None:
    check(backbones.build(f"timm/{name}"))


def test_deep_networks_of_few_groups_are_divided_by_these() -> None:
    """The third group of a ResNet-152 holds more than half of it, and stays one stage."""
    with torch.device("meta"):
        module = timm.create_model("resnet152", num_classes=0)
    assert len(stages(module)) == 5


def test_a_networks_own_vectors_belong_to_the_first_stage() -> None:
    first, *others = stages(backbones.build("timm/test_vit").module)
    assert len(first.vectors) == 2  # class token, positions
    assert not any(stage.vectors for stage in others)


def test_pictures_are_found_whatever_their_layout() -> None:
    grid = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4).float()
    tokens = torch.cat([torch.zeros(2, 5, 3), grid.flatten(2).transpose(1, 2)], dim=1)
    for output in (grid, grid.permute(0, 2, 3, 1), tokens):
        seen = picture(output)
        assert seen is not None
        assert torch.equal(seen, grid)
    assert picture(torch.zeros(2, 3)) is None
    assert picture((grid, grid)) is None


def test_tokens_are_summed_up_by_class_token_and_mean_patch() -> None:
    tokens = torch.randn(2, 17, 3, generator=torch.Generator().manual_seed(0))
    first, mean = summary(tokens)
    assert torch.equal(first, tokens[:, 0])
    assert torch.allclose(mean, tokens[:, 1:].mean(1))


def test_levels_of_a_transformer_widen_the_head() -> None:
    network = Network(backbones.build("timm/test_vit"), 2, levels=True)
    assert network.head.in_features == 64 + 6 * 2 * 64
