"""What MLflow's own server says of a candidate once the night has told it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pandas as pd
from mlflow_server import MlflowServer
from small_models import logged

from xray_pipeline.base.settings import Settings
from xray_pipeline.dataset.store import Snapshot
from xray_pipeline.evaluation.metric_table import Interval
from xray_pipeline.evaluation.metrics import Evaluation
from xray_pipeline.gate.policy import Decision
from xray_pipeline.models.mlflow_client import use
from xray_pipeline.night.pair import Pair
from xray_pipeline.night.run import Run
from xray_pipeline.night.tell_mlflow import tell
from xray_pipeline.registry.mlflow_registry import Registry

METRICS = {"accuracy": Interval(0.9, 0.8, 0.95), "auc": Interval(0.97, 0.9, 0.99), "ece": Interval(0.1, 0.05, 0.2)}
MEASURED = Evaluation(
    "m" * 64, "5" * 64, 582, 443, ("NORMAL", "PNEUMONIA"), 0.5, ((1, 0), (0, 1)), METRICS, {}, "r" * 64
)
DECISION = Decision("refused", False, False, (), ("Its accuracy is not above.",), "p", "default", "c", "h", "5" * 64)


def asked(server: MlflowServer, path: str, **values: str) -> dict[str, Any]:
    return dict(httpx.get(f"{server.uri}/api/2.0/mlflow/{path}", params=values, timeout=60).json())


def test_figures_dataset_and_three_lines_stand_in_mlflow_however_often_they_are_told(
    mlflow_server: MlflowServer, settings: Settings
) -> None:
    here = settings.model_copy(update={"tracking_uri": mlflow_server.uri})
    use(here.tracking_uri)
    candidate: Any = logged(here)
    both = Pair(Run(here), Registry(here), candidate, 3, Snapshot("5" * 64, (), 900, 700), pd.DataFrame())
    for _ in range(2):
        tell(both, MEASURED, DECISION, "reports/c/report.html")
    run = asked(mlflow_server, "runs/get", run_id=candidate.run_id)["run"]
    figures = {metric["key"]: metric["value"] for metric in run["data"]["metrics"]}
    assert figures["held_out_accuracy"] == 0.9
    assert (figures["held_out_auc_low"], figures["held_out_ece_high"]) == (0.9, 0.2)
    history = asked(mlflow_server, "metrics/get-history", run_id=candidate.run_id, metric_key="held_out_accuracy")
    assert len(history["metrics"]) == 1
    model = asked(mlflow_server, f"logged-models/{candidate.model_uri.removeprefix('models:/')}")["model"]
    by_model = {metric["key"]: metric for metric in model["data"]["metrics"]}
    assert (by_model["held_out_auc"]["value"], by_model["held_out_auc"]["dataset_name"]) == (0.97, "held-out")
    [given] = [each["dataset"] for each in run["inputs"]["dataset_inputs"]]
    assert json.loads(given["profile"]) == {"radiographs": 582, "patients": 443, "snapshot": "5" * 12}
    [note] = [tag["value"] for tag in run["data"]["tags"] if tag["key"] == "mlflow.note.content"]
    first, second, third = note.split("\n\n")
    assert (
        first
        == "Accuracy 0.900 (0.800 to 0.950), AUC 0.970 (0.900 to 0.990); on 582 held-out radiographs of 443 patients."
    )
    assert second == "**Refused** against version 3: Its accuracy is not above."
    assert f"runs/{candidate.run_id}/artifacts/report.html)" in third
    assert third.endswith("`reports/c/report.html`")
