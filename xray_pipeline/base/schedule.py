"""When nights begin: by the clock, when something arrives, or both."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import NamedTuple

from croniter import croniter

from xray_pipeline.base.errors import ConfigError
from xray_pipeline.base.settings import Settings


class Begin(NamedTuple):
    """When nights begin: a cron expression, "" for none, and whether by what arrives."""

    cron: str
    arrival: bool


def begin(settings: Settings) -> Begin:
    """Return when nights begin: XRAY_SCHEDULE is `none`, a cron expression, `arrival`, or `<cron> + arrival`."""
    parts = [part.strip() for part in re.split(r"\+|;|,(?=\s*arrival\b)|(?<=arrival),|\band\b", settings.schedule)]
    arrival = [part for part in parts if part.casefold() == "arrival"]
    cron = " ".join(part for part in parts if part and part not in arrival)
    return Begin("" if cron == "none" else cron, bool(arrival))


def due(settings: Settings, now: datetime) -> datetime | None:
    """Return when the last night began that should have ended by `now`; None where no clock begins them.

    Raises ConfigError for a schedule that is no cron expression, or one that never comes.
    """
    cron = begin(settings).cron
    if not cron:
        return None
    try:
        if not cron.startswith("@") and len(cron.split()) != 5:
            raise ValueError("it has not five fields")
        began: datetime = croniter(cron, now - timedelta(hours=settings.night_hours)).get_prev(datetime)
    except ValueError as error:
        raise ConfigError(
            f"XRAY_SCHEDULE {settings.schedule!r} names no night ({error}); write five fields, arrival, or both with + "
            f"between"
        ) from error
    return began
