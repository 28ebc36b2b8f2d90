"""The trigger that starts nights on arrival, by itself; tests/site/airflow runs it in a triggerer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from xray_pipeline.airflow_ui import arrival
from xray_pipeline.airflow_ui.arrival import Arrival
from xray_pipeline.base.errors import StorageUnavailable


class Site:
    """What waits, and whether a night is on, minute by minute."""

    def __init__(self, *minutes: tuple[str, bool] | Exception) -> None:
        self.minutes, self.at = minutes, -1

    def look(self) -> frozenset[str]:
        self.at += 1
        now = self.minutes[min(self.at, len(self.minutes) - 1)]
        if isinstance(now, Exception):
            raise now
        return frozenset(now[0].split())

    def night_is_on(self) -> bool:
        now = self.minutes[min(self.at, len(self.minutes) - 1)]
        return isinstance(now, tuple) and now[1]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Callable[[Site], list[int]]:
    """Run the trigger over a site's minutes; return in which of them it fired."""
    monkeypatch.setattr(arrival, "EVERY", 0.0)
    monkeypatch.setattr(arrival, "FIRST", 0.0)
    sleep = asyncio.sleep
    monkeypatch.setattr(arrival.asyncio, "sleep", lambda _: sleep(0))

    async def fired(site: Site) -> list[int]:
        async def is_on(self: Arrival) -> bool:
            return site.night_is_on()

        monkeypatch.setattr(arrival, "_arrivals", lambda: site)
        monkeypatch.setattr(Arrival, "_night_is_on", is_on)
        found: list[int] = []

        async def collect() -> None:
            async for _ in Arrival().run():
                found.append(site.at)

        task = asyncio.create_task(collect())
        while site.at < len(site.minutes):
            await sleep(0)
        task.cancel()
        return found

    return lambda site: asyncio.run(fired(site))


@pytest.mark.parametrize(
    ("site", "wanted"),
    [
        (Site(("", False), ("mon", False), ("mon", False), ("", False)), [1]),
        (Site(("mon", True), ("mon", True), ("mon", False)), [2]),
        (Site(("mon", False), ("mon tue", False), ("mon tue", False)), [0, 1]),
        (Site(("mon", False), ("", False), ("mon", False)), [0, 2]),
        (Site(StorageUnavailable("gone"), ("mon", False)), [1]),
        (Site(OSError("gone"), ("", False)), []),
    ],
    ids=["once", "after the night", "for more", "again", "after an outage", "for nothing"],
)
def test_it_fires_once_for_what_waits(events: Callable[[Site], list[int]], site: Site, wanted: list[int]) -> None:
    assert events(site) == wanted


def test_what_still_waits_after_an_hour_is_told_of_again(
    events: Callable[[Site], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrival, "AGAIN", 0.0)
    assert len(events(Site(("mon", False), ("mon", False)))) > 1


def test_a_triggerer_can_make_it_anew() -> None:
    place, values = Arrival("x").serialize()
    assert place == "xray_pipeline.airflow_ui.arrival.Arrival"
    assert Arrival(**values).dag_id == "x"
    assert Path(arrival.__file__).is_file()
