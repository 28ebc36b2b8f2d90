"""A person at the screen: a night through the form, its report, an approval, a rollback; in the order of this file."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import demo
import httpx
import pytest
from operated_site import Site, logged_in, plugin_page
from playwright.sync_api import Browser, Locator, Page, expect
from samples import png
from services import Failed

pytestmark = pytest.mark.timeout(900)  # whole nights, on whatever cores there are

Shoot = Callable[..., None]


def open_form(page: Page, site: Site, dag: str) -> Locator:
    page.goto(f"{site.stack.airflow}/dags/{dag}")
    page.get_by_role("button", name="Trigger").first.click()
    dialog = page.get_by_role("dialog")
    dialog.locator("[name^='element_']").first.wait_for()
    return dialog


def send(dialog: Locator, site: Site, dag: str) -> str:
    """Press the form's button; return the run's id."""
    before: int = site.airflow.call("GET", f"/dags/{dag}/dagRuns")["total_entries"]
    dialog.get_by_role("button", name="Trigger").click()
    return site.airflow.newest_run(dag, before + 1)


def champion_page(page: Page, site: Site) -> Locator:
    return plugin_page(page, site, "champion", "chest-xray")


def clicked(page: Page, site: Site, *names: str) -> Page:
    """Click from Airflow's first page on links and buttons by what is written on them, and return the page that the
    last one opened. Three clicks answer each question of docs/operations.md."""
    assert len(names) <= 3
    page.goto(site.stack.airflow)
    for name in names:
        role = page.get_by_role("link", name=name, exact=True).or_(page.get_by_role("button", name=name, exact=True))
        target = role.or_(page.locator("summary", has_text=re.compile(f"^{name}$"))).first
        if target.get_attribute("target") == "_blank":
            with page.context.expect_page() as opened:
                target.click()
            page = opened.value
        else:
            target.click()
    return page


def test_a_night_is_started_through_the_form(page: Page, site: Site, shoot: Shoot) -> None:
    site.deliver("2026-01-01")
    form = open_form(page, site, "xray_retrain")
    incoming = form.locator("[name='element_incoming']")
    configured = incoming.input_value()
    incoming.fill("s3://hospital/deliveries")  # not this machine's temporary folder, in the picture
    shoot("airflow-trigger.png")
    incoming.fill(configured)
    form.locator("[name='element_epochs']").fill("3")
    form.locator("[name='element_overrides']").fill(demo.PLAIN)  # a model that can be bettered
    form.get_by_role("combobox").last.fill("auto")
    page.keyboard.press("Enter")
    expect(form.locator("[name='element_promotion']")).to_have_value("auto")
    run = send(form, site, "xray_retrain")
    site.airflow.finished("xray_retrain", run)
    said: dict[str, Any] = site.airflow.returned("xray_retrain", run, "conclude")
    assert said["alias"] == "champion", said["message"]
    site.airflow.finished("xray_promote", site.airflow.newest_run("xray_promote"))
    assert site.airflow.task_state("xray_promote", site.airflow.newest_run("xray_promote"), "prepare") == "skipped"


def test_the_run_shows_its_report(page: Page, site: Site, shoot: Shoot) -> None:
    site.deliver("2026-01-02")
    run = site.airflow.trigger("xray_retrain", {"overrides": demo.QUICK})
    site.airflow.finished("xray_retrain", run)
    page.goto(f"{site.stack.airflow}/dags/xray_retrain/runs/{quote(run)}")
    page.get_by_role("link", name="Report").wait_for()
    shoot("airflow-run.png")
    page.get_by_role("link", name="Report").click()
    report = page.frame_locator("iframe[title=Report]")
    expect(report.get_by_role("heading", level=1)).to_contain_text("chest-xray")
    expect(report.get_by_text("is above the champion's").first).to_be_visible()
    assert page.url.endswith("/plugin/xray-report")  # where notifications lead
    shoot("airflow-report.png")
    report.get_by_role("link", name="2026-01-02").first.click()  # of the record, of the deliveries
    expect(report.get_by_role("heading", name="Delivery 2026-01-02")).to_be_visible()


def test_a_check_leads_to_its_deliverys_page(page: Page, site: Site) -> None:
    run = site.airflow.newest_run("xray_retrain")
    path = f"/dags/xray_retrain/dagRuns/{quote(run)}/taskInstances/check_delivery/links?map_index=0"
    address = site.airflow.call("GET", path)["extra_links"]["Delivery"]
    page.goto(address)
    expect(page.get_by_role("heading", name="Delivery 2026-01-02")).to_be_visible()
    intake = page.get_by_test_id("xray-deliveries").frame_locator("iframe")
    expect(intake.get_by_text("truncated").first).to_be_visible()


def test_nights_are_told_and_drawn(page: Page, site: Site, shoot: Shoot) -> None:
    shown = plugin_page(page, site, "nights", "Nights of chest-xray")
    expect(shown.locator("tbody tr")).to_have_count(2)
    expect(shown.locator("tbody tr").first).to_contain_text("1 delivery, ")
    expect(shown.locator("tbody tr").first).to_contain_text("registered as version 2, waits; champion 1 since")
    assert shown.locator("svg").count() >= 4
    notes = [
        run["note"] for run in site.airflow.call("GET", "/dags/xray_retrain/dagRuns?order_by=run_after")["dag_runs"]
    ]
    assert notes[1].startswith("registered: 1 delivery, ")


def waiting_request(site: Site) -> str:
    """Wait for xray_promote to ask; return the run's id."""
    run = site.airflow.newest_run("xray_promote", 2)  # the first night promoted by itself
    asked(site, run)
    return run


