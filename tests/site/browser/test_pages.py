"""The plugin's pages inside Airflow, on a site where two deliveries came in and nothing was trained: quick to start."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from operated_site import Site, logged_in, plugin_page
from phantoms import deliver
from playwright.sync_api import Browser, Page, expect
from services import Airflow, Failed, running
from webhook import run_webhook

from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import open_store
from xray_pipeline.evaluation.metric_table import Interval
from xray_pipeline.intake import alarms
from xray_pipeline.intake.drift import Channel, Drift
from xray_pipeline.night import intake_steps, nights
from xray_pipeline.night.nights import Arrival, Model, Night
from xray_pipeline.night.run import Run

pytestmark = pytest.mark.timeout(900)

BEGAN = datetime(2026, 1, 1, 2, tzinfo=UTC)
SINCE = "2025-12-19T02:40:00+00:00"


def a_model(version: int | None, accuracy: float) -> Model:
    values = {"accuracy": accuracy, "auc": accuracy + 0.02}
    return Model(version, 1200, {name: Interval(at, at - 0.012, at + 0.01) for name, at in values.items()})


def a_night(day: int) -> Night:
    """Return a night of a made-up past: each fifth is quiet, each seventh failed, else a candidate was refused."""
    at = (BEGAN + timedelta(days=day)).isoformat(timespec="seconds")
    quiet = Night(f"scheduled__{at}", "schedule", at, at, why="nothing new to decide", in_production=1, since=SINCE)
    if day % 5 == 0:
        return quiet
    if day % 7 == 0:
        return replace(quiet, failed={"train": "no batch size fits the device"}, why="", minutes={"train": 2.0})
    alarm = ("pixels",) if day % 11 == 0 else ()
    drift = {"pixels": 0.0004 if alarm else 0.3 + day % 3 / 10, "labels": 0.05 * (day % 9 + 1)}
    counts = {"truncated": day % 4, "duplicate": 2, "lateral": day % 3}
    arrival = Arrival(at[:10], "ingested", 90 + day, counts, alarms=alarm, drift=drift)
    candidate, champion = a_model(None, 0.934 + 0.0004 * day + day % 3 / 500), a_model(1, 0.94 + 0.0004 * day)
    minutes = {"check_delivery": 0.5, "train": 22.0 + day % 6, "evaluate": 3.0}
    judged = {"candidate": candidate, "champion": champion, "verdict": "refused", "minutes": minutes}
    return replace(quiet, deliveries=(arrival,), why="It is not above the champion's.", **judged)


def fill(settings: Settings) -> None:
    """Two deliveries, the second with an alarm that stands; forty nights; nothing was ever registered."""
    run, store = Run(settings), open_store(settings.store, settings)
    deliver(settings, "2026-02-08", range(30), side=96)
    deliver(settings, "2026-02-09", range(30, 50), side=96)
    intake_steps.check_deliveries(run, ["2026-02-08", "2026-02-09"])
    intake_steps.commit_deliveries(run, ["2026-02-08", "2026-02-09"])
    [key] = [entry.key for entry in store.list("intake") if entry.key.endswith("2026-02-09/checked.json")]
    fingerprint = json.loads(store.read(key))["content"]["delivery"]["fingerprint"]
    found = Drift(20, 30, (Channel("features", 0.0004, 0.003, "another kind of picture"),))
    alarms.keep(store, "2026-02-09", fingerprint, found, alarms.FEATURES)
    for day in range(40):
        nights.keep(store, a_night(day))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("pages")
    values = {"XRAY_HOME": str(folder), "XRAY_SETTLE_SECONDS": "0", "XRAY_SCHEDULE": "none", "XRAY_DEVICE": "cpu"}
    values |= {"XRAY_PATIENT_KEY": "demo key, not a secret", "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": USERS}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        fill(Settings())
    with run_webhook() as webhook, running(folder, values) as stack:
        airflow = Airflow(stack)
        airflow.prepare("xray_delivery", seconds=300)
        yield Site(stack, airflow, webhook, json.loads((folder / "passwords.json").read_text()))


USERS = "admin:admin,viewer:viewer"


def ended(site: Site, dag: str) -> tuple[str, dict[str, Any]]:
    """Wait for the newest run of a DAG; return its state and what it was started with."""
    until = time.monotonic() + 300
    while time.monotonic() < until:
        runs = site.airflow.call("GET", f"/dags/{dag}/dagRuns?order_by=-run_after&limit=1")["dag_runs"]
        if runs and runs[0]["state"] in ("success", "failed"):
            return str(runs[0]["state"]), dict(runs[0]["conf"])
        time.sleep(1)
    raise Failed(f"no run of {dag} ended")


def test_nights_are_told_and_drawn(page: Page, site: Site, shoot: Callable[..., None]) -> None:
    shown = plugin_page(page, site, "nights", "Nights of chest-xray")
    expect(shown.locator("tbody tr")).to_have_count(30)
    expect(shown.locator("svg")).to_have_count(6)
    expect(shown.locator("tbody tr").first).to_contain_text("1 delivery, 129 accepted")
    shoot("airflow-nights.png")
    shown.get_by_text("why", exact=True).first.click()
    expect(shown.get_by_text("It is not above the champion's.").first).to_be_visible()
    shown.get_by_role("link", name="365 nights").click()
    expect(shown.locator("tbody tr")).to_have_count(40)


def test_champion_shows_what_stands(page: Page, site: Site) -> None:
    shown = plugin_page(page, site, "champion", "chest-xray")
    expect(shown.locator(".role.champion")).to_contain_text("None yet")
    expect(shown.get_by_text("Drift alarm: features of delivery")).to_be_visible()
    expect(shown.get_by_text("You may look")).to_have_count(0)


def test_an_alarm_is_acknowledged_from_the_deliverys_page(page: Page, site: Site, shoot: Callable[..., None]) -> None:
    shown = plugin_page(page, site, "deliveries", "Deliveries")
    expect(shown.locator("tbody tr")).to_have_count(2)
    expect(shown.locator("tbody tr").first).to_contain_text("Drift alarm: features")
    shoot("airflow-deliveries.png")
    shown.get_by_role("link", name="2026-02-09").click()
    shown.get_by_role("heading", name="Delivery 2026-02-09").wait_for()
    shown.frame_locator("iframe").get_by_text("2026-02-09").first.wait_for()
    shown.get_by_label("Reason").first.fill("a new detector, seen with radiology")
    shoot("airflow-delivery.png")
    shown.get_by_role("button", name="Acknowledge").click()
    shown.get_by_role("link", name="Started").wait_for()
    state, conf = ended(site, "xray_delivery")
    assert (state, conf["reason"]) == ("success", "a new detector, seen with radiology")
    shown = plugin_page(page, site, "deliveries#2026-02-09", "Delivery 2026-02-09")
    expect(shown.get_by_text("acknowledged by admin")).to_be_visible()
    expect(shown.get_by_role("button", name="Acknowledge")).to_have_count(0)


def test_a_viewer_may_look_and_not_act(browser: Browser, site: Site) -> None:
    page = logged_in(browser, site, "viewer")
    shown = plugin_page(page, site, "deliveries#2026-02-08", "Delivery 2026-02-08")
    expect(shown.get_by_text("You may look")).to_be_visible()
    expect(shown.get_by_role("button")).to_have_count(0)
    shown = plugin_page(page, site, "champion", "chest-xray")
    expect(shown.get_by_text("You may look")).to_be_visible()
    expect(shown.get_by_role("button")).to_have_count(0)
    page.close()
