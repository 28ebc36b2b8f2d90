"""What was recorded of a model, read without the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from xray_pipeline.base.storage import open_store
from xray_pipeline.evaluation.predictions import predictions, recorded

CLASSES = ("NORMAL", "PNEUMONIA")


def rows(names: Sequence[int]) -> pd.DataFrame:
    return pd.DataFrame({"digest": [f"{name:064x}" for name in names], "suffix": ".jpg"})


def by_name(block: pd.DataFrame) -> np.ndarray:
    ill = np.array([int(digest, 16) / 100 for digest in block["digest"]])
    return np.stack([1 - ill, ill], axis=1)


def test_what_was_recorded_is_read_in_the_order_asked_for(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    predictions("predictions/model", CLASSES, rows(range(20)), by_name, store)
    asked = rows([7, 3, 19])
    found = recorded("model", CLASSES, asked, store)
    assert found is not None
    assert np.array_equal(found, by_name(asked))


def test_one_radiograph_without_a_record_leaves_nothing_to_say(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    predictions("predictions/model", CLASSES, rows(range(20)), by_name, store)
    assert recorded("model", CLASSES, rows([3, 20]), store) is None
    assert recorded("other", CLASSES, rows([3]), store) is None
