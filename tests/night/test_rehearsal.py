"""A logged model, loaded in a process of its own, must answer as it was evaluated."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from mlflow_server import MlflowServer
from small_models import image, logged, small_classifier

from xray_pipeline.base.errors import ModelRefused
from xray_pipeline.base.settings import Settings
from xray_pipeline.night.rehearsal import rehearse
from xray_pipeline.registry.mlflow_registry import Registry

CLASSES = ("NORMAL", "PNEUMONIA")
FILES = [image(0), image(1, "PNG"), image(2)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, mlflow_server: MlflowServer) -> Path:
    settings = Settings(home=tmp_path_factory.mktemp("rehearsal"), tracking_uri=mlflow_server.uri)
    return Registry(settings).download(logged(settings).model_uri)


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    return np.array([answer.probabilities for answer in small_classifier().classify(FILES)])


def test_the_logged_model_answers_as_evaluated(model: Path, expected: np.ndarray) -> None:
    found = rehearse(model, FILES, expected, CLASSES)
    assert found.radiographs == 3
    assert 0 <= found.largest_difference <= 1e-5


def test_another_answer_is_refused(model: Path, expected: np.ndarray) -> None:
    with pytest.raises(ModelRefused, match=r"answers 1 of 3 held-out radiographs otherwise .* by up to 2e-05"):
        rehearse(model, FILES, expected + np.array([[0, 0], [2e-5, -2e-5], [0, 0]]), CLASSES)


def test_no_answer_where_one_was_evaluated_is_refused(model: Path, expected: np.ndarray) -> None:
    with pytest.raises(ModelRefused, match="can't read held-out radiograph 1"):
        rehearse(model, [FILES[0], b"not a picture", FILES[2]], expected, CLASSES)


def test_evaluated_as_not_a_number_is_refused(model: Path, expected: np.ndarray) -> None:
    with pytest.raises(ModelRefused, match="answers 3 of 3"):
        rehearse(model, FILES, np.full_like(expected, np.nan), CLASSES)


def test_a_model_that_does_not_load_is_refused(tmp_path: Path, model: Path, expected: np.ndarray) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    (broken / "artifacts" / "classifier" / "model.json").write_text("{}")
    with pytest.raises(ModelRefused, match=r"fails in a fresh process \(exit 1\)"):
        rehearse(broken, FILES, expected, CLASSES)
