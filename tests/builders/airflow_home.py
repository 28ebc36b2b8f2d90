"""An Airflow of the tests' own: home folder and SQLite database are made before anything imports airflow."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

HOME = tempfile.mkdtemp(prefix="xray-airflow-")
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
os.environ |= {
    "AIRFLOW_HOME": HOME,
    "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
    "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
}


@pytest.fixture(scope="session")
def airflow_db() -> None:
    """Airflow's database, migrated, with the pool `gpu`."""
    for command in (["db", "migrate"], ["pools", "set", "gpu", "1", "one GPU"]):
        subprocess.run([sys.executable, "-m", "airflow", *command], check=True, capture_output=True, timeout=300)
