"""What a version's description in MLflow may hold: PostgreSQL refuses over 5,000 characters, SQLite takes all."""

from __future__ import annotations

from pathlib import Path

import pytest

from xray_pipeline.base.storage import DirectoryStore
from xray_pipeline.registry.entries import Move
from xray_pipeline.registry.ledger import Ledger
from xray_pipeline.registry.version_status import statuses


@pytest.mark.parametrize("why", ["looks right", "long " * 2000])
@pytest.mark.parametrize("times", [1, 3, 100])
def test_a_description_fits_and_keeps_the_newest(tmp_path: Path, why: str, times: int) -> None:
    ledger = Ledger(DirectoryStore(tmp_path))
    for version in (1, 2):
        ledger.append(Move("registered", who="schedule", why=why, version=version, candidate=f"{version:064x}"))
    for _ in range(times):
        ledger.append(Move("promoted", who="alice", why=why, version=2))
        ledger.append(Move("rolled-back", who="bob", why=why, version=1))
    ledger.append(Move("promoted", who="the last one", why=why, version=2))
    for status in statuses(ledger.entries()).values():
        text = status.description
        assert len(text) <= 5000
        assert text.startswith(why[:20])
        told = text.splitlines()
        assert "by the last one: " in told[-1]
        whole = sum(line.startswith("- 2") for line in told) == len(status.lines)
        assert ("- earlier: `xray history`" in told) != whole
        assert whole or len(text) > 3900  # the next line would not have fitted


def test_what_a_hand_moves_in_mlflow_is_told_of_both_versions(tmp_path: Path) -> None:
    ledger = Ledger(DirectoryStore(tmp_path))
    for version in (1, 2, 3):
        ledger.append(Move("registered", who="schedule", why="better", version=version, candidate=f"{version:064x}"))
        if version == 1:
            ledger.append(Move("promoted", who="alice", why="the first", version=1))
    after = {"champion": 1, "challenger": 2}
    ledger.append(Move("manual-change", who="somebody", why="found", version=1, decision={"after": after}))
    told = statuses(ledger.entries())
    assert {version: status.status for version, status in told.items()} == {
        1: "champion",
        2: "challenger",
        3: "superseded",
    }
    assert told[2].lines[-1].endswith("made challenger by hand in MLflow by somebody: found")
    after = {"champion": None, "challenger": None}
    ledger.append(Move("manual-change", who="somebody", why="found", version=None, decision={"after": after}))
    told = statuses(ledger.entries())
    assert [told[version].status for version in (1, 2)] == ["replaced", "superseded"]
    assert "replaced: none is champion" in told[1].lines[-1]
    assert "no longer challenger" in told[2].lines[-1]
