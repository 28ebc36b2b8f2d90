"""Several processes that train one network as one process would: the same batches, the same weights to rounding.

Each process holds the network and takes its contiguous part of every batch; gradients are summed over all of them, and
batch normalisation in training looks at the whole batch: statistics of a part would make another network, and at the
batch of 4 of `article-finetune` a poor one. The trade-offs: gradients travel in one piece when the backward pass is
done, not along with it, which keeps them right when a batch is taken in parts and is little for networks of this size;
and batch normalisation is written here, because torch's own synchronised one is for GPUs only and would drop the
activation that timm keeps in it. So what is tested on a CPU is what runs on GPUs, with a few more passes over memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import batch_norm
from torch.overrides import TorchFunctionMode


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

    @contextmanager
    def whole_batches(self) -> Iterator[None]:
        """Let batch normalisation in training see what all processes are given; each must call the same layers."""
        if self.size == 1:
            yield
            return
        with _WholeBatches():
            yield


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


class _WholeBatches(TorchFunctionMode):
    """Takes the place of `batch_norm` in whichever layer calls it, so that no layer is exchanged."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is batch_norm:
            return _batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Do what torch's `batch_norm` does, its batch being that of all processes together; the names are torch's."""
    if not training:
        return batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    found: tuple[Tensor, Tensor, Tensor] = _Normalised.apply(input, weight, bias, eps)
    output, mean, variance = found
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(variance, momentum)
    return output


class _Normalised(torch.autograd.Function):
    """(x - mean) / deviation * weight + bias, with mean and deviation over the rows of all processes.

    The gradient is that of Ioffe and Szegedy (2015), its two sums over the batch taken over all processes, too.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        over, shape = [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]
        sums = torch.cat([wide.sum(over), wide.new_tensor([x.numel() // x.shape[1]])])
        dist.all_reduce(sums)
        count = sums[-1]
        mean = sums[:-1] / count
        centred = wide - mean.view(shape)
        squares = centred.square().sum(over)
        dist.all_reduce(squares)
        scale = torch.rsqrt(squares / count + eps)
        output = centred * scale.view(shape)
        if weight is not None and bias is not None:
            output = output * weight.view(shape) + bias.view(shape)
        ctx.save_for_backward(x, weight, mean, scale, count)
        ctx.over, ctx.shape = over, shape
        variance = squares / (count - 1).clamp(min=1)  # without bias, as the running one is kept
        ctx.mark_non_differentiable(mean, variance)
        return output.to(x.dtype), mean, variance

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, weight, mean, scale, count = ctx.saved_tensors
        slope = slopes[0].to(mean.dtype)
        normal = (x.to(mean.dtype) - mean.view(ctx.shape)) * scale.view(ctx.shape)
        own = torch.stack([slope.sum(ctx.over), (slope * normal).sum(ctx.over)])  # gradients of bias and weight
        sums = own / count
        dist.all_reduce(sums)
        gradient = slope - sums[0].view(ctx.shape) - normal * sums[1].view(ctx.shape)
        gradient = gradient * (scale if weight is None else scale * weight).view(ctx.shape)
        return gradient.to(x.dtype), None if weight is None else own[1], None if weight is None else own[0], None
