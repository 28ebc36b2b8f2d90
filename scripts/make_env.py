"""`make secrets`: the file .env with a strong random value for each secret of the compose stack, mode 0600.

An existing file is never changed: its patient key decides the split of the dataset, its Fernet key opens what Airflow
stored. Secrets that a newer version asks for are added at its end. Needs nothing but Python.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _fernet() -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


def _password() -> str:
    return secrets.token_urlsafe(24)


def _key() -> str:
    return secrets.token_urlsafe(48)


SECRETS: dict[str, Callable[[], str]] = {
    "XRAY_PATIENT_KEY": _key,
    "AIRFLOW_FERNET_KEY": _fernet,
    "AIRFLOW_JWT_SECRET": _key,
    "AIRFLOW_SESSION_SECRET": _key,
    "AIRFLOW_ADMIN_PASSWORD": _password,
    "AIRFLOW_OPERATOR_PASSWORD": _password,
    "AIRFLOW_VIEWER_PASSWORD": _password,
    "MLFLOW_SESSION_SECRET": _key,
    "MLFLOW_ADMIN_PASSWORD": _password,
    "MLFLOW_PIPELINE_PASSWORD": _password,
    "MLFLOW_VIEWER_PASSWORD": _password,
    "POSTGRES_PASSWORD": _password,
    "AIRFLOW_DB_PASSWORD": _password,
    "MLFLOW_DB_PASSWORD": _password,
    "REDIS_PASSWORD": _password,
    "S3_ADMIN_SECRET": _password,
    "S3_PIPELINE_SECRET": _password,
    "S3_VIEWER_SECRET": _password,
    "S3_TRIGGERER_SECRET": _password,
    "S3_MLFLOW_SECRET": _password,
    "S3_DELIVERY_SECRET": _password,
}
"""Every secret that docker-compose.yaml refuses to start without; all letters are safe in an address."""

HEAD = """\
# Secrets of this installation; keep a copy in a safe place, apart from the backups.
# XRAY_PATIENT_KEY must never change: the split of every patient depends on it. The others: docs/deployment.md.
"""


def make(path: Path, given: dict[str, str]) -> list[str]:
    """Make or complete the file at `path`; `given` are settings to write beside the secrets. Return the added names."""
    before = path.read_text() if path.exists() else ""
    there = set(re.findall(r"^([A-Z0-9_]+)=", before, re.MULTILINE))
    added = {name: value() for name, value in SECRETS.items() if name not in there}
    added |= {name: value for name, value in given.items() if name not in there}
    if not added:
        return []
    ended = "\n" if before and not before.endswith("\n") else ""
    text = ended + ("" if there else HEAD) + "".join(f"{name}={value}\n" for name, value in added.items())
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a") as file:
        file.write(text)
    return list(added)


def main() -> None:
    """Parse the command line and make the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=Path, default=ROOT / ".env")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="also write this setting")
    parsed = parser.parse_args()
    given = dict(item.split("=", 1) for item in parsed.set)
    given.setdefault("COMPOSE_PROFILES", "gpu" if shutil.which("nvidia-smi") else "cpu")
    given.setdefault("GPU_WORKER_CPUS", str(os.cpu_count() or 2))
    if parsed.file.exists() and parsed.file.stat().st_mode & 0o077:
        sys.exit(f"secrets: others may read {parsed.file}; run: chmod 600 {parsed.file}")
    added = make(parsed.file, given)
    print(f"secrets: wrote {len(added)} values to {parsed.file}" if added else f"secrets: {parsed.file} is complete")


if __name__ == "__main__":
    main()
