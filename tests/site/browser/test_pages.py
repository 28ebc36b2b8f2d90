"""The plugin's pages inside Airflow, on a site where two deliveries came in and nothing was trained: quick to start.

The last tests train a champion there, and a night brings labels that are wrong.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import reviewed
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
from xray_pipeline.night import health, intake_steps, nights, whole
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
    """Two deliveries, the second with an alarm that stands; forty nights; what the newest of them drew for review;
    nothing was ever registered."""
    run, store = Run(settings), open_store(settings.store, settings)
    deliver(settings, "2026-02-08", range(30), side=96)
    deliver(settings, "2026-02-09", range(30, 50), side=96)
    torn = sorted(Path(settings.incoming, "2026-02-09", "NORMAL").iterdir())[0]
    torn.write_bytes(torn.read_bytes()[:-200])
    (torn.parent / "patient0990_1.png").write_bytes(sorted(torn.parent.iterdir())[1].read_bytes())  # a duplicate
    intake_steps.check_deliveries(run, ["2026-02-08", "2026-02-09"])
    intake_steps.commit_deliveries(run, ["2026-02-08", "2026-02-09"])
    [key] = [entry.key for entry in store.list("intake") if entry.key.endswith("2026-02-09/checked.json")]
    fingerprint = json.loads(store.read(key))["content"]["delivery"]["fingerprint"]
    found = Drift(20, 30, (Channel("features", 0.0004, 0.003, "another kind of picture"),))
    alarms.keep(store, "2026-02-09", fingerprint, found, alarms.FEATURES)
    for day in range(40):
        nights.keep(store, a_night(day))
    reviewed.draw(settings)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("pages")
    values = {"XRAY_HOME": str(folder), "XRAY_SETTLE_SECONDS": "0", "XRAY_SCHEDULE": "none", "XRAY_DEVICE": "cpu"}
    values |= {"XRAY_NIGHT_HOURS": "0.002"}  # no night is that fast, so each is reported
    values |= {"XRAY_PATIENT_KEY": "demo key, not a secret", "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": USERS}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        fill(Settings())
    with run_webhook() as webhook, running(folder, {**values, "XRAY_NOTIFY_WEBHOOK": webhook.uri}) as stack:
        airflow = Airflow(stack)
        airflow.prepare("xray_delivery", "xray_amend", "xray_retrain", "xray_watch", seconds=300)
        yield Site(stack, airflow, webhook, json.loads((folder / "passwords.json").read_text()))


USERS = "admin:admin,viewer:viewer"


def ended(site: Site, dag: str, count: int = 1) -> tuple[str, dict[str, Any]]:
    """Wait for so many runs of a DAG; return the state of the newest and what it was started with."""
    until = time.monotonic() + 300
    while time.monotonic() < until:
        runs = site.airflow.call("GET", f"/dags/{dag}/dagRuns?order_by=-run_after&limit={count}")["dag_runs"]
        if len(runs) == count and runs[0]["state"] in ("success", "failed"):
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


def test_a_suspect_is_relabelled_from_the_page_and_another_agreed_with(
    page: Page, site: Site, shoot: Callable[..., None]
) -> None:
    shown = plugin_page(page, site, "review", "Review")
    expect(shown.locator(".cards li")).to_have_count(3)
    expect(shown.locator(".cards li").first).to_contain_text("says NORMAL 0.97")
    shown.locator(".cards a").first.click()
    expect(shown.locator(".look img")).to_have_js_property("complete", True)
    assert shown.locator(".look img").evaluate("picture => picture.naturalWidth") == 96
    expect(shown.locator(".maps img").first).to_be_visible()
    expect(shown.locator(".alike a")).to_have_count(4)
    page.keyboard.press("z")
    expect(shown.locator(".zoom")).to_be_checked()
    page.keyboard.press("z")
    shoot("airflow-review.png")
    page.keyboard.press("ArrowRight")
    expect(shown.get_by_text("2 of 3")).to_be_visible()
    page.keyboard.press("ArrowLeft")
    expect(shown.get_by_text("1 of 3")).to_be_visible()
    page.keyboard.press("r")
    page.keyboard.type("seen with a colleague: no infiltrate")
    page.keyboard.press("Enter")
    expect(shown.get_by_text("Relabel to NORMAL: asked for")).to_be_visible()
    state, conf = ended(site, "xray_amend")
    assert (state, conf["action"], conf["label"]) == ("success", "relabel", "NORMAL")
    expect(shown.get_by_text("Relabel to NORMAL: done")).to_be_visible()
    expect(shown.get_by_text("relabel to NORMAL by admin")).to_be_visible()
    expect(shown.get_by_text("Labelled NORMAL, train")).to_be_visible()
    page.keyboard.press("n")
    expect(shown.get_by_text("1 of 2")).to_be_visible()
    page.keyboard.press("a")
    page.keyboard.press("Enter")
    expect(shown.get_by_text("2 of 2")).to_be_visible()  # the next one comes by itself
    state, conf = ended(site, "xray_amend", 2)
    assert (state, conf["action"], conf["label"]) == ("success", "agree", "PNEUMONIA")
    page.keyboard.press("Escape")
    expect(shown.locator(".cards li")).to_have_count(1)


def test_what_else_there_is_to_review(page: Page, site: Site) -> None:
    shown = plugin_page(page, site, "review", "Review")
    shown.get_by_role("link", name="Disagreements").click()
    expect(shown.locator(".cards li").first).to_contain_text("champion PNEUMONIA")
    shown.get_by_role("link", name="Quarantine").click()
    shown.get_by_role("link", name="duplicate").click()
    expect(shown.locator(".cards img")).to_have_count(1)
    shown.locator(".cards a").click()
    expect(shown.locator(".look img")).to_have_js_property("naturalWidth", 96)
    page.keyboard.press("Escape")
    shown.get_by_role("link", name="All that is quarantined").click()
    shown.get_by_role("link", name="truncated").click()
    expect(shown.get_by_text("no picture")).to_be_visible()
    shown.get_by_role("link", name="Amendments").click()
    expect(shown.locator("tbody tr")).to_have_count(1)
    expect(shown.locator("tbody tr").first).to_contain_text("seen with a colleague: no infiltrate")
    assert "patient0" not in shown.inner_text()


def test_a_viewer_may_look_and_not_act(browser: Browser, site: Site) -> None:
    page = logged_in(browser, site, "viewer")
    shown = plugin_page(page, site, "deliveries#2026-02-08", "Delivery 2026-02-08")
    expect(shown.get_by_text("You may look")).to_be_visible()
    expect(shown.get_by_role("button")).to_have_count(0)
    shown = plugin_page(page, site, "champion", "chest-xray")
    expect(shown.get_by_text("You may look")).to_be_visible()
    expect(shown.get_by_role("button")).to_have_count(0)
    shown = plugin_page(page, site, "review", "Review")
    shown.locator(".cards a").first.click()
    expect(shown.get_by_text("You may look")).to_be_visible()
    expect(shown.get_by_role("button")).to_have_count(0)
    page.close()


def test_an_address_of_nothing_says_so(page: Page, site: Site) -> None:
    page.goto(f"{site.stack.airflow}/plugin/xray-deliveries#nobody-brought-it")
    page.reload()  # another # alone loads nothing anew
    expect(page.get_by_test_id("xray-deliveries")).to_contain_text("No page: there is nothing of that name.")


def test_a_forged_call_is_refused(site: Site) -> None:
    login = {"username": "viewer", "password": site.passwords["viewer"]}
    token = httpx.post(f"{site.stack.airflow}/auth/token", json=login, timeout=60).json()["access_token"]
    conf = {"action": "withdraw", "subject": "0" * 64, "reason": "I would like to"}
    asked = {"json": {"logical_date": None, "conf": conf}, "headers": {"Authorization": f"Bearer {token}"}}
    answer = httpx.post(f"{site.stack.airflow}/api/v2/dags/xray_amend/dagRuns", timeout=60, **asked)
    assert answer.status_code == 403
    runs = site.airflow.call("GET", "/dags/xray_amend/dagRuns")["dag_runs"]
    assert all(run["conf"]["reason"] != "I would like to" for run in runs)
    for path in ("review", f"review/{'0' * 64}", f"review/pictures/{'0' * 64}", "review/files/2026-02-09/0/picture"):
        assert httpx.get(f"{site.stack.airflow}/xray/{path}", timeout=60).status_code == 401


QUICK = str(Path(__file__).parent / "quick.toml")


@contextmanager
def settings_of(site: Site) -> Iterator[Settings]:
    """What the site's tasks are told, and where its Airflow is."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in site.stack.environment.items():
            if name.startswith("XRAY_"):
                patch.setenv(name, value)
        where = {"airflow_url": site.stack.airflow, "airflow_user": site.stack.user}
        yield Settings(**where, airflow_password=site.stack.password)


