"""How MLflow is called: patiently for seconds rather than minutes, discreetly, and its errors are ours.

The package's __init__.py sets what it reads when it is imported.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

import mlflow
from boto3.exceptions import Boto3Error  # artifacts may lie in S3
from botocore.exceptions import BotoCoreError, ClientError
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from requests.exceptions import RequestException
from sqlalchemy.exc import SQLAlchemyError

from xray_pipeline.base.errors import RegistryError, RegistryUnavailable
from xray_pipeline.base.text import without_passwords

for _name in ("mlflow", "alembic"):  # which makes the tables of a database without a server
    logging.getLogger(_name).setLevel(logging.WARNING)
warnings.filterwarnings("ignore", module=r"mlflow(\.|$)")

__all__ = ["FAILURES", "Missing", "MlflowClient", "MlflowException", "calls", "metric_log", "mlflow", "named", "use"]

FAILURES = (MlflowException, RequestException, SQLAlchemyError, Boto3Error, BotoCoreError, ClientError)
"""What a call of MLflow may raise."""


class Missing(RegistryError):
    """MLflow answered that there is no such thing."""


_MISSING = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")
_REFUSED = (
    *("BAD_REQUEST", "INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "UNAUTHENTICATED"),
)

_masked: dict[str, str] = {}  # addresses without login, as messages show them


def use(uri: str) -> str:
    """Point MLflow, in this process and those it starts, at an address; return that without user and password.

    These go where MLflow looks for them beside the address, so that nothing it logs or raises can show them.
    """
    parts, masked = urlsplit(uri), without_passwords(uri)
    if parts.scheme in ("http", "https") and parts.username and parts.password:
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password)
        uri = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    _masked[uri] = masked
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    return uri


def named(error: Exception, what: str) -> RegistryError:
    """Return the error of ours for one of MLflow's: RegistryUnavailable, or a RegistryError when it refused."""
    code = getattr(error, "error_code", "")
    kind = Missing if code in _MISSING else RegistryError if code in _REFUSED else RegistryUnavailable
    reason = (str(error).splitlines() or [""])[0][:300]
    said = "did not answer" if kind is RegistryUnavailable else "refused"
    address = mlflow.get_tracking_uri()
    return kind(f"{what}: MLflow at {_masked.get(address, address)} {said}: {reason}")


@contextmanager
def calls(what: str, *more: type[Exception]) -> Iterator[None]:
    """Raise RegistryUnavailable or RegistryError, without what MLflow raised, for a call of MLflow that fails."""
    try:
        yield
    except (*FAILURES, *more) as error:
        raise named(error, what) from None


def metric_log(run_id: str) -> Callable[[int, Mapping[str, float]], None]:
    """Return what logs an epoch's metrics with a run of MLflow: `record(epoch, metrics)`. It raises RegistryError."""
    client = MlflowClient()

    def record(epoch: int, metrics: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        with calls(f"logging epoch {epoch}"):
            client.log_batch(run_id, metrics=[Metric(name, value, now, epoch) for name, value in metrics.items()])

    return record
