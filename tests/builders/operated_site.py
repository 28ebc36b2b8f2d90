"""Airflow and MLflow as the browser tests see them."""

from __future__ import annotations

from dataclasses import dataclass

from playwright.sync_api import Browser, Locator, Page
from services import Airflow, Stack
from webhook import Webhook


@dataclass(frozen=True)
class Site:
    """The running services, their API, what they notify, and where deliveries wait to be brought."""

    stack: Stack
    airflow: Airflow
    webhook: Webhook
    passwords: dict[str, str]

    def deliver(self, name: str) -> None:
        """Bring a delivery."""
        (self.stack.folder / "waiting" / name).rename(self.stack.folder / "incoming" / name)

    def events(self) -> list[str]:
        """The notifications so far."""
        return [str(sent["event"]) for sent in self.webhook.received]


def logged_in(browser: Browser, site: Site, name: str) -> Page:
    """Open a page of one of the users."""
    page = browser.new_page(viewport={"width": 1400, "height": 820})
    page.set_default_timeout(60_000)
    page.goto(site.stack.airflow)
    page.get_by_role("textbox", name="Username").fill(name)
    page.locator("input[type=password]").fill(site.passwords[name])
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("link", name="Dags").first.wait_for()
    return page


def plugin_page(page: Page, site: Site, name: str, heading: str) -> Locator:
    """Open one of the plugin's pages inside Airflow; `name` may go on with # and what in it to show."""
    page.goto(f"{site.stack.airflow}/plugin/xray-{name}")
    shown = page.get_by_test_id(f"xray-{name.partition('#')[0]}")
    shown.get_by_role("heading", name=heading).first.wait_for()
    return shown
