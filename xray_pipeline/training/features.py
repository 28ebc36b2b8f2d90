"""What a backbone says of radiographs, computed once each and kept by digest.

Keys name all that decides the numbers: backbone, weights, what the network sees, the engine with its version and
precision, package versions and the kind of device. So a head is trained, and a candidate on the same frozen backbone is
scored, without looking at an old radiograph again, whatever the size of the dataset. The trade-off: 4 bytes a feature,
radiograph and view on disk, and a new version of torch or of the engine computes all of them anew.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from xray_pipeline.base.progress import Progress
from xray_pipeline.base.settings import Settings
from xray_pipeline.dataset.pixels import SHARD, MappedRows, PixelCache, Read, RowCache
from xray_pipeline.models import backbones
from xray_pipeline.models.backbones import Network
from xray_pipeline.models.classifier import Classifier
from xray_pipeline.models.engine import Engine, engine_for, torch_threads
from xray_pipeline.training import augmenting
from xray_pipeline.training.augmentation import Augmentation
from xray_pipeline.training.device import Precision, batch_for, halving
from xray_pipeline.training.recipe import Recipe

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]

BLOCK_BYTES = 8 * 2**20
IN_MEMORY = 2**30
"""Standardised features beyond this many bytes are read from a scratch file in each pass."""


def feature_dtype(recipe: Recipe, device: torch.device) -> torch.dtype | None:
    """Return the type that features are computed in, None: float32, as a model is served.

    A recipe that asks for bfloat16 gets it on a GPU; on a CPU it costs more AUC under stress than its speed is worth.
    """
    asked = device.type == "cuda" and recipe.precision == "bfloat16"
    return Precision(device, "bfloat16" if asked else "float32").dtype


class Features:
    """Features float32 [F] of radiographs, for one network; by the engine for it in float32 unless one is given."""

    def __init__(
        self,
        network: Network,
        backbone: str,
        weights_digest: str,
        pixels: PixelCache,
        folder: Path,
        engine: Engine | None = None,
    ) -> None:
        self.network, self.pixels, self.folder = network, pixels, folder
        self.engine = engine or engine_for(network)
        self._caches: dict[Path, RowCache] = {}
        self.facts = [
            *(backbone, weights_digest, pixels.side, network.crop, network.levels, network.mean, network.std),
            *(importlib.metadata.version(name) for name in ("torch", "torchvision", "timm")),
            f"{network.head.weight.device.type} {torch.backends.cpu.get_cpu_capability()}",
            self.engine.name,
            *([pixels.fit] if pixels.fit != "squash" else []),
            *([f"{self.engine.views} views"] if self.engine.views > 1 else []),
        ]

    def cache(self, view: int = 0, drawn: Augmentation | None = None) -> RowCache:
        """Open the cache of a view; 0 is the radiograph itself, others are drawn with an augmentation."""
        key = json.dumps([*self.facts, view, drawn.model_dump_json() if view and drawn else ""])
        folder = self.folder / f"features-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        if folder not in self._caches:
            self._caches[folder] = RowCache(folder, (self.network.head.in_features,), np.float32)
        return self._caches[folder]

    def rows(
        self,
        digests: Sequence[str],
        view: int = 0,
        drawn: Augmentation | None = None,
        progress: Progress | None = None,
        what: str = "features",
    ) -> MappedRows:
        """Return the features of radiographs whose pixels are kept, computing those that are missing.

        They are kept `SHARD` at a time, so that a kill loses no more than those. Raises KeyError for a radiograph
        without pixels, OutOfMemory, StorageUnavailable.
        """
        cache = self.cache(view, drawn)
        missing = cache.missing(digests)
        batch = batch_for(self.network.head.weight.device)
        for first in range(0, len(missing), SHARD):
            shard = missing[first : first + SHARD]
            fresh = np.empty((len(shard), *cache.shape), np.float32)
            for start in range(0, len(shard), batch):
                block = shard[start : start + batch]
                fresh[start : start + len(block)] = self._computed(block, view, drawn)
                if progress:
                    progress(first + start + len(block), len(missing), what)
            cache.add(shard, fresh)
        if missing:
            log.info("%s computed for %d radiographs", what, len(missing))
        return cache.view(digests)

    def _computed(self, digests: list[str], view: int, drawn: Augmentation | None) -> Floats:
        if view and drawn:
            pixels = self._drawn(digests, view, drawn)
        else:
            pixels = torch.from_numpy(self.pixels.get(digests)).unsqueeze(1)
        short = -len(digests) % self.engine.multiple
        pixels = torch.cat([pixels, pixels[:1].expand(short, -1, -1, -1)])
        computed = halving(lambda part: self.engine.features(part).cpu(), pixels, self.engine.multiple)
        return np.asarray(computed[: len(digests)].numpy())

    def _drawn(self, digests: list[str], view: int, drawn: Augmentation) -> Tensor:
        """Return a view of each radiograph, each drawn by one thread: how many share the work changes torch's bits."""
        workers, pixels = torch.get_num_threads(), torch.from_numpy(self.pixels.squashed(digests)).unsqueeze(1)
        aspects = self.pixels.aspects(digests)
        shapes = [None] * len(digests) if aspects is None else torch.from_numpy(aspects)[:, None]

        def draw(picture: Tensor, digest: str, aspect: Tensor | None) -> Tensor:
            return augmenting.view(drawn, picture[None], self.pixels.side, [digest], view, aspect)

        with torch_threads(1), ThreadPoolExecutor(workers) as pool:
            return torch.cat(list(pool.map(draw, pixels, digests, shapes)))


