"""What a check needs of each manifest, in the cache of this machine: read once, then memory-mapped.

    <cache>/extracts/<SHA-256 of the manifest>.<CRC-32 of this file>.arrow    a row for each of the manifest's
    <cache>/extracts/<SHA-256 of the manifest>.thumbnails                     of some of them (thumbnails.py)

An extract is made of a manifest's bytes, which are what a commit names, when this machine first sees that commit. It
may be deleted at any time; one that is damaged is made anew. It also says how the store listed the manifest then: one
that was touched since is read again, so that a damaged manifest is noticed although nobody reads it. An erasure
rewrites manifests: whoever looks at them next drops the extracts of what they were, and so does night/kept_rows. Paths,
which may name a patient, are kept as hashes.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from xray_pipeline.base.errors import StorageError
from xray_pipeline.base.records import digest_of
from xray_pipeline.base.storage import open_store
from xray_pipeline.dataset.hexes import Words, texts_of, words_of
from xray_pipeline.dataset.parquet import arrow_of
from xray_pipeline.dataset.revisions import CONFLICT, File, path_key
from xray_pipeline.images import appearance

log = logging.getLogger(__name__)

FOLDER = "extracts"
FORMAT = "2"
WORDS = {"digest": 4, "patient": 2, "phash": 4, "statistics": appearance.BYTES // 8, "path": 2}
"""Columns of hexadecimal text, kept as so many words of eight bytes; `path` is `revisions.path_key` of a file."""
CHOICES = ("label", "side", "verdict", "reason", "suffix")
"""Columns of few values, kept as a dictionary."""
_TEXTS = ("version", "near_copy", "withdraws")
_NUMBERS = ("size", "age_years")
_READ = ("file", "digest", "patient", "phash", "statistics", *CHOICES, *_TEXTS, *_NUMBERS, "thumbnail")


class Extract:
    """One manifest's rows, memory-mapped."""

    def __init__(self, digest: str, rows: Path | bytes) -> None:
        """Open the extract of a manifest that has this SHA-256, or one that the disk did not take. Raises OSError,
        ValueError for one that is damaged, or of another format."""
        if isinstance(rows, Path) and zlib.crc32(rows.read_bytes()) != int(rows.suffixes[-2][1:], 16):
            raise ValueError("it is not what was written")
        self.digest, self._map = digest, mmap.mmap(-1, 1)
        if isinstance(rows, Path):
            with rows.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._rows = _batch(self._map if isinstance(rows, Path) else rows)
        facts = self._rows.schema.metadata
        if facts[b"format"].decode() != FORMAT:
            raise ValueError("it has another format")
        self.listed = facts[b"listed"].decode()
        self.release()

    def __len__(self) -> int:
        return int(self._rows.num_rows)

    def words(self, column: str) -> Words:
        """Return one of the WORDS (n, words)."""
        count = WORDS[column]
        return np.frombuffer(self._rows[column].buffers()[1] or b"", np.uint64, count * len(self)).reshape(-1, count)

    def numbers(self, column: str) -> NDArray[Any]:
        """Return numbers: size, age_years; `hashed` and `measured`, whether a row has a perceptual hash and
        statistics; `linked`, whether it is in a label conflict or names another radiograph; `pictured`, whether the
        manifest holds its thumbnail; `order`, by which patients are sampled."""
        return np.asarray(self._rows[column].to_numpy(zero_copy_only=False))

    def choices(self, column: str) -> tuple[NDArray[np.int32], list[str]]:
        """Return one of the CHOICES: the place of each row's value in the list of those there are, and the list."""
        return np.asarray(self._rows[column].indices.to_numpy()), self._rows[column].dictionary.to_pylist()

    def table(self, columns: Sequence[str], rows: NDArray[np.int64] | None = None) -> pa.Table:
        """Return columns as they stand in the manifest, of all rows or of some."""
        some = pa.array(np.arange(len(self)) if rows is None else rows)
        found = {}
        for column in columns:
            if column in WORDS:
                found[column] = texts_of(self.words(column)[some.to_numpy()])
            else:
                values = self._rows[column].take(some)
                found[column] = values.cast(pa.large_string()) if column in CHOICES else values
        return pa.table(found)

    def release(self) -> None:
        """Give mapped pages back, so that what was read of all extracts does not count as memory: a look at one byte
        may map two megabytes."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def files(self, rows: NDArray[np.int64]) -> Iterator[File]:
        """Yield the files of some rows, their paths told by their keys."""
        table = self.table(("path", "size", "version"), rows)
        return zip(*(table[name].to_pylist() for name in table.column_names), strict=True)


class Extracts:
    """The extracts in a folder of caches."""

    def __init__(self, cache: Path) -> None:
        self.folder = cache / FOLDER
        self._open: dict[str, Extract] = {}

    def of(self, digest: str, listed: str, read: Callable[[], bytes]) -> Extract:
        """Return the extract of a manifest that has this SHA-256, made of what `read` returns where there is none.

        `listed` says how the store lists the manifest, "" where it does not. Where the disk takes no extract this
        process goes on with what it has read. Raises what `read` raises, DatasetError.
        """
        found = self._open.get(digest) or self._find(digest)
        if found is None or not listed or found.listed != listed:
            data = read()
            digest = digest_of(data)  # an erasure may have rewritten it meanwhile
            made = _made(arrow_of(data, f"manifest {digest[:12]}", _READ), listed)
            found = self._keep(digest, made) or Extract(digest, made)
        self._open[digest] = found
        return found

    def drop(self, digest: str) -> None:
        """Delete the extract of a manifest that has this SHA-256."""
        for path in self.folder.glob(f"{digest}.*"):
            path.unlink(missing_ok=True)

    def stale(self, current: Collection[str]) -> list[Path]:
        """Return the files of all extracts but those of manifests with these SHA-256."""
        return [path for path in sorted(self.folder.glob("*")) if path.name.partition(".")[0] not in current]

    @cached_property
    def _there(self) -> dict[str, Path]:
        """Where the extract of each manifest lies, as one listing told when the first was asked for."""
        return {path.name.partition(".")[0]: path for path in self.folder.glob("*.arrow")}

    def _find(self, digest: str) -> Extract | None:
        path = self._there.pop(digest, None)
        if path is None:
            return None
        try:
            found = Extract(digest, path)
        except (OSError, ValueError, LookupError, TypeError) as error:
            log.warning("extract %s is dropped and made anew: %s", path.name, error)
            path.unlink(missing_ok=True)
            return None
        self._there[digest] = path
        return found

    def _keep(self, digest: str, rows: bytes) -> Extract | None:
        path = self.folder / f"{digest}.{zlib.crc32(rows):08x}.arrow"
        try:
            (self.folder / f"{digest}.pictures").unlink(missing_ok=True)  # of an earlier version
            open_store(self.folder).write(path.name, rows)
        except (StorageError, OSError) as error:
            log.warning("the cache takes no extract: %s", error)
            return None
        self._there[digest] = path
        return self._find(digest)


def _made(table: pa.Table, listed: str) -> bytes:
    """Return the file of an extract."""
    table = table.append_column("path", pa.array(map(path_key, table["file"].to_pylist()), pa.large_string()))
    made = {name: _words(table[name].to_pylist(), name) for name in WORDS}
    made |= {name: table[name].dictionary_encode() for name in CHOICES}
    made |= {name: table[name] for name in (*_TEXTS, *_NUMBERS)}
    named = pc.or_(pc.not_equal(table["near_copy"], ""), pc.not_equal(table["withdraws"], ""))
    made["linked"] = pc.or_(named, pc.equal(table["reason"], CONFLICT)).cast(pa.uint8())
    made["measured"] = pa.array([int(appearance.is_text(text)) for text in table["statistics"].to_pylist()], pa.uint8())
    made["hashed"] = pc.not_equal(table["phash"], "").cast(pa.uint8())
    made["order"] = pa.array([_order(patient) for patient in table["patient"].to_pylist()], pa.uint64())
    made["pictured"] = pc.not_equal(table["thumbnail"], "").cast(pa.uint8())
    return _written(pa.table(made).replace_schema_metadata({"format": FORMAT, "listed": listed}))


def _words(texts: list[str], name: str) -> pa.Array:
    """Return hexadecimal texts as binary; statistics of an earlier version, which are none, as nothing."""
    if name == "statistics":
        texts = [text if appearance.is_text(text) else "" for text in texts]
    words = WORDS[name]
    data = pa.py_buffer(words_of(texts, words, name).tobytes())
    return pa.Array.from_buffers(pa.binary(8 * words), len(texts), [None, data])


def _order(patient: str) -> int:
    return int.from_bytes(hashlib.sha256(patient.encode()).digest()[:8], "big")


def _written(table: pa.Table) -> bytes:
    out = pa.BufferOutputStream()
    whole = table.combine_chunks().unify_dictionaries()
    with pa.ipc.new_file(out, whole.schema) as file:
        file.write_table(whole)
    return bytes(out.getvalue())


def _batch(source: bytes | mmap.mmap) -> pa.RecordBatch:
    """Return the rows of a file. Raises OSError, ValueError."""
    file = pa.ipc.open_file(pa.py_buffer(source))
    if file.num_record_batches == 0:
        return pa.RecordBatch.from_pylist([], schema=file.schema)
    if file.num_record_batches > 1:
        raise ValueError("it has several parts")
    return file.get_batch(0)
