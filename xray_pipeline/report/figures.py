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
from matplotlib.ticker import LogLocator, NullLocator
from PIL import Image
from sklearn import metrics as sk

from xray_pipeline.evaluation.sweep import CUTS, at_cuts
from xray_pipeline.evaluation.watching import Delivery

TILE = 224  # side of a radiograph in the gallery, in pixels

INK, SOFT, LINE, FIRST, SECOND, GROUND = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
_VARIABLES = {INK: "--ink", SOFT: "--soft", LINE: "--line", FIRST: "--first", SECOND: "--second", GROUND: "--ground"}
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

    def called(self) -> npt.NDArray[np.bool_]:
        """Which radiographs [N] are called at the operating threshold; none where it has none."""
        return self.scores >= (np.inf if self.threshold is None else self.threshold)


def roc(curves: Sequence[Curve], of: str) -> str:
    """Draw sensitivity against false alarms, with each model's operating point; enlarged where the points lie."""
    with mpl.rc_context(_STYLE):
        figure, axes = _square()
        axes.plot([0, 1], [0, 1], color=SOFT, linewidth=0.8, linestyle=":")
        points = [_called(curve) for curve in curves if curve.threshold is not None]
        edge = [_zoom(values) for values in ([p[0] for p in points], [1 - p[1] for p in points])]
        inset = _inset(axes, (0.4, 0.09, 0.57, 0.57), (-0.03 * edge[0], edge[0]), (1 - edge[1], 1 + 0.03 * edge[1]))
        for place in filter(None, (axes, inset)):
            for curve, look in zip(curves, _LOOKS, strict=False):
                falls, hits, _ = sk.roc_curve(curve.truth, curve.scores)
                area = sk.roc_auc_score(curve.truth, curve.scores)
                place.plot(falls, hits, label=f"{curve.name}, AUC {area:.3f}", **look)
                if curve.threshold is not None:
                    _mark(place, *_called(curve), look)
        axes.set(xlabel="1 - specificity", ylabel="sensitivity", title="ROC")
        return _finish(figure, axes, f"ROC curves for {of}")


def precision_recall(curves: Sequence[Curve], of: str) -> str:
    """Draw positive predictive value against sensitivity, with each operating point; enlarged where the points lie."""
    with mpl.rc_context(_STYLE):
        figure, axes = _square()
        axes.axhline(float(curves[0].truth.mean()), color=SOFT, linewidth=0.8, linestyle=":")
        points = [_predicted(curve) for curve in curves if curve.threshold is not None]
        edge = [_zoom([1 - p[n] for p in points]) for n in (0, 1)]
        inset = _inset(
            axes, (0.1, 0.09, 0.57, 0.57), (1 - edge[0], 1 + 0.03 * edge[0]), (1 - edge[1], 1 + 0.03 * edge[1])
        )
        for place in filter(None, (axes, inset)):
            for curve, look in zip(curves, _LOOKS, strict=False):
                precision, recall, _ = sk.precision_recall_curve(curve.truth, curve.scores)
                area = sk.average_precision_score(curve.truth, curve.scores)
                place.step(recall, precision, where="post", label=f"{curve.name}, AP {area:.3f}", **look)
                if curve.threshold is not None:
                    _mark(place, *_predicted(curve), look)
        axes.set(xlabel="sensitivity (recall)", ylabel="predictive value (precision)", title="Precision and recall")
        return _finish(figure, axes, f"precision-recall curves for {of}")


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
        return _finish(figure, axes, f"calibration for {of}")


def by_cut(curves: Sequence[Curve], of: str) -> list[str]:
    """Draw accuracy, and sensitivity and specificity, against the cut, with each model's own cut marked.

    Each curve has a threshold. Accuracy is drawn from a tenth below the lowest value at a model's own cut.
    """
    with mpl.rc_context(_STYLE):
        first, second = _square(), _square()
        lows = []
        for curve, look in zip(curves, _LOOKS, strict=False):
            swept, own = at_cuts(curve.scores, curve.truth), at_cuts(curve.scores, curve.truth, curve.threshold or 0.0)
            first[1].plot(CUTS, swept.accuracy, label=f"{curve.name}, cut {curve.threshold:.3f}", **look)
            second[1].plot(CUTS, swept.sensitivity, label=f"{curve.name}, sensitivity", **look)
            second[1].plot(CUTS, swept.specificity, label="specificity", **{**look, "linewidth": 0.9})
            for axes, values in ((first[1], [own.accuracy]), (second[1], [own.sensitivity, own.specificity])):
                axes.axvline(own.cuts[0], color=look["color"], linewidth=0.8, linestyle=":")
                for value in values:
                    _mark(axes, own.cuts[0], value[0], look)
            lows.append(own.accuracy[0])
        first[1].set(xlabel="cut", ylabel="accuracy", title="Accuracy by cut", ylim=(max(0.0, min(lows) - 0.1), 1.005))
        second[1].set(xlabel="cut", ylabel="share of the class", title="Sensitivity and specificity by cut")
        return [
            _finish(*first, f"accuracy by cut for {of}"),
            _finish(*second, f"sensitivity and specificity by cut for {of}"),
        ]


