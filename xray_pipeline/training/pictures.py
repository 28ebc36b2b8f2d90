"""Pictures of a training for its MLflow run: what the network was shown, how it learned, what it now says.

They hold pixels, labels and figures, never a name or a digest. The trade-off: a few radiographs each, enough to see a
broken augmentation, a wrong label or a model that looks at the wrong thing, too few to judge quality by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

COLUMNS = 4
SHOWN = 16


def spread(labels: Sequence[str], count: int = SHOWN) -> list[int]:
    """Return the positions of at most `count` radiographs, the classes in turn, so that each is shown."""
    places = {name: [at for at, label in enumerate(labels) if label == name] for name in sorted(set(labels))}
    turns = [at for turn in range(count) for queue in places.values() for at in queue[turn : turn + 1]]
    return turns[:count]


def gallery(pixels: npt.NDArray[np.uint8], titles: Sequence[str], wrong: Sequence[bool] = ()) -> Figure:
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


def curves(history: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """Draw metrics over epochs: losses in one plot, shares in the other. `history` gives (epoch, value) by metric."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, points in sorted(history.items()):
        axis = left if name.endswith("loss") else right
        epochs, values = zip(*sorted(points), strict=True)
        axis.plot(epochs, values, marker="o", markersize=3, label=name.replace("_", " "))
    for axis, title in ((left, "Loss"), (right, "Accuracy and AUC")):
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
        if axis.has_data():
            axis.legend(frameon=False)
    return figure
