"""A radiograph framed a little otherwise, always in the same ways: what an answer over several views is the mean of.

This file travels with each logged model, beside backbones.py.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

AREA = (0.75, 1.2)
"""Share of the picture that a view keeps, least and most; beyond 1 its edge is repeated."""
RATIO = 1.25
"""Width over height of what a view keeps, at most; at least its inverse."""


def views(pixels: Tensor, count: int) -> list[Tensor]:
    """Return `count` views of pixels [N, 1, S, S] in 0..255, the first as they are, the others float.

    Area, ratio and place of the others follow an additive recurrence (Roberts 2018, R4), which fills their ranges
    evenly whatever the count.
    """
    made = [pixels]
    side = pixels.shape[-1]
    middles = (2 * torch.arange(side, device=pixels.device) + 1) / side - 1  # of pixels, in -1..1
    for number in range(1, count):
        area, ratio, right, down = (math.fmod(0.5 + number * step, 1) for step in _STEPS)
        area, ratio = AREA[0] + (AREA[1] - AREA[0]) * area, RATIO ** (2 * ratio - 1)
        width, height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        across = width * middles + (2 * right - 1) * abs(1 - width)
        along = height * middles + (2 * down - 1) * abs(1 - height)
        grid = torch.stack([across.expand(side, side), along[:, None].expand(side, side)], dim=2)
        grid = grid.expand(len(pixels), -1, -1, -1)
        made.append(F.grid_sample(pixels.float(), grid, padding_mode="border", align_corners=False))
    return made


_GOLDEN = 1.1673039782614187  # the root above 1 of x**5 = x + 1
_STEPS = tuple(_GOLDEN**-power for power in range(1, 5))
