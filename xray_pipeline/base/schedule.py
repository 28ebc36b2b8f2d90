"""When nights begin."""

from __future__ import annotations

from datetime import datetime, timedelta

from croniter import croniter

from xray_pipeline.base.errors import ConfigError
from xray_pipeline.base.settings import Settings


def due(settings: Settings, now: datetime) -> datetime | None:
    """Return when the last night began that should have ended by `now`; None where nights begin by hand.

    Raises ConfigError for a schedule that is no cron expression, or one that never comes.
    """
    if settings.schedule == "none":
        return None
    try:
        if not settings.schedule.startswith("@") and len(settings.schedule.split()) != 5:
            raise ValueError("it has not five fields")
        began: datetime = croniter(settings.schedule, now - timedelta(hours=settings.night_hours)).get_prev(datetime)
    except ValueError as error:
        raise ConfigError(f"XRAY_SCHEDULE {settings.schedule!r} names no night ({error}); write five fields") from error
    return began
