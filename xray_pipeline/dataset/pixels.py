"""Decoded once: square pixels and features of radiographs, memory-mapped and keyed by digest.

A cache on one machine, safe to delete at any time. It is a folder of shards that are only added: `<id>.npy` holds the
rows, `<id>.json` names their digests and a checksum of both, and is written last, so a shard is whole or not there.
Several processes may add at once; each writes shards of its own, and a digest that stands in two is taken from either.
A shard is read once by each process before its rows are used; one that is not what was written is made anew. The
trade-offs: what changes on disk while a process has it open is not noticed by that process; and nothing but what is
damaged, left over or erased is ever removed, so a cache grows until somebody deletes it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import uuid
import zlib
from collections.abc import Callable, Iterable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from xray_pipeline.base.progress import Progress
from xray_pipeline.base.scratch import on_disk, stale
from xray_pipeline.base.storage import TEMPORARY, open_store
from xray_pipeline.images import radiograph
from xray_pipeline.images.radiograph import Fit

log = logging.getLogger(__name__)

Read = Callable[[str, str], bytes]

PIECE = 256  # rows looked up at once: each maps pages around it, too
BLOCK = 2**20
SHARD = 1024  # rows: 51 MB of pixels at side 224


class MappedRows:
    """Rows of a cache in a given order, read from the memory map when asked for: [N, *shape]."""

    def __init__(
        self, shards: Sequence[npt.NDArray[np.generic]], places: npt.NDArray[np.int64], cache: RowCache
    ) -> None:
        self._shards, self._places = shards, places
        self.shape, self.dtype = (len(places), *cache.shape), cache.dtype

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Return the rows at some positions, in that order, as an array of their own."""
        places = self._places[indices]
        rows = np.empty((len(places), *self.shape[1:]), self.dtype)
        if not len(places):
            return rows
        order = np.argsort(places[:, 0], kind="stable")
        shards, starts = np.unique(places[order, 0], return_index=True)
        for shard, at in zip(shards, np.split(order, starts[1:]), strict=True):
            rows[at] = self._shards[shard][places[at, 1]]
        return rows

    def part(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Return the rows from `start` up to `stop`, read in pieces so that little more than they takes memory."""
        rows = np.empty((stop - start, *self.shape[1:]), self.dtype)
        for at in range(start, stop, PIECE):
            rows[at - start : at - start + PIECE] = self[np.arange(at, min(at + PIECE, stop))]
            self.release()
        return rows

    def release(self) -> None:
        """Give mapped pages back, so that going over all rows does not count as memory; they stay in the page cache."""
        for shard in self._shards:
            mapped = getattr(shard, "_mmap", None)
            if mapped is not None:
                mapped.madvise(mmap.MADV_DONTNEED)


class RowCache:
    """Rows of one shape and type by digest."""

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        self.folder = folder
        self.shape, self.dtype = shape, np.dtype(dtype)
        self._shards: list[npt.NDArray[np.generic]] = []
        self._places: dict[str, tuple[int, int]] = {}
        self._loaded: set[str] = set()

    def missing(self, digests: Iterable[str]) -> list[str]:
        """Return the digests, each once, that have no row yet."""
        self._refresh()
        return [digest for digest in dict.fromkeys(digests) if digest not in self._places]

    def get(self, digests: Sequence[str]) -> npt.NDArray[np.generic]:
        """Return the rows of the digests, in order, as one array. Raises KeyError for one that is missing."""
        return self.view(digests)[np.arange(len(digests))]

    def view(self, digests: Sequence[str]) -> MappedRows:
        """Return the rows of the digests, in order, not read yet. Raises KeyError for one that is missing."""
        self._refresh()
        places = np.array([self._places[digest] for digest in digests], np.int64).reshape(-1, 2)
        return MappedRows(self._shards, places, self)

    def add(self, digests: Sequence[str], rows: npt.NDArray[np.generic]) -> None:
        """Keep rows as one more shard. Raises StorageUnavailable when the disk is full; no torn shard is left."""
        name = uuid.uuid4().hex
        array = self.folder / f"{name}.npy"
        with on_disk(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                with array.open("xb") as file:
                    packed = np.ascontiguousarray(rows, self.dtype)
                    # Not np.save: on a full disk it raises an error that does not say so.
                    header = np.lib.format.header_data_from_array_1_0(packed)
                    np.lib.format.write_array_header_1_0(file, header)
                    file.write(packed.data.cast("B"))
                    file.flush()
                    os.fsync(file.fileno())
                index = {"digests": list(digests), "checksum": self._checksum(list(digests), array)}
                open_store(self.folder).write(f"{name}.json", json.dumps(index).encode())
            except BaseException:
                array.unlink(missing_ok=True)
                raise

    def _checksum(self, digests: list[str], array: Path) -> int:
        """Return the CRC-32 of which rows of which cache these are and of the file they are in."""
        checksum = zlib.crc32(json.dumps([self.folder.name, digests]).encode())
        with array.open("rb", buffering=0) as file:
            while block := file.read(BLOCK):
                checksum = zlib.crc32(block, checksum)
        return checksum

    def _refresh(self) -> None:
        first = not self._loaded
        files = {path.name: path for path in self.folder.glob("*")}
        names = sorted(path.stem for path in files.values() if path.suffix == ".json" and path.stem)
        for path in files.values() if first else ():
            orphan = path.suffix == ".npy" and f"{path.stem}.json" not in files
            if (orphan or path.name.startswith(TEMPORARY)) and stale(path):
                _remove(path)  # of a process that was killed before its shard was whole
        for name in names:
            if name not in self._loaded:
                self._loaded.add(name)
                self._open(name)

    def _open(self, name: str) -> None:
        index, array = self.folder / f"{name}.json", self.folder / f"{name}.npy"
        try:
            text = index.read_bytes()
            facts, status = json.loads(text), array.stat()
            read = (str(array), text, status.st_ino, status.st_size, status.st_ctime_ns)
            if hash(read) not in _sound:
                if self._checksum(facts["digests"], array) != facts["checksum"]:
                    raise ValueError("it is not what was written")
                _sound.add(hash(read))
            rows = np.load(array, mmap_mode="r")
            if rows.shape != (len(facts["digests"]), *self.shape) or rows.dtype != self.dtype:
                raise ValueError(f"it holds {rows.dtype} {rows.shape}")
        except (OSError, ValueError, LookupError, TypeError) as error:
            log.warning("cache shard %s is dropped and made anew: %s", name, error)
            _remove(index)
            _remove(array)
            return
        self._shards.append(rows)
        for place, digest in enumerate(facts["digests"]):
            self._places[digest] = (len(self._shards) - 1, place)


_sound: set[int] = set()  # shards that this process has read, as they were then


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # gone, or a disk that takes no writes, which whoever adds a shard is told
        path.unlink()


def holding(cache: Path, digests: Set[str]) -> list[Path]:
    """Return the indexes of shards in a folder of caches that hold rows of some radiographs, or can't be read, and old
    arrays of which none says what they hold: who wrote or dropped them was killed."""
    found = [path for path in sorted(cache.glob("*/*.npy")) if not path.with_suffix(".json").exists() and stale(path)]
    for index in sorted(cache.glob("*/*.json")):
        if index.with_suffix(".npy").exists():
            try:
                if digests.isdisjoint(json.loads(index.read_bytes())["digests"]):
                    continue
            except (OSError, ValueError, LookupError, TypeError) as error:
                log.warning("cache shard %s can't be read: %s", index.stem, error)
            found.append(index)
    return found


def forget(cache: Path, digests: Set[str]) -> int:
    """Drop the rows of some radiographs from a folder of caches; return from how many shards. May be repeated.

    Raises StorageUnavailable when the disk is full.
    """
    shards = holding(cache, digests)
    for shard in shards:
        index, array = shard.with_suffix(".json"), shard.with_suffix(".npy")
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # else it is dropped as a whole
            listed, rows = json.loads(index.read_bytes())["digests"], np.load(array, mmap_mode="r")
            stay = [at for at, digest in enumerate(listed) if digest not in digests]
            if stay:
                RowCache(index.parent, rows.shape[1:], rows.dtype).add([listed[at] for at in stay], rows[stay])
        _remove(array)  # first: an index without its array shows nothing, and is found again
        _remove(index)
    return len(shards)


class PixelCache:
    """Square pixels uint8 [side, side] of stored radiographs, decoded once each.

    `rows` are their squashes; what `get` gives is made of these as `fit` says, by the sizes that `ensure` was told.
    """

    def __init__(self, folder: Path, side: int, fit: Fit = "squash") -> None:
        self.side, self.fit = side, fit
        self.rows = RowCache(folder / f"pixels-{side}", (side, side), np.uint8)
        self._sizes: dict[str, tuple[int, int]] = {}

    def ensure(self, rows: pd.DataFrame, read: Read, workers: int = 0, progress: Progress | None = None) -> int:
        """Decode what is missing of `rows` (columns digest, suffix; to fit the shorter side width and height, too).

        Return how many that was.

        `read(digest, suffix)` gives the stored bytes; `workers` threads decode (0: one per core).
        Raises what `read` raises, and StorageUnavailable.
        """
        suffixes = dict(zip(rows["digest"], rows["suffix"], strict=True))
        if self.fit != "squash":
            sizes = zip(rows["width"].tolist(), rows["height"].tolist(), strict=True)
            self._sizes.update(zip(rows["digest"], sizes, strict=True))
        missing = self.rows.missing(suffixes)

        def decoded(digest: str) -> npt.NDArray[np.uint8]:
            return radiograph.square(radiograph.decode(read(digest, suffixes[digest])), self.side)

        with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            for start in range(0, len(missing), SHARD):
                block = missing[start : start + SHARD]
                shard = np.empty((len(block), self.side, self.side), np.uint8)
                for at, pixels in enumerate(pool.map(decoded, block)):
                    shard[at] = pixels
                    if progress:
                        progress(start + at + 1, len(missing), "decoding")
                self.rows.add(block, shard)
        return len(missing)

    def get(self, digests: Sequence[str]) -> npt.NDArray[np.uint8]:
        """Return pixels uint8 [N, side, side] of radiographs that `ensure` has seen. Raises KeyError for others."""
        squashed = self.squashed(digests)
        if self.fit == "squash":
            return squashed
        made = [radiograph.middle(one, *self._sizes[digest]) for one, digest in zip(squashed, digests, strict=True)]
        return np.stack(made) if made else squashed

    def squashed(self, digests: Sequence[str]) -> npt.NDArray[np.uint8]:
        """Return the squashes uint8 [N, side, side] of such radiographs, whatever the fit."""
        return self.rows.get(digests).astype(np.uint8, copy=False)

    def aspects(self, digests: Sequence[str]) -> npt.NDArray[np.float32] | None:
        """Return width over height [N] of radiographs that `ensure` has seen; None where the fit asks for none."""
        if self.fit == "squash":
            return None
        sizes = (self._sizes[digest] for digest in digests)
        return np.array([width / height if width and height else 1.0 for width, height in sizes], np.float32)
