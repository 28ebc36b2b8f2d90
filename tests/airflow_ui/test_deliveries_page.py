"""The page *Deliveries*, as its functions draw it; that Airflow shows it, tests/site/browser says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx import Response

from xray_pipeline.airflow_ui import deliveries_page, links
from xray_pipeline.base import records
from xray_pipeline.base.storage import DirectoryStore, Store, open_store
from xray_pipeline.intake.places import PAGE, VERDICT, intake_key

VERDICT_OF = {"fit": True, "accepted": 7, "quarantined": {"truncated": 2}, "why": "", "warnings": []}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Three deliveries that wait: fit, rejected, and with an alarm."""
    monkeypatch.setenv("XRAY_STORE", str(tmp_path))
    store = open_store(tmp_path)
    for key, changes in {"a": {}, "b": {"fit": False, "why": "an unknown class"}, "c": {}}.items():
        keep(store, key, **changes)
    records.write(store, "intake/c/drift.json", {"fingerprint": "f", "channels": [], "alarms": ["pixels"]})
    return store


def keep(store: Store, key: str, **changes: Any) -> None:
    store.write(intake_key(key, PAGE), f"<p>the intake of {key}</p>".encode())
    records.write(store, intake_key(key, VERDICT), VERDICT_OF | changes)


def asked(path: str) -> Response:
    app = FastAPI()
    app.get("/deliveries")(deliveries_page.show)
    app.get("/deliveries/{key}/intake")(deliveries_page.show_intake)
    return TestClient(app).get(path)


def test_each_row_tells_state_counts_and_alarm(store: Store) -> None:
    page = asked("/deliveries").text
    assert page.count("<b class=") == 4
    assert "fit, waits for the next night" in page
    assert "an unknown class" in page
    assert "Drift alarm: pixels" in page
    assert "7 accepted, 2 quarantined" in page


def test_past_the_end_of_the_list_the_page_says_so(store: Store) -> None:
    page = asked("/deliveries?first=300").text
    assert "The list ends before number 300" in page
    assert "None yet" not in page


def test_one_that_is_being_judged_anew_keeps_its_page(store: Store) -> None:
    store.delete(intake_key("a", VERDICT))
    assert '<b class="being judged">' in asked("/deliveries").text
    answer = asked("/deliveries/a/intake")
    assert (answer.status_code, answer.text) == (200, "<p>the intake of a</p>")


def test_a_damaged_verdict_is_told_and_hides_no_other(store: Store) -> None:
    store.write(intake_key("b", VERDICT), b"{}")
    page = asked("/deliveries").text
    assert "intake/b/checked.json" in page
    assert "Drift alarm: pixels" in page


@pytest.mark.parametrize("key", ["nobody-brought-it", "..%2Fledger"])
def test_what_was_never_judged_has_no_page(store: Store, key: str) -> None:
    assert asked(f"/deliveries/{key}/intake").status_code == 404


def test_many_rows_ask_the_store_for_little(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(47):
        keep(store, f"d{number}")
    asked("/deliveries")  # what alarms it remembers from here on
    calls: Counter[str] = Counter()
    for name in ("list", "exists", "read"):
        counted(monkeypatch, name, calls)
    assert asked("/deliveries").text.count("waits for the next night") == 49
    assert (calls["read"] <= 55, calls["exists"] <= 5, calls["list"] <= 5) == (True, True, True), calls


def counted(monkeypatch: pytest.MonkeyPatch, name: str, calls: Counter[str]) -> None:
    real = getattr(DirectoryStore, name)

    def call(self: DirectoryStore, *args: Any, **options: Any) -> Any:
        calls[name] += 1
        return real(self, *args, **options)

    monkeypatch.setattr(DirectoryStore, name, call)


def test_a_task_keeps_the_address_of_its_deliverys_page() -> None:
    kept: dict[str, str] = {}
    task = SimpleNamespace(op_kwargs={"delivery": "2026-01-01+2"})
    links.DeliveryPage().keep({"ti": SimpleNamespace(xcom_push=kept.__setitem__), "task": task})
    assert kept == {links.DeliveryPage().xcom_key: f"{links.DELIVERIES}#2026-01-01%2B2"}
