"""Thumbnails of judged radiographs: no manifest holds them, as a night looks at a few of them at most.

That of a stored radiograph is made of it when a question about near copies asks for it. Of a radiograph that was kept
out nothing else is stored, so that its thumbnail is:

    pictures/<2>/<digest>.png       in the dataset's store: a thumbnail, which its row's perceptual hash is of
    <cache>/thumbnails/             what was asked for on this machine

Manifests of earlier versions hold thumbnails; one that is found nowhere else is taken from there.
"""

from __future__ import annotations

import base64
import contextlib
import io
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from xray_pipeline.base.errors import ObjectNotFound, RadiographDamaged, StorageUnavailable
from xray_pipeline.base.storage import Store
from xray_pipeline.dataset.fingerprints import SIDE, Thumbnails, decoded, hashes, small
from xray_pipeline.dataset.pixels import Read, RowCache
from xray_pipeline.images import radiograph
from xray_pipeline.images.png import png_bytes
from xray_pipeline.images.raster import Pixels

log = logging.getLogger(__name__)

FOLDER: Final = "pictures"
_CURE: Final = "run `xray repair`"


class Shown(NamedTuple):
    """A row whose thumbnail is asked for. It was accepted, or is kept out; `manifest` and `row` are where it stands, ""
    where that manifest holds no thumbnail of it."""

    digest: str
    suffix: str
    phash: str
    accepted: bool
    manifest: str = ""
    row: int = 0


class Shelf:
    """The thumbnails of a dataset: `store` is its own, `read(digest, suffix)` gives a stored radiograph, and
    `carried(manifest, row)` the text of a thumbnail in a manifest. Several threads may ask at once."""

    def __init__(self, store: Store, cache: Path, read: Read, carried: Callable[[str, int], str]) -> None:
        self._store, self._read, self._carried = store, read, carried
        self._rows = RowCache(cache / "thumbnails", (SIDE, SIDE), np.uint8)
        self._asking = threading.Lock()

    def of(self, shown: Sequence[Shown]) -> Thumbnails:
        """Return the thumbnails of rows (n, SIDE, SIDE).

        Raises RadiographDamaged when what it is made of is missing or is not what it was, StorageUnavailable.
        """
        wanted = {one.digest: one for one in shown}
        with self._asking:
            missing = self._rows.missing(wanted)
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                found = dict(zip(missing, pool.map(lambda digest: self._made(wanted[digest]), missing), strict=True))
            known = [digest for digest in wanted if digest not in found]
            rows = np.asarray(self._rows.get(known), np.uint8)
            if missing:
                try:
                    self._rows.add(missing, np.stack([found[digest] for digest in missing]))
                except (StorageUnavailable, OSError) as error:
                    log.warning("the cache takes no thumbnails: %s", error)
        found |= dict(zip(known, rows, strict=True))
        return np.stack([found[one.digest] for one in shown]) if shown else np.empty((0, SIDE, SIDE), np.uint8)

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
            if one.manifest:
                return decoded(self._carried(one.manifest, one.row))
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


def radiograph_key(digest: str, suffix: str) -> str:
    """Return where a radiograph lies in the dataset's store."""
    return f"radiographs/{digest[:2]}/{digest}{suffix}"


def _key(digest: str) -> str:
    return f"{FOLDER}/{digest[:2]}/{digest}.png"
