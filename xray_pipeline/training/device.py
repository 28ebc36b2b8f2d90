"""The device that trains: which one, in which numbers, and what happens when a batch does not fit it.

Mixed precision on a GPU, float32 on a CPU unless a recipe says otherwise: bfloat16 where the device has it, because it
needs no scaling; else float16 with a loss scaler on a GPU, float32 on a CPU. A batch that does not fit is taken in
smaller parts: what it means (its loss, its gradient) stays as the recipe has it, but batch normalisation then sees the
part. The trade-off: bit-identical repetition is promised on a CPU only, and in bfloat16 only on one that has it, too.
On a CPU with AVX512-BF16 a step of ResNet-18 takes 0.6 times as long, one of a network of depthwise convolutions no
less.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.utils.deterministic
from torch import Tensor

from xray_pipeline.base.errors import OutOfMemory, TrainingError

log = logging.getLogger(__name__)

_memory: Any = torch.utils.deterministic  # its type says nothing of what it holds

Wanted = Literal["auto", "bfloat16", "float32"]


def has_bfloat16() -> bool:
    """Say whether this CPU multiplies bfloat16 itself."""
    can = torch.cpu.get_capabilities()
    return bool(can.get("avx512_bf16") or can.get("amx_bf16"))


class Precision:
    """The type that a device's matrix products are cast to (None: none), and the scaler of the loss."""

    def __init__(self, device: torch.device, wanted: Wanted = "auto") -> None:
        self.device = device
        self.dtype: torch.dtype | None = None
        if device.type == "cuda" and wanted != "float32":
            self.dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        elif device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False  # else its convolutions keep 10 bits of the mantissa
        elif wanted == "bfloat16" and has_bfloat16():
            self.dtype = torch.bfloat16
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)

    def cast(self) -> torch.autocast:
        """Return the context in which the network and its loss are computed."""
        return torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None)


@contextmanager
def deterministic() -> Iterator[None]:
    """Let torch add up in the same order each time, where it can.

    It does not fill the memory that it takes, as it would for whoever looks for uses of memory that nobody wrote.
    """
    before, filled = torch.are_deterministic_algorithms_enabled(), _memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    _memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        _memory.fill_uninitialized_memory = filled


def pick_device(name: str) -> torch.device:
    """Return the device of a setting: "auto" is CUDA where there is one. Raises TrainingError when it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise TrainingError(f"device {name!r} is none; set device to auto, cpu or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise TrainingError(f"device {name!r} is not there ({count} GPUs found); set device to auto or cpu")
    return device


def batch_for(device: torch.device) -> int:
    """Return how many radiographs to look at together without learning from them.

    16 on a CPU, whose caches hold no more (64 at once take 1.5 times as long each); 256 on a GPU.
    """
    return 256 if device.type == "cuda" else 16


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that the device, or the host, has no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def halved(size: int, device: object, error: BaseException, least: int = 1) -> int:
    """Return half of a part's size, a multiple of `least`, after it did not fit; the log has a word on it.

    Raises OutOfMemory when it was no more than `least`.
    """
    if size <= least:
        raise OutOfMemory(
            f"not even {size} radiographs at once fit {device}; take a smaller backbone or side (--set side=...), "
            f"or another device"
        ) from error
    half = -(-size // (2 * least)) * least
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
