"""Calls of MLflow: repeated while it is busy, and failing with our errors."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from xray_pipeline.models import mlflow_client as tracking
from xray_pipeline.models.mlflow_client import MlflowException

T = TypeVar("T")


def ask(what: str, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call MLflow; wait and repeat a few times when it is busy. Raises RegistryError, RegistryUnavailable."""
    patiently = Retrying(
        retry=retry_if_exception(_busy),
        stop=stop_after_attempt(6),
        wait=wait_random_exponential(0.2, max=3),
        reraise=True,
    )
    with tracking.calls(what):
        return patiently(function, *args, **kwargs)


def _busy(error: BaseException) -> bool:
    """Whether MLflow's database asks to be tried again; connections are retried by MLflow's own HTTP client.

    MLflow sets a tag or an alias by looking, then inserting: of two that do so at once, one hits the other's key.
    """
    if not isinstance(error, MlflowException):
        return False
    clash = error.error_code == "BAD_REQUEST" and re.search("unique|duplicate", str(error), re.IGNORECASE)
    return bool(clash) or error.error_code in ("TEMPORARILY_UNAVAILABLE", "RESOURCE_CONFLICT")
