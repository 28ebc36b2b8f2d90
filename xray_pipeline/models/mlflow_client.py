"""The one place MLflow is imported from: quiet (no telemetry), patient for seconds rather than minutes.

MLflow reads these settings when it is imported or called, so they must be in the environment first; a value that is set
already stays. Its own defaults wait up to 120 s a call and 7 retries with growing pauses: 20 minutes for a dead server.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_UV_AUTO_DETECT": "false",  # else a uv project in the working directory becomes part of every model
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
for _name, _value in _DEFAULTS.items():
    os.environ.setdefault(_name, _value)

import mlflow  # noqa: E402 - after the settings it reads
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.tracking import MlflowClient  # noqa: E402

__all__ = ["MlflowClient", "MlflowException", "metric_log", "mlflow"]


def metric_log(run_id: str) -> Callable[[int, Mapping[str, float]], None]:
    """Return what logs an epoch's metrics with a run of MLflow: `record(epoch, metrics)`. It raises MLflow's errors."""
    from mlflow.entities import Metric

    client = MlflowClient()

    def record(epoch: int, metrics: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        client.log_batch(run_id, metrics=[Metric(name, value, now, epoch) for name, value in metrics.items()])

    return record