def histogram(curve: Curve, of: str) -> str:
    """Draw the scores of radiographs with and without the class on a logarithmic axis, and the operating threshold."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(3.6, 2.4))
        axes = figure.subplots()
        edges = np.linspace(0, 1, 31).tolist()
        axes.hist(curve.scores[curve.truth], edges, color=FIRST, alpha=0.55, label=of)
        axes.hist(curve.scores[~curve.truth], edges, color="none", label="without", hatch="////", ec=SECOND)
        if curve.threshold is not None:
            axes.axvline(
                curve.threshold, color=INK, linewidth=1, linestyle="--", label=f"threshold {curve.threshold:.2f}"
            )
        axes.set(xlabel=f"probability of {of}", ylabel="radiographs", xlim=(0, 1), yscale="log", ylim=(0.7, None))
        axes.yaxis.set(
            major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:,.0f}", minor_locator=NullLocator()
        )
        axes.grid(False, axis="x")
        axes.set_title(f"Scores of the {curve.name}")
        return _finish(figure, axes, f"scores of the {curve.name} for {of}")


def record(deliveries: Sequence[Delivery], promised: float) -> str:
    """Draw how right the champion was on each delivery, the confidence sequence of all so far, and what was held out.

    The axis shows all points and the newest ends of the sequence; the first ones, which say little, may lie outside.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(3.6, 2.6))
        axes = figure.subplots()
        places = range(len(deliveries))
        known = [(place, one.accuracy) for place, one in enumerate(deliveries) if one.accuracy is not None]
        low, high = ([getattr(one, end) for one in deliveries] for end in ("low", "high"))
        axes.fill_between(places, low, high, color=FIRST, alpha=0.18, linewidth=0, label="95 % of all so far")
        for end in (low, high):
            axes.plot(places, end, color=FIRST, linewidth=0.9)
        axes.axhline(promised, color=SECOND, linewidth=1.2, linestyle="--", label="held out")
        axes.plot(*zip(*known, strict=True), "o", color=INK, markersize=3.5, label="a delivery")
        shown = [promised, low[-1], high[-1], *(accuracy for _, accuracy in known)]
        edge = 0.08 * (max(shown) - min(shown)) + 0.005
        days = sorted({0, len(deliveries) // 2, len(deliveries) - 1}) if len(deliveries) > 4 else [len(deliveries) - 1]
        axes.set(ylabel="accuracy", ylim=(max(0.0, min(shown) - edge), min(1.005, max(shown) + edge)))
        axes.set(xlim=(-0.6, len(deliveries) - 0.4), xticks=days, xticklabels=[deliveries[day].at[:10] for day in days])
        axes.grid(False, axis="x")
        axes.set_title("The champion on new patients")
        return _finish(figure, axes, "accuracy of the champion on new patients, by delivery")


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


def _called(curve: Curve) -> tuple[float, float]:
    """The share of radiographs called at the operating threshold: of those without the class, of those with it."""
    called = curve.called()
    return float(called[~curve.truth].mean()), float(called[curve.truth].mean())


def _predicted(curve: Curve) -> tuple[float, float]:
    """Sensitivity and positive predictive value at the operating threshold; the latter 1 when nothing is called."""
    called = curve.called()
    return float(called[curve.truth].mean()), float(curve.truth[called].mean()) if called.any() else 1.0


def _zoom(distances: Sequence[float]) -> float:
    """How much of an axis shows all points, which are so far from its good end; 1 when it takes more than .4."""
    return next((edge for edge in (0.05, 0.1, 0.2, 0.4) if edge >= 1.3 * max(distances, default=0.15)), 1.0)


def _inset(
    axes: Axes, place: tuple[float, float, float, float], x: tuple[float, float], y: tuple[float, float]
) -> Axes | None:
    """Enlarge a corner inside a plot; None when the points fill the plot anyway."""
    if max(x[1] - x[0], y[1] - y[0]) > 0.5:
        return None
    inset = axes.inset_axes(place, xlim=x, ylim=y)
    inset.set_facecolor(GROUND)
    inset.tick_params(labelsize=7)
    inset.locator_params(nbins=3)
    axes.indicate_inset_zoom(inset, edgecolor=SOFT, alpha=0.6)
    return inset


def _mark(axes: Axes, x: float, y: float, look: dict[str, Any]) -> None:
    axes.plot(x, y, marker="o", markersize=5, color=look["color"], linestyle="none")


def _square() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(3.6, 3.5))
    axes = figure.subplots()
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    return figure, axes


def _finish(figure: Figure, axes: Axes, label: str) -> str:
    """Return a figure as SVG, its legend in rows above the axes, where nothing runs through it."""
    entries = len(axes.get_legend_handles_labels()[1])
    columns = 3 if entries == 3 else 2
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.03, 0.97),
        ncols=columns,
        handlelength=1.6,
        columnspacing=1,
        labelspacing=0.2,
    )
    axes.set_title(axes.get_title(loc="left"), pad=16 if entries <= columns else 28)
    for drawn in (figure, axes):
        drawn.set_facecolor("none")
    figure.tight_layout(pad=0.4)
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": label}):  # the same picture has the same text, and ids don't collide
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
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
