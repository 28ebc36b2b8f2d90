"""Is everything that the next night needs there? One finding per part, for `xray health` and for monitors.

It reads, and writes one small object to the store, which must refuse to have it replaced, and deletes it again.
Airflow is asked over its REST API when its address is set, for its scheduler and for the last night that succeeded.
"""

from __future__ import annotations

import json
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from xray_pipeline.base.errors import ConfigError, XrayError
from xray_pipeline.base.logs import without_passwords
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import check_writes_once, open_store
from xray_pipeline.dataset.commits import Commits
from xray_pipeline.night.steps import Run, compare
from xray_pipeline.registry.ledger import Ledger

CACHE_BYTES = 2_000_000_000
"""Free bytes of the cache's disk below which the next night may fail; 40,000 radiographs of 224 x 224 take as much."""

_SECONDS = 10.0


@dataclass(frozen=True)
class Health:
    """One part, whether it is well, and a sentence."""

    part: str
    well: bool
    text: str


def check(settings: Settings, now: datetime | None = None) -> list[Health]:
    """Look at every part; never raises for a part that is not well."""
    moment = now or datetime.now(UTC)
    parts: dict[str, Callable[[], str]] = {
        "incoming": lambda: _incoming(settings),
        "store": lambda: _store(settings),
        "ledger": lambda: _ledger(settings),
        "registry": lambda: _registry(settings),
        "cache": lambda: _cache(settings.cache),
    }
    if settings.airflow_url:
        parts["airflow"] = lambda: _airflow(settings)
        parts["night"] = lambda: _night(settings, moment)
    return [_looked(part, look) for part, look in parts.items()]


class _Ill(Exception):
    """A part answered, and what it said is not well."""


def _looked(part: str, look: Callable[[], str]) -> Health:
    try:
        return Health(part, True, look())
    except (_Ill, XrayError, OSError) as error:
        return Health(part, False, str(error))


def _incoming(settings: Settings) -> str:
    _reachable(settings.incoming, writable=False)
    count = len(open_store(settings.incoming, settings).folders())
    return f"{count} {'delivery' if count == 1 else 'deliveries'} in {settings.incoming}"


def _store(settings: Settings) -> str:
    _reachable(settings.store, writable=True)
    store = open_store(settings.store, settings)
    store.folders()
    check_writes_once(store)
    commits, _ = Commits(store.child("dataset")).listed()
    return f"{len(commits)} committed {'delivery' if len(commits) == 1 else 'deliveries'} in {settings.store}"


def _reachable(uri: str, writable: bool) -> None:
    """Raise _Ill for a folder that is not there or may not be used; an S3 service says so itself when it is asked."""
    if "://" in uri:
        return
    if not Path(uri).is_dir():
        raise _Ill(f"{uri} is no folder; is it mounted?")
    if not os.access(uri, os.R_OK | os.X_OK | (os.W_OK if writable else 0)):
        raise _Ill(f"{uri} may not be {'written to' if writable else 'read'}; see its owner and mode")


def _ledger(settings: Settings) -> str:
    state = Ledger(open_store(settings.store, settings)).state()
    unsettled = len(state.unsettled)
    if unsettled:
        raise _Ill(f"{unsettled} changes by hand are neither accepted nor undone; see `xray history` and `xray adopt`")
    champion = f"version {state.champion} is the champion" if state.champion else "there is no champion yet"
    return f"{state.sequence} entries, the chain is whole; {champion}"


def _registry(settings: Settings) -> str:
    from xray_pipeline.registry.mlflow_registry import Registry

    compare(Run(settings))
    registry = Registry(settings)
    found, state = registry.aliases(), registry.ledger.state()
    wanted = {"champion": state.champion, "challenger": state.challenger}
    if found != wanted:
        raise _Ill(f"MLflow has {found}, the ledger says {wanted}; run `xray verify`")
    return f"MLflow at {without_passwords(settings.tracking_uri)} agrees with the ledger"


def _cache(folder: Path) -> str:
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(place, os.W_OK | os.X_OK):
        raise _Ill(f"{place} may not be written to; set XRAY_CACHE to a folder of this machine")
    free = shutil.disk_usage(place).free
    if free < CACHE_BYTES:
        raise _Ill(f"{free / 1e9:.1f} GB are free for {folder}; the cache may be deleted at any time")
    return f"{free / 1e9:.0f} GB are free for {folder}"


def _airflow(settings: Settings) -> str:
    parts = _asked(f"{settings.airflow_url}/api/v2/monitor/health")
    ill = {name: part["status"] for name, part in parts.items() if part.get("status") not in ("healthy", None)}
    if ill:
        raise _Ill(f"Airflow at {settings.airflow_url}: {ill}")
    return f"Airflow at {settings.airflow_url} is healthy"


def _night(settings: Settings, now: datetime) -> str:
    login = {"username": settings.airflow_user, "password": settings.airflow_password.get_secret_value()}
    token = _asked(f"{settings.airflow_url}/auth/token", login)["access_token"]
    query = "state=success&order_by=-run_after&limit=1"
    runs = _asked(f"{settings.airflow_url}/api/v2/dags/xray_retrain/dagRuns?{query}", token=token)["dag_runs"]
    if not runs:
        raise _Ill("no night has succeeded yet")
    succeeded = datetime.fromisoformat(runs[0]["run_after"])
    text = f"the last night that succeeded is that of {succeeded:%Y-%m-%d %H:%M} UTC"
    began = due(settings, now)
    if began and succeeded < began:
        raise _Ill(f"{text}; that of {began:%Y-%m-%d %H:%M} has not, see the runs of xray_retrain")
    return text


def due(settings: Settings, now: datetime) -> datetime | None:
    """Return when the last night began that should have ended by `now`; None where nights begin by hand.

    Raises ConfigError for a schedule that is no cron expression.
    """
    from croniter import croniter

    if settings.schedule == "none":
        return None
    try:
        began: datetime = croniter(settings.schedule, now - timedelta(hours=settings.night_hours)).get_prev(datetime)
    except ValueError as error:
        raise ConfigError(f"XRAY_SCHEDULE {settings.schedule!r} names no night ({error}); write five fields") from error
    return began


def _asked(url: str, body: dict[str, str] | None = None, token: str = "") -> Any:
    """Return the JSON that an HTTP(S) address answers. Raises _Ill."""
    if not url.startswith(("http://", "https://")):
        raise _Ill(f"{url!r} is no http(s) address; see XRAY_AIRFLOW_URL")
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    request = urllib.request.Request(url, json.dumps(body).encode() if body else None, headers)
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise _Ill(f"{url} answered {error.code}; see XRAY_AIRFLOW_USER and XRAY_AIRFLOW_PASSWORD") from error
    except (urllib.error.URLError, TimeoutError, ValueError) as error:
        raise _Ill(f"{url} did not answer: {getattr(error, 'reason', error)}") from error
