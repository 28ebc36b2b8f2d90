"""The page *Nights*, as its function draws it; that Airflow shows it, tests/site/browser says."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import unquote

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from xray_pipeline.airflow_ui import charts, nights_page
from xray_pipeline.base.storage import Store, open_store
from xray_pipeline.evaluation.metric_table import Interval
from xray_pipeline.evaluation.watching import Delivery
from xray_pipeline.night import nights
from xray_pipeline.night.nights import Arrival, Model, Night
from xray_pipeline.night.watching import Watched

BEGAN = datetime(2026, 1, 1, 2, tzinfo=UTC)


def night(day: int) -> Night:
    at = (BEGAN + timedelta(days=day)).isoformat(timespec="milliseconds")
    arrival = Arrival("first", "ingested", 40 + day, {"truncated": 2, "lateral": 1}, drift={"pixels": 0.2})
    scored = Model(None, 900, {"accuracy": Interval(0.9, 0.88, 0.92), "auc": Interval(0.97, 0.95, 0.99)})
    about = {"candidate": scored, "champion": replace(scored, version=7), "verdict": "refused"}
    late = {"why": "It is below the champion's.", "in_production": 7, "since": at, "minutes": {"train": 30.0}}
    return Night(f"night {day}", "schedule", at, at, (arrival,), **about, **late)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("XRAY_STORE", str(tmp_path))
    return open_store(tmp_path)


def drawn(**query: str) -> str:
    app = FastAPI()
    app.get("/nights")(nights_page.show)
    answer = TestClient(app).get("/nights", params=query)
    assert answer.status_code == 200, answer.text
    return str(answer.text)


def test_a_site_without_nights_says_so(store: Store) -> None:
    assert "None yet" in drawn()


def test_a_row_a_night_and_the_newest_first(store: Store) -> None:
    for day in range(3):
        nights.keep(store, night(day))
    page = drawn()
    assert re.findall(r'class="when">(\S+)', page) == ["2026-01-03", "2026-01-02", "2026-01-01"]
    assert "1 delivery, 42 accepted, 3 quarantined; candidate .900 refused against .900; champion 7 since" in page
    assert "/dags/xray_retrain/runs/night%202" in page
    assert page.count("/xray/runs/xray_retrain/night%202") == 1  # its report, without Airflow around it
    assert page.count("<svg") == 6
    assert "<script" not in page


def test_a_span_ends_and_the_older_nights_follow(store: Store) -> None:
    for day in range(32):
        nights.keep(store, night(day))
    page = drawn()
    assert page.count('class="when"') == 30
    [older] = set(re.findall(r'before=([^"&]+)"', page))
    assert drawn(before=unquote(older)).count('class="when"') == 2
    assert drawn(span="90").count('class="when"') == 32
    assert "No night began before 2025-12-31 02:00 UTC" in drawn(before="2025-12-31T02:00:00+00:00")


def test_a_damaged_record_is_told(store: Store) -> None:
    nights.keep(store, night(0))
    for entry in [*store.list(nights.RECORDS), *store.list(nights.MONTHS)]:
        store.write(entry.key, store.read(entry.key).replace(b"truncated", b"trampled!"))
    assert "is not shown: nights/records/2026-01" in drawn()


def test_what_a_record_says_is_text(store: Store) -> None:
    nights.keep(store, replace(night(0), failed={"train": '<b title="bold">loud</b>'}))
    assert "&lt;b title=&#34;bold&#34;&gt;loud" in drawn()


def test_charts_of_one_quiet_night_say_that_there_is_nothing(store: Store) -> None:
    quiet = replace(night(0), deliveries=(), candidate=None, champion=None, minutes={})
    assert [chart.ticks for chart in charts.of_nights([quiet])] == [()] * 6


def test_an_axis_marks_no_accuracy_above_one() -> None:
    best = Model(1, 10, {"accuracy": Interval(0.999, 0.99, 1.0), "auc": Interval(1.0, 1.0, 1.0)})
    for chart in charts.of_nights([replace(night(0), candidate=best, champion=None)])[:2]:
        assert all(float(text) <= 1 for _, text in chart.ticks)
        assert all(charts.TOP <= mark.high <= mark.y <= mark.low <= charts.BOTTOM for mark in chart.marks)


def test_an_axis_from_nothing_begins_at_0() -> None:
    assert charts.of_nights([replace(night(0), minutes={"train": 0.5})])[5].ticks[0][1] == "0"


def test_one_of_a_kind_is_no_plural() -> None:
    drifted = replace(night(0), deliveries=(Arrival("a", "ingested", 1, drift={"pixels": 1e-5}, alarms=("pixels",)),))
    said = [chart.says for chart in charts.of_nights([replace(drifted, champion=None)])]
    assert said[0] == "Held-out accuracy: 1 measurement, the newest 0.900."
    assert said[4] == "Drift of deliveries, p: 1 comparison, 1 alarm."


def test_bars_of_a_night_stand_on_each_other() -> None:
    bars = charts.of_nights([night(0)])[3].bars
    assert [bar.says for bar in bars] == ["2026-01-01: truncated 2", "2026-01-01: lateral 1"]
    assert bars[0].y == pytest.approx(bars[1].y + bars[1].height)
    assert bars[0].y + bars[0].height == pytest.approx(charts.BOTTOM)


def test_the_champions_record_is_drawn_with_its_confidence_sequence() -> None:
    shown = tuple(Delivery(f"d{n}", f"2026-03-{n + 1:02d}T02:00:00", 60, 50, 0.9, 0.8, 0.95, 0.0) for n in range(9))
    record = Watched(1, "c", "", "No alarm about version 1.", 0.92, (*shown, replace(shown[0], accuracy=None)))
    found = charts.of_record(record, 8)
    assert [kind for kind, _ in found.lines] == ["promised", "sequence", "sequence"]
    assert ([mark.kind for mark in found.marks], len(found.days)) == (["champion"] * 7, 3)
    fallen = charts.of_record(replace(record, alarm="Version 1 is no longer ..."), 8)
    assert {mark.kind for mark in fallen.marks} == {"alarm"}
    assert charts.of_record(replace(record, deliveries=()), 8).ticks == ()
