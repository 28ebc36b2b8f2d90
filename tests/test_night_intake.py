"""The night's way with deliveries: which it takes, when it judges one anew, and what it leaves of a rejected one."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from samples import jpeg

from xray_pipeline import night
from xray_pipeline.errors import DeliveryError
from xray_pipeline.night import Checked, Run
from xray_pipeline.settings import Settings

GOOD = {
    f"{c}/patient{n}{c}_1.jpg": jpeg(seed=n + 50 * (c == "NORMAL")) for n in range(4) for c in ("NORMAL", "PNEUMONIA")
}
DAYS = 86_400.0


def lay(settings: Settings, name: str, files: dict[str, bytes]) -> Path:
    folder = Path(settings.incoming, name)
    for file, data in files.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def changed(run: Run, **values: Any) -> Run:
    return Run(run.settings.model_copy(update=values))


def ingest(run: Run) -> list[Checked]:
    keys = night.find_deliveries(run)
    found = [night.check_delivery(run, key) for key in keys]
    night.commit_deliveries(run, keys)
    return found


# settled


def test_a_delivery_that_still_changes_is_refused_by_name_and_says_why(settings: Settings) -> None:
    run = changed(Run(settings), settle_seconds=600)
    lay(settings, "day", GOOD)
    assert night.find_deliveries(run) == []
    with pytest.raises(DeliveryError, match=r"day changed \d s ago .* 600 s \(XRAY_SETTLE_SECONDS\).*_SUCCESS"):
        night.check_delivery(run, "day", named=True)
    assert not run.store().exists("intake/day/checked.json")
    lay(settings, "day", {"_SUCCESS": b""})
    assert night.check_delivery(run, "day", named=True).fit


def test_a_delivery_that_grows_after_it_was_found_is_judged_when_it_has_settled(settings: Settings) -> None:
    run = changed(Run(settings), settle_seconds=1)
    folder = lay(settings, "day", GOOD)
    time.sleep(1.1)
    assert night.find_deliveries(run) == ["day"]
    (folder / "NORMAL" / "late.jpg").write_bytes(jpeg(seed=99))
    caught = night.check_delivery(run, "day")
    assert not caught.fit
    assert "still be arriving" in caught.why
    time.sleep(1.1)
    assert [verdict.accepted for verdict in ingest(run)] == [len(GOOD) + 1]


def test_a_file_dated_ahead_does_not_hide_that_others_are_still_copied(settings: Settings) -> None:
    run = changed(Run(settings), settle_seconds=600)
    folder = lay(settings, "day", GOOD)
    ahead = time.time() + 3 * DAYS
    os.utime(folder / next(iter(GOOD)), (ahead, ahead))
    assert night.find_deliveries(run) == []
