"""What the plugin's pages say of what `xray tidy` removed."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from xray_pipeline.airflow_ui import access, champion_page, pages
from xray_pipeline.base.storage import open_store
from xray_pipeline.registry import tidied
from xray_pipeline.registry.entries import Move
from xray_pipeline.registry.ledger import Ledger
from xray_pipeline.registry.tidied import Tidied

CANDIDATE, ARTIFACT = "c" * 64, "a" * 64
REMOVAL = Tidied(CANDIDATE, ARTIFACT, "models:/m-1", "r1", 1, "alice", "2026-11-29T12:00:00+00:00", 50, {"MLflow": 9})


def test_a_report_that_was_removed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XRAY_STORE", str(tmp_path))
    app = FastAPI()
    app.get("/reports/{candidate}/{against}")(pages.report)
    client = TestClient(app)
    assert client.get(f"/reports/{CANDIDATE}/none").status_code == 404
    tidied.keep(open_store(tmp_path), REMOVAL)
    answer = client.get(f"/reports/{CANDIDATE}/none")
    assert answer.status_code == 410
    assert "removed by tidy on 2026-11-29, by alice" in answer.text


def test_the_forms_offer_nothing_that_was_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "may_start", lambda user, dag_id: True)
    store = open_store(tmp_path)
    ledger = Ledger(store)
    for version, candidate in enumerate((CANDIDATE, "d" * 64), 1):
        about = {"version": version, "candidate": candidate, "who": "schedule", "why": "better"}
        ledger.append(Move("registered", **about, artifact=ARTIFACT))
        ledger.append(Move("rejected", **about, artifact=ARTIFACT))
    tidied.keep(store, REMOVAL)
    state = ledger.state()
    removed = tidied.of_versions(store, state.registered)
    assert removed == {1: REMOVAL}
    forms = champion_page._forms(state, removed, None)  # type: ignore[arg-type]
    assert (forms["promote"], forms["reopen"]) == ([2], [2])
