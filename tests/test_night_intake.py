"""The night's way with deliveries: which it takes, when it judges one anew, and what it leaves of a rejected one."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from samples import jpeg

from xray_pipeline import intake, night
from xray_pipeline.deliveries.reading import judged_by
from xray_pipeline.errors import DeliveryError
from xray_pipeline.intake import Delivery
from xray_pipeline.night import Checked, Run
from xray_pipeline.settings import IntakeRules, Settings

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


# a verdict that stands


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The deliveries that are judged from now on."""
    judged: list[str] = []
    check = intake.check

    def counting(delivery: Delivery, *rest: Any) -> Any:
        judged.append(delivery.key)
        return check(delivery, *rest)

    monkeypatch.setattr(intake, "check", counting)
    return judged


def test_a_rejected_delivery_is_judged_once_while_nothing_changes(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(settings)
    lay(settings, "day", GOOD | {"COVID/x.jpg": jpeg(seed=500)})
    judged = counted(monkeypatch)
    assert [verdict.fit for verdict in ingest(run) + ingest(run)] == [False, False]
    assert judged == ["day"]
    assert not night.check_delivery(run, "day", named=True).fit
    assert judged == ["day", "day"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"classes": ("NORMAL", "PNEUMONIA", "COVID")}),
        ({"split_mode": "given", "classes": ("NORMAL", "PNEUMONIA", "COVID")}, {"split_mode": "patient"}),
        ({"rules": IntakeRules(min_files=100), "classes": ("NORMAL", "PNEUMONIA", "COVID")}, {"rules": IntakeRules()}),
    ],
    ids=["classes", "split mode", "rules"],
)
def test_a_verdict_falls_with_what_it_depended_on(
    settings: Settings, before: dict[str, Any], after: dict[str, Any]
) -> None:
    lay(settings, "day", GOOD | {"COVID/x.jpg": jpeg(seed=500)})
    run = changed(Run(settings), **before)
    assert [verdict.fit for verdict in ingest(run)] == [False]
    assert [verdict.fit for verdict in ingest(changed(run, **after))] == [True]


@pytest.mark.parametrize("value", [{"split_held_out": 0.3}, {"split_validation": 0.3}])
def test_a_verdict_depends_on_the_shares_of_the_split(settings: Settings, value: dict[str, float]) -> None:
    assert judged_by(settings, b"k") != judged_by(settings.model_copy(update=value), b"k")
    assert judged_by(settings, b"k") != judged_by(settings, b"another key")


@pytest.fixture
def as_nobody() -> Iterator[Settings]:
    """Settings in a folder of somebody without root's right to read everything, who the test runs as."""
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)
    try:
        with tempfile.TemporaryDirectory() as home:
            yield Settings(home=Path(home), settle_seconds=0)
    finally:
        os.seteuid(me)


def test_a_delivery_whose_files_were_made_readable_is_taken_the_next_night(as_nobody: Settings) -> None:
    run = Run(as_nobody)
    folder = lay(as_nobody, "day", GOOD)
    locked = [folder / name for name in list(GOOD)[:3]]
    for path in locked:
        path.chmod(0)
    (rejected,) = ingest(run)
    assert rejected.quarantined == {"unreadable": 3}
    for path in locked:
        path.chmod(0o644)
    assert [verdict.accepted for verdict in ingest(run)] == [len(GOOD)]
