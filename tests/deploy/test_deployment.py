"""The compose stack without an engine: its secrets, its backup's checks, and what docker-compose.yaml promises."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import backup  # noqa: E402
import make_env  # noqa: E402
from stack import Compose, Failed  # noqa: E402

TEXT = (ROOT / "docker-compose.yaml").read_text()
SERVICES: dict[str, Any] = yaml.safe_load(TEXT)["services"]


def test_secrets_are_strong_and_for_their_owner_only(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    make_env.make(file, {})
    values = dict(line.split("=", 1) for line in file.read_text().splitlines() if not line.startswith("#"))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert set(values) == set(make_env.SECRETS)
    assert len(set(values.values())) == len(values)
    assert min(map(len, values.values())) >= 32


@pytest.mark.parametrize("before", ["XRAY_PATIENT_KEY=kept\n", "XRAY_PATIENT_KEY=kept", "http_proxy=kept"])
def test_secrets_are_completed_and_never_changed(tmp_path: Path, before: str) -> None:
    file = tmp_path / ".env"
    file.write_text(before)
    make_env.make(file, {})
    assert file.read_text().startswith(before.strip() + "\n")
    assert set(Compose("none", file).settings) == set(make_env.SECRETS)
    assert make_env.make(file, {}) == []


def test_compose_asks_for_each_secret_and_for_no_other() -> None:
    asked = set(re.findall(r"\$\{([A-Z0-9_]+):\?", TEXT))
    assert asked == set(make_env.SECRETS)
    assert not re.findall(r"\$\{[A-Z0-9_]*(?:SECRET|PASSWORD|_KEY)[:}-][^?]", TEXT)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_closed(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert service["deploy"]["resources"]["limits"].keys() == {"memory", "cpus", "pids"}
    assert service["logging"]["options"]["max-size"]
    assert ":" in service["image"]
    assert not service["image"].endswith(":latest")


@pytest.mark.parametrize("name", [name for name in SERVICES if name not in ("init", "tools", "health")])
def test_a_service_that_stays_is_watched_and_restarts(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"]
    assert SERVICES[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", ["worker", "worker-gpu", "worker-cpu"])
def test_a_worker_has_no_way_to_a_database_or_outside(name: str) -> None:
    assert not {"database", "edge"} & set(SERVICES[name]["networks"])
    held = {
        secret for value in SERVICES[name]["environment"].values() for secret in re.findall(r"([A-Z0-9_]+):\?", value)
    }
    assert held == {"XRAY_PATIENT_KEY", "S3_PIPELINE_SECRET", "MLFLOW_PIPELINE_PASSWORD", "REDIS_PASSWORD"}


def test_the_cpu_profile_runs_the_gpu_worker_without_a_device() -> None:
    gpu, cpu = SERVICES["worker-gpu"], SERVICES["worker-cpu"]
    assert gpu["command"] == cpu["command"]
    assert gpu["deploy"]["resources"]["reservations"]["devices"][0]["driver"] == "nvidia"
    assert "reservations" not in cpu["deploy"]["resources"]


@pytest.fixture
def kept(tmp_path: Path) -> tuple[Compose, Path]:
    """A stack's settings, and a folder that looks like its backup."""
    make_env.make(tmp_path / ".env", {})
    stack, folder = Compose("none", tmp_path / ".env"), tmp_path / "backup"
    folder.mkdir()
    (folder / "objects.tar").write_bytes(b"objects")
    files = {"objects.tar": backup.digest(folder / "objects.tar")}
    manifest = {"at": "now", "files": files, "secrets": backup.fingerprints(stack)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return stack, folder


def test_a_whole_backup_is_taken(kept: tuple[Compose, Path]) -> None:
    assert backup.checked(*kept)["at"] == "now"


def test_a_changed_backup_is_refused(kept: tuple[Compose, Path]) -> None:
    (kept[1] / "objects.tar").write_bytes(b"other")
    with pytest.raises(Failed, match="not the file that was backed up"):
        backup.checked(*kept)


def test_a_backup_of_another_patient_key_is_refused(kept: tuple[Compose, Path]) -> None:
    kept[0].settings["XRAY_PATIENT_KEY"] = "another"
    with pytest.raises(Failed, match="XRAY_PATIENT_KEY"):
        backup.checked(*kept)


def test_make_secrets_refuses_a_file_others_may_read(tmp_path: Path) -> None:
    (tmp_path / "env").write_text("")
    (tmp_path / "env").chmod(0o644)
    command = [sys.executable, ROOT / "scripts" / "make_env.py", "--file", tmp_path / "env"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "chmod 600" in done.stderr
    assert (tmp_path / "env").read_text() == ""
