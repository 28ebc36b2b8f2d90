"""The story of `make demo`, under the default policy: two nights, an approval and a rollback, in a real Airflow."""

from __future__ import annotations

from pathlib import Path

import demo
import pytest
from services import Airflow, Stack

from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import open_store
from xray_pipeline.registry.ledger import Ledger
from xray_pipeline.registry.mlflow_registry import Registry


@pytest.mark.timeout(1500)  # both services and two nights, on whatever cores there are
def test_the_demo_ends_with_an_approved_version_that_was_rolled_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "FOLDER", tmp_path / "xray-demo")
    monkeypatch.setattr(demo, "MARKER", tmp_path / "xray-demo" / ".xray-demo")

    def look(stack: Stack, airflow: Airflow) -> None:
        settings = Settings(home=stack.folder, tracking_uri=stack.mlflow)
        entries = Ledger(open_store(settings.store)).entries()
        assert [(entry.kind, entry.version) for entry in entries] == [
            ("registered", 1),
            ("promoted", 1),
            ("registered", 2),
            ("approved", 2),
            ("promoted", 2),
            ("rolled-back", 1),
        ]
        assert {entry.who for entry in entries[3:]} == {demo.OPERATOR}
        assert Registry(settings).aliases()["champion"] == 1
        dags = {dag["dag_id"]: dag["is_paused"] for dag in airflow.call("GET", "/dags")["dags"]}
        assert not any(dags[dag] for dag in (demo.DAG, demo.ASKING, demo.BACK))

    demo.demo(None, look)
    assert "rolled-back   version 1" in capsys.readouterr().out