def asked(site: Site, run: str) -> None:
    """Wait for a run of xray_promote to ask: deferred, so it holds no worker."""
    assert site.airflow.paused("xray_promote", run, "approve") == "deferred"


def test_nobody_but_an_approver_may_answer(browser: Browser, site: Site) -> None:
    run = waiting_request(site)
    other = logged_in(browser, site, "clerk")
    shown = champion_page(other, site)
    expect(shown.get_by_text("You may not answer it: admin may.")).to_be_visible()
    with other.context.expect_page() as opened:
        shown.get_by_role("link", name="The request about version 2").click()
    request = opened.value
    expect(request.get_by_text("Only admin may answer").first).to_be_visible()
    other.context.close()
    login = {"username": "clerk", "password": site.passwords["clerk"]}
    token = httpx.post(f"{site.stack.airflow}/auth/token", json=login, timeout=60).json()["access_token"]
    path = f"/api/v2/dags/xray_promote/dagRuns/{quote(run)}/taskInstances/approve/-1/hitlDetails"
    answer = {"chosen_options": ["Approve"], "params_input": {"reason": "I would like to"}}
    headers = {"Authorization": f"Bearer {token}"}
    assert httpx.patch(site.stack.airflow + path, json=answer, headers=headers, timeout=60).status_code == 403
    assert site.airflow.task_state("xray_promote", run, "approve") == "deferred"


def test_a_person_approves_and_the_champion_changes(page: Page, site: Site, shoot: Shoot) -> None:
    run = waiting_request(site)
    shown = champion_page(page, site)
    expect(shown.locator(".role.champion")).to_contain_text("Version 1")
    expect(shown.locator(".role.challenger")).to_contain_text("Version 2")
    expect(shown.get_by_role("link", name="Approve or reject version 2")).to_be_visible()
    expect(shown.get_by_text("Both on the same")).to_be_visible()
    expect(shown.locator(".role.challenger .difference").first).to_contain_text("+")
    shoot("airflow-champion.png")

    request = clicked(page, site, "Champion", "Approve or reject version 2")  # and the third is "Approve"
    expect(request.get_by_text("Promote version 2 to production?").first).to_be_visible()
    expect(request.get_by_text("recipe, threshold rule, training data.").first).to_be_visible()
    paint = "button => getComputedStyle(button).backgroundColor"
    assert len({request.get_by_role("button", name=name).evaluate(paint) for name in ("Approve", "Reject")}) == 1
    shoot("airflow-approve.png", page=request)
    request.locator("[name='element_reason']").fill("the report is convincing")
    again = site.airflow.trigger("xray_promote", {"version": 2})
    asked(site, again)  # the same question a second time
    request.get_by_role("button", name="Approve", exact=True).click()
    site.airflow.finished("xray_promote", run)
    request.close()
    with pytest.raises(Failed, match="answered 409"):
        site.airflow.answer("xray_promote", run, "approve", "Reject", "no, after all")
    site.airflow.finished("xray_promote", again)  # by itself: the champion is another now
    assert "the champion is now version 2" in site.airflow.returned("xray_promote", again, "record")["why"]
    assert site.airflow.task_state("xray_promote", again, "promote") == "skipped"

    shown = champion_page(page, site)
    expect(shown.locator(".role.champion")).to_contain_text("Version 2")
    expect(shown.locator(".role.champion")).to_contain_text("the report is convincing")
    page.goto(f"{site.stack.mlflow}/#/models/chest-xray/versions/2")
    expect(page.get_by_text("champion").first).to_be_visible()
    expect(page.get_by_text("promoted by admin: the report is convincing").first).to_be_visible()
    shoot("mlflow-version.png")


