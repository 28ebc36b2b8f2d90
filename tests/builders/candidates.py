"""A small dataset and small candidates trained on it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow_server import lay_database
from once import Once
from pydantic import SecretStr
from samples import jpeg, picture

from xray_pipeline.base.settings import Settings
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.night import intake_steps
from xray_pipeline.night.run import Run
from xray_pipeline.registry import decisions as operations
from xray_pipeline.registry.loading import Champions
from xray_pipeline.registry.mlflow_registry import Registry
from xray_pipeline.training import candidate as training
from xray_pipeline.training.recipe import load_recipe
from xray_pipeline.training.train import train

SMALL: dict[str, Any] = {"backbone": "shufflenet_v2_x0_5", "weights": "none", "side": 64, "epochs": 3, "views": 1}


KEY = "of the tests, and no secret"
DELIVERED = "delivered"


@pytest.fixture
def grown(settings: Settings, once: Once, empty_mlflow: Path) -> Settings:
    """A dataset of 80 patients whose classes differ: ill chests have a bright patch. The split is always the same."""
    made = once("grown", _grow)
    for kept, name in (("store", "store"), (DELIVERED, "incoming")):
        shutil.copytree(made / kept, settings.home / name)
    lay_database(empty_mlflow, settings.home)
    return settings.model_copy(update={"patient_key": SecretStr(KEY)})


def _grow(home: Path) -> None:
    settings = Settings(home=home, settle_seconds=0, patient_key=SecretStr(KEY))
    for label, bright in (("NORMAL", 0), ("PNEUMONIA", 120)):
        folder = Path(settings.incoming) / "first" / label
        folder.mkdir(parents=True)
        for seed in range(40):
            pixels = picture(seed + 1000 * bool(bright)).astype(np.int64)
            pixels[30:60, 20:50] += bright
            (folder / f"patient{seed + 100 * bool(bright):04d}_1.jpeg").write_bytes(
                jpeg(np.clip(pixels, 0, 255).astype(np.uint8))
            )
    run = Run(settings)
    for key in intake_steps.find_deliveries(run):
        intake_steps.check_delivery(run, key)
        intake_steps.commit_deliveries(run, [key])
    (home / "incoming").rename(
        home / DELIVERED
    )  # the store knows where its delivery lay: a copy must not find it there


def trained(settings: Settings, **overrides: Any) -> training.Candidate:
    dataset = Dataset(settings)
    snapshot = dataset.snapshot()
    assert snapshot is not None
    return train(
        dataset, snapshot, load_recipe("head", {**SMALL, **overrides}), settings, Champions(Registry(settings))
    )


def fresh(settings: Settings, tmp_path: Path) -> Settings:
    """The same dataset, but no memory of candidates and no cache."""
    store = tmp_path / "fresh"
    shutil.copytree(Path(settings.store) / "dataset", store / "dataset")
    tracking = f"sqlite:///{tmp_path / 'fresh.db'}"
    return settings.model_copy(
        update={"store": str(store), "cache": tmp_path / "fresh-cache", "tracking_uri": tracking}
    )


def promoted(settings: Settings, candidate: training.Candidate, before: int | None) -> int:
    registry = Registry(settings)
    facts = {
        "who": "a test",
        "why": "a test",
        "decision": {"verdict": "registered", "may_promote": True, "automatic": True, "compared_patients": 0},
    }
    version = operations.register(registry, candidate, champion_before=before, **facts).version
    assert version
    operations.promote(registry, version, expected_champion=before, **facts)
    return version
