"""Thumbnails of judged radiographs: no manifest holds them, as a night looks at a few of them at most.

That of a stored radiograph is made of it when a question about near copies asks for it. Of a radiograph that was kept
out nothing else is stored, so that its thumbnail is:

    pictures/<2>/<digest>.png                             in the dataset's store; its row's perceptual hash is of it
    <cache>/extracts/<SHA-256 of a manifest>.thumbnails   those of its rows that this machine has seen, each with its
                                                          CRC-32: one that was never seen, or is damaged, has none

Who commits a delivery has seen them all. Manifests of earlier versions hold thumbnails; one that is found nowhere else
is taken from there.
"""

from __future__ import annotations

import base64
import contextlib
import io
import logging
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from xray_pipeline.base.errors import ObjectNotFound, RadiographDamaged, StorageError
from xray_pipeline.base.storage import Store, open_store
from xray_pipeline.dataset.fingerprints import SIDE, Thumbnails, decoded, hashes, small
from xray_pipeline.dataset.pixels import Read
from xray_pipeline.images import radiograph
from xray_pipeline.images.png import png_bytes
from xray_pipeline.images.raster import Pixels

log = logging.getLogger(__name__)

FOLDER: Final = "pictures"
_CURE: Final = "run `xray repair`"
_PIXELS: Final = SIDE * SIDE
_KEPT: Final = _PIXELS + 4  # bytes of one in the cache


class Shown(NamedTuple):
    """A row whose thumbnail is asked for: accepted, or kept out. `manifest` (a SHA-256, "" for none) and `row` are
    where it stands, and `carried` is the key of that manifest where it holds the thumbnail."""

    digest: str
    suffix: str
    phash: str
    accepted: bool
    manifest: str = ""
    row: int = 0
    carried: str = ""