def test_two_versions_are_compared(page: Page, site: Site) -> None:
    clicked(page, site, "Champion")
    form = page.locator("form[data-dag=xray_compare]")
    form.locator("[name=version]").select_option("1")
    form.locator("[name=against]").select_option("2")
    form.get_by_role("button", name="Compare").click()
    form.get_by_role("link", name="Started").click()
    site.airflow.finished("xray_compare", site.airflow.newest_run("xray_compare"))
    page.reload()
    report = page.frame_locator("iframe[title=Report]")
    expect(report.get_by_role("heading", level=1)).to_contain_text("chest-xray")
    expect(report.get_by_text("Version: 1").first).to_be_visible()
    assert len(site.airflow.call("GET", "/assets/events")["asset_events"]) == 4  # nothing is decided by it


@pytest.mark.usefixtures("page")  # skipped with those that come before it
def test_a_refused_night_leaves_the_champion_and_a_note(site: Site) -> None:
    misspelt = site.stack.folder / "incoming" / "misspelt" / "PNEUMONA"
    misspelt.mkdir(parents=True)
    (misspelt / "a.png").write_bytes(png())
    weak = {"overrides": f"{demo.PLAIN}\npenalty=100000"}
    run = site.airflow.trigger("xray_retrain", weak)
    site.airflow.finished("xray_retrain", run)
    assert site.airflow.returned("xray_retrain", run, "conclude")["decision"]["verdict"] == "refused"
    assert site.airflow.task_state("xray_retrain", run, "register") == "skipped"
    note = site.airflow.call("GET", f"/dags/xray_retrain/dagRuns/{quote(run)}")["note"]
    assert note.startswith("refused: 1 delivery")
    assert "rejected: misspelt" in note


def test_a_rollback_to_what_never_was_champion_fails(site: Site) -> None:
    run = site.airflow.trigger("xray_rollback", {"version": 99, "reason": "a slip of the finger"})
    assert site.airflow.reached(lambda: site.airflow.state("xray_rollback", run), ("success", "failed")) == "failed"


def test_a_person_rolls_back(page: Page, site: Site, shoot: Shoot) -> None:
    form = open_form(page, site, "xray_rollback")
    form.locator("[name='element_reason']").fill("complaints from ward 3")
    shoot("airflow-rollback.png")
    form = clicked(page, site, "Champion").locator("form[data-dag=xray_rollback]")
    form.get_by_label("Reason").fill("complaints from ward 3")
    form.get_by_role("button", name="Roll back").click()
    form.get_by_role("link", name="Started").wait_for()
    site.airflow.finished("xray_rollback", site.airflow.newest_run("xray_rollback", 2))
    shown = champion_page(page, site)
    expect(shown.locator(".role.champion")).to_contain_text("Version 1")
    expect(shown.locator("tbody tr").first).to_contain_text("rolled-back version 1")
    expect(shown.locator("tbody tr").first).to_contain_text("complaints from ward 3")
    shoot("airflow-history.png")
    page.goto(f"{site.stack.mlflow}/#/models/chest-xray")
    expect(page.get_by_text("Version 2").first).to_be_visible()


def test_a_rejected_version_is_reopened_from_the_page(page: Page, site: Site) -> None:
    shown = champion_page(page, site)
    shown.get_by_role("button", name="Ask").click()
    shown.get_by_role("link", name="Started").wait_for()
    run = site.airflow.newest_run("xray_promote", 4)
    asked(site, run)
    site.airflow.answer("xray_promote", run, "approve", "Reject", "the ward asks to wait")
    site.airflow.finished("xray_promote", run)
    shown = champion_page(page, site)
    shown.get_by_label("Reason").first.fill("the ward has looked at it")
    shown.get_by_role("button", name="Reopen").click()
    shown.get_by_role("link", name="Started").wait_for()
    asked(site, site.airflow.newest_run("xray_promote", 5))
    shown = champion_page(page, site)
    expect(shown.locator("tbody tr").first).to_contain_text("reopened version 2")
    expect(shown.locator("tbody tr").first).to_contain_text("the ward has looked at it")
    expect(shown.get_by_role("link", name="Approve or reject version 2")).to_be_visible()


