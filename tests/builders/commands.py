"""The `xray` command as a child process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def xray(tmp_path: Path) -> Run:
    """Run the command in a home of the test's own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XRAY_")}
    environment |= {"XRAY_HOME": str(tmp_path / "home"), "XRAY_SETTLE_SECONDS": "0", "XRAY_DEVICE": "cpu"}

    def run(*arguments: object, **settings: str) -> subprocess.CompletedProcess[str]:
        command = [Path(sys.executable).with_name("xray"), *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment | settings, cwd=tmp_path, check=False
        )

    return run
