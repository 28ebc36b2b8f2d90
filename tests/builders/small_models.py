"""Classifiers small enough to make, log and load many times in a test: a real network with arbitrary weights."""

from __future__ import annotations

import hashlib
import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow_server import MlflowServer
from PIL import Image

from xray_pipeline.base.settings import Settings
from xray_pipeline.models.backbones import Network, build
from xray_pipeline.models.bundle import log_model
from xray_pipeline.models.classifier import Classifier
from xray_pipeline.models.mlflow_client import mlflow

BACKBONE = "shufflenet_v2_x0_5"  # 1.4 MB, the smallest that torchvision has


@dataclass(frozen=True)
class Candidate:
    """What registering needs to know of a trained candidate."""

    digest: str
    run_id: str
    model_uri: str
    model_digest: str
    snapshot: str


def small_classifier(seed: int = 0, **fields: Any) -> Classifier:
    """Make a two-class classifier of 64 pixels; another seed, another model."""
    torch.manual_seed(seed)
    given: dict[str, Any] = {"classes": ("NORMAL", "PNEUMONIA"), "side": 64, **fields}
    return Classifier(Network(build(BACKBONE), len(given["classes"])), BACKBONE, **given)


def logged(settings: Settings, seed: int = 0) -> Candidate:
    """Log a small classifier to the settings' MLflow as training does."""
    mlflow.set_tracking_uri(settings.tracking_uri)
    mlflow.set_experiment(settings.experiment)
    with tempfile.TemporaryDirectory() as temporary, mlflow.start_run() as run:
        digest = small_classifier(seed).save(Path(temporary))
        uri = log_model(Path(temporary))
    name = hashlib.sha256(f"candidate {seed} {run.info.run_id}".encode()).hexdigest()
    return Candidate(name, run.info.run_id, uri, digest, "5" * 64)


@pytest.fixture(scope="session")
def model(mlflow_server: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> Candidate:
    """A candidate whose model lies on the MLflow server, and which no test changes."""
    return logged(Settings(home=tmp_path_factory.mktemp("training"), tracking_uri=mlflow_server.uri))


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other process runs here, so a difference need not be looked at twice."""
    monkeypatch.setattr("xray_pipeline.registry.mlflow_registry.PAUSE", 0.0)


def image(seed: int = 0, format: str = "JPEG") -> bytes:
    """Make the file of a grey picture of 96 x 80 pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 6), dtype=np.uint8).repeat(16, axis=0).repeat(16, axis=1)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, format)
    return data.getvalue()
