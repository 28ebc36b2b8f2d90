"""A network with what turns its logits into a label, and the two files that it is saved as."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from xray_pipeline.base.errors import ConfigError, EvaluationError, ModelRefused, RadiographError
from xray_pipeline.images import radiograph
from xray_pipeline.images.radiograph import Fit
from xray_pipeline.images.raster import Limits
from xray_pipeline.models.backbones import Network, build
from xray_pipeline.models.engine import Engine, Wanted, engine_for
from xray_pipeline.models.saved import FACTS, FORMAT, RESERVED, WEIGHTS, model_digest, read_facts


@dataclass(frozen=True)
class Answer:
    """What a classifier says of one file: probabilities in the order of its classes and a label, or an error."""

    probabilities: tuple[float, ...]
    label: str
    error: str = ""


@dataclass(frozen=True, eq=False)
class Classifier:
    """A network with what turns its logits into a label.

    Of two classes the last is positive, and named when its probability is at least `threshold` (0..1); of more, the
    largest probability decides. Probabilities are softmax(logits / `temperature`). `side` is that of the square pixels
    the network takes, `fit` how a radiograph becomes one; `backbone` is the name `backbones.build` knows. `limits` is
    what a file to be answered may be, by the intake's rules, `views` how many framed views an answer's logits are the
    mean of, `engine` what computes the answers. `digest` is "" until saved or loaded.
    """

    network: Network
    backbone: str
    classes: tuple[str, ...]
    side: int
    threshold: float = 0.5
    temperature: float = 1.0
    limits: Limits = field(default_factory=Limits)
    fit: Fit = "squash"
    views: int = 1
    engine: Wanted = field(default="auto", compare=False)
    digest: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes) or set(self.classes) & set(RESERVED):
            raise ConfigError(f"classes must be two or more different names, none of {RESERVED}, got {self.classes}")
        if self.network.head.out_features != len(self.classes):
            raise ConfigError(f"the network has {self.network.head.out_features} outputs for classes {self.classes}")
        if not (0 <= self.threshold <= 1 and 0 < self.temperature < math.inf and self.side > 0 and self.views > 0):
            raise ConfigError(
                f"threshold {self.threshold} must be in 0..1, temperature {self.temperature} above 0 and finite, "
                f"side {self.side} and views {self.views} above 0"
            )

    @cached_property
    def _engine(self) -> Engine:
        return engine_for(self.network, wanted=self.engine, views=self.views)

    def probabilities(self, pixels: np.ndarray, batch_size: int = 16) -> np.ndarray:
        """Return probabilities float64 [N, C], rows summing to 1, of square pixels, and with what `features` raises."""
        answers = [self.of_features(part) for part in self.features(pixels, batch_size)]
        return np.concatenate([np.empty((0, len(self.classes))), *answers])

    def features(self, pixels: np.ndarray, batch_size: int = 16) -> Iterator[Tensor]:
        """Yield the network's features [n, F] of square pixels uint8 [N, side, side], `batch_size` rows at a time.

        The engine of the device the network is on computes them; it compiles the network as it is at the first call.
        Raises EvaluationError for pixels of another shape or type, and as the engine does.
        """
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (self.side, self.side):
            raise EvaluationError(f"pixels are {pixels.dtype} {pixels.shape}, not uint8 [N, {self.side}, {self.side}]")
        for start in range(0, len(pixels), batch_size):
            # A copy: a memory map is read-only, and torch warns about that.
            yield self._engine.features(torch.from_numpy(np.array(pixels[start : start + batch_size])))

    def of_features(self, features: Tensor) -> np.ndarray:
        """Return probabilities float64 [N, C] of the network's features [N, F]."""
        with torch.inference_mode():
            logits = self.network.head(features).double()
            return np.asarray(torch.softmax(logits / self.temperature, dim=1).cpu().numpy())

    def label(self, probabilities: np.ndarray) -> list[str]:
        """Return one class name per row of probabilities [N, C]."""
        if len(self.classes) == 2:
            chosen = (probabilities[:, 1] >= self.threshold).astype(int)
        else:
            chosen = probabilities.argmax(axis=1)
        return [self.classes[index] for index in chosen]

    def pixels(self, data: bytes) -> np.ndarray:
        """Return the square pixels uint8 [side, side] of a radiograph's bytes. Raises RadiographError."""
        return radiograph.load(data, self.limits, self.side, self.fit)

    def classify(self, files: Sequence[bytes], batch_size: int = 64) -> list[Answer]:
        """Answer each of some files (JPEG, PNG or DICOM bytes); one that is no radiograph gets an error instead."""
        answers: list[Answer] = []
        for start in range(0, len(files), batch_size):
            answers += self._classify(files[start : start + batch_size])
        return answers

    def _classify(self, files: Sequence[bytes]) -> list[Answer]:
        decoded: list[np.ndarray] = []
        errors: dict[int, str] = {}
        for index, data in enumerate(files):
            try:
                decoded.append(self.pixels(data))
            except RadiographError as error:
                errors[index] = str(error)
        if not decoded:
            return [Answer((), "", error) for error in errors.values()]
        rows = self.probabilities(np.stack(decoded), len(decoded))
        answered = iter([Answer(tuple(row), name) for row, name in zip(rows.tolist(), self.label(rows), strict=True)])
        return [Answer((), "", errors[i]) if i in errors else next(answered) for i in range(len(files))]

    def save(self, folder: Path) -> str:
        """Write model.safetensors and model.json into `folder`, made when absent; return the model digest.

        Equal tensors and facts give equal bytes, so the digest is one of content.
        """
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
        weights = safetensors.torch.save(tensors)
        facts = {
            "format": FORMAT,
            "backbone": self.backbone,
            "classes": list(self.classes),
            "crop": self.network.crop,
            "levels": self.network.levels,
            "limits": asdict(self.limits),
            "mean": list(self.network.mean),
            "side": self.side,
            "std": list(self.network.std),
            "temperature": self.temperature,
            "threshold": self.threshold,
            "weights": hashlib.sha256(weights).hexdigest(),
            # Models of before there was a choice have neither.
            **({"fit": self.fit} if self.fit != "squash" else {}),
            **({"views": self.views} if self.views > 1 else {}),
        }
        (folder / WEIGHTS).write_bytes(weights)
        (folder / FACTS).write_text(json.dumps(facts, sort_keys=True, indent=1) + "\n")
        return model_digest(folder)

    @classmethod
    def load(cls, folder: Path, expect_digest: str | None = None) -> Classifier:
        """Load a saved classifier, or the one in a logged model's folder, onto the CPU.

        Raises ModelRefused when a file is missing, is not what the other or `expect_digest` says, or has a format this
        version does not know.
        """
        if (folder / "MLmodel").is_file():
            folder = folder / "artifacts" / "classifier"
        digest = model_digest(folder)
        if expect_digest and digest != expect_digest:
            raise ModelRefused(
                f"the model in {folder} has digest {digest[:12]}, recorded is {expect_digest[:12]}; "
                f"restore it from a backup or register it anew"
            )
        facts = read_facts(folder)
        weights = (folder / WEIGHTS).read_bytes()
        if hashlib.sha256(weights).hexdigest() != facts["weights"]:
            raise ModelRefused(f"{folder / WEIGHTS} is not the file that {FACTS} was written for")
        try:
            tensors = safetensors.torch.load(weights)
            del weights  # half a gigabyte of some networks
            return replace(_assemble(cls, facts, tensors), digest=digest)
        except (ConfigError, SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelRefused(f"{folder / FACTS} and {WEIGHTS} do not make a classifier: {reason}") from error


def _assemble(cls: type[Classifier], facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Classifier:
    with torch.random.fork_rng(devices=[]):  # the throw-away initial weights must not move the caller's generator
        built = build(facts["backbone"], facts["crop"] or facts["side"], len(facts["mean"]))
        backbone = replace(built, mean=tuple(facts["mean"]), std=tuple(facts["std"]))
        network = Network(backbone, len(facts["classes"]), facts["crop"], facts["levels"])
    network.load_state_dict(tensors)
    network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    said: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in facts.get("limits", {}).items()}
    answers = (facts["side"], facts["threshold"], facts["temperature"], Limits(**said))
    fit = facts.get("fit", "squash")
    if fit not in get_args(Fit):
        raise ValueError(f"fit {fit!r} is none of {get_args(Fit)}")
    return cls(network, facts["backbone"], tuple(facts["classes"]), *answers, fit=fit, views=facts.get("views", 1))
