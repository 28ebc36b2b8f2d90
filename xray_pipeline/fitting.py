"""The fitting of a network to a snapshot: resumable at any step, the same to the last bit.

`head` fits the last layer to kept features by L-BFGS, a convex problem with one answer; the other modes run stochastic
gradient descent on batches of pixels that are augmented anew, after `head_first` rounds of the same. Nothing random is
carried from step to step: order, augmentation and dropout are drawn from the seed, the epoch and the step, so a
checkpoint is weights, optimizer and position, and training that was killed ends bit for bit as if it had not been (on a
CPU, with the same number of threads). Temperature and operating threshold are chosen on validation patients.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from torch import Tensor, nn

from xray_pipeline import augmentation, backbones, pictures
from xray_pipeline.averaging import Average
from xray_pipeline.backbones import Backbone, Network
from xray_pipeline.calibration import operating_threshold, temperature
from xray_pipeline.checkpoints import Checkpoints
from xray_pipeline.dataset import Dataset
from xray_pipeline.errors import NonFiniteLoss, OutOfMemory, TrainingError
from xray_pipeline.objective import HeadLoss
from xray_pipeline.pixels import PixelCache, RowCache
from xray_pipeline.recipe import Recipe
from xray_pipeline.serving import Classifier
from xray_pipeline.settings import Settings

log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
Record = Callable[[int, Mapping[str, float]], None]

CHECKPOINT_SECONDS = 60.0
FEATURE_BATCH = 64
ITERATIONS = 5
"""L-BFGS iterations in a round of `head`."""


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
    ) -> None:
        self.recipe, self.settings, self.progress = recipe, settings, progress
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
        self.weights_digest = backbone.weights_digest
        self.pixels = PixelCache(settings.cache, recipe.side)
        used = pd.concat(self.rows.values())
        decoded = self.pixels.ensure(used, dataset.read, settings.workers, progress)
        log.info("%d of %d radiographs decoded; the rest was kept from earlier", decoded, len(used))

    def fit(self, checkpoints: Checkpoints, record: Record) -> None:
        """Train from the newest checkpoint on; `record(epoch, metrics)` gets each epoch's losses, accuracy and AUC.

        Raises TrainingError when told to stop (SIGTERM; a checkpoint is kept), NonFiniteLoss, OutOfMemory,
        StorageUnavailable.
        """
        kept = checkpoints.load()
        with _deterministic(), _terminable() as stop:
            if self.recipe.mode == "head":
                self._fit_head(checkpoints, record, stop, kept)
            else:
                self._fit_network(checkpoints, record, stop, kept)

    def classifier(self) -> Classifier:
        """Return the trained network as a classifier, with temperature and threshold chosen on validation patients."""
        logits, truth = self._validation_logits().numpy(), self._labels("validation").numpy()
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
        )

    def sample(self, side: str) -> tuple[np.ndarray, list[str]]:
        """Return pixels uint8 [N, side, side] and labels of some radiographs of one side of the split."""
        rows = self.rows[side].iloc[pictures.spread(list(self.rows[side]["label"]))]
        return self.pixels.get(list(rows["digest"])), list(rows["label"])

    def augmented(self, pixels: np.ndarray) -> np.ndarray:
        """Return pixels uint8 [N, S, S] as training sees them."""
        side, batch = self.recipe.crop or self.recipe.side, torch.from_numpy(pixels).unsqueeze(1)
        drawn = self.recipe.augmentation(batch, side, _generator(self.recipe.seed, "sample"))
        return np.asarray(drawn[:, 0].byte().numpy())

    # The last layer

    def _fit_head(
        self, checkpoints: Checkpoints, record: Record, stop: threading.Event, kept: Mapping[str, Any] | None
    ) -> None:
        fit = HeadFit(self.train_features(), self._labels("train"), self.recipe, self._class_weights())
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
                metrics = self._metrics(value, self.network.head(validation))
            self._end_epoch(fit.round, metrics, record)
            checkpoints.save(fit.round, fit.to_dict())
            if stop.is_set() and fit.round < self.recipe.epochs:
                raise TrainingError(f"told to stop after round {fit.round}; a checkpoint is kept, run it again")
        fit.into(self.network.head)

    def train_features(self) -> Tensor:
        """Kept features [views, N, F] of the training radiographs; view 0 is the radiograph itself."""
        views = self.recipe.views if self.recipe.mode == "head" else 1
        return torch.stack([self._features("train", view) for view in range(views)])

    def features(self, side: str) -> Tensor:
        """Kept features [N, F] of a side's radiographs, in the order of its rows; of a fresh network only."""
        return self._features(side, 0)

    def _features(self, side: str, view: int) -> Tensor:
        recipe, digests = self.recipe, list(self.rows[side]["digest"])
        drawn = recipe.augmentation.model_dump_json() if view else ""
        facts = [recipe.backbone, self.weights_digest, recipe.side, recipe.crop, recipe.levels]
        key = json.dumps([*facts, self.network.mean, self.network.std, view, drawn])
        folder = self.settings.cache / f"features-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        width = self.network.head.in_features
        cache = RowCache(folder, (width,), np.float32)
        missing = cache.missing(digests)
        fresh = np.empty((len(missing), width), np.float32)
        for start in range(0, len(missing), FEATURE_BATCH):
            block = missing[start : start + FEATURE_BATCH]
            fresh[start : start + len(block)] = self._seen(block, view)
            if self.progress:
                self.progress(start + len(block), len(missing), f"features, {side}, view {view}")
        if missing:
            log.info("features of view %d computed for %d radiographs of side %s", view, len(missing), side)
            cache.add(missing, fresh)
        return torch.from_numpy(cache.get(digests)).to(self.device)

    def _seen(self, digests: list[str], view: int) -> np.ndarray:
        pixels = torch.from_numpy(self.pixels.get(digests)).unsqueeze(1)
        if view:
            pixels = augmentation.view(self.recipe.augmentation, pixels, self.recipe.side, digests, view)
        self.network.eval()
        with torch.inference_mode():
            return self.network.features(pixels.to(self.device)).cpu().numpy()

    # The network

    def _fit_network(
        self, checkpoints: Checkpoints, record: Record, stop: threading.Event, kept: Mapping[str, Any] | None
    ) -> None:
        labels = self._labels("train")
        pixels = self.pixels.get(list(self.rows["train"]["digest"]))
        state = _State(self.network, self.recipe, math.ceil(len(labels) / self.recipe.batch_size))
        if kept:
            state.restore(kept)
            log.info("going on from epoch %d, step %d", state.epoch, state.step)
        elif self.recipe.head_first and not self.warm:
            fit = HeadFit(self.train_features(), labels, self.recipe, self._class_weights())
            while fit.round < self.recipe.head_first:
                fit.advance()
            fit.into(self.network.head)
        loss = nn.CrossEntropyLoss(self._class_weights(), label_smoothing=self.recipe.label_smoothing)
        saved = time.monotonic()
        while state.epoch < self.recipe.epochs and not state.exhausted:
            while state.step < state.steps:
                self._step(state, loss, pixels, labels)
                if stop.is_set() or time.monotonic() - saved > CHECKPOINT_SECONDS:
                    checkpoints.save(state.number, state.to_dict())
                    saved = time.monotonic()
                if stop.is_set():
                    raise TrainingError(f"told to stop in epoch {state.epoch}; a checkpoint is kept, run it again")
            with state.average.shown(self.network):
                metrics = self._metrics(state.loss / state.seen, self._validation_logits())
                state.close_epoch(metrics[f"validation_{self.recipe.best}"])
            self._end_epoch(state.epoch, metrics, record)
            checkpoints.save(state.number, state.to_dict())
            saved = time.monotonic()
        self.network.load_state_dict(state.best)

    def _step(self, state: _State, loss: nn.Module, pixels: np.ndarray, labels: Tensor) -> None:
        recipe, start = self.recipe, state.step * self.recipe.batch_size
        # Every draw of this step comes from here: order, augmentation, dropout.
        order = torch.randperm(len(labels), generator=_generator(recipe.seed, state.epoch, -1))
        indices = order[start : start + recipe.batch_size]
        generator = _generator(recipe.seed, state.epoch, state.step)
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        self.network.train()
        _hold_fixed(self.network, recipe)
        try:
            batch = torch.from_numpy(pixels[indices.numpy()]).unsqueeze(1).to(self.device)
            seen = recipe.augmentation(batch, recipe.crop or recipe.side, generator)
            found: Tensor = loss(self.network(seen), labels[indices].to(self.device))
            state.optimizer.zero_grad(set_to_none=True)
            found.backward()  # type: ignore[no-untyped-call]
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(
                f"batch size {recipe.batch_size} does not fit {self.device}; set a smaller one (--set batch_size=...)"
            ) from error
        value = found.item()
        if not math.isfinite(value):
            raise NonFiniteLoss(f"the loss is {value} in epoch {state.epoch}, step {state.step}; lower the rate")
        state.advance(value, len(indices))

    # Both

    def _labels(self, side: str) -> Tensor:
        index = {name: number for number, name in enumerate(self.settings.classes)}
        return torch.tensor([index[label] for label in self.rows[side]["label"]])

    def _class_weights(self) -> Tensor | None:
        if not self.recipe.balanced:
            return None
        counts = torch.bincount(self._labels("train"), minlength=len(self.settings.classes)).float()
        return (counts.sum() / (len(counts) * counts)).to(self.device)

    def _validation_logits(self) -> Tensor:
        """Logits float64 [N, C] on the validation radiographs, on the CPU."""
        if self.recipe.mode == "head":
            with torch.inference_mode():
                logits: Tensor = self.network.head(self._features("validation", 0)).double().cpu()
                return logits
        self.network.eval()
        digests = list(self.rows["validation"]["digest"])
        parts = []
        with torch.inference_mode():
            for start in range(0, len(digests), FEATURE_BATCH):
                pixels = torch.from_numpy(self.pixels.get(digests[start : start + FEATURE_BATCH]))
                parts.append(self.network(pixels.to(self.device)).double().cpu())
        return torch.cat(parts)

    def _metrics(self, loss: float, logits: Tensor) -> dict[str, float]:
        probabilities = torch.softmax(logits.double(), 1).cpu().numpy()
        truth = self._labels("validation").numpy()
        scores = probabilities[:, 1] if probabilities.shape[1] == 2 else probabilities
        return {
            "train_loss": loss,
            "validation_loss": float(log_loss(truth, probabilities, labels=range(probabilities.shape[1]))),
            "validation_accuracy": float(accuracy_score(truth, probabilities.argmax(1))),
            "validation_auc": float(roc_auc_score(truth, scores, multi_class="ovr")),
        }

    def _end_epoch(self, epoch: int, metrics: Mapping[str, float], record: Record) -> None:
        record(epoch, metrics)
        log.info("epoch %d: %s", epoch, ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
        if self.progress:
            self.progress(epoch, self.recipe.epochs, "training")


class HeadFit:
    """A linear layer by L-BFGS: `HeadLoss` plus penalty / (2 n) times the squared weights.

    `features` [views, n, F] are standardised first, and the layer that `into` writes takes them as they were.
    """

    def __init__(self, features: Tensor, labels: Tensor, recipe: Recipe, class_weights: Tensor | None) -> None:
        rows = features.flatten(0, 1)
        self.mean = rows.mean(0)
        self.std = rows.std(0, correction=0).clamp_min(1e-6)
        self.rows = (rows - self.mean) / self.std
        self.strength = recipe.penalty / len(labels)
        classes = int(labels.max()) + 1
        self.weight = torch.zeros(classes, rows.shape[1], device=rows.device, requires_grad=True)
        self.bias = torch.zeros(classes, device=rows.device, requires_grad=True)
        self.loss = HeadLoss(labels.to(rows.device), len(features), class_weights, recipe)
        self.optimizer = torch.optim.LBFGS(
            [self.weight, self.bias], max_iter=ITERATIONS, history_size=10, line_search_fn="strong_wolfe"
        )
        self.round = 0

    def advance(self) -> float:
        """Make one round of iterations; return the cross-entropy it started from."""

        def objective() -> Tensor:
            self.optimizer.zero_grad()
            logits = nn.functional.linear(self.rows, self.weight, self.bias)
            entropy, change = self.loss(logits)
            self.entropies.append(float(entropy.detach()))
            total: Tensor = entropy + change + self.strength / 2 * self.weight.square().sum()
            total.backward()  # type: ignore[no-untyped-call]
            return total

        self.entropies: list[float] = []
        self.optimizer.step(objective)  # type: ignore[no-untyped-call]
        self.round += 1
        return self.entropies[-1]

    def into(self, head: nn.Linear) -> None:
        """Write the layer for features that are not standardised."""
        with torch.no_grad():
            scaled = self.weight / self.std
            head.weight.copy_(scaled)
            head.bias.copy_(self.bias - scaled @ self.mean)

    def to_dict(self) -> dict[str, Any]:
        """Return tensors and plain values."""
        return {
            "weight": self.weight.detach().cpu(),
            "bias": self.bias.detach().cpu(),
            "optimizer": self.optimizer.state_dict(),
            "round": self.round,
        }

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Inverse of `to_dict`."""
        with torch.no_grad():
            self.weight.copy_(kept["weight"])
            self.bias.copy_(kept["bias"])
        self.optimizer.load_state_dict(kept["optimizer"])
        self.round = kept["round"]


class _State:
    """All that changes while a network is trained: it is what a checkpoint holds."""

    def __init__(self, network: Network, recipe: Recipe, steps: int) -> None:
        self.network, self.recipe, self.steps = network, recipe, steps
        network.requires_grad_(False)
        parameters = list(_trainable(network, recipe))
        for parameter in parameters:
            parameter.requires_grad_(True)
        rate, decay = recipe.learning_rate, recipe.weight_decay
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
            if recipe.optimizer == "adamw"
            else torch.optim.SGD(parameters, lr=rate, momentum=recipe.momentum, weight_decay=decay)
        )
        self.epoch = self.step = self.seen = 0
        self.loss = 0.0
        self.best_score, self.best_epoch = -math.inf, 0
        self.best: dict[str, Tensor] = {}
        self.average = Average(network, recipe.average)

    @property
    def number(self) -> int:
        """Optimizer steps made so far."""
        return self.epoch * self.steps + self.step

    def advance(self, loss: float, examples: int) -> None:
        """Take the optimizer's step."""
        rate = _rate(self.recipe, self.number, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.average.update(self.network, self.number + 1)
        self.step += 1
        self.loss += loss * examples
        self.seen += examples

    @property
    def exhausted(self) -> bool:
        """Whether `patience` epochs went by without a better one."""
        return 0 < self.recipe.patience <= self.epoch - self.best_epoch

    def close_epoch(self, score: float) -> None:
        """Go to the next epoch; keep the network when its score is the best so far."""
        if score > self.best_score:
            self.best_score, self.best_epoch, self.best = score, self.epoch + 1, _copied(self.network)
        self.epoch, self.step, self.loss, self.seen = self.epoch + 1, 0, 0.0, 0

    def to_dict(self) -> dict[str, Any]:
        """Return tensors and plain values."""
        return {
            "network": _copied(self.network),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "best_score": self.best_score,
            "best_epoch": self.best_epoch,
            "average": {name: tensor.cpu() for name, tensor in self.average.tensors.items()},
            "position": [self.epoch, self.step, self.seen],
            "loss": self.loss,
        }

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Inverse of `to_dict`."""
        self.network.load_state_dict(kept["network"])
        self.optimizer.load_state_dict(kept["optimizer"])
        self.best, self.best_score, self.loss = dict(kept["best"]), kept["best_score"], kept["loss"]
        self.best_epoch = kept["best_epoch"]
        self.average.restore(kept["average"])
        self.epoch, self.step, self.seen = kept["position"]


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


def _rate(recipe: Recipe, number: int, steps: int) -> float:
    if recipe.schedule == "cosine":
        return recipe.learning_rate * (1 + math.cos(math.pi * number / (recipe.epochs * steps))) / 2
    if recipe.schedule == "step":
        return recipe.learning_rate * recipe.step_factor ** (number // steps // recipe.step_epochs)
    return recipe.learning_rate


def _trainable(network: Network, recipe: Recipe) -> Iterator[nn.Parameter]:
    stages = backbones.stages(network.backbone)
    if recipe.mode == "partial" and recipe.fixed_stages > len(stages):
        raise TrainingError(f"fixed_stages {recipe.fixed_stages}: {recipe.backbone} has {len(stages)} stages")
    for stage in stages[recipe.fixed_stages if recipe.mode == "partial" else 0 :]:
        for part in stage:
            yield from part.parameters()
    yield from network.head.parameters()


def _hold_fixed(network: Network, recipe: Recipe) -> None:
    """Keep the running statistics of stages that `partial` keeps fixed."""
    if recipe.mode == "partial":
        for stage in backbones.stages(network.backbone)[: recipe.fixed_stages]:
            for part in stage:
                part.eval()


def _copied(network: Network) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}


def _generator(*numbers: object) -> torch.Generator:
    seed = hashlib.sha256(repr(numbers).encode()).digest()[:7]
    return torch.Generator().manual_seed(int.from_bytes(seed, "big"))


@contextmanager
def _deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def _terminable() -> Iterator[threading.Event]:
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
