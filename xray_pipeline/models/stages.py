"""A network taken apart in its own order, whatever its family: parts, stages, and the pictures that parts hand on.

A part is a block group, a block or a single layer, as the network lists them from input to output. Blocks are what has
several layers with weights (a stage of a ResNet or RegNet, a mixed block of Inception, a block of a transformer). A
network of single layers only, such as VGG, is divided by its poolings. Nothing here knows a network by its name.

This file travels with each logged model, beside backbones.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

BLOCKS = 3
"""Blocks that a list of parts has at least; with fewer, the part with the most parameters is taken apart."""
LEVELS = 8
"""Blocks that `levels` looks at, at most; of more, so many at even distances."""

_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


@dataclass(frozen=True, eq=False)
class Stage:
    """Some parts in a row, the unit in which `partial` keeps the first ones fixed.

    `vectors` are learned tensors that no part holds (a class token, positions); they belong to the first stage.
    """

    modules: list[nn.Module]
    vectors: list[nn.Parameter] = field(default_factory=list)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield all that is learned."""
        yield from self.vectors
        for module in self.modules:
            yield from module.parameters()


class SideBySide(nn.ModuleList):
    """Networks that look at the same normalised pixels [N, C, S, S] and give their features side by side [N, F].

    `scale` and `shift` [networks, C] make of pixels as the first wants them what each wants.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, networks: Sequence[nn.Module], means: Sequence[Sequence[float]], stds: Sequence[Sequence[float]]
    ):
        super().__init__(networks)
        mean, std = torch.tensor(means), torch.tensor(stds)
        self.register_buffer("scale", std[:1] / std)
        self.register_buffer("shift", (mean[:1] - mean) / std)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return features [N, F] of normalised pixels."""
        changes = zip(self, self.scale[..., None, None], self.shift[..., None, None], strict=True)
        return torch.cat([network(pixels * scale + shift) for network, scale, shift in changes], dim=1)


def networks(backbone: nn.Module) -> list[nn.Module]:
    """Return the networks that stand side by side in a backbone, in their order."""
    return list(backbone) if isinstance(backbone, SideBySide) else [backbone]


def parts(network: nn.Module) -> list[nn.Module]:
    """Return a network's parts from input to output."""
    found = list(network.children())
    while sum(map(_is_block, found)) < BLOCKS:
        largest = max(filter(_is_block, found), key=_size, default=None)
        if largest is None:
            break
        at = next(place for place, part in enumerate(found) if part is largest)
        found[at : at + 1] = largest.children()
    return found


def stages(network: nn.Module) -> list[Stage]:
    """Return a network's stages from input to output.

    Each block is one, with the single layers behind it; the layers before the first block are the first stage. Layers
    with weights behind a pooling are a stage of their own.
    """
    groups: list[list[nn.Module]] = []
    pooled = True
    for part in parts(network):
        if isinstance(part, _POOLS):
            pooled = True
        elif _size(part):
            if not groups or _is_block(part) or (pooled and _layers(part)):
                groups.append([])
            groups[-1].append(part)
            pooled = False
    inside = {id(one) for group in groups for part in group for one in part.parameters()}
    loose = [one for one in network.parameters() if id(one) not in inside]
    return [Stage(group, [] if at else loose) for at, group in enumerate(groups)]


def level_modules(network: nn.Module) -> list[nn.Module]:
    """Return the parts from input to output whose pictures `levels` looks at: blocks, or without one what is pooled."""
    listed = parts(network)
    found = [part for part in listed if _is_block(part)]
    if not found:
        pooled = [isinstance(part, _POOLS) for part in listed]
        found = [part for part, own, after in zip(listed, pooled, pooled[1:], strict=False) if after and not own]
    if len(found) <= LEVELS:
        return found
    return [found[(at + 1) * len(found) // LEVELS - 1] for at in range(LEVELS)]


def picture(output: object) -> Tensor | None:
    """Return what a part gave of square radiographs as pictures [N, C, h, h]; None where that is no picture.

    Convolutions give [N, C, h, h], some transformers [N, h, h, C], others tokens [N, T, C], of which the last h * h
    are the picture, row by row.
    """
    if not isinstance(output, Tensor):
        return None
    if output.ndim == 4 and output.shape[2] == output.shape[3]:
        return output
    if output.ndim == 4 and output.shape[1] == output.shape[2]:
        return output.permute(0, 3, 1, 2)
    if output.ndim == 3:
        side = math.isqrt(output.shape[1])
        return output[:, output.shape[1] - side * side :].transpose(1, 2).reshape(len(output), -1, side, side)
    return None


def summary(output: object) -> list[Tensor]:
    """Return what the last layer sees of a part's answer, each [N, C]: of a picture mean and standard deviation of each
    channel, of tokens with a class token that and the mean of the picture's. Nothing of what has no picture."""
    seen = picture(output)
    if seen is None or not isinstance(output, Tensor):
        return []
    if output.ndim == 3 and output.shape[1] > seen.shape[2] ** 2:
        return [output[:, 0].float(), seen.float().mean(dim=(2, 3))]
    variance, mean = torch.var_mean(seen.float(), dim=(2, 3), correction=0)
    return [mean, torch.sqrt(variance + 1e-6)]


def _layers(part: nn.Module) -> int:
    """Count the convolutions and linear layers, those of an attention included."""
    kinds = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)
    return sum(isinstance(one, kinds) for one in part.modules())


def _is_block(part: nn.Module) -> bool:
    return _layers(part) > 1


def _size(part: nn.Module) -> int:
    return sum(one.numel() for one in part.parameters())
