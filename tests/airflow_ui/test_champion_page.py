"""The page *Champion*, as its function draws it; that Airflow shows it, tests/site/browser says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from airflow.utils.session import create_session

from xray_pipeline.airflow_ui import access, champion_page, memory
from xray_pipeline.base.storage import Store, open_store
from xray_pipeline.base.text import BARRED
from xray_pipeline.night import shadow
from xray_pipeline.night.shadow import Turn
from xray_pipeline.registry.entries import Move
from xray_pipeline.registry.ledger import Ledger

OURS, THEIRS = "b" * 64, "a" * 64
WHY = "Confidence that the candidate is more accurate: 0.9100; asked 0.9800. (clause 4.2)"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, airflow_db: None) -> Store:
    """Nothing was ever decided."""
    monkeypatch.setenv("XRAY_HOME", str(tmp_path))
    memory.ledger.cache_clear()
    return open_store(tmp_path / "store")


def decide(store: Store, **decision: Any) -> None:
    """Version 1 is champion; version 2 is registered by that decision."""
    ledger, by = Ledger(store), {"who": "schedule", "why": "better"}
    ledger.append(Move("registered", version=1, candidate=THEIRS, **by))
    ledger.append(Move("promoted", version=1, candidate=THEIRS, **by))
    ledger.append(Move("registered", version=2, candidate=OURS, champion_before=1, decision=decision, **by))


def drawn(may: bool = True) -> str:
    with create_session() as session, pytest.MonkeyPatch.context() as patch:
        patch.setattr(access, "may_start", lambda user, dag_id: may)
        answer = champion_page.show(session, None, None)  # type: ignore[arg-type]
    assert answer.status_code == 200, answer.body
    return bytes(answer.body).decode()


def headings(page: str) -> list[str]:
    return re.findall("<h2>(.*?)</h2>", page)


def test_a_site_where_nothing_was_decided_says_so(store: Store) -> None:
    page = drawn()
    assert headings(page) == ["Champion", "Challenger", "Decisions"]
    assert "None yet: no version was ever promoted." in page
    assert "None: nothing waits to be promoted." in page
    assert "<form" not in page


def test_a_challenger_that_may_be_promoted_waits(store: Store) -> None:
    decide(store, may_promote=True)
    assert headings(drawn()) == ["Champion, in production", "Challenger, waits", "Decisions"]


def test_one_that_may_not_says_so_and_why_and_stands_in_shadow(store: Store) -> None:
    decide(store, may_promote=False, reasons=["Registered.", "It is better.", BARRED, WHY])
    shadow.keep(store, Turn(1, 2, OURS, 1, THEIRS, 0, "2026-03-03T02:00:00+00:00"))
    page = drawn()
    assert headings(page) == ["Champion, in production", "Challenger, not to be promoted", "Decisions"]
    assert f"The policy does not allow version 2: {WHY}" in page
    assert "Version 2 is in shadow: no patient that is new to it and the champion has come yet." in page
    assert 'form data-dag="xray_compare"' in page


def test_who_may_only_look_finds_no_form_and_is_told_who_may_more(store: Store) -> None:
    decide(store, may_promote=True)
    page = drawn(may=False)
    assert "<form" not in page
    assert "You may look" in page
