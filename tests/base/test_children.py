from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xray_pipeline.base.children import child

PARENT = """
import subprocess, sys, time
from xray_pipeline.base.children import child
# A program that starts others, in a process of its own each, as MLflow's server does.
family = "import os, sys, time; os.fork(); os.fork(); open(sys.argv[1] + str(os.getpid()), 'w'); time.sleep(600)"
with child([sys.executable, "-c", family, sys.argv[1]]):
    print("started", flush=True)
    time.sleep(600)
"""


def alive(process: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


def family(folder: Path, seconds: float = 30) -> list[int]:
    until = time.monotonic() + seconds
    while len(found := list(folder.iterdir())) < 4 and time.monotonic() < until:
        time.sleep(0.05)
    assert len(found) == 4
    return [int(path.name) for path in found]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_all_of_it_ends_with_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, f"{tmp_path}/"], stdout=subprocess.PIPE)
    processes = family(tmp_path)
    assert all(map(alive, processes))
    parent.send_signal(number)
    parent.communicate()
    until = time.monotonic() + 10
    while any(map(alive, processes)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(alive, processes))


def test_all_of_it_ends_with_the_block(tmp_path: Path) -> None:
    script = (
        f"import os; os.fork(); os.fork(); open('{tmp_path}/' + str(os.getpid()), 'w'); import time; time.sleep(99)"
    )
    with child([sys.executable, "-c", script]):
        processes = family(tmp_path)
    time.sleep(0.1)
    assert not any(map(alive, processes))


def test_what_it_says_and_how_it_ends_is_told() -> None:
    command = [sys.executable, "-c", "import sys; print(sys.stdin.read() + 'said'); sys.exit(3)"]
    with child(command, stdout=subprocess.PIPE) as process:
        assert process.communicate(timeout=30)[0] == b"said\n"
    assert process.returncode == 3
    assert os.getpgid(0) != process.pid
