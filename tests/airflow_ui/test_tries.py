"""Which failures are tried again."""

from __future__ import annotations

import pytest
from airflow.sdk import RetryAction

from xray_pipeline.airflow_ui import tries
from xray_pipeline.base.errors import ConfigError, ModelRefused, RegistryUnavailable, StorageUnavailable


@pytest.mark.parametrize("error", [ConfigError("no recipe 'nope'"), ModelRefused("a pickle"), SystemExit(3)])
def test_what_a_person_must_change_is_not_tried_again(error: BaseException) -> None:
    decision = tries.POLICY.evaluate(error, 1, 3)
    assert decision.action is RetryAction.FAIL
    assert decision.reason is not None
    assert "a person" in decision.reason


@pytest.mark.parametrize("error", [StorageUnavailable("no answer"), RegistryUnavailable("no answer"), OSError("gone")])
def test_what_may_pass_is_tried_again(error: Exception) -> None:
    assert tries.POLICY.evaluate(error, 1, 3).action is RetryAction.DEFAULT
