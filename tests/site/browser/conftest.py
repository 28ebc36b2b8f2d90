"""Airflow, MLflow and a headless Chromium, all real, on phantoms that train in seconds.

CHROMIUM names the browser; the default is /usr/bin/chromium (Debian: apt-get install chromium). With --screenshots the
pictures of the README and of docs/operations.md are taken on the way.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import phantom
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
    phantom.lay(folder / "waiting", deliveries=2, patients=300, seed=0)
    here = Path(__file__).parent
    with run_webhook() as webhook:
        settings = {
            "XRAY_HOME": str(folder),
            "XRAY_SETTLE_SECONDS": "0",
            "XRAY_SCHEDULE": "none",
            "XRAY_DEVICE": "cpu",
            "XRAY_BOOTSTRAP": "200",
            "XRAY_STRESS_IMAGES": "10",
            "XRAY_PATIENT_KEY": "demo key, not a secret",  # always the same split
            "XRAY_RECIPE": shutil.copy(here / "quick.toml", folder / "quick.toml").name,  # the services' own folder
            "XRAY_POLICY": str(here / "lenient.toml"),
            "XRAY_APPROVERS": '["admin"]',
            "XRAY_NOTIFY_WEBHOOK": webhook.uri,
            "XRAY_NIGHT_HOURS": "0.002",  # no night is that fast, so each is reported
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
