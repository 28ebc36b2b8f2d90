"""Several processes train one network, one per GPU: the same batches, the same weights to rounding.

Each process holds the network and takes its contiguous part of every batch; torch's DistributedDataParallel adds the
gradients up while they are computed, and on GPUs synchronised batch normalisation looks at the whole batch. The
trade-off: on CPUs, where torch has no such layer, batch normalisation that is trained sees each process's part alone.
A training in one process is a group of one, for which nothing here does anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def rank() -> int:
    """Return the number of this process in its group; the first is 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def part(count: int) -> slice:
    """Return which of `count` things are this process's; the first process never has fewer than another."""
    each = -(-count // size())
    return slice(min(rank() * each, count), min((rank() + 1) * each, count))


def add(*tensors: Tensor) -> None:
    """Replace each tensor by its sum over the processes: the same bits in all of them."""
    if size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def any_of(flag: bool, device: torch.device) -> bool:
    """Say whether the flag is set in any of the processes."""
    if size() == 1:
        return flag
    count = torch.tensor(float(flag), device=device)
    add(count)
    return bool(count.item())


def distributed(network: nn.Module, device: torch.device) -> nn.Module:
    """Return what trains the network in step with the other processes; the network itself where there are none."""
    if size() == 1:
        return network
    if device.type == "cuda":
        convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    return DistributedDataParallel(network)


@contextmanager
def joined(device: torch.device, number: int, count: int, meeting: Path) -> Iterator[None]:
    """Be process `number` of `count` that meet in a file: over NCCL on GPUs, over gloo on CPUs."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=meeting.as_uri(), rank=number, world_size=count)
    yield
    dist.destroy_process_group()  # not after an error: it could wait for a process that has ended
