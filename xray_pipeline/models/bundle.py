"""The registered model: what it is on disk, how it is loaded, and what must never be loaded.

A classifier is two files, `model.safetensors` (all tensors) and `model.json` (everything else that decides an answer:
classes, threshold, temperature, side, ...), so one digest over both names exactly one function from pixels to
probabilities. MLflow gets that folder, `served.py` and the source of the modules it needs; nothing in it is pickled.
The trade-off: each logged model carries its own copy of the code (about 60 KB), so an old version keeps answering as it
did; this package itself never runs that copy, it loads the two files with its own code.

This file travels with each logged model: at import it needs only torch, safetensors, numpy and its fellow travellers.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import logging
import math
import os
import re
import shutil
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from xray_pipeline.base.errors import ConfigError, EvaluationError, ModelRefused, RadiographError
from xray_pipeline.images import radiograph
from xray_pipeline.models.backbones import Network, build

log = logging.getLogger(__name__)

FORMAT = 1
FACTS, WEIGHTS = "model.json", "model.safetensors"
RESERVED = ("label", "model_version", "error")
"""Columns of an answer beside the classes."""


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
    the network takes; `backbone` is the name `backbones.build` knows. `limits` is what a file to be answered may be, by
    the intake's rules. `digest` is "" until saved or loaded.
    """

    network: Network
    backbone: str
    classes: tuple[str, ...]
    side: int
    threshold: float = 0.5
    temperature: float = 1.0
    limits: radiograph.Limits = field(default_factory=radiograph.Limits)
    digest: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes) or set(self.classes) & set(RESERVED):
            raise ConfigError(f"classes must be two or more different names, none of {RESERVED}, got {self.classes}")
        if self.network.head.out_features != len(self.classes):
            raise ConfigError(f"the network has {self.network.head.out_features} outputs for classes {self.classes}")
        if not (0 <= self.threshold <= 1 and 0 < self.temperature < math.inf and self.side > 0):
            raise ConfigError(
                f"threshold {self.threshold} must be in 0..1, temperature {self.temperature} above 0 and finite, "
                f"side {self.side} above 0"
            )

    def probabilities(self, pixels: np.ndarray, batch_size: int = 16) -> np.ndarray:
        """Return probabilities float64 [N, C], rows summing to 1, of square pixels uint8 [N, side, side].

        Runs on the device the network is on. Raises EvaluationError for pixels of another shape or type.
        """
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (self.side, self.side):
            raise EvaluationError(f"pixels are {pixels.dtype} {pixels.shape}, not uint8 [N, {self.side}, {self.side}]")
        self.network.eval()
        device = self.network.head.weight.device
        found = np.empty((len(pixels), len(self.classes)))
        with torch.inference_mode():
            for start in range(0, len(pixels), batch_size):
                # A copy: a memory map is read-only, and torch warns about that.
                batch = torch.from_numpy(np.array(pixels[start : start + batch_size])).to(device)
                logits = self.network(batch).double()
                found[start : start + batch_size] = torch.softmax(logits / self.temperature, dim=1).cpu().numpy()
        return found

    def label(self, probabilities: np.ndarray) -> list[str]:
        """Return one class name per row of probabilities [N, C]."""
        if len(self.classes) == 2:
            chosen = (probabilities[:, 1] >= self.threshold).astype(int)
        else:
            chosen = probabilities.argmax(axis=1)
        return [self.classes[index] for index in chosen]

    def pixels(self, data: bytes) -> np.ndarray:
        """Return the square pixels uint8 [side, side] of a radiograph's bytes. Raises RadiographError."""
        return radiograph.load(data, self.limits, self.side)

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
        found = self.probabilities(np.stack(decoded), len(decoded)) if decoded else np.empty((0, len(self.classes)))
        answered = iter([Answer(tuple(row), name) for row, name in zip(found.tolist(), self.label(found), strict=True)])
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
        facts = _facts(folder)
        weights = (folder / WEIGHTS).read_bytes()
        if hashlib.sha256(weights).hexdigest() != facts["weights"]:
            raise ModelRefused(f"{folder / WEIGHTS} is not the file that {FACTS} was written for")
        try:
            return replace(_assemble(cls, facts, weights), digest=digest)
        except (ConfigError, SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelRefused(f"{folder / FACTS} and {WEIGHTS} do not make a classifier: {reason}") from error


def model_digest(folder: Path) -> str:
    """Return the SHA-256 over the digests of a saved classifier's two files. Raises ModelRefused if one is missing."""
    lines = []
    for name in (FACTS, WEIGHTS):
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise ModelRefused(f"{folder} holds no {name}; it is not a model this version can load")
        lines.append(f"{_sha256(path)}  {name}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _facts(folder: Path) -> dict[str, Any]:
    try:
        facts = json.loads((folder / FACTS).read_bytes())
        found = facts["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelRefused(f"{folder / FACTS} is not the description of a model: {error}") from error
    if found != FORMAT:
        raise ModelRefused(f"{folder / FACTS} has format {found!r}; this version reads {FORMAT}")
    return dict(facts)


def _assemble(cls: type[Classifier], facts: Mapping[str, Any], weights: bytes) -> Classifier:
    with torch.random.fork_rng(devices=[]):  # the throw-away initial weights must not move the caller's generator
        backbone = replace(build(facts["backbone"]), mean=tuple(facts["mean"]), std=tuple(facts["std"]))
        network = Network(backbone, len(facts["classes"]), facts["crop"], facts["levels"])
    network.load_state_dict(safetensors.torch.load(weights))
    network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    said: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in facts.get("limits", {}).items()}
    answers = (facts["side"], facts["threshold"], facts["temperature"], radiograph.Limits(**said))
    return cls(network, facts["backbone"], tuple(facts["classes"]), *answers)


# What a logged model holds: all that makes pixels of bytes, and what assembles the network.
_TRAVELLERS = (
    *("__init__.py", "base/__init__.py", "base/errors.py", "base/logs.py", "images/*.py"),
    *("models/__init__.py", "models/backbones.py", "models/bundle.py"),
)
# Modules by their form: a model that an earlier version logged came with that version's.
_CODE = re.compile(r"code/xray_pipeline/([a-z_]+/)?[a-z_]+\.py")
_TENSORS = f"artifacts/classifier/{WEIGHTS}"
_REQUIRED = frozenset({"MLmodel", _TENSORS, f"artifacts/classifier/{FACTS}", "served.py"})
# The module that loads the classifier; the second name is that of models logged before version 0.2.
_LOADERS = ("code/xray_pipeline/models/bundle.py", "code/xray_pipeline/serving.py")
_OPTIONAL = frozenset(
    {"conda.yaml", "python_env.yaml", "requirements.txt", "input_example.json", "serving_input_example.json"}
)
_WRITTEN_ON_LOAD = "registered_model_meta"  # by MLflow, with the name and version that were asked for
_TEXT_LIMIT = 4_000_000


def inventory(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below `folder` by relative path, sorted; without the one MLflow adds on load.

    Raises ModelRefused for a symbolic link or anything else that is not a regular file.
    """
    found: dict[str, str] = {}
    for root, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(root) / name
            mode = path.lstat().st_mode
            place = path.relative_to(folder).as_posix()
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise ModelRefused(f"{place!r} in the model is a link or special file; a model holds plain files only")
            if stat.S_ISREG(mode) and place != _WRITTEN_ON_LOAD:
                found[place] = _sha256(path)
    return dict(sorted(found.items()))


def artifact_digest(files: Mapping[str, str]) -> str:
    """Return the SHA-256 of an inventory: it names every byte of a logged model, code and weights alike."""
    return hashlib.sha256("".join(f"{sha}  {place}\n" for place, sha in sorted(files.items())).encode()).hexdigest()


def audit(folder: Path, expect_digest: str | None = None) -> str:
    """Refuse a downloaded model folder that holds anything but what `log_model` puts there; return its artifact digest.

    Modules of an earlier version of this package count as such. Names, kinds and contents of files are judged (a
    pickle, archive or link under any name is refused) before anything is loaded or run; with `expect_digest`, every
    byte is. Raises ModelRefused.
    """
    if not folder.is_dir():
        raise ModelRefused(f"{folder} is not a folder, so not a model")
    files = inventory(folder)
    for place in files:
        if place not in _REQUIRED | _OPTIONAL and not _CODE.fullmatch(place):
            raise ModelRefused(f"{place!r} does not belong in a model; it was not loaded")
        _check_content(folder / place, place)
    missing = sorted(_REQUIRED - files.keys())
    if not any(name in files for name in _LOADERS):
        missing.append(_LOADERS[0])
    if missing:
        raise ModelRefused(f"the model lacks {', '.join(missing)}")
    _check_description(folder / "MLmodel")
    digest = artifact_digest(files)
    if expect_digest and digest != expect_digest:
        raise ModelRefused(f"the model's files have digest {digest[:12]}, recorded is {expect_digest[:12]}")
    return digest


def _check_content(path: Path, place: str) -> None:
    if place == _TENSORS:
        _check_safetensors(path)
        return
    if path.stat().st_size > _TEXT_LIMIT:
        raise ModelRefused(f"{place!r} is larger than {_TEXT_LIMIT:,} bytes; it was not loaded")
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ModelRefused(f"{place!r} is not text; it was not loaded") from error
    if "\0" in text:
        raise ModelRefused(f"{place!r} holds NUL bytes, so is not text; it was not loaded")


def _check_safetensors(path: Path) -> None:
    """Check that a file is one safetensors table from the first byte to the last: no room for anything else."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, 100_000_000):
            raise ModelRefused(f"{path.name} is not a safetensors file; it was not loaded")
        try:
            table = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in table.items() if name != "__metadata__"]
            whole = 8 + length + max(ends, default=0) == size
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise ModelRefused(f"{path.name} has no safetensors table; it was not loaded") from error
    if not whole:
        raise ModelRefused(f"{path.name} holds bytes its table does not name; it was not loaded")


def _check_description(path: Path) -> None:
    """Check that MLmodel asks for our source file and no other loader: the pickle loader is named there, too."""
    import yaml  # type: ignore[import-untyped]

    try:
        description = yaml.safe_load(path.read_text())
        flavors = description["flavors"]
        loader = flavors["python_function"]
        code = Path(loader["model_code_path"]).name
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise ModelRefused("MLmodel does not describe a model made of plain source; it was not loaded") from error
    expected = ("mlflow.pyfunc.loaders.code_model", "served.py", ["python_function"])
    if (loader.get("loader_module"), code, list(flavors)) != expected or "python_model" in loader:
        raise ModelRefused(f"MLmodel asks for {loader.get('loader_module')!r} and {code!r}; it was not loaded")


def log_model(folder: Path, tags: Mapping[str, str] | None = None) -> str:
    """Log a saved classifier to the active MLflow run; return its URI, models:/m-...

    The logged model carries tags: `xray.model` (digest of weights and facts), `xray.artifact` (digest over all its
    files, taken from what MLflow gives back) and `xray.files` (the inventory itself). Raises ModelRefused when what
    comes back is not what went in, ConfigError without an active run.
    """
    from xray_pipeline.base.scratch import scratch
    from xray_pipeline.models.mlflow_client import MlflowClient, mlflow

    if mlflow.active_run() is None:
        raise ConfigError("log_model needs an active MLflow run; start one around it")
    digest = model_digest(folder)
    with scratch("xray-model-") as temporary:
        staged = _stage(temporary, folder)
        info = mlflow.pyfunc.log_model(
            name="classifier",
            python_model=str(staged / "served.py"),
            artifacts={"classifier": str(staged / "classifier")},
            code_paths=[str(staged / "xray_pipeline")],
            signature=_signature(_facts(folder)["classes"]),
            pip_requirements=requirements(),
            input_example=_example(),
        )
        back = temporary / "back"
        back.mkdir()
        mlflow.artifacts.download_artifacts(info.model_uri, dst_path=str(back))
        files = inventory(back)
        artifact = audit(back)
        if model_digest(back / "artifacts" / "classifier") != digest:
            raise ModelRefused(f"MLflow gave back another model than {digest[:12]}; look at its artifact store")
    recorded = {"xray.model": digest, "xray.artifact": artifact, "xray.files": json.dumps(files, sort_keys=True)}
    MlflowClient().set_logged_model_tags(info.model_id, {**(tags or {}), **recorded})
    log.info("logged model %s: digest %s", info.model_id, digest[:12])
    return str(info.model_uri)


def requirements() -> list[str]:
    """Return the packages a logged model needs, each pinned to what is installed here."""
    return [f"{name}=={importlib.metadata.version(name)}" for name in _PACKAGES]


_PACKAGES = (
    *("mlflow", "torch", "torchvision", "timm", "safetensors", "numpy", "pandas", "pillow", "pyarrow"),
    *("simplejpeg", "pydicom", "python-gdcm", "pyjpegls"),
)


def _stage(temporary: Path, folder: Path) -> Path:
    package = Path(__file__).parents[1]
    for source in (path for pattern in _TRAVELLERS for path in package.glob(pattern)):
        copy = temporary / "xray_pipeline" / source.relative_to(package)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    shutil.copyfile(package / "models" / "served.py", temporary / "served.py")
    (temporary / "classifier").mkdir()
    for name in (FACTS, WEIGHTS):
        shutil.copyfile(folder / name, temporary / "classifier" / name)
    return temporary


def _signature(classes: Sequence[str]) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    probabilities = [ColSpec(DataType.double, name, required=False) for name in classes]
    texts = [ColSpec(DataType.string, name) for name in RESERVED]
    return ModelSignature(Schema([ColSpec(DataType.binary, "image")]), Schema([*probabilities, *texts]))


def _example() -> Any:
    """Return a request as a client sends it: one made-up image, so that MLflow's pages show how to ask."""
    import pandas as pd
    from PIL import Image

    ramp = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    png = io.BytesIO()
    Image.fromarray(ramp).save(png, "PNG")
    return pd.DataFrame({"image": [png.getvalue()]})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
