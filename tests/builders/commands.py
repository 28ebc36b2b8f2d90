"""The `xray` command as a process of its own."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from forks import forked

from xray_pipeline.command import main as cli

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def xray(tmp_path: Path) -> Run:
    """Run the command in a home of the test's own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XRAY_")}
    environment |= {"XRAY_HOME": str(tmp_path / "home"), "XRAY_SETTLE_SECONDS": "0", "XRAY_DEVICE": "cpu"}
    said = tmp_path.with_name(f"{tmp_path.name}-said")
    said.mkdir()
    numbers = itertools.count()

    def run(*arguments: object, **settings: str) -> subprocess.CompletedProcess[str]:
        command = ["xray", *map(str, arguments)]
        out, err = (said / f"{next(numbers)}.txt" for _ in range(2))
        process = forked(_run, command, tmp_path, out, err, environment=environment | settings)
        process.start()
        process.join()
        return subprocess.CompletedProcess(command, process.exitcode or 0, out.read_text(), err.read_text())

    return run


def _run(command: list[str], folder: Path, out: Path, err: Path) -> None:
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(folder)
    sys.argv = command
    cli.main()
