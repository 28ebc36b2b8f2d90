"""How often a task of the night is tried: four times, but once where trying again changes nothing."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import ExceptionRetryPolicy, RetryAction, RetryRule

from xray_pipeline.base.errors import Permanent

_NO_USE = "trying again changes nothing until a person has changed something"
# A rejected delivery ends its task as a program ends, without a traceback.
POLICY = ExceptionRetryPolicy([RetryRule(error, RetryAction.FAIL, reason=_NO_USE) for error in (Permanent, SystemExit)])
AGAIN: dict[str, Any] = {
    "retries": 3,
    "retry_delay": timedelta(seconds=20),
    "retry_exponential_backoff": True,
    "max_retry_delay": timedelta(minutes=10),
    "retry_policy": POLICY,
}
"""The default arguments of a DAG whose tasks may be repeated."""
