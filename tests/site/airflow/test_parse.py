from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DAGS = Path(__file__).resolve().parents[3] / "dags"
HEAVY = ("torch", "torchvision", "mlflow", "great_expectations", "pandas", "PIL", "matplotlib", "sklearn", "pyarrow")

PARSE = """
import json, runpy, sys
from airflow.sdk import Param, dag, get_current_context, task, Asset  # Airflow's own import is not what is measured
import airflow.providers.standard.operators.hitl
before = set(sys.modules)
runpy.run_path(sys.argv[1])
print(json.dumps(sorted(set(sys.modules) - before)))
"""


@pytest.mark.parametrize("path", sorted(DAGS.glob("*.py")), ids=lambda path: path.stem)
def test_parsing_is_light(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PARSE, path], capture_output=True, check=True, text=True)
    loaded = {module.partition(".")[0] for module in json.loads(done.stdout)}
    assert not loaded & set(HEAVY)


TRIED = """
import runpy, sys
from xray_pipeline.base.errors import ConfigError
policy = runpy.run_path(sys.argv[1])["xray_retrain"]().get_task("check_delivery").retry_policy
raised = (SystemExit(3), ConfigError("no such class"), OSError())
print(*(policy.evaluate(error, 1, 4).action.value for error in raised))
"""


def test_a_rejected_delivery_is_tried_once_and_an_unreachable_store_again() -> None:
    """The task of a rejected delivery ends by `sys.exit`, which leaves no traceback in its log."""
    command = [sys.executable, "-c", TRIED, DAGS / "retrain.py"]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    assert done.stdout.split() == ["fail", "fail", "default"]


def parsed_with(manager: str, approvers: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "AIRFLOW__CORE__AUTH_MANAGER": manager, "XRAY_APPROVERS": approvers}
    command = [sys.executable, "-c", PARSE, DAGS / "promote.py"]
    return subprocess.run(command, capture_output=True, check=False, text=True, env=environment)


SIMPLE = "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager"
FAB = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"


@pytest.mark.parametrize(("manager", "approvers"), [(SIMPLE, '["alice"]'), (FAB, '["2"]'), (FAB, "[]")])
def test_approvers_are_given_as_airflow_knows_them(manager: str, approvers: str) -> None:
    assert parsed_with(manager, approvers).returncode == 0


def test_approvers_that_airflow_would_never_let_approve_are_refused() -> None:
    done = parsed_with(FAB, '["alice"]')
    assert done.returncode == 1
    assert "XRAY_APPROVERS names 'alice'" in done.stderr
    assert "airflow users list" in done.stderr
