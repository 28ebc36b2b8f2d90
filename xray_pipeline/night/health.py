"""Is everything that the next night needs there? One finding per part, for `xray health` and for monitors.

It reads, and writes one small object to the store, which must refuse to have it replaced, and deletes it again.
Airflow is asked over its REST API when its address is set, for its scheduler and for the last night that succeeded.
What can be known without the registry a night looks at itself, first of all (before.py).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests

from xray_pipeline.base.errors import XrayError
from xray_pipeline.base.schedule import begin, due
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import check_writes_once, open_store, require_folder
from xray_pipeline.base.text import several, without_passwords
from xray_pipeline.dataset.commits import Commits
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.intake import alarms
from xray_pipeline.night import before, space, watching
from xray_pipeline.night.affected import champion_learned_withdrawn
from xray_pipeline.night.identity import compare
from xray_pipeline.night.judging import alarms_hold_up
from xray_pipeline.night.run import Run
from xray_pipeline.registry.ledger import Ledger
from xray_pipeline.registry.mlflow_registry import Registry
from xray_pipeline.training.device import pick_device
from xray_pipeline.training.pretrained import backbone_of
from xray_pipeline.training.recipe import load_recipe

CACHE_BYTES = 2_000_000_000
"""Free bytes of the cache's disk below which the next night may fail; 40,000 radiographs of 224 x 224 take as much."""

GPU_POOL = "gpu"
"""Airflow's pool of the tasks that dags/retrain.py gives to the GPU workers."""

_SECONDS = 10.0


@dataclass(frozen=True)
class Health:
    """One part, whether it is well, and a sentence."""

    part: str
    well: bool
    text: str


def before_night(run: Run) -> None:
    """Look for the device, and as `before.look` does. Raises as that does, and TrainingError (no such device)."""
    _device(run.settings)
    before.look(run)


