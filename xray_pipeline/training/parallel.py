"""Several processes train one network, one per GPU: the same batches, the same weights to rounding.

Each process holds the network and takes its contiguous part of every batch; gradients are summed over all of them, and
on GPUs torch's synchronised batch normalisation looks at the whole batch. The trade-offs: gradients travel in one piece
when the backward pass is done, not along with it, which keeps them right when a batch is taken in parts or a process
has none of it, and is little for networks of this size; on CPUs, where torch has no such layer, batch normalisation
that is trained sees each process's part alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn


class Group:
    """The processes of one training; `ALONE` is a training in one process, for which nothing here does anything."""

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self.rank, self.size, self.device = rank, size, device

    def part(self, count: int) -> slice:
        """Return which of `count` things are this process's; the first process never has fewer than another."""
        each = -(-count // self.size)
        return slice(min(self.rank * each, count), min((self.rank + 1) * each, count))

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor (all of one type) by its sum over the processes: the same bits in all of them."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        start = 0
        for tensor in tensors:
            tensor.copy_(flat[start : start + tensor.numel()].view(tensor.shape))
            start += tensor.numel()

    def any(self, flag: bool) -> bool:
        """Say whether the flag is set in any of the processes."""
        found = torch.tensor([float(flag)], device=self.device)
        self.add([found])
        return bool(found.item())

    def joined(self, network: nn.Module) -> None:
        """Let the network's batch normalisation see what all processes are given; on GPUs alone."""
        if self.size > 1 and self.device.type == "cuda":
            convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]


ALONE = Group(0, 1, torch.device("cpu"))


@contextmanager
def group_of(device: torch.device) -> Iterator[Group]:
    """Join the processes that torchrun started with this one: over NCCL on GPUs, over gloo on CPUs."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    yield Group(dist.get_rank(), dist.get_world_size(), device)
    dist.destroy_process_group()  # not after an error: it could wait for a process that has ended


def local_device(device: torch.device) -> torch.device:
    """Return this process's device, given that of the whole training: the GPU of its number among torchrun's, or it."""
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if device.type == "cuda" else device
