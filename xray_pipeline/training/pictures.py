"""Pictures of a training: what the network was shown, and what it now says.

They hold pixels, labels and figures, never a name or a digest, and stay in the store beside the candidate; MLflow gets
them only where the setting `mlflow_pictures` says so. The trade-off: a few radiographs each, enough to see a broken
augmentation, a wrong label or a model that looks at the wrong thing, too few to judge quality by.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure

from xray_pipeline.base.storage import Store
from xray_pipeline.models.classifier import Classifier
from xray_pipeline.models.mlflow_client import MlflowClient
from xray_pipeline.training.augmenting import augmented
from xray_pipeline.training.candidate import ANSWERS, BATCH
from xray_pipeline.training.feeding import generator_of
from xray_pipeline.training.trainer import Trainer

Pixels = npt.NDArray[np.uint8]

COLUMNS = 4
SHOWN = 16


def spread(labels: Sequence[str], count: int = SHOWN) -> list[int]:
    """Return the positions of at most `count` radiographs, the classes in turn, so that each is shown."""
    places = {name: [at for at, label in enumerate(labels) if label == name] for name in sorted(set(labels))}
    turns = [at for turn in range(count) for queue in places.values() for at in queue[turn : turn + 1]]
    return turns[:count]


def gallery(pixels: Pixels, titles: Sequence[str], wrong: Sequence[bool] = ()) -> Figure:
    """Draw grey pixels [N, S, S] in rows of four with a title each; those that are `wrong` have a red one.

    All lie on one plot: to lay out and draw a plot for each takes seconds.
    """
    rows = max(1, -(-len(pixels) // COLUMNS))
    figure = Figure(figsize=(2.4 * COLUMNS, 2.7 * rows))
    plot = figure.add_axes((0, 0, 1, 1), xlim=(0, COLUMNS), ylim=(rows, 0), autoscale_on=False)
    plot.set_axis_off()
    for at, (picture, title) in enumerate(zip(pixels, titles, strict=True)):
        row, column = divmod(at, COLUMNS)
        edges = (column + 0.03, column + 0.97, row + 0.98, row + 0.14)  # left, right, bottom, top
        plot.imshow(picture, cmap="gray", vmin=0, vmax=255, extent=edges, aspect="auto")
        bad = bool(wrong) and wrong[at]
        plot.text(column + 0.5, row + 0.12, title, fontsize=8, ha="center", color="#b00020" if bad else "black")
    return figure


def keep(trainer: Trainer, classifier: Classifier, folder: Store, run_id: str) -> None:
    """Keep a training batch as it is augmented, and validation answers beside the truth, in the candidate's folder."""
    recipe = trainer.recipe
    batch, labels = _sample(trainer, "train")
    pixels, generator = (
        torch.from_numpy(trainer.pixels.squashed(batch)).unsqueeze(1),
        generator_of(recipe.seed, "sample"),
    )
    aspects = trainer.pixels.aspects(batch)
    shapes = None if aspects is None else torch.from_numpy(aspects)
    drawn = augmented(recipe.augmentation, pixels, recipe.seen, generator, aspects=shapes)
    asked, truth = _sample(trainer, "validation")
    shown = trainer.pixels.get(asked)
    probabilities = classifier.probabilities(shown)
    said = classifier.label(probabilities)
    titles = [f"{label}, said {name} {p:.2f}" for label, name, p in zip(truth, said, probabilities.max(1), strict=True)]
    wrong = [label != name for label, name in zip(truth, said, strict=True)]
    figures = {BATCH: gallery(drawn[:, 0].byte().numpy(), labels), ANSWERS: gallery(shown, titles, wrong)}
    for name, figure in figures.items():
        png = io.BytesIO()
        figure.savefig(png, format="png")
        folder.write(name, png.getvalue())
        if trainer.settings.mlflow_pictures:
            MlflowClient().log_figure(run_id, figure, name)


def _sample(trainer: Trainer, side: str) -> tuple[list[str], list[str]]:
    """Return digests and labels of some radiographs of one side of the split, whose pixels are then kept."""
    rows = trainer.rows[side].iloc[spread(list(trainer.rows[side]["label"]))]
    trainer.decode(rows)
    return list(rows["digest"]), list(rows["label"])