def check(settings: Settings, now: datetime | None = None) -> list[Health]:
    """Look at every part; never raises for a part that is not well."""
    moment = now or datetime.now(UTC)
    parts: dict[str, Callable[[], str]] = {
        "incoming": lambda: _incoming(settings),
        "store": lambda: _store(settings),
        "ledger": lambda: _ledger(settings),
        "registry": lambda: _registry(settings),
        "cache": lambda: _cache(settings.cache),
        "space": lambda: f"{space.used(settings)}; `xray tidy --dry-run` says what may go",
        "schedule": lambda: _schedule(settings, moment),
        "policy": lambda: before.policy(settings),
        "key": lambda: before.patient_key(settings),
        "recipe": lambda: _recipe(settings),
        "device": lambda: _device(settings),
        "champion": lambda: _champion(settings),
        "drift": lambda: _drift(settings),
        "withdrawn": lambda: _withdrawn(settings),
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
        return Health(part, False, str(error) or type(error).__name__)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return Health(part, False, f"its answer is not what was expected ({type(error).__name__}: {error})")


def _incoming(settings: Settings) -> str:
    require_folder(settings.incoming)
    count = len(open_store(settings.incoming, settings).folders())
    return f"{several(count, 'delivery', 'deliveries')} in {settings.incoming}"


def _store(settings: Settings) -> str:
    require_folder(settings.store, writable=True)
    store = open_store(settings.store, settings)
    store.folders()
    check_writes_once(store)
    commits = Commits(store.child("dataset"))
    commits.listed()
    count = several(len(commits.manifests()), "committed delivery", "committed deliveries")
    return f"{count} in {settings.store}"


def _ledger(settings: Settings) -> str:
    state = Ledger(open_store(settings.store, settings)).state()
    if state.by_hand:
        made = several(len(state.by_hand), "change was made", "changes were made")
        raise _Ill(f"{made} by hand, neither accepted nor undone yet; see `xray history` and `xray adopt`")
    champion = f"version {state.champion} is the champion" if state.champion else "there is no champion yet"
    return f"{several(state.sequence, 'entry', 'entries')}, the chain is whole; {champion}"


def _registry(settings: Settings) -> str:
    compare(Run(settings), mend=False)
    registry = Registry(settings)
    found, state = registry.aliases(), registry.ledger.state()
    if found != state.aliases:
        raise _Ill(f"MLflow has {found}, the ledger says {state.aliases}; run `xray verify`")
    return f"MLflow at {without_passwords(settings.tracking_uri)} agrees with the ledger"


def _cache(folder: Path) -> str:
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(place, os.W_OK | os.X_OK):
        raise _Ill(f"{place} may not be written to; set XRAY_CACHE to a folder of this machine")
    free = shutil.disk_usage(place).free
    if free < CACHE_BYTES:
        raise _Ill(f"{free / 1e9:.1f} GB are free for {folder}; the cache may be deleted at any time")
    return f"{free / 1e9:.0f} GB are free for {folder}"


def _schedule(settings: Settings, now: datetime) -> str:
    began = due(settings, now)
    if began:
        return f"{settings.schedule}; the last by the clock began {began:%Y-%m-%d %H:%M} UTC"
    return "nights begin when something arrives" if begin(settings).arrival else "nights begin by hand"


def _recipe(settings: Settings) -> str:
    recipe = load_recipe(settings.recipe)
    backbone_of(recipe, settings)
    return f"recipe {recipe.name}: {recipe.backbone}, mode {recipe.mode}"


def _device(settings: Settings) -> str:
    return f"{settings.device}: {pick_device(settings.device)} is there"


def _drift(settings: Settings) -> str:
    keys = Dataset(settings).manifests()
    holds_up = alarms_hold_up(settings)
    if lines := alarms.lines(open_store(settings.store, settings), keys, holds_up):
        raise _Ill(" ".join(lines))
    return f"no drift alarm of {several(len(keys), 'committed delivery', 'committed deliveries')} stands"


def _champion(settings: Settings) -> str:
    found = watching.watched(Run(settings))
    if found.alarm:
        raise _Ill(f"{found.alarm} Look with `xray watch`")
    if found.damaged:
        raise _Ill(" ".join(found.damaged))
    return found.in_words


def _withdrawn(settings: Settings) -> str:
    version, count = champion_learned_withdrawn(settings)
    if count is None:
        raise _Ill(f"whether version {version}, the champion, learned from what is withdrawn by now is not on record")
    if count:
        raise _Ill(f"version {version}, the champion, learned from {count} radiographs that are withdrawn by now")
    return "no champion learned from what is withdrawn by now"


def _airflow(settings: Settings) -> str:
    parts = _asked(f"{settings.airflow_url}/api/v2/monitor/health")
    ill = {name: part["status"] for name, part in parts.items() if part.get("status") not in ("healthy", None)}
    if ill:
        raise _Ill(f"Airflow at {settings.airflow_url}: {ill}")
    return f"Airflow at {settings.airflow_url} is healthy"


def _night(settings: Settings, now: datetime) -> str:
    login = {"username": settings.airflow_user, "password": settings.airflow_password.get_secret_value()}
    token = _asked(f"{settings.airflow_url}/auth/token", login)["access_token"]
    _pool(settings, token)
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


def _pool(settings: Settings, token: str) -> None:
    """Raise _Ill where Airflow would have the night wait for ever, without a word, for a slot of the pool `gpu`."""
    pools = _asked(f"{settings.airflow_url}/api/v2/pools?pool_name_pattern={GPU_POOL}", token=token)["pools"]
    if not any(pool["name"] == GPU_POOL and pool["slots"] for pool in pools):
        raise _Ill(
            f"Airflow has no pool {GPU_POOL!r} with a slot, so look_ahead, train and evaluate wait for ever; "
            f'make one of a slot for each GPU worker: airflow pools set {GPU_POOL} 1 "one GPU"'
        )


def _asked(url: str, body: dict[str, str] | None = None, token: str = "") -> Any:
    """Return the JSON that an HTTP(S) address answers. Raises _Ill."""
    if not url.startswith(("http://", "https://")):
        raise _Ill(f"{url!r} is no http(s) address; see XRAY_AIRFLOW_URL")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        answer = requests.request("POST" if body else "GET", url, json=body, headers=headers, timeout=_SECONDS)
        answer.raise_for_status()
        return answer.json()
    except requests.HTTPError as error:
        raise _Ill(f"{url} answered {answer.status_code}; see XRAY_AIRFLOW_USER and XRAY_AIRFLOW_PASSWORD") from error
    except (requests.RequestException, ValueError) as error:
        raise _Ill(f"{url} did not answer: {error}") from error