class Shelf:
    """The thumbnails of a dataset: `store` is its own, `folder` that of the extracts, `read(digest, suffix)` gives a
    stored radiograph, and `carried(key, row)` the text of a thumbnail in a manifest."""

    def __init__(self, store: Store, folder: Path, read: Read, carried: Callable[[str, int], str]) -> None:
        self._store, self._folder, self._read, self._carried = store, folder, read, carried

    def of(self, shown: Sequence[Shown]) -> Thumbnails:
        """Return the thumbnails of rows (n, SIDE, SIDE).

        Raises RadiographDamaged when what it is made of is missing or is not what it was, StorageUnavailable.
        """
        places: dict[str, list[int]] = {}
        for one in shown:
            places.setdefault(one.manifest, []).append(one.row)
        found = {(manifest, row): kept for manifest, rows in places.items() for row, kept in self._seen(manifest, rows)}
        missing = {one.digest: one for one in shown if (one.manifest, one.row) not in found}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            made = dict(zip(missing, pool.map(self._made, missing.values()), strict=True))
        new: dict[str, dict[int, NDArray[np.uint8]]] = {}
        for one in missing.values():
            if one.manifest:
                new.setdefault(one.manifest, {})[one.row] = made[one.digest]
        for manifest, rows in new.items():
            self._see(manifest, rows)
        both = [made[one.digest] if one.digest in made else found[one.manifest, one.row] for one in shown]
        return np.stack(both) if both else np.empty((0, SIDE, SIDE), np.uint8)

    def _seen(self, manifest: str, rows: Sequence[int]) -> list[tuple[int, NDArray[np.uint8]]]:
        """Return the thumbnails of a manifest's rows that the cache holds."""
        found = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), self._path(manifest).open("rb") as file:
            for row in rows:
                data = os.pread(file.fileno(), _KEPT, row * _KEPT)
                pixels = data[:_PIXELS]
                if len(data) == _KEPT and _checksum(pixels) == data[_PIXELS:]:
                    found.append((row, np.frombuffer(pixels, np.uint8).reshape(SIDE, SIDE)))
        return found

    def _see(self, manifest: str, made: Mapping[int, NDArray[np.uint8]]) -> None:
        """Keep thumbnails of a manifest's rows in the cache. Another process may do the same at the same time."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            file = os.open(self._path(manifest), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                for row, pixels in made.items():
                    os.pwrite(file, _kept(pixels), row * _KEPT)
            finally:
                os.close(file)
        except OSError as error:
            log.warning("the cache takes no thumbnails: %s", error)

    def _path(self, manifest: str) -> Path:
        return self._folder / f"{manifest}.thumbnails"

    def text(self, one: Shown) -> str:
        """Return the thumbnail of a row as a fingerprint holds it. Raises as `of` does."""
        return base64.b64encode(self.of([one]).tobytes()).decode()

    def _made(self, one: Shown) -> NDArray[np.uint8]:
        if not one.accepted:
            with contextlib.suppress(ObjectNotFound):
                return self._picture(one)
        try:
            return small(radiograph.decode(self._read(one.digest, one.suffix)))
        except RadiographDamaged as error:
            if one.carried:
                return decoded(self._carried(one.carried, one.row))
            if one.accepted:
                raise
            raise RadiographDamaged(f"{_key(one.digest)} is missing from {self._store.uri}; {_CURE}") from error

    def _picture(self, one: Shown) -> NDArray[np.uint8]:
        """Return what is stored of a radiograph that was kept out. Raises ObjectNotFound, RadiographDamaged."""
        data = self._store.read(_key(one.digest))
        with contextlib.suppress(UnidentifiedImageError, OSError, ValueError, SyntaxError):
            pixels = np.asarray(Image.open(io.BytesIO(data), formats=["PNG"]))
            if pixels.shape == (SIDE, SIDE) and hashes(pixels[None])[0].tobytes().hex() == one.phash:
                return pixels
        raise RadiographDamaged(f"{_key(one.digest)} in {self._store.uri} is not what was judged; {_CURE}")

    def check(self, one: Shown) -> None:
        """Raise RadiographDamaged when a thumbnail can't be made of what is stored; StorageUnavailable."""
        self._made(one)

    def put(self, digest: str, pixels: Pixels) -> None:
        """Store the thumbnail of a radiograph that is kept out, in place of a damaged one. Raises StorageError."""
        self._store.write(_key(digest), png_bytes(small(pixels)))

    def keep(self, table: pd.DataFrame) -> None:
        """Store the thumbnails of an intake table's radiographs that are kept out and of which none is stored. Raises
        StorageError."""
        out = (table["verdict"] != "accepted") & (table["thumbnail"] != "")
        rows = table[out & ~table["digest"].isin(table.loc[~out, "digest"])].drop_duplicates("digest")

        def store(row: tuple[str, str, str]) -> None:
            digest, suffix, thumbnail = row
            if not self._store.exists(radiograph_key(digest, suffix)):
                self._store.write_if_absent(_key(digest), png_bytes(decoded(thumbnail)))

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(store, rows[["digest", "suffix", "thumbnail"]].itertuples(index=False, name=None)):
                continue  # it raises what a thread raised

    def see(self, manifest: str, texts: Sequence[str]) -> None:
        """Keep the thumbnails of all rows of a manifest (its SHA-256) in the cache; "" is none."""
        data = b"".join(_kept(decoded(text)) if text else bytes(_KEPT) for text in texts)
        try:
            open_store(self._folder).write(self._path(manifest).name, data)
        except (StorageError, OSError) as error:
            log.warning("the cache takes no thumbnails: %s", error)


def _kept(pixels: NDArray[np.uint8]) -> bytes:
    return pixels.tobytes() + _checksum(pixels.tobytes())


def _checksum(pixels: bytes) -> bytes:
    return zlib.crc32(pixels).to_bytes(4, "little")


def radiograph_key(digest: str, suffix: str) -> str:
    """Return where a radiograph lies in the dataset's store."""
    return f"radiographs/{digest[:2]}/{digest}{suffix}"


def _key(digest: str) -> str:
    return f"{FOLDER}/{digest[:2]}/{digest}.png"
