"""A dataset of made features, as large as asked: for benchmarks/training.py, which runs each step in its own process.

    python benchmarks/made_rows.py HOME ROWS WIDTH make|train

`make` writes delivery manifests and kept features, as nights of 50,000 radiographs would have left them. `train` names
the snapshot, reads its rows with their sides and trains `head` on the kept features; no image is needed. It prints the
seconds of each and the peak memory of the process.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import open_store
from xray_pipeline.dataset.parquet import to_parquet
from xray_pipeline.dataset.split import side_of
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.dataset.table import Row, of_rows
from xray_pipeline.models import backbones
from xray_pipeline.training.checkpoints import Checkpoints
from xray_pipeline.training.fitting import fit
from xray_pipeline.training.recipe import Recipe
from xray_pipeline.training.trainer import Trainer

NIGHT = 50_000
BACKBONES = {512: "resnet18", 1280: "mobilenet_v2", 2048: "resnet50"}
CLASSES = ("NORMAL", "PNEUMONIA")


def recipe(width: int) -> Recipe:
    """A head on the backbone with that many features."""
    return Recipe(backbone=BACKBONES[width], weights="none", side=32)


def make(settings: Settings, count: int, width: int) -> None:
    """Write manifests and features."""
    dataset = Dataset(settings)
    dataset.begin()
    trainer = _features_of(settings, width)
    rng = np.random.default_rng(0)
    direction = rng.normal(size=width).astype(np.float32) / np.sqrt(width)
    for night, start in enumerate(range(0, count, NIGHT)):
        numbers = range(start, min(start + NIGHT, count))
        digests = [hashlib.sha256(str(n).encode()).hexdigest() for n in numbers]
        truth = rng.integers(0, 2, len(digests))
        table = of_rows(_row(settings, digest, int(label)) for digest, label in zip(digests, truth, strict=True))
        dataset.append(f"night{night:05}", to_parquet(table, {"delivery": "made"}), night)
        noise = rng.normal(size=(len(digests), width)).astype(np.float32)
        trainer.cache().add(digests, noise + (2 * truth[:, None] - 1).astype(np.float32) * direction)


def _row(settings: Settings, digest: str, label: int) -> Row:
    side = side_of(digest, "", "patient", settings.split_validation, settings.split_held_out)
    return Row(
        *(f"{digest[:12]}.jpg", 1, "", digest, "jpeg", 80, 80, "L", 8, "", "", float("nan"), "", digest[:32]),
        *(CLASSES[label], "", side, "accepted", "", "", digest, ".jpg"),
    )


def _features_of(settings: Settings, width: int) -> Any:
    from xray_pipeline.dataset.pixels import PixelCache
    from xray_pipeline.training.features import Features

    asked = recipe(width)
    backbone = backbones.load(asked.backbone, "none")
    network = backbones.Network(backbone, 2)
    pixels = PixelCache(settings.cache, asked.side)
    return Features(network, asked.backbone, backbone.weights_digest, pixels, settings.cache)


def train(settings: Settings, width: int) -> dict[str, Any]:
    """Name the snapshot, split it and train the head."""
    seconds: dict[str, float] = {}
    start = time.perf_counter()
    dataset = Dataset(settings)
    snapshot = dataset.snapshot()
    assert snapshot is not None
    seconds["snapshot"] = time.perf_counter() - start
    start = time.perf_counter()
    rows = dataset.rows(snapshot)
    seconds["split"] = time.perf_counter() - start
    start = time.perf_counter()
    asked = recipe(width)
    trainer = Trainer(asked, backbones.load(asked.backbone, "none"), dataset, rows, settings)
    fit(trainer, Checkpoints(open_store(settings.home / "checkpoints")), lambda epoch, metrics: None)
    trainer.classifier()
    seconds["head"] = time.perf_counter() - start
    return {
        "rows": len(rows),
        "width": width,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "validation_auc": trainer.history[-1]["validation_auc"],
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def main() -> None:
    """Run from the command line."""
    home, count, width, step = sys.argv[1:]
    settings = Settings(home=Path(home) / "home", device="cpu")
    if step == "make":
        make(settings, int(count), int(width))
    else:
        print(json.dumps(train(settings, int(width))))


if __name__ == "__main__":
    main()