@pytest.mark.parametrize(
    ("clicks", "place", "said"),
    [
        pytest.param(["Nights"], "tbody tr >> nth=0", "refused 1 delivery, ", id="what happened last night"),
        pytest.param(["Nights", "why"], "details[open]", "is not above the champion's", id="why was it refused"),
        pytest.param(["Champion"], ".role.champion", "Version 1", id="which version serves"),
        pytest.param(["Deliveries", "2026-01-02"], "main > p", "1 truncated", id="what was quarantined and why"),
        pytest.param(["Nights"], "figure", "Drift of deliveries", id="is there drift"),
        pytest.param(["Nights", "365 nights"], "figure", "Held-out accuracy", id="how did accuracy go this year"),
        pytest.param(["Champion"], "tbody tr", "approved version 2 admin", id="who decided"),
    ],
)
def test_a_question_is_answered_within_three_clicks(
    page: Page, site: Site, clicks: list[str], place: str, said: str
) -> None:
    """What is compared, promoted and rolled back is clicked in the tests above."""
    expect(clicked(page, site, *clicks).locator(place).filter(has_text=said).first).to_be_visible()


def test_what_was_notified(page: Page, site: Site) -> None:
    told = site.webhook.received
    asked = ["approval wanted", "approval wanted"]
    night = ["rejected", "refused", "failed", "rolled back"]
    assert [sent["event"] for sent in told] == ["promoted", *asked, "promoted", *night, *asked]
    texts = {str(sent["event"]): str(sent["text"]) for sent in told}
    assert texts["rejected"].startswith("Delivery misspelt is rejected: ")
    assert texts["rejected"].endswith("/plugin/xray-deliveries#misspelt")
    for event, page_of in {"refused": "/plugin/xray-report", "approval wanted": "/required_actions"}.items():
        assert re.search(r"accuracy 0\.\d+ against version \d's 0\.\d+: [+-]0\.\d+ \(", texts[event])
        assert texts[event].endswith(page_of)


def test_the_asset_graph_carries_the_versions(page: Page, site: Site) -> None:
    events = site.airflow.call("GET", "/assets/events?order_by=timestamp")["asset_events"]
    seen = [(event["name"], event["source_dag_id"], event["extra"]["version"]) for event in events]
    assert seen == [
        ("xray-registered", "xray_retrain", 1),
        ("xray-champion", "xray_retrain", 1),
        ("xray-registered", "xray_retrain", 2),
        ("xray-champion", "xray_promote", 2),
        ("xray-champion", "xray_rollback", 1),
    ]


@pytest.mark.parametrize(
    "path",
    [
        "champion",
        "nights",
        "deliveries",
        "deliveries/x",
        "review",
        "page.js",
        f"reports/{'0' * 64}/none",
        "runs/xray_retrain/x",
    ],
)
def test_pages_ask_for_airflows_login(site: Site, path: str) -> None:
    address = f"{site.stack.airflow}/xray/{path}"
    assert httpx.get(address, timeout=60).status_code == 401
    assert httpx.get(address, headers={"Authorization": "Bearer forged"}, timeout=60).status_code == 403


@pytest.mark.parametrize(
    "path",
    [
        f"reports/{'0' * 64}/none",
        "reports/..%2F..%2Fledger/1",
        f"reports/{'0' * 64}/..%2F..",
        "runs/..%2F..%2Fetc/passwd",
        "deliveries/nobody-brought-it",
        "deliveries/..%2F..%2Fledger/intake",
        "nights?span=31",
        "champion?before=../../etc",
        "review?tab=ledger",
        "docs",
        "openapi.json",
    ],
)
def test_what_is_not_there_is_not_found(site: Site, path: str) -> None:
    answer = get(site, path)
    assert answer.status_code in (404, 422)
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")


def test_a_page_may_load_and_run_nothing(site: Site) -> None:
    policy = get(site, "champion").headers["Content-Security-Policy"]
    assert "script-src" not in policy
    assert "unsafe" not in policy


def test_a_report_may_load_and_run_nothing(page: Page, site: Site) -> None:
    run = site.airflow.newest_run("xray_retrain")
    policy = get(site, f"runs/xray_retrain/{quote(run)}").headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert policy.endswith("sandbox allow-same-origin")  # and no allow-scripts


def get(site: Site, path: str) -> httpx.Response:
    """Ask for a page of the plugin, logged in."""
    headers = dict(site.airflow.client.headers)
    return httpx.get(f"{site.stack.airflow}/xray/{path}", headers=headers, timeout=60)
