"""`make screenshots`: run the demo and take the pictures of the README with headless Chromium.

CHROMIUM names the browser; the default is /usr/bin/chromium (Debian: apt-get install chromium).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from demo import DAG, demo
from playwright.sync_api import FloatRect, Page, sync_playwright
from services import ROOT, Airflow, Failed, Stack

from xray_pipeline.errors import XrayError

DOCS = ROOT / "docs"
CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]


def take(stack: Stack, airflow: Airflow) -> None:
    """Log in to both services and save their pages in docs/."""
    runs = airflow.call("GET", f"/dags/{DAG}/dagRuns?order_by=-start_date&limit=1")["dag_runs"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            page = browser.new_page(viewport={"width": 1400, "height": 820})
            log_in(page, stack)
            page.goto(f"{stack.airflow}/dags/{DAG}/runs/{runs[0]['dag_run_id']}")
            save(page, "airflow-run.png")
            page.goto(f"{stack.airflow}/dags/{DAG}")
            page.get_by_role("button", name="Trigger").click()
            save(page, "airflow-trigger.png")
            page.set_viewport_size({"width": 1800, "height": 1300})
            page.goto(f"{stack.mlflow}/#/models/chest-xray")
            # without the empty margin that MLflow keeps for its assistant
            save(page, "mlflow-registry.png", {"x": 0, "y": 0, "width": 1335, "height": 1300})
        finally:
            browser.close()


def log_in(page: Page, stack: Stack) -> None:
    """Log in to Airflow as the person of the demo."""
    page.goto(stack.airflow)
    page.get_by_role("textbox", name="Username").fill(stack.user)
    page.locator("input[type=password]").fill(stack.password)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{stack.airflow}/**")
    page.get_by_role("link", name="Dags").first.wait_for()


def save(page: Page, name: str, clip: FloatRect | None = None) -> None:
    """Let the page finish drawing and save its picture, or the part of it in `clip`."""
    page.wait_for_timeout(6000)  # both pages poll for ever, so there is no moment of silence to wait for
    page.screenshot(path=DOCS / name, clip=clip)
    print(f"docs/{name}")


def main() -> None:
    """Run the demo on phantoms and take the pictures while everything is up."""
    if not CHROMIUM.exists():
        sys.exit(f"screenshots: no browser at {CHROMIUM}; install Debian's chromium, or name one in CHROMIUM")
    try:
        demo(None, take)
    except (Failed, XrayError) as error:
        sys.exit(f"screenshots: {error}")


if __name__ == "__main__":
    main()
