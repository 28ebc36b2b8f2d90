"""What a night leaves to review, made by hand: without a network, in no time."""

from __future__ import annotations

import base64
from dataclasses import asdict

import numpy as np

from xray_pipeline.base import records
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import open_store
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.evaluation.suspected import Suspect
from xray_pipeline.night import review
from xray_pipeline.night.review import Explained, Material, Opinion


def draw(settings: Settings, suspects: int = 3, disagreements: int = 2) -> Material:
    """List the first PNEUMONIA radiographs that are trained on as suspects, and the first held-out ones as named
    differently; each is explained by one map and four radiographs."""
    store, dataset = open_store(settings.store, settings), Dataset(settings)
    snapshot = dataset.snapshot()
    assert snapshot is not None
    rows = dataset.rows(snapshot)
    train = rows[rows["side"] == "train"]
    ill = train.loc[train["label"] == "PNEUMONIA", "digest"].tolist()[:suspects]
    differ = rows.loc[rows["side"] == "held-out", "digest"].tolist()[:disagreements]
    listed = [Suspect(digest, "mislabel", "PNEUMONIA", "NORMAL", 0.97, 0.94) for digest in ill]
    records.write(store, f"suspects/{snapshot.digest}.json", [asdict(suspect) for suspect in listed])
    cells = np.zeros((review.MAP_SIDE, review.MAP_SIDE), np.uint8)
    cells[12:20, 5:12] = 230
    heat = base64.b64encode(cells.tobytes()).decode()
    said = Opinion("NORMAL", (0.91, 0.09), heat), Opinion("PNEUMONIA", (0.34, 0.66), heat)
    explained = {digest: Explained(*said, tuple(train["digest"].tolist()[-4:])) for digest in [*ill, *differ]}
    about = ("c" * 64, 1, ("a" * 64, "b" * 64), snapshot.digest, "2026-02-09T03:00:00+00:00", settings.classes)
    drawn = Material(*about, tuple(differ), explained)
    review.keep(store, drawn)
    return drawn
