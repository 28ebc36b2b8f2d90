"""Airflow, MLflow and a headless Chromium, all real, on the phantoms of `make demo` and under the default policy.

CHROMIUM names the browser; the default is /usr/bin/chromium (Debian: apt-get install chromium). With --screenshots the
pictures of the README and of docs/operations.md are taken on the way.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import demo
import pytest
from operated_site import Site, logged_in
from PIL import Image
from playwright.sync_api import Browser, FloatRect, Page, expect, sync_playwright
from services import Airflow, running
from webhook import run_webhook

ROOT = Path(__file__).resolve().parents[3]
CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
expect.set_options(timeout=60_000)  # of its own it waits 5 seconds, which an app that loads may take

DAGS = ("xray_retrain", "xray_promote", "xray_rollback", "xray_compare", "xray_delivery")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Both services with two deliveries to come; users admin, who may approve, clerk, who may not, and a viewer."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "incoming").mkdir()
    demo.phantom.lay(folder / "waiting", patients=demo.PATIENTS, mildest=demo.MILDEST)
    with run_webhook() as webhook:
        settings = {
            "XRAY_HOME": str(folder),
            "XRAY_SETTLE_SECONDS": "0",
            "XRAY_SCHEDULE": "none",
            "XRAY_DEVICE": "cpu",
            "XRAY_PATIENT_KEY": "demo key, not a secret",  # always the same split
            "XRAY_APPROVERS": '["admin"]',
            "XRAY_NOTIFY_WEBHOOK": webhook.uri,
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin,clerk:op,viewer:viewer",
        }
        with running(folder, settings) as stack:
            airflow = Airflow(stack)
            airflow.prepare(*DAGS)
            yield Site(stack, airflow, webhook, json.loads((folder / "passwords.json").read_text()))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium."""
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}; install Debian's chromium, or name one in CHROMIUM")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def page(browser: Browser, site: Site) -> Page:
    """A page of somebody logged in to Airflow as admin."""
    return logged_in(browser, site, "admin")


@pytest.fixture
def shoot(request: pytest.FixtureRequest, page: Page) -> Callable[..., None]:
    """Save a picture in docs/, with --screenshots; a palette of 128 colours keeps it small."""

    def save(name: str, clip: FloatRect | None = None, page: Page = page) -> None:
        if not request.config.getoption("--screenshots"):
            return
        page.wait_for_timeout(3000)  # the pages poll for ever, so there is no moment of silence to wait for
        path = ROOT / "docs" / name
        page.screenshot(path=path, clip=clip)
        Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)

    return save
