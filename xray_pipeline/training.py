"""From a snapshot and a recipe to a candidate: one MLflow run and its logged model.

One loop trains everything: `head` feeds it kept features of several lasting views, the other modes feed it batches of
pixels that are augmented anew. Nothing random is carried from step to step: order, augmentation and dropout are drawn
from the seed, the epoch and the step, so a checkpoint is weights, optimizer and position, and training that was killed
ends bit for bit as if it had not been (on a CPU, with the same number of threads). The epoch with the best validation
AUC is kept; temperature and operating threshold are then chosen on validation patients.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import math
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from torch import Tensor, nn

import xray_pipeline
from xray_pipeline import augmentation, backbones
from xray_pipeline.backbones import Backbone, Network
from xray_pipeline.calibration import balanced_threshold, temperature
from xray_pipeline.checkpoints import Checkpoints
from xray_pipeline.dataset import Dataset, Snapshot
from xray_pipeline.errors import NonFiniteLoss, ObjectNotFound, OutOfMemory, TrainingError
from xray_pipeline.pixels import PixelCache, RowCache
from xray_pipeline.recipe import Recipe, load_recipe
from xray_pipeline.serving import Classifier, log_model
from xray_pipeline.settings import Settings
from xray_pipeline.storage import Store, open_store
from xray_pipeline.tracking import MlflowClient, MlflowException, mlflow

__all__ = ["Candidate", "Recipe", "candidate_digest", "find_candidate", "load_recipe", "train"]

log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]

CHECKPOINT_SECONDS = 60.0
FEATURE_BATCH = 64


@dataclass(frozen=True)
class Candidate:
    """A trained model: `digest` names what went in (snapshot, recipe, weights, versions), `model_digest` what came out.

    `model_uri` is MLflow's logged model; `threshold` the operating threshold it ships with (two classes).
    """

    digest: str
    run_id: str
    model_uri: str
    model_digest: str
    snapshot: str
    recipe: str
    threshold: float


def candidate_digest(snapshot: str, recipe: Recipe, weights_digest: str) -> str:
    """Return the SHA-256 over all that decides the weights: snapshot, recipe, pretrained weights and versions."""
    return hashlib.sha256(
        json.dumps(
            {
                "snapshot": snapshot,
                "recipe": recipe.digest(),
                "weights": weights_digest,
                "versions": versions(),
            },
            sort_keys=True,
        ).encode()
    ).hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of the packages that training depends on."""
    names = ("torch", "torchvision", "timm", "numpy")
    return {"xray-retrain": xray_pipeline.__version__, **{name: importlib.metadata.version(name) for name in names}}


def find_candidate(store: Store, digest: str) -> Candidate:
    """Return a candidate that was trained. Raises TrainingError when there is none."""
    try:
        return Candidate(**json.loads(store.read(f"candidates/{digest}/candidate.json")))
    except ObjectNotFound as error:
        raise TrainingError(f"candidate {digest[:12]} was not trained to its end; run `train` again") from error


def train(
    dataset: Dataset, snapshot: Snapshot, recipe: Recipe, settings: Settings, progress: Progress | None = None
) -> Candidate:
    """Train a candidate, or go on with its training, or return it when it is done.

    Raises TrainingError (a class without training patients, no validation, no such device, interrupted), NonFiniteLoss,
    OutOfMemory, WeightsError, ConfigError, StorageError; MLflow's errors when it does not answer.
    """
    backbone = backbones.load(recipe.backbone, recipe.weights)
    digest = candidate_digest(snapshot.digest, recipe, backbone.weights_digest)
    store = open_store(settings.store, settings)
    folder = store.child(f"candidates/{digest}")
    mlflow.set_tracking_uri(settings.tracking_uri)
    if folder.exists("candidate.json"):
        found = find_candidate(store, digest)
        if _still_logged(found):
            log.info("candidate %s was trained before: MLflow run %s", digest[:12], found.run_id)
            return found
        log.warning("candidate %s was trained before, but MLflow has lost its model: training again", digest[:12])
        folder.delete("candidate.json")
        folder.delete("run.json")
    rows = dataset.rows(snapshot)
    _check_rows(rows, settings.classes)
    run_id = _run(folder, settings, digest, snapshot, recipe)
    log.info("training candidate %s with recipe %s: MLflow run %s", digest[:12], recipe.name, run_id)
    trainer = _Trainer(recipe, backbone, dataset, rows, settings, progress)
    network = trainer.fit(Checkpoints(folder.child("checkpoints")), _metric_log(run_id))
    classifier = trainer.calibrated(network)
    candidate = _log(classifier, digest, run_id, snapshot, recipe, rows)
    if not folder.write_if_absent("candidate.json", json.dumps(asdict(candidate), indent=1).encode()):
        log.warning("candidate %s was trained by another process meanwhile; its result stands", digest[:12])
    Checkpoints(folder.child("checkpoints")).clear()
    return find_candidate(store, digest)


