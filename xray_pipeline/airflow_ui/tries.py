"""How often a task of the night is tried: four times, but once where trying again changes nothing."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import ExceptionRetryPolicy, RetryAction, RetryRule

from xray_pipeline.base.errors import Permanent

POLICY = ExceptionRetryPolicy(
    [
        RetryRule(
            Permanent,
            RetryAction.FAIL,
            reason="trying again changes nothing until a person has changed something",
        )
    ]
)
AGAIN: dict[str, Any] = {
    "retries": 3,
    "retry_delay": timedelta(seconds=20),
    "retry_exponential_backoff": True,
    "max_retry_delay": timedelta(minutes=10),
    "retry_policy": POLICY,
}
"""The default arguments of a DAG whose tasks may be repeated."""
