"""What becomes of a model's answers when the radiographs come out differently: written perturbations, and a baseline.

Each perturbation is one that another exposure, scanner, export or collimator could have made, at a strength that leaves
a radiologist's reading as it is. `only the border` is a baseline instead: lungs gone, letters and markers left; a model
that still tells the classes apart reads those. Everything works on the square pixels a model gets. The trade-off: a
sample of the held-out radiographs (the first by digest, which is as good as random and the same every night) because
each perturbation costs one more scoring of them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image
from scipy import ndimage

from xray_pipeline.base.progress import Progress
from xray_pipeline.base.storage import Store
from xray_pipeline.evaluation.bootstrap import Resampling
from xray_pipeline.evaluation.cases import Answers, Floats, prepare
from xray_pipeline.evaluation.predictions import Pixels, Read, Scorer, predictions
from xray_pipeline.evaluation.slices import Slice, measured_slice

Images = npt.NDArray[np.uint8]

BORDER = 1 / 8  # of the side, on each edge
UNTOUCHED, BASELINE = "as they are", "only the border"


class Model(Scorer, Protocol):
    """A model with the threshold it ships with."""

    @property
    def threshold(self) -> float: ...


def stress(
    models: Sequence[tuple[Model, Pixels]],
    rows: pd.DataFrame,
    read: Read,
    store: Store,
    limit: int,
    resampling: Resampling,
    progress: Progress | None = None,
) -> tuple[Slice, ...]:
    """Measure the candidate, and the champion when given second, on perturbed held-out radiographs.

    `rows` as for `predictions.score`, with label and patient, of which the first `limit` by digest are taken. Returns
    one slice for each of PERTURBATIONS, dimension "stress"; that of BASELINE is "baseline": no model should do well on
    it. Predictions are kept under stress/<model digest>/, so a champion costs nothing the second night.
    """
    sample = rows.sort_values("digest").head(limit)
    classes, measured = models[0][0].classes, []
    for name in PERTURBATIONS:
        answers = [
            Answers(_answers(model, pixels, sample, name, read, store), model.threshold) for model, pixels in models
        ]
        cases = prepare(answers, sample["label"], sample["patient"], classes)
        measured.append(measured_slice("baseline" if name == BASELINE else "stress", name, cases, resampling))
        if progress:
            progress(len(measured), len(PERTURBATIONS), "stress")
    return tuple(measured)


def _answers(model: Scorer, pixels: Pixels, rows: pd.DataFrame, name: str, read: Read, store: Store) -> Floats:
    def compute(block: pd.DataFrame) -> Floats:
        pixels.ensure(block, read)
        return model.probabilities(PERTURBATIONS[name](pixels.get(list(block["digest"]))))

    folder = f"stress/{model.digest}/{name.replace(' ', '-').replace('%', 'percent')}"
    table = predictions(folder, model.classes, rows, compute, store, what=f"stress ({name}):")
    return np.asarray(table.drop(columns="digest"), dtype=np.float64)


def brightness(images: Images, shift: float) -> Images:
    """Add a share of full scale to every pixel."""
    return _bytes(images + np.float32(255 * shift))


def contrast(images: Images, factor: float) -> Images:
    """Stretch the grey values of each image around its mean."""
    mean = images.mean(axis=(1, 2), keepdims=True, dtype=np.float32)
    return _bytes(mean + np.float32(factor) * (images - mean))


def crop(images: Images, keep: float) -> Images:
    """Cut off the edges, keeping `keep` of the side, and enlarge what is left to the old size."""
    side = images.shape[-1]
    cut = side * (1 - keep) / 2
    box = (cut, cut, side - cut, side - cut)
    return _each(images, lambda image: image.resize((side, side), Image.Resampling.BILINEAR, box=box))


def blur(images: Images, sigma: float) -> Images:
    """Blur with a Gaussian of `sigma` pixels at a side of 224, and as much at other sizes."""
    scaled = sigma * images.shape[-1] / 224
    return _bytes(ndimage.gaussian_filter(images.astype(np.float32), (0, scaled, scaled)))


def jpeg(images: Images, quality: int) -> Images:
    """Save as JPEG of this quality (1 to 95) and read back."""

    def again(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer, formats=("JPEG",))

    return _each(images, again)


def without_border(images: Images) -> Images:
    """Cover the outer eighth on each edge in black."""
    return np.where(_inside(images), images, np.uint8(0))


def only_border(images: Images) -> Images:
    """Cover all but the outer eighth on each edge in one grey, the same for all: an image's own mean would tell."""
    return np.where(_inside(images), np.uint8(128), images)


PERTURBATIONS: Mapping[str, Callable[[Images], Images]] = {
    UNTOUCHED: lambda images: images,
    "brightness +15 %": lambda images: brightness(images, 0.15),
    "brightness -15 %": lambda images: brightness(images, -0.15),
    "contrast x 0.7": lambda images: contrast(images, 0.7),
    "contrast x 1.4": lambda images: contrast(images, 1.4),
    "crop to 90 %": lambda images: crop(images, 0.9),
    "blur, sigma 1.5 px": lambda images: blur(images, 1.5),
    "JPEG quality 30": lambda images: jpeg(images, 30),
    "border covered": without_border,
    BASELINE: only_border,
}
"""Name to change; a name is part of where predictions are kept, so another strength needs another name."""


def _inside(images: Images) -> npt.NDArray[np.bool_]:
    side = images.shape[-1]
    edge = round(side * BORDER)
    inside = np.zeros((side, side), dtype=bool)
    inside[edge : side - edge, edge : side - edge] = True
    return inside


def _each(images: Images, change: Callable[[Image.Image], Image.Image]) -> Images:
    return np.stack([np.asarray(change(Image.fromarray(image)), dtype=np.uint8) for image in images])


def _bytes(values: npt.NDArray[np.float32]) -> Images:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
