"""The report's plots as SVG text that takes its colours from the page, so that one plot serves light, dark and print.

Matplotlib draws with stand-in colours; each is then replaced by a CSS variable of the page. Text stays text: it can be
searched and read aloud. The plots differ by dash and marker too, never by colour alone.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from sklearn import metrics as sk

TILE = 224  # side of a radiograph in the gallery, in pixels

INK, SOFT, LINE, FIRST, SECOND = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {INK: "--ink", SOFT: "--soft", LINE: "--line", FIRST: "--first", SECOND: "--second"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


@dataclass(frozen=True, eq=False)
class Curve:
    """One model's scores for one class: `truth` and `scores` are [N]; `threshold` None where it has none."""

    name: str
    truth: npt.NDArray[np.bool_]
    scores: npt.NDArray[np.float64]
    threshold: float | None


def roc(curves: Sequence[Curve], of: str) -> str:
    """Draw sensitivity against false alarms, with each model's operating point."""
    with mpl.rc_context(_STYLE):
        figure, axes = _square()
        axes.plot([0, 1], [0, 1], color=SOFT, linewidth=0.8, linestyle=":")
        for curve, look in zip(curves, _LOOKS, strict=False):
            falls, hits, _ = sk.roc_curve(curve.truth, curve.scores)
            area = sk.roc_auc_score(curve.truth, curve.scores)
            axes.plot(falls, hits, label=f"{curve.name}, AUC {area:.3f}", **look)
            if curve.threshold is not None:
                called = curve.scores >= curve.threshold
                point = called[~curve.truth].mean(), called[curve.truth].mean()
                axes.plot(*point, marker="o", markersize=6, color=look["color"], linestyle="none")
        axes.set(xlabel="1 - specificity", ylabel="sensitivity", title="ROC")
        return _finish(figure, axes, "lower right", f"ROC curves for {of}")


def precision_recall(curves: Sequence[Curve], of: str) -> str:
    """Draw positive predictive value against sensitivity."""
    with mpl.rc_context(_STYLE):
        figure, axes = _square()
        axes.axhline(float(curves[0].truth.mean()), color=SOFT, linewidth=0.8, linestyle=":")
        for curve, look in zip(curves, _LOOKS, strict=False):
            precision, recall, _ = sk.precision_recall_curve(curve.truth, curve.scores)
            area = sk.average_precision_score(curve.truth, curve.scores)
            axes.step(recall, precision, where="post", label=f"{curve.name}, AP {area:.3f}", **look)
        axes.set(xlabel="sensitivity (recall)", ylabel="predictive value (precision)", title="Precision and recall")
        return _finish(figure, axes, "lower left", f"precision-recall curves for {of}")


def calibration(curves: Sequence[Curve], of: str, bins: int = 10) -> str:
    """Draw how often the class was present against the probability given, in bins of equal mass."""
    with mpl.rc_context(_STYLE):
        figure, axes = _square()
        axes.plot([0, 1], [0, 1], color=SOFT, linewidth=0.8, linestyle=":")
        for curve, look in zip(curves, _LOOKS, strict=False):
            parts = [part for part in np.array_split(np.argsort(curve.scores, kind="stable"), bins) if len(part)]
            said, was = ([float(values[part].mean()) for part in parts] for values in (curve.scores, curve.truth))
            axes.plot(said, was, label=curve.name, marker="o", markersize=3.5, **look)
        axes.set(xlabel="probability given", ylabel=f"share that was {of}", title="Calibration")
        return _finish(figure, axes, "upper left", f"calibration for {of}")


def histogram(curve: Curve, of: str) -> str:
    """Draw the scores of radiographs with and without the class, and the operating threshold."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(3.6, 2.2))
        axes = figure.subplots()
        edges = np.linspace(0, 1, 31).tolist()
        axes.hist(curve.scores[curve.truth], edges, color=FIRST, alpha=0.55, label=of)
        axes.hist(curve.scores[~curve.truth], edges, color=SECOND, alpha=0.55, label="without", hatch="///", ec=SECOND)
        if curve.threshold is not None:
            axes.axvline(
                curve.threshold, color=INK, linewidth=1, linestyle="--", label=f"threshold {curve.threshold:.2f}"
            )
        axes.set(xlabel=f"probability of {of}", ylabel="radiographs", xlim=(0, 1))
        axes.grid(False, axis="x")
        axes.set_title(curve.name.capitalize(), pad=16)
        return _finish(figure, axes, "above", f"scores of the {curve.name} for {of}")


def overlay(pixels: npt.NDArray[np.uint8], heat: npt.NDArray[np.float32] | None = None) -> str:
    """Return a radiograph uint8 [S, S] as a data URI, with a map float32 [S, S] in 0..1 laid over it."""
    image = Image.fromarray(pixels).resize((TILE, TILE), Image.Resampling.BILINEAR)
    if heat is not None:
        scaled = np.asarray(Image.fromarray(heat).resize((TILE, TILE), Image.Resampling.BILINEAR))
        colour = mpl.colormaps["inferno"](scaled)[..., :3] * 255
        share = 0.6 * np.sqrt(np.clip(scaled, 0, 1))[..., None]  # no evidence, no colour
        mixed = (1 - share) * np.asarray(image, dtype=np.float32)[..., None] + share * colour
        image = Image.fromarray(mixed.astype(np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


_LOOKS: tuple[dict[str, Any], ...] = (
    {"color": FIRST, "linewidth": 1.8, "linestyle": "-"},
    {"color": SECOND, "linewidth": 1.6, "linestyle": "--"},
)


def _square() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(3.6, 3.3))
    axes = figure.subplots()
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    return figure, axes


def _finish(figure: Figure, axes: Axes, place: Any, label: str) -> str:
    if place == "above":  # a row of its own, where nothing can run through it
        axes.legend(loc="lower left", bbox_to_anchor=(-0.03, 0.97), ncols=3, handlelength=1.2, columnspacing=1)
    else:
        axes.legend(loc=place)
    figure.tight_layout(pad=0.4)
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": label}):  # the same picture has the same text, and ids don't collide
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'font-family: [^;"]+', "font-family: inherit", text)
    text = re.sub(
        r'id="(?:figure|axes|patch|line2d|text|matplotlib|xtick|ytick|legend|PathCollection)[\w.]*"', "", text
    )
    return re.sub(
        r'<svg [^>]*?viewBox="([^"]+)"[^>]*>',
        rf'<svg role="img" aria-label="{html.escape(label)}" viewBox="\1">',
        text,
        count=1,
    )
