"""A disk of a megabyte, or one that takes no writes: a real file system, where this machine lets us mount one."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(place: Path, size: str = "1m") -> Iterator[Path]:
    """Mount a disk of that size at an empty folder until the block ends. Skips where that is not allowed."""
    place.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "small", place], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a disk")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def fill(place: Path) -> None:
    """Leave no room on the disk of a folder."""
    with (place / "filling").open("wb", buffering=0) as file:
        for size in (2**16, 2**12, 1):
            try:
                while file.write(b"x" * size):
                    continue
            except OSError:
                continue


def read_only(place: Path) -> None:
    """Let a mounted disk take no more writes."""
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
