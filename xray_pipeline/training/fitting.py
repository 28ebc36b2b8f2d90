"""The fitting of a network to a snapshot: resumable at any step, the same to the last bit.

`head` fits the last layer to kept features by L-BFGS, a convex problem with one answer (head_fit.py); the other modes
run stochastic gradient descent on batches of pixels that are augmented anew, after `head_first` rounds of the same
(network_fit.py). Training that was killed goes on from its checkpoint and ends bit for bit as if it had not been (on a
CPU, with the same number of threads).
"""

from __future__ import annotations

import logging
import math
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from xray_pipeline.base.errors import NonFiniteLoss, TrainingError
from xray_pipeline.training.checkpoints import Checkpoints
from xray_pipeline.training.device import deterministic
from xray_pipeline.training.head_fit import head_fit
from xray_pipeline.training.network_fit import NetworkFit
from xray_pipeline.training.trainer import Record, Trainer

log = logging.getLogger(__name__)


def fit(trainer: Trainer, checkpoints: Checkpoints, record: Record, most: int | None = None) -> None:
    """Train from the newest checkpoint on; `record(epoch, metrics)` gets each epoch's losses, accuracy and AUC.

    `most` is how many radiographs all processes together take at once, where a batch is known not to fit. Raises
    TrainingError when SIGTERM told it to stop (a checkpoint is kept), NonFiniteLoss, OutOfMemory, StorageUnavailable.
    """
    before = checkpoints.load()
    trainer.history = list(before["history"]) if before else []
    with deterministic(), terminable() as stop:
        if trainer.recipe.mode == "head":
            _fit_head(trainer, checkpoints, record, stop, before)
        else:
            NetworkFit(trainer, checkpoints, stop, before, most).run(record)


def _fit_head(
    trainer: Trainer,
    checkpoints: Checkpoints,
    record: Record,
    stop: threading.Event,
    before: Mapping[str, Any] | None,
) -> None:
    recipe, head, labels = trainer.recipe, trainer.network.head, trainer.labels("train")
    fitted, validation = head_fit(trainer, recipe.views), trainer.features("validation")
    if before:
        fitted.restore(before)
        log.info("going on from round %d", fitted.round)
    while fitted.round < recipe.epochs:
        loss = fitted.advance()
        if not math.isfinite(loss):
            raise NonFiniteLoss(f"the loss is {loss} in round {fitted.round}; look at the augmentation and penalty")
        fitted.into(head)
        with torch.inference_mode():
            answers = head(validation)
        trainer.end_epoch(fitted.round, trainer.metrics(loss, answers, fitted.logits, labels), record)
        checkpoints.save(fitted.round, {**fitted.to_dict(), "history": trainer.history})
        if stop.is_set() and fitted.round < recipe.epochs:
            raise TrainingError(f"told to stop after round {fitted.round}; a checkpoint is kept, run it again")
    fitted.into(head)


@contextmanager
def terminable() -> Iterator[threading.Event]:
    """Turn SIGTERM into an event that the loops look at, where signals can be handled: in the main thread."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)
