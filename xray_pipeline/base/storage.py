"""A directory or an s3:// prefix behind one small interface.

Every change of state in this package commits through `write_if_absent`: a hard link to a finished temporary file in a
directory, `If-None-Match: *` on S3. Everything is read and written whole; the largest objects are checkpoints.
Keys are relative POSIX paths. A directory store never follows a symbolic link below its root.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from xray_pipeline.base.errors import AccessDenied, ConfigError, ObjectNotFound, StorageError, StorageUnavailable
from xray_pipeline.base.scratch import AGE, stale

if TYPE_CHECKING:  # the ledger is read without pydantic
    from xray_pipeline.base.settings import Settings

Kind = Literal["file", "symlink", "special", "closed"]


@dataclass(frozen=True)
class Entry:
    """One object of a store as a listing saw it.

    `version` changes when the content does (modification time and inode, or ETag); `modified` is in Unix seconds;
    `kind` is "file" unless a directory holds a symbolic link, a FIFO, socket or device ("special"), or what can't be
    looked at ("closed"): its path is too long, or permission is missing. The key of a closed folder ends with a slash.
    """

    key: str
    size: int
    version: str
    modified: float
    kind: Kind = "file"


class Store(ABC):
    """Objects under one root. Open with `open_store`."""

    uri: str

    @abstractmethod
    def read(self, key: str) -> bytes:
        """Return the whole object. Raises ObjectNotFound, AccessDenied, StorageUnavailable."""

    @abstractmethod
    def write(self, key: str, data: bytes) -> None:
        """Create or replace the object: readers see the old or the new, never a part. Raises StorageUnavailable."""

    @abstractmethod
    def write_if_absent(self, key: str, data: bytes) -> bool:
        """Create the object unless the key is taken.

        True when the object now holds exactly `data`, through this call or an equal earlier one (so a call whose answer
        was lost can be repeated); False when it holds something else, which is left alone. Raises StorageUnavailable.
        """

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether the key holds an object. Raises StorageUnavailable."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Delete the object; a missing one is fine. Raises StorageUnavailable."""

    @abstractmethod
    def list(self, prefix: str = "", *, closed: bool = False) -> Iterator[Entry]:
        """Yield every object below the folder `prefix` ("" is the root), in the store's order, unsorted in general.

        What a directory holds below that folder and does not let us look at is yielded, too, with `closed`; otherwise
        it is an error. Raises StorageUnavailable.
        """

    @abstractmethod
    def folders(self) -> Sequence[str]:
        """Return the names of the folders right under the root, sorted."""

    @abstractmethod
    def clock(self) -> float:
        """Return the store's own time, seconds since 1970. Raises StorageUnavailable."""

    @abstractmethod
    def child(self, prefix: str) -> Store:
        """Return the store rooted at the folder `prefix` of this one."""


def reader(settings: Settings) -> Callable[[str], bytes]:
    """Return how to read a file at a path or s3:// URI. What it returns raises StorageError, OSError."""

    def read(place: str) -> bytes:
        folder, _, file = place.rpartition("/")
        return open_store(folder, settings).read(file) if "://" in place else Path(place).expanduser().read_bytes()

    return read


def open_store(uri: str | Path, settings: Settings | None = None) -> Store:
    """Open a directory (made when first written to) or `s3://bucket/prefix`.

    Credentials for S3 come from boto3's usual places; `settings.s3_endpoint` names another service than Amazon's.
    Raises ConfigError for any other scheme.
    """
    text = str(uri)
    if text.startswith("s3://"):
        from xray_pipeline.base.s3_store import S3Store  # boto3 takes half a second, of sites on S3 only

        return S3Store(text, settings.s3_endpoint if settings else "")
    return DirectoryStore.of(text)


def require_folder(uri: str, *, writable: bool = False) -> None:
    """Raise StorageUnavailable for a directory that is not there or may not be used; S3 says so when it is asked."""
    if uri.startswith("s3://"):
        return
    root = DirectoryStore.of(uri).root
    if not root.is_dir():
        raise StorageUnavailable(f"{uri} is no folder; is it mounted? Mount it, or make it if it is to be new")
    if not os.access(root, os.R_OK | os.X_OK | (os.W_OK if writable else 0)):
        raise StorageUnavailable(f"{uri} may not be {'written to' if writable else 'read'}; see its owner and mode")


def unfinished(settings: Settings, age: float = AGE) -> Iterator[Path]:
    """Yield what killed processes left of writes to a store in a directory: what has not changed for `age` seconds.

    The deliveries are not looked at.
    """
    if settings.store.startswith("s3://"):
        return
    folders = [DirectoryStore.of(settings.store).uri]
    incoming = "" if settings.incoming.startswith("s3://") else DirectoryStore.of(settings.incoming).uri
    while folders:
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as items:
            for item in items:
                if item.name.startswith(TEMPORARY):
                    if stale(Path(item.path), age):
                        yield Path(item.path)
                elif item.is_dir(follow_symlinks=False) and item.path != incoming:
                    folders.append(item.path)


def sweep(settings: Settings, age: float = AGE) -> int:
    """Delete what `unfinished` yields; return how many files that was."""
    count = 0
    for path in unfinished(settings, age):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
            count += 1
    return count