def ill(site: Site) -> dict[str, str]:
    """The parts that `xray health` finds not to be well."""
    with settings_of(site) as settings:
        return {part.part: part.text for part in health.check(settings) if not part.well}


def test_a_pool_without_slots_is_no_well_night(site: Site) -> None:
    for slots in (0, 1):
        pool = {"pool": "gpu", "slots": slots, "include_deferred": False}
        site.airflow.call("PATCH", "/pools/gpu?update_mask=slots", pool)
        assert ("no pool 'gpu' with a slot" in ill(site).get("night", "")) == (slots == 0)


def _files(settings: Settings, delivery: str) -> list[Path]:
    return sorted(Path(settings.incoming, delivery).glob("*/*"))


def _moved(file: Path, place: Path) -> None:
    """Move a file to another place of its delivery."""
    target = file.parents[1] / place
    target.mkdir(parents=True, exist_ok=True)
    file.rename(target / file.name)


@pytest.fixture(scope="module")
def alarmed(site: Site) -> str:
    """A night's run: its two deliveries have a third of their labels flipped, and the champion had learned before."""
    with settings_of(site) as settings:
        changed = {"recipe": QUICK, "promotion": "auto"}
        deliver(settings, "2026-02-10", range(100, 300), side=96, severity=2)
        for number, file in enumerate(_files(settings, "2026-02-10")):  # a half is held out, so much is promised
            _moved(file, Path("test" if number % 2 else "train", file.parent.name))
        whole.whole(Run(settings.model_copy(update=changed), who="schedule"))
        for name, numbers in {"2026-02-11": range(400, 480), "2026-02-12": range(480, 560)}.items():
            deliver(settings, name, numbers, side=96, severity=2)
            for file in _files(settings, name)[::3]:
                [other] = set(settings.classes) - {file.parent.name}
                _moved(file, Path(other))
    weak = {"recipe": QUICK, "epochs": 1, "overrides": "levels=false\npenalty=100000"}
    run = site.airflow.trigger("xray_retrain", weak)
    site.airflow.finished("xray_retrain", run)
    return run


