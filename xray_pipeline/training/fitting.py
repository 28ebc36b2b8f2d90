"""The fitting of a network to a snapshot: resumable at any step, the same to the last bit.

`head` fits the last layer to kept features by L-BFGS, a convex problem with one answer; the other modes run stochastic
gradient descent on batches of pixels that are augmented anew, after `head_first` rounds of the same. Nothing random is
carried from step to step: order, augmentation and dropout are drawn from the seed, the epoch and the step, so a
checkpoint is weights, optimizer and position, and training that was killed ends bit for bit as if it had not been (on a
CPU, with the same number of threads). In a group of processes (parallel.py) each takes its part of every batch, and the
first one keeps the checkpoints. Temperature and operating threshold are chosen on validation patients.

Accuracy and AUC on training radiographs are of what the network answered while it learned: on augmented pixels, each
before the step it led to. They cost no second pass, and lag behind those of validation in early epochs.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from torch import Tensor, nn

from xray_pipeline.base.errors import NonFiniteLoss, OutOfMemory, TrainingError
from xray_pipeline.base.progress import Progress
from xray_pipeline.base.settings import Settings
from xray_pipeline.dataset.pixels import MappedRows, PixelCache
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.images.raster import Limits
from xray_pipeline.models.backbones import Backbone, Network
from xray_pipeline.models.classifier import Classifier
from xray_pipeline.models.engine import engine_for
from xray_pipeline.training import pictures
from xray_pipeline.training.calibration import operating_threshold, temperature
from xray_pipeline.training.checkpoints import Checkpoints
from xray_pipeline.training.device import Precision, batch_for, halved, halving, is_out_of_memory, pick_device
from xray_pipeline.training.features import Features, Standardised, feature_dtype
from xray_pipeline.training.feeding import Feeder, generator_of
from xray_pipeline.training.head_fit import HeadFit
from xray_pipeline.training.parallel import ALONE, Group
from xray_pipeline.training.recipe import Recipe
from xray_pipeline.training.state import State, hold_fixed

log = logging.getLogger(__name__)

Record = Callable[[int, Mapping[str, float]], None]


class Trainer:
    """One training: what stays the same from step to step, and the network that changes."""

    def __init__(
        self,
        recipe: Recipe,
        backbone: Backbone,
        dataset: Dataset,
        rows: pd.DataFrame,
        settings: Settings,
        progress: Progress | None = None,
        start: Classifier | None = None,
        group: Group = ALONE,
    ) -> None:
        self.recipe, self.settings, self.progress, self.group = recipe, settings, progress, group
        self.device = pick_device(settings.device)
        self.rows = {side: rows[rows["side"] == side].reset_index(drop=True) for side in ("train", "validation")}
        mean, std = recipe.mean or backbone.mean, recipe.std or backbone.std
        torch.manual_seed(recipe.seed)
        classes = len(settings.classes)
        self.network = Network(replace(backbone, mean=mean, std=std), classes, recipe.crop, recipe.levels)
        self.warm = start is not None
        if start:
            self.network.load_state_dict(start.network.state_dict())
        self.network.to(self.device)
        group.joined(self.network)
        self.pixels = PixelCache(settings.cache, recipe.side)
        engine = engine_for(self.network, feature_dtype(recipe, self.device), settings.engine)
        self.extracted = Features(
            self.network, recipe.backbone, backbone.weights_digest, self.pixels, settings.cache, engine
        )
        self.history: list[dict[str, float]] = []
        self.saved = time.monotonic()
        self.dataset = dataset
        self.most = recipe.batch_size  # radiographs at once, over all processes

    def fit(self, checkpoints: Checkpoints, record: Record, stop: threading.Event | None = None) -> None:
        """Train from the newest checkpoint on; `record(epoch, metrics)` gets each epoch's losses, accuracy and AUC.

        `stop` tells it to stop, as SIGTERM does. Raises TrainingError when told to stop (a checkpoint is kept),
        NonFiniteLoss, OutOfMemory, StorageUnavailable.
        """
        kept = checkpoints.load()
        self.history = list(kept["history"]) if kept else []
        with _deterministic(), terminable(stop) as told:
            if self.recipe.mode == "head":
                self._fit_head(checkpoints, record, told, kept)
            else:
                self._fit_network(checkpoints, record, told, kept)

    def classifier(self) -> Classifier:
        """Return the trained network as a classifier, with temperature and threshold chosen on validation patients."""
        logits, truth = self._validation_logits(self.network).numpy(), self._labels("validation").numpy()
        heat = temperature(logits, truth)
        cut = 0.5
        if logits.shape[1] == 2:
            cut = operating_threshold(expit((logits[:, 1] - logits[:, 0]) / heat), truth, self.recipe)
        log.info("temperature %.3f, operating threshold %.3f", heat, cut)
        return Classifier(
            self.network.cpu(),
            self.recipe.backbone,
            self.settings.classes,
            self.recipe.side,
            threshold=cut,
            temperature=heat,
            limits=Limits.of(self.settings.rules),
        )

    def sample(self, side: str) -> tuple[np.ndarray, list[str]]:
        """Return pixels uint8 [N, side, side] and labels of some radiographs of one side of the split."""
        rows = self.rows[side].iloc[pictures.spread(list(self.rows[side]["label"]))]
        self._decode(rows)
        return self.pixels.get(list(rows["digest"])), list(rows["label"])

    def augmented(self, pixels: np.ndarray) -> np.ndarray:
        """Return pixels uint8 [N, S, S] as training sees them."""
        side, batch = self.recipe.crop or self.recipe.side, torch.from_numpy(pixels).unsqueeze(1)
        drawn = self.recipe.augmentation(batch, side, generator_of(self.recipe.seed, "sample"))
        return np.asarray(drawn[:, 0].byte().numpy())

    # The last layer

    def _fit_head(
        self, checkpoints: Checkpoints, record: Record, stop: threading.Event, kept: Mapping[str, Any] | None
    ) -> None:
        fit = self._head_fit(self._labels("train"))
        validation = self._features("validation", 0)
        if kept:
            fit.restore(kept)
            log.info("going on from round %d", fit.round)
        while fit.round < self.recipe.epochs:
            value = fit.advance()
            if not math.isfinite(value):
                raise NonFiniteLoss(f"the loss is {value} in round {fit.round}; look at the augmentation and penalty")
            fit.into(self.network.head)
            with torch.inference_mode():
                answers = self.network.head(validation)
            metrics = self._metrics(value, answers, fit.logits, self._labels("train"))
            self._end_epoch(fit.round, metrics, record)
            checkpoints.save(fit.round, {**fit.to_dict(), "history": self.history})
            if stop.is_set() and fit.round < self.recipe.epochs:
                raise TrainingError(f"told to stop after round {fit.round}; a checkpoint is kept, run it again")
        fit.into(self.network.head)

    def _head_fit(self, labels: Tensor) -> HeadFit:
        views = [self._rows("train", view) for view in range(self.recipe.views if self.recipe.mode == "head" else 1)]
        features = Standardised(views, self.settings.cache / "scratch", self.device)
        return HeadFit(features, labels, self.recipe, self._class_weights())

    def _rows(self, side: str, view: int) -> MappedRows:
        """Kept features [N, F] of one side; view 0 is the radiograph itself."""
        rows, drawn, what = self.rows[side], self.recipe.augmentation, f"features, {side}, view {view}"
        missing = set(self.extracted.cache(view, drawn).missing(rows["digest"]))
        self._decode(rows[rows["digest"].isin(missing)])
        return self.extracted.rows(list(rows["digest"]), view, drawn, self.progress, what)

    def _decode(self, rows: pd.DataFrame) -> None:
        decoded = self.pixels.ensure(rows, self.dataset.read, self.settings.workers, self.progress)
        if decoded:
            log.info("%d of %d radiographs decoded; the rest was kept from earlier", decoded, len(rows))

    def features(self, side: str) -> Tensor:
        """Kept features [N, F] of a side's radiographs, in the order of its rows; of a fresh network only."""
        return self._features(side, 0)

    def _features(self, side: str, view: int) -> Tensor:
        rows = self._rows(side, view)
        return torch.from_numpy(rows.part(0, len(rows))).to(self.device)

    # The network

    def _fit_network(
        self, checkpoints: Checkpoints, record: Record, stop: threading.Event, kept: Mapping[str, Any] | None
    ) -> None:
        state, labels = self._state(kept), self._labels("train")
        pixels = self.pixels.rows.view(list(self.rows["train"]["digest"]))
        loss = nn.CrossEntropyLoss(self._class_weights(), label_smoothing=self.recipe.label_smoothing)
        network = self.network
        if self.recipe.compile and self.group.size > 1:
            log.warning("compile is left out: batch normalisation over several processes can't be compiled")
        elif self.recipe.compile:
            network = cast(Network, torch.compile(network))
        with Feeder(pixels, labels, self.recipe.batch_size, self.recipe.seed, self.device, self.group) as feeder:
            while state.epoch < self.recipe.epochs and not state.exhausted:
                speed = self._epoch(state, feeder, loss, network, checkpoints, stop)
                logits = self._validation_logits(state.shown, state.precision)
                answers, truth = state.answers[: state.seen], state.truth[: state.seen]
                metrics = self._metrics(state.loss / state.seen, logits, answers, truth) | speed
                state.close_epoch(metrics[f"validation_{self.recipe.best}"])
                self._end_epoch(state.epoch, metrics, record)
        if self.group.size > 1:  # what the process that started these goes on from; last by its name
            self._save(checkpoints, state, state.number + 1)
        self.network.load_state_dict(state.best)

    def prepare(self, checkpoints: Checkpoints) -> None:
        """Leave a checkpoint for a group of processes to start from, where there is none; decode what is missing."""
        self._decode(pd.concat(self.rows.values()))
        if checkpoints.load() is None:
            self._save(checkpoints, self._state(None), 0)

    def _state(self, kept: Mapping[str, Any] | None) -> State:
        """Return where training stands: at what was kept, or at its beginning."""
        self._decode(pd.concat(self.rows.values()))
        labels = self._labels("train")
        state = State(self.network, self.recipe, len(labels), Precision(self.device, self.recipe.precision))
        if kept:
            state.restore(kept)
            state.micro = min(state.micro, self.most)
            log.info("going on from epoch %d, step %d", state.epoch, state.step)
        elif self.recipe.head_first and not self.warm:
            fit = self._head_fit(labels)
            while fit.round < self.recipe.head_first:
                fit.advance()
            fit.into(self.network.head)
        return state

    def _epoch(
        self,
        state: State,
        feeder: Feeder,
        loss: nn.CrossEntropyLoss,
        network: Network,
        checkpoints: Checkpoints,
        stop: threading.Event,
    ) -> dict[str, float]:
        """Go to the end of the epoch; return how fast that was."""
        seconds, steps = self.settings.checkpoint_seconds, self.settings.checkpoint_steps
        began, waited, seen = time.perf_counter(), feeder.waited, state.seen
        while state.step < state.steps:
            self._step(state, feeder, loss, network)
            due = time.monotonic() - self.saved > seconds or bool(steps and state.number % steps == 0)
            told = self.group.any(stop.is_set())
            if told or due:
                self._save(checkpoints, state, state.number)
            if told:
                self.group.any(told)  # nobody ends, and has the others ended, before the checkpoint is kept
                raise TrainingError(f"told to stop in epoch {state.epoch}; a checkpoint is kept, run it again")
        taken = time.perf_counter() - began
        return {
            "images_per_second": (state.seen - seen) / taken,
            "share_waiting": (feeder.waited - waited) / taken,
        }

    def _save(self, checkpoints: Checkpoints, state: State, step: int) -> None:
        if self.group.rank == 0:
            checkpoints.save(step, {**state.to_dict(), "history": self.history})
        self.saved = time.monotonic()

    def _step(self, state: State, feeder: Feeder, loss: nn.CrossEntropyLoss, network: Network) -> None:
        # Every draw of this step comes from here: augmentation, dropout. The order comes from the epoch.
        recipe, generator = self.recipe, generator_of(self.recipe.seed, state.epoch, state.step)
        seed = int(torch.randint(2**62, (), generator=generator))
        batch, truth = feeder.take(state.epoch, state.step)
        place = (self.group.part(len(truth)).start, len(truth))
        seen = recipe.augmentation(batch, recipe.crop or recipe.side, generator, place)
        while True:
            buffers = [buffer.clone() for buffer in self.network.buffers()]
            try:
                value, answers = self._gradients(state, loss, network, seen, truth, seed)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.group.size > 1:  # the others wait for this one; launching.py begins anew with smaller parts
                    raise OutOfMemory(f"a part of {state.micro} radiographs does not fit {self.device}") from error
                state.micro = halved(min(state.micro, len(seen)), self.device, error)
                for buffer, before in zip(self.network.buffers(), buffers, strict=True):
                    buffer.copy_(before)
        if not math.isfinite(value):
            raise NonFiniteLoss(f"the loss is {value} in epoch {state.epoch}, step {state.step}; lower the rate")
        state.advance(value, answers, truth)

    def _gradients(
        self, state: State, loss: nn.CrossEntropyLoss, network: Network, seen: Tensor, truth: Tensor, seed: int
    ) -> tuple[float, Tensor]:
        """Leave the gradients of a batch's loss, taken `state.micro` radiographs at once; return loss, logits [N, C].

        `truth` [N] is the whole batch's, `seen` this process's part of it. Dropout is drawn anew in each process.
        """
        torch.manual_seed(seed + self.group.rank)
        self.network.train()
        hold_fixed(self.network, self.recipe)
        state.optimizer.zero_grad(set_to_none=True)
        weights = loss.weight[truth] if loss.weight is not None else torch.ones(len(truth), device=truth.device)
        total = torch.zeros((), device=truth.device)
        answers = torch.zeros(len(truth), len(self.settings.classes), device=truth.device)
        own, each = self.group.part(len(truth)), -(-state.micro // self.group.size)
        # As many parts as the largest share has, in each process: synchronised layers wait for all.
        for start in range(0, -(-len(truth) // self.group.size), each):
            part = slice(start, start + each)
            share = weights[own][part].sum() / weights.sum()  # of a weighted mean
            with state.precision.cast():
                logits = network(seen[part])
                found: Tensor = loss(logits, truth[own][part]) * share if len(logits) else logits.sum()
            state.precision.scaler.scale(found).backward()  # type: ignore[no-untyped-call]
            total += found.detach()
            answers[own][part] = logits.detach().float()
        self.group.add([*(p.grad for p in self.network.parameters() if p.grad is not None), total, answers])
        return total.item(), answers

    # Both

    def _labels(self, side: str) -> Tensor:
        index = {name: number for number, name in enumerate(self.settings.classes)}
        return torch.tensor([index[label] for label in self.rows[side]["label"]])

    def _class_weights(self) -> Tensor | None:
        if not self.recipe.balanced:
            return None
        counts = torch.bincount(self._labels("train"), minlength=len(self.settings.classes)).float()
        return (counts.sum() / (len(counts) * counts)).to(self.device)

    def _validation_logits(self, network: Network, precision: Precision | None = None) -> Tensor:
        """Logits float64 [N, C] on the validation radiographs, on the CPU; without a precision as served."""
        if self.recipe.mode == "head":
            with torch.inference_mode():
                logits: Tensor = network.head(self._features("validation", 0)).double().cpu()
                return logits
        network.eval()
        rows = self.pixels.rows.view(list(self.rows["validation"]["digest"]))
        found = torch.zeros(len(rows), len(self.settings.classes), dtype=torch.float64, device=self.device)
        own, size = self.group.part(len(rows)), batch_for(self.device)
        precision = precision or Precision(self.device, "float32")
        with torch.inference_mode(), precision.cast():
            for start in range(own.start, own.stop, size):
                stop = min(start + size, own.stop)
                pixels = torch.from_numpy(rows[np.arange(start, stop)])
                found[start:stop] = halving(lambda part: network(part.to(self.device)).double().cpu(), pixels)
        self.group.add([found])
        return found.cpu()

    def _metrics(self, loss: float, logits: Tensor, answers: Tensor, truth: Tensor) -> dict[str, float]:
        """Return an epoch's metrics, of validation `logits` [N, C] and training `answers` [n, C] to `truth` [n]."""
        expected, probabilities = self._labels("validation").numpy(), torch.softmax(logits.double(), 1).cpu().numpy()
        return {
            "train_loss": loss,
            **_quality("train", truth.numpy(), torch.softmax(answers.double(), 1).cpu().numpy()),
            "validation_loss": float(log_loss(expected, probabilities, labels=range(probabilities.shape[1]))),
            **_quality("validation", expected, probabilities),
        }

    def _end_epoch(self, epoch: int, metrics: Mapping[str, float], record: Record) -> None:
        self.history.append({"epoch": epoch, **metrics})
        record(epoch, metrics)
        log.info("epoch %d: %s", epoch, ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
        if self.progress:
            self.progress(epoch, self.recipe.epochs, "training")


def _quality(side: str, truth: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Return accuracy and AUC of probabilities [N, C] for the classes `truth` [N]; of several: one against rest."""
    found = {f"{side}_accuracy": float(accuracy_score(truth, probabilities.argmax(1)))}
    scores = probabilities[:, 1] if probabilities.shape[1] == 2 else probabilities
    return found | {f"{side}_auc": float(roc_auc_score(truth, scores, multi_class="ovr"))}


@contextmanager
def _deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def terminable(event: threading.Event | None = None) -> Iterator[threading.Event]:
    """Turn SIGTERM into an event that the loops look at, where signals can be handled: in the main thread."""
    event = event or threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)
