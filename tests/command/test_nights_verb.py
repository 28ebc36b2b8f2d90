"""`xray nights`: what came of each night, also of one that failed."""

from __future__ import annotations

import json
from pathlib import Path

from commands import Run


def test_nights_are_printed_newest_first(xray: Run, tmp_path: Path) -> None:
    assert xray("nights").stdout.strip() == "no night has ended yet"
    assert xray("retrain").returncode == 1  # nobody made the incoming folder
    Path(tmp_path, "home", "incoming").mkdir()
    assert xray("retrain").returncode == 0
    newest, first = xray("nights").stdout.splitlines()
    assert " quiet      no deliveries; nothing to train on" in newest
    assert " failed     failed in find_deliveries: " in first
    told = json.loads(xray("nights", "--json").stdout)
    assert [one["outcome"] for one in told["nights"]] == ["quiet", "failed"]
    assert told["damaged"] == []


def test_a_damaged_record_is_named(xray: Run, tmp_path: Path) -> None:
    xray("retrain")
    for folder in ("records", "months"):
        [path] = Path(tmp_path, "home", "store", "nights", folder).rglob("*.json")
        path.write_text(path.read_text().replace("no folder", "one folder"))
    done = xray("nights")
    assert done.returncode == 3
    assert "NOT READ: nights/records/" in done.stdout
