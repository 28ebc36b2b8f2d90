"""One training: the radiographs it looks at, the network that learns from them, and how that is judged.

Accuracy and AUC on training radiographs are of what the network answered while it learned: on augmented pixels, each
before the step it led to. They cost no second pass, and lag behind those of validation in early epochs. Temperature and
operating threshold are chosen on validation patients.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from torch import Tensor

from xray_pipeline.base.errors import NonFiniteLoss, TrainingError
from xray_pipeline.base.progress import Progress, logged
from xray_pipeline.base.settings import Settings
from xray_pipeline.dataset.pixels import MappedRows, PixelCache
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.images.raster import Limits
from xray_pipeline.models.backbones import Backbone, Network
from xray_pipeline.models.classifier import Classifier
from xray_pipeline.models.engine import engine_for
from xray_pipeline.training import parallel
from xray_pipeline.training.calibration import operating_threshold, temperature
from xray_pipeline.training.device import Precision, batch_for, halving, pick_device
from xray_pipeline.training.features import Features, feature_dtype
from xray_pipeline.training.recipe import Recipe

log = logging.getLogger(__name__)

Record = Callable[[int, Mapping[str, float]], None]
"""Called with the number of an epoch and its metrics by name."""


class Trainer:
    """What stays the same from step to step, and the network that changes; fitting.py changes it."""

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
        self.recipe, self.settings, self.progress = recipe, settings, progress or logged(log)
        self.device = pick_device(settings.device)
        self.rows = {side: rows[rows["side"] == side].reset_index(drop=True) for side in ("train", "validation")}
        mean, std = recipe.mean or backbone.mean, recipe.std or backbone.std
        torch.manual_seed(recipe.seed)
        classes = len(settings.classes)
        self.network = Network(replace(backbone, mean=mean, std=std), classes, recipe.crop, recipe.levels)
        self.warm = start is not None
        if start:
            try:
                self.network.load_state_dict(start.network.state_dict())
            except RuntimeError as error:  # a transformer of another side, or a network of other channels
                raise TrainingError(
                    f"the champion's {recipe.backbone} has other shapes; set warm_start=false, or side, mean "
                    f"and std as it has them ({str(error).splitlines()[-1].strip()})"
                ) from error
        self.network.to(self.device)
        self.weights_digest = backbone.weights_digest
        self.pixels = PixelCache(settings.cache, recipe.side, recipe.fit)
        self.extracted, self.answered = self._features(1), self._features(recipe.answer_views)
        self.history: list[dict[str, float]] = []
        self.dataset = dataset

    def _features(self, views: int) -> Features:
        """Return what keeps the network's features: of one view to learn from, of several to answer from."""
        engine = engine_for(self.network, feature_dtype(self.recipe, self.device), self.settings.engine, views)
        about = (self.network, self.recipe.backbone, self.weights_digest, self.pixels)
        return Features(*about, self.settings.cache, engine)

    def classifier(self) -> Classifier:
        """Return the trained network as a classifier, with temperature and threshold chosen on validation patients."""
        logits, truth = self.validation_logits(self.network).numpy(), self.labels("validation").numpy()
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
            fit=self.recipe.fit,
            views=self.recipe.answer_views,
            engine=self.settings.engine,
        )

    def labels(self, side: str) -> Tensor:
        """Return the numbers [N] of the classes of one side's radiographs, in the order of its rows."""
        numbers = {name: number for number, name in enumerate(self.settings.classes)}
        return torch.tensor([numbers[label] for label in self.rows[side]["label"]])

    def class_weights(self) -> Tensor | None:
        """Return the weights [C] with which all classes weigh the same in the loss; None where the recipe has none."""
        if not self.recipe.balanced:
            return None
        counts = torch.bincount(self.labels("train"), minlength=len(self.settings.classes)).float()
        return (counts.sum() / (len(counts) * counts)).to(self.device)

    def decode(self, rows: pd.DataFrame) -> None:
        """Decode those radiographs of which no pixels are kept. Raises RadiographDamaged, StorageUnavailable."""
        decoded = self.pixels.ensure(rows, self.dataset.read, self.settings.workers, self.progress)
        if decoded:
            log.info("%d of %d radiographs decoded; the rest was kept from earlier", decoded, len(rows))

    def kept_features(self, side: str, view: int = 0) -> MappedRows:
        """Return the features [N, F] of one side, of a fresh network; view 0 is the radiograph itself.

        Those of side validation are what is answered from. Those that are missing are computed and kept.
        """
        rows, drawn, what = self.rows[side], self.recipe.augmentation, f"features, {side}, view {view}"
        features = self.answered if side == "validation" else self.extracted
        missing = set(features.cache(view, drawn).missing(rows["digest"]))
        self.decode(rows[rows["digest"].isin(missing)])
        return features.rows(list(rows["digest"]), view, drawn, self.progress, what)

    def features(self, side: str) -> Tensor:
        """Return what `kept_features` keeps of one side, as a tensor on the device."""
        rows = self.kept_features(side)
        return torch.from_numpy(rows.part(0, len(rows))).to(self.device)

    def validation_logits(self, network: Network, precision: Precision | None = None) -> Tensor:
        """Return logits float64 [N, C] on validation radiographs, on the CPU; without a precision as it is served."""
        if self.recipe.mode == "head":
            with torch.inference_mode():
                logits: Tensor = network.head(self.features("validation")).double().cpu()
                return logits
        network.eval()
        rows = list(self.rows["validation"]["digest"])
        answers = torch.zeros(len(rows), len(self.settings.classes), dtype=torch.float64, device=self.device)
        own, size = parallel.part(len(rows)), batch_for(self.device)
        views = 1 if precision else self.recipe.answer_views  # one is enough to compare epochs
        precision = precision or Precision(self.device, "float32")

        def answer(part: Tensor) -> Tensor:
            logits: Tensor = network.head(network.features(part.to(self.device), views))
            return logits.double().cpu()

        with torch.inference_mode(), precision.cast():
            for start in range(own.start, own.stop, size):
                stop = min(start + size, own.stop)
                pixels = torch.from_numpy(self.pixels.get(rows[start:stop]))
                answers[start:stop] = halving(answer, pixels)
        parallel.add(answers)
        return answers.cpu()

    def end_epoch(self, epoch: int, metrics: Mapping[str, float], record: Record) -> None:
        """Note what an epoch came to: in the history, where `record` keeps it, in the log."""
        self.history.append({"epoch": epoch, **metrics})
        record(epoch, metrics)
        log.info("epoch %d: %s", epoch, ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
        self.progress(epoch, self.recipe.epochs, "training")

    def metrics(self, loss: float, logits: Tensor, answers: Tensor, truth: Tensor) -> dict[str, float]:
        """Return an epoch's metrics, of validation `logits` [N, C] and training `answers` [n, C] to `truth` [n].

        Raises NonFiniteLoss for logits that are NaN or infinite.
        """
        if not (logits.isfinite().all() and answers.isfinite().all()):
            raise NonFiniteLoss("the network answers NaN or infinity to a radiograph after this epoch; lower the rate")
        expected, probabilities = self.labels("validation").numpy(), torch.softmax(logits.double(), 1).cpu().numpy()
        return {
            "train_loss": loss,
            **_quality("train", truth.numpy(), torch.softmax(answers.double(), 1).cpu().numpy()),
            "validation_loss": float(log_loss(expected, probabilities, labels=range(probabilities.shape[1]))),
            **_quality("validation", expected, probabilities),
        }


def _quality(side: str, truth: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Return accuracy and AUC of probabilities [N, C] for the classes `truth` [N]; of several: one against rest."""
    scores = probabilities[:, 1] if probabilities.shape[1] == 2 else probabilities
    return {
        f"{side}_accuracy": float(accuracy_score(truth, probabilities.argmax(1))),
        f"{side}_auc": float(roc_auc_score(truth, scores, multi_class="ovr")),
    }
