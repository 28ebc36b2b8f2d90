"""A logged model, served in a process of its own, must answer as it was evaluated."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow_server import MlflowServer
from small_models import image, logged, small_classifier

from xray_pipeline.base.errors import EvaluationError, ModelRefused
from xray_pipeline.base.settings import Settings
from xray_pipeline.models.classifier import Classifier
from xray_pipeline.night.trial import ALIKE, ask, compared, serving
from xray_pipeline.registry.mlflow_registry import Registry

CLASSES = ("NORMAL", "PNEUMONIA")
FILES = [image(0), image(1, "PNG"), image(2)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, mlflow_server: MlflowServer) -> Settings:
    return Settings(home=tmp_path_factory.mktemp("trial"), tracking_uri=mlflow_server.uri)


@pytest.fixture(scope="module")
def model(site: Settings) -> Path:
    return Registry(site).download(logged(site).model_uri)


@pytest.fixture(scope="module")
def answers(site: Settings, model: Path) -> list[dict[str, Any]]:
    with serving(site, str(model)) as address:
        return ask(address, [*FILES, b"not a picture"])


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    return np.array([answer.probabilities for answer in small_classifier().classify(FILES)])


def version(model: Path) -> str:
    return Classifier.load(model).digest


def test_the_logged_model_answers_as_evaluated(
    answers: list[dict[str, Any]], model: Path, expected: np.ndarray
) -> None:
    found = compared(answers[:3], expected, CLASSES, version(model), ALIKE)
    assert found.radiographs == 3
    assert 0 <= found.largest_difference <= ALIKE


def test_another_answer_is_refused(answers: list[dict[str, Any]], model: Path, expected: np.ndarray) -> None:
    other = expected + np.array([[0, 0], [2e-5, -2e-5], [0, 0]])
    with pytest.raises(ModelRefused, match=r"answers 1 of 3 held-out radiographs otherwise .* by up to 2e-05"):
        compared(answers[:3], other, CLASSES, version(model), ALIKE)


def test_no_answer_where_one_was_evaluated_is_refused(
    answers: list[dict[str, Any]], model: Path, expected: np.ndarray
) -> None:
    with pytest.raises(ModelRefused, match=r"answered .*not-an-image.* for radiograph 1"):
        compared([answers[0], answers[3], answers[2]], expected, CLASSES, version(model), ALIKE)


def test_another_model_s_name_is_refused(answers: list[dict[str, Any]], expected: np.ndarray) -> None:
    with pytest.raises(ModelRefused, match="asked about 7"):
        compared(answers[:3], expected, CLASSES, "7", ALIKE)


def test_evaluated_as_not_a_number_is_refused(answers: list[dict[str, Any]], model: Path, expected: np.ndarray) -> None:
    with pytest.raises(ModelRefused, match="answers 3 of 3"):
        compared(answers[:3], np.full_like(expected, np.nan), CLASSES, version(model), ALIKE)


def test_a_model_that_does_not_load_serves_nothing(tmp_path: Path, site: Settings, model: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    (broken / "artifacts" / "classifier" / "model.json").write_text("{}")
    with pytest.raises(EvaluationError, match="the model server ended"), serving(site, str(broken)):
        pytest.fail("it serves")
