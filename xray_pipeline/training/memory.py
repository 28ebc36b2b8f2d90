"""When a batch does not fit the device: the same work in smaller parts.

What a batch means (its loss, its gradient) stays as the recipe has it; only how many radiographs are on the device at
once gets smaller. The trade-off: batch normalisation then sees the smaller part.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable

import torch
from torch import Tensor

from xray_pipeline.base.errors import OutOfMemory

log = logging.getLogger(__name__)


def batch_for(device: torch.device) -> int:
    """Return how many radiographs to look at together without learning from them.

    16 on a CPU, whose caches hold no more (64 at once take 1.5 times as long each); 256 on a GPU.
    """
    return 256 if device.type == "cuda" else 16


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that the device, or the host, has no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def halved(size: int, device: object, error: BaseException, least: int = 1) -> int:
    """Return half of a part's size after it did not fit, with a word in the log. Raises OutOfMemory below `least`."""
    if size <= least:
        raise OutOfMemory(
            f"not even {size} radiographs at once fit {device}; take a smaller backbone or side (--set side=...), "
            f"or another device"
        ) from error
    half = max(least, -(-size // 2))
    traceback.clear_frames(error.__traceback__)  # they hold the tensors of the attempt
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    log.warning("%d radiographs at once do not fit %s; going on with %d", size, device, half)
    return half


def halving(function: Callable[[Tensor], Tensor], batch: Tensor, least: int = 1) -> Tensor:
    """Return `function` of a batch [N, ...], in parts that fit; results are joined in order.

    Raises OutOfMemory when `least` rows do not fit.
    """
    size = len(batch)
    while True:
        try:
            return torch.cat([function(batch[start : start + size]) for start in range(0, len(batch), size)])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            size = halved(size, "the device", error, least)
