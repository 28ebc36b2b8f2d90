"""The fitting of a network, or of its upper stages, by stochastic gradient descent.

Nothing random is carried from step to step: order, augmentation and dropout are drawn from the seed, the epoch and the
step, so a checkpoint is weights, optimizer and position. In a group of processes (parallel.py) each takes its part of
every batch, and the first one keeps the checkpoints.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from torch import nn

from xray_pipeline.base.errors import TrainingError
from xray_pipeline.training import parallel
from xray_pipeline.training.augmenting import augmented
from xray_pipeline.training.checkpoints import Checkpoints
from xray_pipeline.training.device import Precision
from xray_pipeline.training.feeding import Feeder, generator_of
from xray_pipeline.training.head_fit import head_fit
from xray_pipeline.training.state import State
from xray_pipeline.training.step import Logits, take_step
from xray_pipeline.training.trainer import Record, Trainer

log = logging.getLogger(__name__)


class NetworkFit:
    """One fit of a trainer's network, which stands where `before`, a checkpoint, left it, or at its beginning.

    `stop` tells it to end at the next step; `most` is how many radiographs all processes together take at once.
    """

    def __init__(
        self,
        trainer: Trainer,
        checkpoints: Checkpoints,
        stop: threading.Event,
        before: Mapping[str, Any] | None,
        most: int | None = None,
    ) -> None:
        self.trainer, self.recipe, self.network = trainer, trainer.recipe, trainer.network
        self.device, self.checkpoints, self.stop = trainer.device, checkpoints, stop
        self.saved = time.monotonic()
        trainer.decode(pd.concat(trainer.rows.values()))
        precision = Precision(self.device, self.recipe.precision)
        self.state = State(self.network, self.recipe, len(trainer.rows["train"]), precision)
        if before:
            self.state.restore(before)
            log.info("going on from epoch %d, step %d", self.state.epoch, self.state.step)
        elif self.recipe.head_first and not trainer.warm:
            first = head_fit(trainer, views=1)
            while first.round < self.recipe.head_first:
                first.advance()
            first.into(self.network.head)
        self.state.micro = min(self.state.micro, most or self.state.micro)
        aspects = trainer.pixels.aspects(list(trainer.rows["train"]["digest"]))
        self.aspects = None if aspects is None else torch.from_numpy(aspects)

    def run(self, record: Record) -> None:
        """Train to the end; the trainer's network then is that of the best epoch. Raises what `fitting.fit` raises."""
        trainer, state, labels = self.trainer, self.state, self.trainer.labels("train")
        pixels = trainer.pixels.rows.view(list(trainer.rows["train"]["digest"]))
        loss = nn.CrossEntropyLoss(trainer.class_weights(), label_smoothing=self.recipe.label_smoothing)
        network = self._network()
        with Feeder(pixels, labels, self.recipe.batch_size, self.recipe.seed, self.device) as feeder:
            while state.epoch < self.recipe.epochs and not state.exhausted:
                speed = self._epoch(feeder, loss, network)
                logits = trainer.validation_logits(state.shown, state.precision)
                answers, truth = state.answers[: state.seen], state.truth[: state.seen]
                metrics = trainer.metrics(state.loss / state.seen, logits, answers, truth) | speed
                state.close_epoch(metrics[f"validation_{self.recipe.best}"])
                trainer.end_epoch(state.epoch, metrics, record)
        if parallel.size() > 1:  # what the process that started these goes on from; last by its name
            self.save(state.number + 1)
        self.network.load_state_dict(state.best)

    def save(self, number: int) -> None:
        """Keep a checkpoint under that number of steps, in the first process of the group."""
        if parallel.rank() == 0:
            self.checkpoints.save(number, {**self.state.to_dict(), "history": self.trainer.history})
        self.saved = time.monotonic()

    def _network(self) -> Logits:
        """Return what is called to train the network: it, compiled or in step with other processes."""
        if self.recipe.compile and parallel.size() > 1:
            log.warning("compile is left out: batch normalisation over several processes can't be compiled")
        elif self.recipe.compile:
            return torch.compile(self.network)
        return parallel.distributed(self.network, self.device)

    def _epoch(self, feeder: Feeder, loss: nn.CrossEntropyLoss, network: Logits) -> dict[str, float]:
        """Go to the end of the epoch; return how fast that was."""
        settings, state = self.trainer.settings, self.state
        began, waited, seen = time.perf_counter(), feeder.waited, state.seen
        while state.step < state.steps:
            self._step(feeder, loss, network)
            self.trainer.progress(state.number, self.recipe.epochs * state.steps, "steps")
            late = time.monotonic() - self.saved > settings.checkpoint_seconds
            due = late or bool(settings.checkpoint_steps and state.number % settings.checkpoint_steps == 0)
            told = parallel.any_of(self.stop.is_set(), self.device)
            if told or due:
                self.save(state.number)
            if told:
                # Nobody ends, and has the others ended, before the checkpoint is kept.
                parallel.any_of(told, self.device)
                raise TrainingError(f"told to stop in epoch {state.epoch}; a checkpoint is kept, run it again")
        taken = time.perf_counter() - began
        return {
            "images_per_second": (state.seen - seen) / taken,
            "share_waiting": (feeder.waited - waited) / taken,
        }

    def _step(self, feeder: Feeder, loss: nn.CrossEntropyLoss, network: Logits) -> None:
        # Every draw of this step comes from here: augmentation, dropout. The order comes from the epoch.
        recipe, state = self.recipe, self.state
        generator = generator_of(recipe.seed, state.epoch, state.step)
        seed = int(torch.randint(2**62, (), generator=generator))
        batch, truth, places = feeder.take(state.epoch, state.step)
        aspects = None if self.aspects is None else self.aspects[places]
        part = (parallel.part(len(truth)).start, len(truth))
        pixels = augmented(recipe.augmentation, batch, recipe.seen, generator, part, aspects)
        take_step(state, network, loss, pixels, truth, seed)


def prepare(trainer: Trainer, checkpoints: Checkpoints) -> None:
    """Leave a checkpoint for a group of processes to start from, where there is none; decode what is missing."""
    if checkpoints.load() is None:
        NetworkFit(trainer, checkpoints, threading.Event(), None).save(0)
    else:
        trainer.decode(pd.concat(trainer.rows.values()))
