"""What ends a request for approval; that it does so in Airflow, tests/browser shows."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import Any

import pytest

from xray_pipeline.airflow_ui import memory
from xray_pipeline.airflow_ui.approval import ApprovalRequest, ApprovalTrigger
from xray_pipeline.base.storage import open_store
from xray_pipeline.registry.entries import Move
from xray_pipeline.registry.ledger import Ledger

BY: dict[str, Any] = {"who": "alice", "why": "because"}


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """Version 1 is champion, version 2 waits."""
    monkeypatch.setenv("XRAY_STORE", str(tmp_path))
    memory.ledger.cache_clear()
    ledger = Ledger(open_store(tmp_path))
    ledger.append(Move("registered", version=1, **BY))
    ledger.append(Move("promoted", version=1, **BY))
    ledger.append(Move("registered", version=2, champion_before=1, **BY))
    return ledger


def trigger() -> ApprovalTrigger:
    asked: dict[str, Any] = {"ti_id": uuid.uuid4(), "options": ["Approve", "Reject"], "params": {}}
    return ApprovalTrigger(version=2, champion=1, look_seconds=0.01, timeout_datetime=None, **asked)


def test_a_request_ends_when_its_version_means_another_model(ledger: Ledger) -> None:
    """Ledger and MLflow were put back, and its number was given again."""
    asked: dict[str, Any] = {"ti_id": uuid.uuid4(), "options": ["Approve", "Reject"], "params": {}}
    models = {"2": ["f" * 64, ""]}
    waiting = ApprovalTrigger(version=2, champion=1, models=models, look_seconds=0.01, timeout_datetime=None, **asked)
    event = asyncio.run(waiting._until_void())
    assert event.payload["void"].startswith("version 2 is another model in this ledger")


@pytest.mark.parametrize(
    ("kind", "version", "why"),
    [("registered", 3, "version 3 was registered meanwhile"), ("promoted", 2, "the champion is now version 2")],
)
def test_a_request_ends_when_its_question_is_no_longer_the_same(
    ledger: Ledger, kind: Any, version: int, why: str
) -> None:
    async def look() -> dict[str, Any]:
        waiting = asyncio.ensure_future(trigger()._until_void())
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await asyncio.to_thread(ledger.append, Move(kind, version=version, champion_before=1, **BY))
        return dict((await waiting).payload)

    event = asyncio.run(look())
    assert event["void"].startswith(why)
    request = ApprovalRequest(task_id="approve", subject="?", options=["Approve", "Reject"], asked={})
    assert request.execute_complete({}, event) == event


def test_a_ledger_that_cannot_be_read_ends_nothing(ledger: Ledger) -> None:
    first = Path(ledger.store.uri) / "00000001.json"
    whole = first.read_text()
    first.write_text("{")

    async def look() -> dict[str, Any]:
        waiting = asyncio.ensure_future(trigger()._until_void())
        await asyncio.sleep(0.1)
        assert not waiting.done()
        first.write_text(whole)
        await asyncio.to_thread(ledger.append, Move("registered", version=3, champion_before=1, **BY))
        return dict((await waiting).payload)

    assert "version 3" in asyncio.run(look())["void"]


def test_another_process_goes_on_waiting_for_the_same(ledger: Ledger) -> None:
    place, values = trigger().serialize()
    assert place == "xray_pipeline.airflow_ui.approval.ApprovalTrigger"
    assert ApprovalTrigger(**values).serialize() == (place, values)