def check_writes_once(store: Store) -> None:
    """Write twice to one key and expect a refusal: all that is committed rests on `write_if_absent`.

    Raises StorageError, naming the store, where the second write replaces the first or is not possible at all;
    StorageUnavailable where nothing can be written.
    """
    key = f"{TEMPORARY}probe-{uuid.uuid4().hex}"
    store.write(key, b"first")
    try:
        once = not store.write_if_absent(key, b"second") and store.read(key) == b"first"
        store.delete(key)
        once = once and store.write_if_absent(key, b"third")
        how = "a second write replaces the first, or a first one is refused"
    except StorageError as error:
        once, how = False, str(error)
    finally:
        store.delete(key)
    if not once:
        raise StorageError(
            f"{store.uri} does not keep what is written once ({how}): two nights at once would both take one place in "
            f"the ledger; use an S3 service that heeds If-None-Match, or a file system with hard links "
            f"(docs/deployment.md)"
        )


def checked_key(key: str) -> str:
    """Return a key. Raises StorageError for one that is no relative path, or that climbs."""
    parts = key.split("/")
    if "\0" in key or any(part in ("", ".", "..") for part in parts):
        raise StorageError(f"{key!r} is not a key: keys are relative paths without '.', '..' or empty parts")
    return key


class DirectoryStore(Store):
    """A local or mounted directory."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self.uri = str(self.root)

    @classmethod
    def of(cls, uri: str) -> DirectoryStore:
        """Open a path or file:// URI. Raises ConfigError for any other scheme."""
        path = urlsplit(uri).path if uri.startswith("file://") else uri
        if "://" in path or not path:
            raise ConfigError(f"{uri!r} is neither a directory nor s3://bucket/prefix")
        return cls(Path(path))

    def read(self, key: str) -> bytes:
        try:
            # O_NONBLOCK: opening a FIFO must not wait for a writer; O_NOFOLLOW: a link may point anywhere.
            fd = os.open(f"{self.uri}/{checked_key(key)}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(fd, "rb", buffering=0) as file:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise StorageError(f"{key!r} in {self.uri} is not a regular file")
                return file.read()
        except OSError as error:
            raise self._named(error, key) from error

    def write(self, key: str, data: bytes) -> None:
        with self._temporary(key, data) as (temporary, target):
            os.replace(temporary, target)

    def write_if_absent(self, key: str, data: bytes) -> bool:
        with self._temporary(key, data) as (temporary, target):
            try:
                os.link(temporary, target)
            except FileExistsError:
                return self.read(key) == data
        return True

    def exists(self, key: str) -> bool:
        try:
            return (self.root / checked_key(key)).is_file()
        except OSError as error:
            raise self._named(error, key) from error

    def delete(self, key: str) -> None:
        try:
            (self.root / checked_key(key)).unlink(missing_ok=True)
        except OSError as error:
            raise self._named(error, key) from error

    def list(self, prefix: str = "", *, closed: bool = False) -> Iterator[Entry]:
        start = checked_key(prefix) if prefix else ""
        folders = [start]
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(self.root / folder) as entries:
                    items = sorted(entries, key=lambda item: item.name)
            except OSError as error:
                if not isinstance(error, FileNotFoundError):  # gone since it was seen: not there
                    yield self._closed(error, folder, f"{folder}/", closed and folder != start)
                continue
            for item in items:
                key = f"{folder}/{item.name}" if folder else item.name
                if item.is_dir(follow_symlinks=False):
                    folders.append(key)
                elif not item.name.startswith(TEMPORARY):
                    try:
                        entry = _entry(key, item)
                    except FileNotFoundError:
                        continue
                    except OSError as error:
                        entry = self._closed(error, key, key, closed)
                    yield entry

    def _closed(self, error: OSError, place: str, key: str, wanted: bool) -> Entry:
        """Return the entry of what one can't look at; raise StorageError unless it is `wanted`, and for other errors,
        which are the store's."""
        if wanted and error.errno in CLOSED:
            return Entry(key, 0, "", 0.0, "closed")
        raise self._named(error, place or ".") from error

    def folders(self) -> Sequence[str]:
        try:
            with os.scandir(self.root) as entries:
                return sorted(item.name for item in entries if item.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._named(error, ".") from error

    def clock(self) -> float:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(prefix=TEMPORARY, dir=self.root) as file:
                return os.fstat(file.fileno()).st_mtime
        except OSError as error:
            raise self._named(error, ".") from error

    def child(self, prefix: str) -> Store:
        return DirectoryStore(self.root / checked_key(prefix))

    @contextlib.contextmanager
    def _temporary(self, key: str, data: bytes) -> Iterator[tuple[Path, Path]]:
        target = self.root / checked_key(key)
        temporary = target.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary, target
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # the name, too, must survive a power cut
            finally:
                os.close(folder)
        except OSError as error:
            raise self._named(error, key) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _named(self, error: OSError, key: str) -> StorageError:
        place = f"{key!r} in {self.uri}"
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return ObjectNotFound(f"no {place}")
        if error.errno == errno.EISDIR:
            return StorageError(f"{place} is a folder, not a file")
        if error.errno == errno.ELOOP:
            return StorageError(f"{place} is a symbolic link; links are never followed")
        kind = AccessDenied if isinstance(error, PermissionError) else StorageUnavailable
        return kind(f"{place}: {error.strerror or error}")


TEMPORARY = ".xray-tmp-"
CLOSED = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)
"""What the system answers of one file or folder that can't be looked at; other errors are the store's."""


def _entry(key: str, item: os.DirEntry[str]) -> Entry:
    info = item.stat(follow_symlinks=False)
    kind: Kind = "file" if stat.S_ISREG(info.st_mode) else "symlink" if stat.S_ISLNK(info.st_mode) else "special"
    # A time ahead was set by another clock; the inode's says when the file came.
    modified = info.st_ctime if info.st_mtime > time.time() else max(info.st_mtime, info.st_ctime)
    return Entry(key, info.st_size, f"{info.st_mtime_ns}-{info.st_ino}", modified, kind)
