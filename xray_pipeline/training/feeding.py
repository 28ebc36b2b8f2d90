"""Batches for training, out of the memory map: the next is fetched while the network works on the one before.

Which radiographs a batch holds depends on the seed, the epoch and the step alone, so what was fetched ahead can be
thrown away at any time. The trade-off: batches are gathered by one thread, which is enough for uint8 rows that need
no decoding.
"""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from xray_pipeline.training import parallel

if TYPE_CHECKING:  # benchmarks/gpu.py feeds an array
    from xray_pipeline.dataset.pixels import MappedRows


def generator_of(*facts: object) -> torch.Generator:
    """Return a generator on the CPU that is seeded with all of the facts."""
    seed = hashlib.sha256(repr(facts).encode()).digest()[:7]
    return torch.Generator().manual_seed(int.from_bytes(seed, "big"))


class Feeder:
    """Batches of pixels uint8 [n, 1, S, S] and labels [n] on a device, shuffled anew in each epoch, and their places.

    In a group of processes a batch is the same for all, with the labels of all of it and this process's part of the
    pixels; places [n], on the CPU, are those of that part among all radiographs. `waited` sums the seconds that `take`
    kept its caller waiting. To be used as a context.
    """

    def __init__(self, pixels: MappedRows, labels: Tensor, batch_size: int, seed: int, device: torch.device) -> None:
        self.pixels, self.labels, self.device = pixels, labels, device
        self.batch_size, self.seed = batch_size, seed
        self.steps = -(-len(labels) // batch_size)
        self.waited = 0.0
        self._pool = ThreadPoolExecutor(1, "feeder")
        self._epoch, self._order = -1, labels
        self._ahead: tuple[tuple[int, int], Future[tuple[Tensor, Tensor, Tensor]]] | None = None

    def __enter__(self) -> Feeder:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def take(self, epoch: int, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the batch of a step, and have the one after it fetched meanwhile."""
        began = time.perf_counter()
        if self._ahead is None or self._ahead[0] != (epoch, step):
            self._fetch_ahead(epoch, step)
        assert self._ahead is not None
        batch, labels, places = self._ahead[1].result()
        self._fetch_ahead(*((epoch, step + 1) if step + 1 < self.steps else (epoch + 1, 0)))
        moved = batch.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True), places
        self.waited += time.perf_counter() - began
        return moved

    def _fetch_ahead(self, epoch: int, step: int) -> None:
        self._ahead = (epoch, step), self._pool.submit(self._fetch, epoch, step)

    def _fetch(self, epoch: int, step: int) -> tuple[Tensor, Tensor, Tensor]:
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = torch.randperm(len(self.labels), generator=generator_of(self.seed, epoch, -1))
        indices = self._order[step * self.batch_size : (step + 1) * self.batch_size]
        own = indices[parallel.part(len(indices))]
        batch, labels = torch.from_numpy(self.pixels[own.numpy()]).unsqueeze(1), self.labels[indices]
        if self.device.type == "cuda":
            batch, labels = batch.pin_memory(), labels.pin_memory()
        return batch, labels, own
