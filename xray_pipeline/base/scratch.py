"""Temporary folders that a killed process does not leave for ever, and full or read-only disks by name.

A folder is locked by the process that made it, so the next that makes one can tell what is left from what is in use.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from xray_pipeline.base.errors import StorageError, StorageUnavailable

log = logging.getLogger(__name__)

AGE = 86_400.0
"""Seconds after which what nobody works on any more is deleted."""

# In a folder that is everybody's no more than what looks just like ours.
_OURS = re.compile(r"xray-(candidate|model|run)-[a-z0-9_]{8}|xray-(processes|serve)-\w+")
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_LITTLE = 2**20


@contextlib.contextmanager
def scratch(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """Make a folder for the block, in the temporary folder unless a parent is given; sweep up what others left there.

    Without a parent `prefix` is one that `_OURS` knows. Raises StorageUnavailable when the block fails because a disk
    is full.
    """
    place = parent or _temporary()
    with on_disk(place):
        place.mkdir(parents=True, exist_ok=True)
        _sweep(place, re.compile(rf"{prefix}\w+") if parent else _OURS)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=place) as name, _locked(Path(name)):
            yield Path(name)


@contextlib.contextmanager
def on_disk(place: Path) -> Iterator[None]:
    """Raise StorageUnavailable, naming the disk, for an error in the block that a full or read-only disk is behind.

    Where several disks were written to, the one named is that which is full now, else that of `place`.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        trouble = _trouble(error)
        if not trouble:
            raise
        named = [getattr(error, name, None) for name in ("filename2", "filename")]
        disks = [place, _temporary(), *(Path(name).parent for name in named if isinstance(name, str))]
        disk = next(filter(_is_full, disks), place)
        raise StorageUnavailable(
            f"the disk of {disk}: {trouble}; make room there, or set XRAY_CACHE, XRAY_HOME or TMPDIR to another"
        ) from error


def stale(path: Path, age: float = AGE) -> bool:
    """Whether a file or folder, as far as it is still there, has not changed for `age` seconds."""
    try:
        return path.stat().st_mtime < time.time() - age
    except OSError:
        return False


def _temporary() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise StorageUnavailable(f"no temporary folder takes files ({error.strerror}); set TMPDIR") from error


def _trouble(error: BaseException) -> str:
    """Say what is the matter with a disk, where that is what an error or one behind it says; else ""."""
    if isinstance(error, PermissionError):
        return str(error.strerror)
    seen: BaseException | None = error
    while seen is not None:
        for code in _DISK:
            if getattr(seen, "errno", None) == code or f"[Errno {code}]" in str(seen) or os.strerror(code) in str(seen):
                return os.strerror(code)
        seen = seen.__cause__ or seen.__context__
    return ""


def _is_full(place: Path) -> bool:
    there = next(path for path in (place.absolute(), *place.absolute().parents) if path.exists())
    disk = os.statvfs(there)
    return disk.f_bavail * disk.f_frsize < _LITTLE or bool(disk.f_flag & os.ST_RDONLY)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: then age alone decides
            fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


def _sweep(place: Path, ours: re.Pattern[str]) -> None:
    """Delete our folders that are old and that no process holds."""
    for folder in place.iterdir():
        if not ours.fullmatch(folder.name) or folder.is_symlink() or not stale(folder):
            continue
        with contextlib.suppress(OSError):  # held, another's, or gone
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
                log.info("deleted %s, which a killed process had left", folder)
            finally:
                os.close(handle)
