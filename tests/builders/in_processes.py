"""Started by torchrun: compares what several processes make of a batch with what one makes of it, in float64.

Prints the largest relative difference of gradients and running statistics for each size of a batch that is given.
"""

from __future__ import annotations

import json
import sys

import torch
from torch import Tensor, nn

from xray_pipeline.training.parallel import ALONE, Group, group_of


def network() -> nn.Sequential:
    """Two normalised layers, so that what one layer's statistics do to the next is seen."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(1, 4, 3, bias=False), nn.Conv2d(4, 4, 3, bias=False)
    normalised = [first, nn.BatchNorm2d(4), nn.ReLU(), second, nn.BatchNorm2d(4)]
    return nn.Sequential(*normalised, nn.Flatten(), nn.Linear(64, 2)).double()


def found(group: Group, count: int) -> list[Tensor]:
    """Gradients and running statistics after a batch of `count`, of which the group's process sees its part."""
    made = network()
    batch = torch.randn(count, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    truth = torch.arange(count) % 2
    own = group.part(count)
    with group.whole_batches():
        logits = made(batch[own])
    nn.functional.cross_entropy(logits, truth[own], reduction="sum").backward()
    gradients = [parameter.grad for parameter in made.parameters() if parameter.grad is not None]
    group.add(gradients)
    return [*gradients, *(buffer.double() for buffer in made.buffers())]


def gap(group: Group, count: int) -> float:
    """The largest relative difference between the group and one process."""
    expected, seen = found(ALONE, count), found(group, count)
    assert len(expected) == 8 + 6, len(expected)
    return max(float((a - b).norm() / a.norm()) for a, b in zip(expected, seen, strict=True))


if __name__ == "__main__":
    with group_of(torch.device("cpu")) as both:
        gaps = [gap(both, int(count)) for count in sys.argv[1:]]
        if both.rank == 0:
            print(json.dumps(gaps))
