"""What a version's description in MLflow may hold: PostgreSQL refuses over 5,000 characters, SQLite takes all."""

from __future__ import annotations

from pathlib import Path

import pytest

from xray_pipeline.base.storage import DirectoryStore
from xray_pipeline.registry import story
from xray_pipeline.registry.ledger import Ledger


@pytest.mark.parametrize(("written", "why"), [("It is better.", "looks right"), ("long " * 2000, "long " * 2000)])
@pytest.mark.parametrize("times", [1, 3, 100])
def test_a_description_fits_and_keeps_the_newest(tmp_path: Path, written: str, why: str, times: int) -> None:
    ledger = Ledger(DirectoryStore(tmp_path))
    for version in (1, 2):
        ledger.append("registered", who="schedule", why=why, version=version, candidate=f"{version:064x}")
    for _ in range(times):
        ledger.append("promoted", who="alice", why=why, version=2)
        ledger.append("rolled-back", who="bob", why=why, version=1)
    ledger.append("promoted", who="the last one", why=why, version=2)
    for tale in story.tell(ledger.entries()).values():
        text = tale.description(written)
        assert len(text) <= 5000
        assert text.startswith(written[:20])
        told = text.splitlines()
        assert "by the last one: " in told[-1]
        whole = sum(line.startswith("- 2") for line in told) == len(tale.lines)
        assert ("- earlier: `xray history`" in told) != whole
        assert whole or len(text) > 3900  # the next line would not have fitted
        assert tale.description(text) == text
