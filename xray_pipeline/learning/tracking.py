"""The one place MLflow is imported from: quiet (no telemetry), patient for seconds rather than minutes.

MLflow reads these settings when it is imported or called, so they must be in the environment first; a value that is set
already stays. Its own defaults wait up to 120 s a call and 7 retries with growing pauses: 20 minutes for a dead server.
"""

from __future__ import annotations

import os

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

__all__ = ["MlflowClient", "MlflowException", "mlflow"]
