"""The registered model: what it is on disk, and how it gets into MLflow; audit.py says what is never loaded.

A classifier is two files, `model.safetensors` (all tensors) and `model.json` (everything else that decides an answer:
classes, threshold, temperature, side, ...), so one digest over both names exactly one function from pixels to
probabilities. MLflow gets that folder, `served.py` and the source of the modules it needs; nothing in it is pickled.
The trade-off: each logged model carries its own copy of the code (160 KB), so an old version keeps answering as it did;
this package itself never runs that copy, it loads the two files with its own code.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from PIL import Image

from xray_pipeline.base.errors import ConfigError, ModelRefused
from xray_pipeline.base.scratch import scratch
from xray_pipeline.models.audit import audit, inventory
from xray_pipeline.models.mlflow_client import MlflowClient, mlflow
from xray_pipeline.models.saved import FACTS, RESERVED, WEIGHTS, model_digest, read_facts

log = logging.getLogger(__name__)

# What a logged model holds: all that makes pixels of bytes, and what assembles the network.
_TRAVELLERS = (
    *("__init__.py", "base/__init__.py", "base/errors.py", "base/text.py", "images/*.py"),
    *("models/__init__.py", "models/backbones.py", "models/classifier.py", "models/engine.py", "models/saved.py"),
    *("models/framing.py", "models/pretrained.py", "models/stages.py", "models/weights.py"),
)
_PACKAGES = (
    *("mlflow", "torch", "torchvision", "timm", "safetensors", "numpy", "pandas", "pillow", "pyarrow"),
    *("simplejpeg", "pydicom", "python-gdcm", "pyjpegls"),
)


def log_model(folder: Path, tags: Mapping[str, str] | None = None) -> str:
    """Log a saved classifier to the active MLflow run; return its URI, models:/m-...

    The logged model carries tags: `xray.model` (digest of weights and facts), `xray.artifact` (digest over all its
    files, taken from what MLflow gives back) and `xray.files` (the inventory itself). Raises ModelRefused when what
    comes back is not what went in, ConfigError without an active run.
    """
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
            signature=_signature(read_facts(folder)["classes"]),
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
    probabilities = [ColSpec(DataType.double, name, required=False) for name in classes]
    texts = [ColSpec(DataType.string, name) for name in RESERVED]
    return ModelSignature(Schema([ColSpec(DataType.binary, "image")]), Schema([*probabilities, *texts]))


def _example() -> Any:
    """Return a request as a client sends it: one made-up image, so that MLflow's pages show how to ask."""
    ramp = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    png = io.BytesIO()
    Image.fromarray(ramp).save(png, "PNG")
    return pd.DataFrame({"image": [png.getvalue()]})
