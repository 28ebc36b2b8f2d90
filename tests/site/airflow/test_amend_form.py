"""The form of xray_amend, by `dag.test()`: what it asks for is amended, and what makes no sense fails its task."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import ParamValidationError
from laid import FILES, ingest, lay

from xray_pipeline.base.settings import Settings
from xray_pipeline.night import amend
from xray_pipeline.night.run import Run

DAG = Path(__file__).resolve().parents[3] / "dags" / "amend.py"


@pytest.fixture
def dag(tmp_path: Path, airflow_db: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The DAG, over a home in which one delivery is committed."""
    for name in [name for name in os.environ if name.startswith("XRAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XRAY_HOME", str(tmp_path))
    lay(Settings(home=tmp_path), "mon", FILES)
    ingest(Run(Settings(home=tmp_path, settle_seconds=0)))
    spec = importlib.util.spec_from_file_location("amend", DAG)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.dag_object


def state(dag: Any, **conf: str) -> str:
    # All fields each time: a test run leaves what it was given in the fields of the DAG.
    run = dag.test(run_conf={"label": "as it is", "reason": "seen by two readers", **conf})
    (task,) = run.get_task_instances()
    return str(task.state)


def test_the_form_amends_what_it_asks_for(dag: Any, tmp_path: Path) -> None:
    assert state(dag, action="relabel", subject="mon/0", label="PNEUMONIA") == "success"
    assert state(dag, action="withdraw-patient", subject="mon/2") == "success"
    assert state(dag, action="undo", subject="2") == "success"
    assert state(dag, action="erase-patient", subject="mon/1") == "success"
    assert state(dag, action="undo", subject="5") == "failed"
    assert state(dag, action="relabel", subject="mon/0") == "failed"  # without a label
    assert state(dag, action="withdraw-delivery", subject="tue") == "failed"
    found = amend.listed(Run(Settings(home=tmp_path)))
    assert [(one["number"], one["stands"], one["why"]) for one in found] == [
        (2, False, "seen by two readers"),
        (3, True, "seen by two readers"),
        (4, True, "seen by two readers"),
        (5, True, "seen by two readers"),
    ]
    assert [(change["subject"], change["erase"]) for one in found for change in one["changes"]] == [
        ("radiograph", False),
        ("patient", False),
        ("amendment", False),
        ("patient", True),
    ]


def test_a_reason_and_a_known_action_are_asked_for(dag: Any) -> None:
    for conf in ({"reason": ""}, {"action": "forget"}, {"label": "FRACTURE"}, {"subject": ""}):
        with pytest.raises(ParamValidationError):
            state(dag, **{"action": "relabel", "subject": "mon/0", "label": "NORMAL", **conf})
