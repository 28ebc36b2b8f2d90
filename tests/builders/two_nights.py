"""An installation after two nights: version 1 is champion, version 2 waits. Made once, copied for each use."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import phantom
import pytest
from candidates import DELIVERED
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache
from mlflow_server import DATABASE, lay_database
from once import Once

from xray_pipeline.base.settings import Settings
from xray_pipeline.night import whole
from xray_pipeline.night.run import Run

SITE = Path(__file__).parents[1] / "site" / "browser"
AFTER_FIRST = "after-first.db"
"""MLflow's database as it was after the first night."""
SETTINGS: dict[str, Any] = {
    "recipe": str(SITE / "quick.toml"),
    "policy": str(SITE / "lenient.toml"),
    "patient_key": "demo key, not a secret",
    "settle_seconds": 0,
    "bootstrap": 100,
    "stress_images": 10,
    "device": "cpu",
}
_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


@pytest.fixture(scope="session")
def two_nights(once: Once, empty_mlflow: Path) -> Callable[[Path], None]:
    """Return what lays a copy of the installation in a home; its SETTINGS go with it."""
    made = once("two-nights", lambda home: _make(home, empty_mlflow))

    def lay(home: Path) -> None:
        lay_copy(made, home, {"store": "store", DELIVERED: "incoming", "artifacts": "artifacts", "cache": "cache"})
        move_database(made, home, AFTER_FIRST)

    return lay


def lay_copy(made: Path, home: Path, folders: Mapping[str, str]) -> None:
    """Copy folders (from what they are called to what they are to be) of an installation, with MLflow's database."""
    _artifact_repos_cache.clear()  # MLflow remembers by the run's id where its artifacts lay: in another copy
    for kept, name in folders.items():
        shutil.copytree(made / kept, home / name)
    move_database(made, home, DATABASE)


def move_database(made: Path, home: Path, name: str) -> None:
    """Copy a database of MLflow's, and let it name files in the one home instead of the other."""
    shutil.copy(made / name, home)
    with sqlite3.connect(home / name) as database:
        for table, column in _PLACES:
            database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (made.as_uri(), home.as_uri()))


def _make(home: Path, empty: Path) -> None:
    lay_database(empty, home)
    weak = {"epochs": 1, "levels": False, "penalty": 100_000}
    waiting = phantom.lay(home / "waiting", deliveries=2, patients=300, seed=0)
    (home / "incoming").mkdir()
    for delivery, promotes, overrides in zip(waiting, ("auto", "approve"), (weak, {}), strict=True):
        delivery.rename(home / "incoming" / delivery.name)
        whole.whole(Run(Settings(home=home, **SETTINGS, promotion=promotes), overrides, "schedule"))
        if not (home / AFTER_FIRST).exists():
            shutil.copy(home / DATABASE, home / AFTER_FIRST)
    (home / "incoming").rename(home / DELIVERED)
