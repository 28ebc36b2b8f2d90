"""The model server and who started it; what it answers is looked at by test_promotion.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from mlflow_server import MlflowServer
from small_models import logged

from xray_pipeline.base.settings import Settings
from xray_pipeline.registry.mlflow_registry import Registry

SERVE = """
import sys, time
from xray_pipeline.command import main as cli
from xray_pipeline.command import answers
from xray_pipeline.night import trial as model_server
from xray_pipeline.base.settings import Settings

def history(settings, at):
    with model_server.serving(settings, f"models:/{settings.model_name}/1") as address:
        print(address, flush=True)
        time.sleep(600)

answers.history = history  # any command that serves
sys.argv = ["xray", "history"]
cli.main()
"""


def of(folder: Path) -> list[int]:
    """Return the processes, zombies aside, that were started to work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"TMPDIR={folder}".encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_who_started_it(
    settings: Settings, mlflow_server: MlflowServer, tmp_path: Path, number: signal.Signals
) -> None:
    settings = settings.model_copy(update={"tracking_uri": mlflow_server.uri, "model_name": f"served-{tmp_path.name}"})
    candidate = logged(settings)
    Registry(settings).add(candidate.digest, candidate.model_uri, candidate.run_id)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {
        **os.environ,
        "TMPDIR": str(temporary),
        **{f"XRAY_{name}": str(getattr(settings, name.lower())) for name in ("HOME", "TRACKING_URI", "MODEL_NAME")},
    }
    parent = subprocess.Popen([sys.executable, "-c", SERVE], stdout=subprocess.PIPE, env=environment)
    assert parent.stdout is not None
    address = parent.stdout.readline().decode().strip()
    assert urllib.request.urlopen(f"{address}/ping", timeout=30).status == 200
    (folder,) = temporary.glob("xray-serve-*")
    assert len(of(folder)) >= 2
    parent.send_signal(number)
    parent.communicate()
    until = time.monotonic() + 10
    while (left := of(folder)) and time.monotonic() < until:
        time.sleep(0.1)
    assert left == []
    assert folder.exists() == (number == signal.SIGKILL)
