"""The average of a network's weights over its last steps: smoother than where gradient descent happens to stop.

An exponential moving average (Polyak and Juditsky 1992) that forgets faster at the start, so that it does not remember
where training began: after step n the old average keeps min(decay, (1 + n) / (10 + n)). Running statistics of batch
normalisation are averaged like weights; counters are copied. The trade-off: one more copy of the network in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The moving average of a network's state. `decay` 0: none is kept, and nothing here does anything."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: value.detach().clone() for name, value in network.state_dict().items()} if decay else {}

    def update(self, network: nn.Module, step: int) -> None:
        """Take in the network after its `step`-th step, counted from 1."""
        if not self.decay:
            return
        keep = min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, value in network.state_dict().items():
                if value.is_floating_point():
                    self.tensors[name].lerp_(value, 1 - keep)
                else:
                    self.tensors[name].copy_(value)

    @contextmanager
    def shown(self, network: nn.Module) -> Iterator[None]:
        """Let the network hold the average for the while."""
        if not self.decay:
            yield
            return
        own = {name: value.detach().clone() for name, value in network.state_dict().items()}
        network.load_state_dict(self.tensors)
        try:
            yield
        finally:
            network.load_state_dict(own)

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the average from a checkpoint."""
        for name, value in tensors.items():
            self.tensors[name].copy_(value)
