"""Airflow and MLflow as the browser tests see them."""

from __future__ import annotations

from dataclasses import dataclass

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