class KeptScorer:
    """A classifier that is asked with kept features instead of pixels, for `evaluation.score`; it is both its sides."""

    def __init__(self, model: Classifier, features: Features) -> None:
        self.model, self.features = model, features
        self.digest, self.classes = model.digest, model.classes

    def ensure(self, rows: pd.DataFrame, read: Read) -> object:
        """Decode radiographs that have no features yet, and compute those. Raises what `read` raises."""
        missing = set(self.features.cache().missing(rows["digest"]))
        self.features.pixels.ensure(rows[rows["digest"].isin(missing)], read)
        return self.features.rows(list(rows["digest"]))

    def get(self, digests: Sequence[str]) -> Floats:
        """Return features [N, F]."""
        return np.asarray(self.features.rows(digests).part(0, len(digests)), np.float32)

    def probabilities(self, features: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return probabilities float64 [N, C] of features [N, F]."""
        return self.model.of_features(torch.from_numpy(features))


def kept_scorer(model: Classifier, settings: Settings) -> KeptScorer | None:
    """Return how to score a model by features that training has kept on this machine; None when it kept none."""
    pixels = PixelCache(settings.cache, model.side, model.fit)
    weights = backbones.digest_of(model.network.backbone)
    engine = engine_for(model.network, wanted=settings.engine, views=model.views)
    features = Features(model.network, model.backbone, weights, pixels, settings.cache, engine)
    return KeptScorer(model, features) if features.cache().folder.is_dir() else None


class Standardised:
    """Features of several views [views * N, F], each column with mean 0 and deviation 1, read in blocks.

    Held in memory up to `IN_MEMORY` bytes, else in a scratch file that goes with the process. `mean` and `std` [F] are
    those of the columns; a column that never changes has deviation 1e-6.
    """

    def __init__(self, views: Sequence[MappedRows], scratch: Path, device: torch.device) -> None:
        self.views, self.device = views, device
        self.width = views[0].shape[1]
        self.block = max(1, BLOCK_BYTES // (4 * self.width))
        self.count = sum(len(view) for view in views)
        mean, std = self._moments()
        self.mean, self.std = torch.from_numpy(mean).to(device), torch.from_numpy(std).to(device)
        self._parts: list[Tensor] = []
        self._file: IO[bytes] | None = None
        if 4 * self.count * self.width > IN_MEMORY:
            scratch.mkdir(parents=True, exist_ok=True)
            self._file = TemporaryFile(dir=scratch)  # noqa: SIM115 - lives as long as this object; has no name
        for block in self._raw():
            block -= mean
            block /= std
            if self._file:
                self._file.write(block.tobytes())
            else:
                self._parts.append(torch.from_numpy(block).to(device))

    def __iter__(self) -> Iterator[Tensor]:
        """Go once over all rows, in blocks [n, F] on the device."""
        if self._file is None:
            yield from self._parts
            return
        self._file.seek(0)
        buffer = np.empty((self.block, self.width), np.float32)
        while size := self._file.readinto(buffer):  # type: ignore[attr-defined]
            yield torch.from_numpy(buffer[: size // (4 * self.width)]).to(self.device)

    def _raw(self) -> Iterator[Floats]:
        for view in self.views:
            for start in range(0, len(view), self.block):
                yield np.asarray(view.part(start, min(start + self.block, len(view))), np.float32)

    def _moments(self) -> tuple[Floats, Floats]:
        """Return mean and deviation of the columns: sums of blocks, merged as Chan et al. (1979) do."""
        count, mean, squares = 0, np.zeros(self.width), np.zeros(self.width)
        for block in self._raw():
            wide = block.astype(np.float64)
            own = wide.mean(0)
            wide -= own
            total = count + len(block)
            squares += np.einsum("nf,nf->f", wide, wide) + (own - mean) ** 2 * (count * len(block) / total)
            mean += (own - mean) * (len(block) / total)
            count = total
        return mean.astype(np.float32), np.sqrt(squares / count).clip(1e-6).astype(np.float32)