SAID = "Version 1 is no longer as good as it was when held out"


def test_wrong_labels_raise_the_alarm_in_a_night(
    page: Page, site: Site, alarmed: str, shoot: Callable[..., None]
) -> None:
    looked = site.airflow.returned("xray_retrain", alarmed, "look_ahead")
    assert looked["alarm"].startswith(SAID)
    site.airflow.reached(lambda: "told" if "missed night" in site.events() else "not yet", ("told",))
    (told,) = [sent for sent in site.webhook.received if sent["event"] == "alarm"]
    assert str(told["text"]).startswith(SAID)
    assert str(told["text"]).endswith("/plugin/xray-champion")
    assert ill(site)["champion"].startswith(SAID)
    shown = plugin_page(page, site, "nights", "Nights of chest-xray")
    expect(shown.locator(".warning")).to_contain_text(SAID)
    expect(shown.locator("tbody tr").first).to_contain_text(SAID)
    expect(shown.locator("figure").first).to_contain_text("Champion on new patients")
    shown = plugin_page(page, site, "champion", "chest-xray")
    expect(shown.locator(".warning").first).to_contain_text(SAID)
    shoot("airflow-alarm.png")


@pytest.mark.usefixtures("alarmed")
def test_nobody_but_an_operator_acknowledges_the_alarm(browser: Browser, site: Site) -> None:
    page = logged_in(browser, site, "viewer")
    shown = plugin_page(page, site, "champion", "chest-xray")
    expect(shown.locator(".warning").first).to_contain_text(SAID)
    expect(shown.get_by_text("You may look")).to_be_visible()
    expect(shown.get_by_role("button")).to_have_count(0)
    page.close()
    address = f"{site.stack.airflow}/api/v2/dags/xray_watch/dagRuns"
    asked = {"logical_date": None, "conf": {"reason": "I would like to"}}
    login = {"username": "viewer", "password": site.passwords["viewer"]}
    token = httpx.post(f"{site.stack.airflow}/auth/token", json=login, timeout=60).json()["access_token"]
    for said, status in (("", 401), ("forged", 403), (token, 403)):
        headers = {"Authorization": f"Bearer {said}"} if said else {}
        assert httpx.post(address, json=asked, headers=headers, timeout=60).status_code == status
    assert site.airflow.call("GET", "/dags/xray_watch/dagRuns")["total_entries"] == 0


@pytest.mark.usefixtures("alarmed")
def test_the_alarm_is_acknowledged_from_the_champions_page(page: Page, site: Site) -> None:
    shown = plugin_page(page, site, "champion", "chest-xray")
    form = shown.locator("form[data-dag=xray_watch]")
    form.get_by_label("Reason").fill("a trainee's labels, looked at with radiology")
    form.get_by_role("button", name="Acknowledge").click()
    form.get_by_role("link", name="Started").wait_for()
    assert ended(site, "xray_watch")[0] == "success"
    shown = plugin_page(page, site, "champion", "chest-xray")
    told = shown.locator("p", has_text="The last alarm was acknowledged by admin on")
    expect(told).to_contain_text("a trainee's labels, looked at with radiology")
    expect(shown.get_by_text(SAID)).to_have_count(0)
    expect(shown.locator("form[data-dag=xray_watch]")).to_have_count(0)
    assert "champion" not in ill(site)
    again = site.airflow.trigger("xray_watch", {"reason": "a second time"})
    assert site.airflow.reached(lambda: site.airflow.state("xray_watch", again), ("success", "failed")) == "failed"