def _check_rows(rows: pd.DataFrame, classes: tuple[str, ...]) -> None:
    for side in ("train", "validation"):
        present = set(rows.loc[rows["side"] == side, "label"])
        for name in classes:
            if name not in present:
                raise TrainingError(f"no radiograph of class {name} is on side {side}; deliver more patients of it")


class _Inputs(Protocol):
    """Where the loop gets its batches: `size` examples, each with a class index in `labels` [size]."""

    labels: Tensor

    def batch(self, indices: Tensor, generator: torch.Generator) -> Tensor: ...


class _Features:
    """Kept features [views, N, F] of lasting views; an example is a radiograph in one view."""

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        self.features = features.flatten(0, 1)
        self.labels = labels.repeat(len(features))

    def batch(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        return self.features[indices]


class _Pictures:
    """Pixels uint8 [N, S, S], augmented anew for each batch on the training device."""

    def __init__(self, pixels: np.ndarray, labels: Tensor, recipe: Recipe, device: torch.device) -> None:
        self.pixels, self.labels, self.recipe, self.device = pixels, labels, recipe, device
        self.side = recipe.crop or recipe.side

    def batch(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        pixels = torch.from_numpy(self.pixels[indices.numpy()]).unsqueeze(1).to(self.device, non_blocking=True)
        return self.recipe.augmentation(pixels, self.side, generator)


class _Trainer:
    """One training: what stays the same from step to step."""

    def __init__(
        self,
        recipe: Recipe,
        backbone: Backbone,
        dataset: Dataset,
        rows: pd.DataFrame,
        settings: Settings,
        progress: Progress | None,
    ) -> None:
        self.recipe, self.settings, self.progress = recipe, settings, progress
        self.device = pick_device(settings.device)
        self.rows = {side: rows[rows["side"] == side].reset_index(drop=True) for side in ("train", "validation")}
        mean, std = recipe.mean or backbone.mean, recipe.std or backbone.std
        torch.manual_seed(recipe.seed)
        self.network = Network(replace(backbone, mean=mean, std=std), len(settings.classes), recipe.crop)
        self.network.to(self.device)
        self.weights_digest = backbone.weights_digest
        self.pixels = PixelCache(settings.cache, recipe.side)
        used = pd.concat(self.rows.values())
        decoded = self.pixels.ensure(used, dataset.read, settings.workers, progress)
        log.info("%d of %d radiographs decoded; the rest was kept from earlier", decoded, len(used))
        self.validation = self._features("validation", 0) if recipe.mode == "head" else None
        self.inputs = self._inputs()

    def labels(self, side: str) -> Tensor:
        """Class indices [N] of one side."""
        index = {name: number for number, name in enumerate(self.settings.classes)}
        return torch.tensor([index[label] for label in self.rows[side]["label"]])

    def _inputs(self) -> _Inputs:
        labels = self.labels("train")
        if self.recipe.mode == "head":
            features = torch.stack([self._features("train", view) for view in range(self.recipe.views)])
            return _Features(features, labels)
        return _Pictures(self.pixels.get(list(self.rows["train"]["digest"])), labels, self.recipe, self.device)

    def _features(self, side: str, view: int) -> Tensor:
        """Features [N, F] of one lasting view of each radiograph; view 0 is the radiograph itself."""
        recipe, digests = self.recipe, list(self.rows[side]["digest"])
        drawn = recipe.augmentation.model_dump_json() if view else ""
        facts = [recipe.backbone, self.weights_digest, recipe.side, recipe.crop, self.network.mean, self.network.std]
        key = hashlib.sha256(json.dumps([*facts, view, drawn]).encode()).hexdigest()[:16]
        width = self.network.head.in_features
        cache = RowCache(self.settings.cache / f"features-{key}", (width,), np.float32)
        missing = cache.missing(digests)
        fresh = np.empty((len(missing), width), np.float32)
        for start in range(0, len(missing), FEATURE_BATCH):
            block = missing[start : start + FEATURE_BATCH]
            fresh[start : start + len(block)] = self._seen(block, view).cpu().numpy()
            if self.progress:
                self.progress(start + len(block), len(missing), f"features of view {view}, {side}")
        if missing:
            log.info("features of view %d computed for %d radiographs of side %s", view, len(missing), side)
            cache.add(missing, fresh)
        return torch.from_numpy(cache.get(digests)).to(self.device)

    def _seen(self, digests: list[str], view: int) -> Tensor:
        pixels = torch.from_numpy(self.pixels.get(digests)).unsqueeze(1)
        if view:
            pixels = augmentation.view(self.recipe.augmentation, pixels, self.recipe.side, digests, view)
        self.network.eval()
        with torch.inference_mode():
            return self.network.features(pixels.to(self.device))

    def fit(self, checkpoints: Checkpoints, record: Callable[[int, Mapping[str, float]], None]) -> Network:
        """Train from the newest checkpoint on; return the network of the best validation epoch."""
        recipe = self.recipe
        state = _State(self.network, recipe, math.ceil(len(self.inputs.labels) / recipe.batch_size))
        kept = checkpoints.load()
        if kept:
            state.restore(kept)
            log.info("going on from epoch %d, step %d", state.epoch, state.step)
        loss = nn.CrossEntropyLoss(self._class_weights(), label_smoothing=recipe.label_smoothing)
        saved = time.monotonic()
        with _deterministic(), _terminable() as stop:
            while state.epoch < recipe.epochs:
                for step in range(state.step, state.steps):
                    self._step(state, loss, step)
                    if stop.is_set() or time.monotonic() - saved > CHECKPOINT_SECONDS:
                        checkpoints.save(state.number, state.to_dict())
                        saved = time.monotonic()
                    if stop.is_set():
                        raise TrainingError(f"told to stop in epoch {state.epoch}; a checkpoint is kept, run it again")
                record(state.epoch, self._finish_epoch(state))
                checkpoints.save(state.number, state.to_dict())
                saved = time.monotonic()
        self.network.load_state_dict(state.best)
        return self.network

    def _step(self, state: _State, loss: nn.Module, step: int) -> None:
        recipe = self.recipe
        # Every draw of this step comes from here: order, augmentation, dropout.
        order = torch.randperm(len(self.inputs.labels), generator=_generator(recipe.seed, state.epoch, -1))
        indices = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
        generator = _generator(recipe.seed, state.epoch, step)
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        try:
            value = self._forward_backward(state, loss, indices, generator)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(
                f"batch size {recipe.batch_size} does not fit {self.device}; set a smaller one (--set batch_size=...)"
            ) from error
        if not math.isfinite(value):
            raise NonFiniteLoss(f"the loss is {value} in epoch {state.epoch}, step {step}; lower the learning rate")
        state.advance(value, len(indices))

    def _forward_backward(self, state: _State, loss: nn.Module, indices: Tensor, generator: torch.Generator) -> float:
        batch = self.inputs.batch(indices, generator)
        labels = self.inputs.labels[indices].to(self.device)
        frozen = self.recipe.mode == "head" or state.epoch < self.recipe.head_first
        if self.recipe.mode == "head":
            logits = self.network.head(batch)
        else:
            self.network.train(not frozen)
            _set_trainable(self.network, self.recipe, frozen)
            logits = self.network(batch)
        found: Tensor = loss(logits, labels)
        state.optimizer.zero_grad(set_to_none=True)
        found.backward()  # type: ignore[no-untyped-call]
        return found.item()

    def _finish_epoch(self, state: _State) -> dict[str, float]:
        probabilities = self.validated().numpy()
        truth = self.labels("validation").numpy()
        binary = probabilities.shape[1] == 2
        metrics = {
            "train_loss": state.loss / max(state.seen, 1),
            "validation_loss": float(log_loss(truth, probabilities, labels=range(probabilities.shape[1]))),
            "validation_accuracy": float(accuracy_score(truth, probabilities.argmax(1))),
            "validation_auc": float(
                roc_auc_score(truth, probabilities[:, 1] if binary else probabilities, multi_class="ovr")
            ),
        }
        state.close_epoch(metrics, self.network)
        log.info("epoch %d: %s", state.epoch, ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
        if self.progress:
            self.progress(state.epoch, self.recipe.epochs, "training")
        return metrics

    def validated(self) -> Tensor:
        """Probabilities float64 [N, C] on the validation radiographs, on the CPU."""
        return torch.softmax(self.validation_logits(), 1)

    def validation_logits(self) -> Tensor:
        """Logits float64 [N, C] on the validation radiographs, on the CPU."""
        self.network.eval()
        with torch.inference_mode():
            if self.validation is not None:
                return self.network.head(self.validation).double().cpu()
            digests = list(self.rows["validation"]["digest"])
            parts = []
            for start in range(0, len(digests), FEATURE_BATCH):
                pixels = torch.from_numpy(self.pixels.get(digests[start : start + FEATURE_BATCH]))
                parts.append(self.network(pixels.to(self.device)).double().cpu())
            return torch.cat(parts)

    def calibrated(self, network: Network) -> Classifier:
        """Return the classifier with temperature and threshold chosen on validation patients."""
        logits, truth = self.validation_logits().numpy(), self.labels("validation").numpy()
        heat = temperature(logits, truth)
        cut = 0.5
        if logits.shape[1] == 2 and self.recipe.threshold == "balanced":
            cut = balanced_threshold(1 / (1 + np.exp((logits[:, 0] - logits[:, 1]) / heat)), truth)
        log.info("temperature %.3f, operating threshold %.3f", heat, cut)
        return Classifier(
            network.cpu(),
            self.recipe.backbone,
            self.settings.classes,
            self.recipe.side,
            threshold=cut,
            temperature=heat,
        )

    def _class_weights(self) -> Tensor | None:
        if not self.recipe.balanced:
            return None
        counts = torch.bincount(self.labels("train"), minlength=len(self.settings.classes)).float()
        return (counts.sum() / (len(counts) * counts)).to(self.device)


class _State:
    """All that changes while training: it is what a checkpoint holds."""

    def __init__(self, network: Network, recipe: Recipe, steps: int) -> None:
        self.network, self.recipe, self.steps = network, recipe, steps
        parameters = network.head.parameters() if recipe.mode == "head" else _trainable(network, recipe)
        rate, decay = recipe.learning_rate, recipe.weight_decay
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
            if recipe.optimizer == "adamw"
            else torch.optim.SGD(parameters, lr=rate, momentum=recipe.momentum, weight_decay=decay)
        )
        self.epoch = self.step = self.seen = 0
        self.loss = 0.0
        self.best_auc = -1.0
        self.best: dict[str, Tensor] = _copied(network)

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
        self.step += 1
        self.loss += loss * examples
        self.seen += examples

    def close_epoch(self, metrics: Mapping[str, float], network: Network) -> None:
        """Go to the next epoch; keep the network when it is the best so far."""
        if metrics["validation_auc"] > self.best_auc:
            self.best_auc = metrics["validation_auc"]
            self.best = _copied(network)
        self.epoch, self.step, self.loss, self.seen = self.epoch + 1, 0, 0.0, 0

    def to_dict(self) -> dict[str, Any]:
        """Return tensors and plain values."""
        return {
            "network": _copied(self.network),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "best_auc": self.best_auc,
            "position": [self.epoch, self.step, self.seen],
            "loss": self.loss,
        }

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Inverse of `to_dict`."""
        self.network.load_state_dict(kept["network"])
        self.optimizer.load_state_dict(kept["optimizer"])
        self.best, self.best_auc, self.loss = kept["best"], kept["best_auc"], kept["loss"]
        self.epoch, self.step, self.seen = kept["position"]


def pick_device(name: str) -> torch.device:
    """Return the device of a setting: "auto" is CUDA where there is one. Raises TrainingError when it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise TrainingError(
            f"device {name!r} is not there ({torch.cuda.device_count()} GPUs); set device to auto or cpu"
        )
    return device


def _rate(recipe: Recipe, number: int, steps: int) -> float:
    if recipe.schedule == "cosine":
        return recipe.learning_rate * (1 + math.cos(math.pi * number / (recipe.epochs * steps))) / 2
    if recipe.schedule == "step":
        return recipe.learning_rate * recipe.step_factor ** (number // steps // recipe.step_epochs)
    return recipe.learning_rate


def _trainable(network: Network, recipe: Recipe) -> Iterator[nn.Parameter]:
    stages = backbones.stages(network.backbone)
    if recipe.mode == "partial" and recipe.fixed_stages >= len(stages):
        raise TrainingError(f"fixed_stages {recipe.fixed_stages}: {recipe.backbone} has {len(stages)} stages")
    for stage in stages[recipe.fixed_stages if recipe.mode == "partial" else 0 :]:
        for part in stage:
            yield from part.parameters()
    yield from network.head.parameters()


def _set_trainable(network: Network, recipe: Recipe, frozen: bool) -> None:
    network.requires_grad_(False)
    for parameter in network.head.parameters() if frozen else _trainable(network, recipe):
        parameter.requires_grad_(True)
    if not frozen and recipe.mode == "partial":  # fixed stages keep their running statistics, too
        for stage in backbones.stages(network.backbone)[: recipe.fixed_stages]:
            for part in stage:
                part.eval()


def _copied(network: Network) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}


def _generator(*numbers: int) -> torch.Generator:
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
    """Turn SIGTERM into an event that the loop looks at, where signals can be handled: in the main thread."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(folder: Store, settings: Settings, digest: str, snapshot: Snapshot, recipe: Recipe) -> str:
    """Return the candidate's MLflow run, made when there is none; its id is kept so that a retry goes on with it."""
    client = MlflowClient()
    if folder.exists("run.json"):
        run_id = str(json.loads(folder.read("run.json"))["run_id"])
        try:
            client.get_run(run_id)
            return run_id
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            log.warning("MLflow has lost run %s; another one is made", run_id)
            folder.delete("run.json")
    experiment = mlflow.set_experiment(settings.experiment)
    tags = {"xray.candidate": digest, "xray.snapshot": snapshot.digest, "xray.recipe": recipe.digest()}
    name = f"{recipe.name}-{digest[:8]}"
    run_id = client.create_run(experiment.experiment_id, run_name=name, tags=tags).info.run_id
    if not folder.write_if_absent("run.json", json.dumps({"run_id": run_id}).encode()):
        client.delete_run(run_id)  # another process was first
        return str(json.loads(folder.read("run.json"))["run_id"])
    return run_id


def _metric_log(run_id: str) -> Callable[[int, Mapping[str, float]], None]:
    from mlflow.entities import Metric

    client = MlflowClient()

    def record(epoch: int, metrics: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        client.log_batch(run_id, metrics=[Metric(name, value, now, epoch) for name, value in metrics.items()])

    return record


def _log(
    classifier: Classifier, digest: str, run_id: str, snapshot: Snapshot, recipe: Recipe, rows: pd.DataFrame
) -> Candidate:
    sides = rows["side"].value_counts()
    with tempfile.TemporaryDirectory(prefix="xray-candidate-") as temporary:
        folder = Path(temporary) / "classifier"
        model_digest = classifier.save(folder)
        with mlflow.start_run(run_id=run_id):
            described = recipe.model_dump()
            described |= {f"augmentation.{name}": value for name, value in described.pop("augmentation").items()}
            mlflow.log_params({**described, "threshold_rule": described.pop("threshold")})
            mlflow.log_params({f"version.{name}": version for name, version in versions().items()})
            mlflow.log_metrics({"temperature": classifier.temperature, "operating_threshold": classifier.threshold})
            mlflow.log_metrics({f"{side}_radiographs".replace("-", "_"): int(n) for side, n in sides.items()})
            _log_dataset(snapshot, rows)
            tags = {"xray.candidate": digest, "xray.snapshot": snapshot.digest, "xray.recipe": recipe.digest()}
            uri = log_model(folder, tags)
    return Candidate(digest, run_id, uri, model_digest, snapshot.digest, recipe.digest(), classifier.threshold)


def _log_dataset(snapshot: Snapshot, rows: pd.DataFrame) -> None:
    """Log the snapshot as the run's input: labels and sides by digest, nothing of patients."""
    from mlflow.data.pandas_dataset import from_pandas

    table = rows[["label", "side"]].value_counts().rename("radiographs").reset_index()
    mlflow.log_input(from_pandas(table, name="snapshot", digest=snapshot.digest[:36]), context="training")


def _still_logged(candidate: Candidate) -> bool:
    try:
        MlflowClient().get_logged_model(candidate.model_uri.removeprefix("models:/"))
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True
