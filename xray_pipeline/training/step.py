"""One step of stochastic gradient descent: a batch, taken in parts that fit the device, and the optimizer's move.

This needs torch and the network alone, so benchmarks/gpu.py checks it on a GPU where nothing else is installed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from xray_pipeline.base.errors import NonFiniteLoss, OutOfMemory
from xray_pipeline.training import parallel
from xray_pipeline.training.device import halved, is_out_of_memory
from xray_pipeline.training.state import State, hold_fixed

Logits = Callable[[Tensor], Tensor]
"""From pixels [N, 1, S, S] to logits [N, C]."""


def take_step(
    state: State, network: Logits, loss: nn.CrossEntropyLoss, pixels: Tensor, truth: Tensor, seed: int
) -> None:
    """Learn from a batch: `truth` [N] is that of all of it, `pixels` are this process's part of it, on the device.

    `network` is what is called for the state's network: it, compiled or in step with other processes. Parts that do not
    fit are halved, for this step and those after it. Raises NonFiniteLoss, OutOfMemory.
    """
    device = pixels.device
    while True:
        buffers = [buffer.clone() for buffer in state.network.buffers()]
        try:
            torch.manual_seed(seed + parallel.rank())  # dropout is drawn anew in each process
            value, answers = _gradients(state, network, loss, pixels, truth)
            break
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if parallel.size() > 1:  # the others wait for this one; launching.py begins anew with smaller parts
                raise OutOfMemory(f"a part of {state.micro} radiographs does not fit {device}") from error
            state.micro = halved(min(state.micro, len(pixels)), device, error)
            for buffer, before in zip(state.network.buffers(), buffers, strict=True):
                buffer.copy_(before)
    if not math.isfinite(value):
        raise NonFiniteLoss(f"the loss is {value} in epoch {state.epoch}, step {state.step}; lower the rate")
    state.advance(value, answers, truth)


def _gradients(
    state: State, network: Logits, loss: nn.CrossEntropyLoss, pixels: Tensor, truth: Tensor
) -> tuple[float, Tensor]:
    """Leave the gradients of a batch's loss, taken `state.micro` radiographs at once; return loss, logits [N, C]."""
    state.network.train()
    hold_fixed(state.network, state.recipe)
    state.optimizer.zero_grad(set_to_none=True)
    weights = loss.weight[truth] if loss.weight is not None else torch.ones(len(truth), device=truth.device)
    total = torch.zeros((), device=truth.device)
    answers = torch.zeros(len(truth), state.network.head.out_features, device=truth.device)
    own, count = parallel.part(len(truth)), parallel.size()
    # As many parts as the largest share has, in each process: layers and gradients in step wait for all.
    longest, each = -(-len(truth) // count), -(-state.micro // count)
    for start in range(0, longest, each):
        part = slice(start, start + each)
        share = weights[own][part].sum() / weights.sum()  # of a weighted mean
        whole = start + each >= longest
        with network.no_sync() if isinstance(network, DistributedDataParallel) and not whole else nullcontext():
            with state.precision.cast():
                logits = network(pixels[part])
                cost: Tensor = loss(logits, truth[own][part]) * share if len(logits) else logits.sum()
            # DistributedDataParallel takes the mean over the processes; of shares it is the sum that counts.
            state.precision.scaler.scale(cost * count).backward()  # type: ignore[no-untyped-call]
        total += cost.detach()
        answers[own][part] = logits.detach().float()
    parallel.add(total, answers)
    return total.item(), answers
