"""Check, retrain, evaluate, register: a nightly chest X-ray classifier with evidence for every decision.

MLflow reads these settings when it is imported, so they are in the environment before any module of this package is: no
telemetry, no chatter. A value that is set already stays. Its own defaults wait up to 120 s a call and 7 retries with
growing pauses: 20 minutes for a dead server.
"""

import os

__version__ = "0.1.0"

_MLFLOW = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",  # a server may ask for hours
    "MLFLOW_UV_AUTO_DETECT": "false",  # else a uv project in the working directory becomes part of every model
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false",  # else all it says goes to the error output, too
    "GIT_PYTHON_REFRESH": "quiet",
}
for _name, _value in _MLFLOW.items():
    os.environ.setdefault(_name, _value)
