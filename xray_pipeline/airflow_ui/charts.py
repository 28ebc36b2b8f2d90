"""Charts of the nights as numbers that a template draws as SVG: no script, and colours from the page's style sheet.

A chart is 360 units wide, the width of a phone, so that its text is as large there as on a wide screen, where several
stand in a row. Nights are evenly spaced, the oldest on the left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from xray_pipeline.base.text import several
from xray_pipeline.night.nights import Model, Night

if TYPE_CHECKING:
    from xray_pipeline.night.watching import Watched

LEFT, RIGHT, TOP, BOTTOM = 40.0, 352.0, 10.0, 156.0
COLOURS = 6
"""Kinds of bars that have a colour of their own; the others are one."""
SMALLEST_P = 1e-4
WIDEST = 24.0
"""Of a bar: a few nights draw no blocks."""


@dataclass(frozen=True)
class Mark:
    """A point with its interval; equal ends draw none."""

    kind: str
    x: float
    y: float
    low: float
    high: float
    says: str


@dataclass(frozen=True)
class Bar:
    """A part of a night's column."""

    kind: str
    x: float
    y: float
    width: float
    height: float
    says: str


@dataclass(frozen=True)
class Chart:
    """What the template draws; `says` tells it to whom can't see it, and is shown where there is nothing to draw."""

    title: str
    says: str
    legend: tuple[tuple[str, str], ...] = ()
    ticks: tuple[tuple[float, str], ...] = ()
    days: tuple[tuple[float, str], ...] = ()
    lines: tuple[tuple[str, str], ...] = ()
    marks: tuple[Mark, ...] = ()
    bars: tuple[Bar, ...] = ()


@dataclass(frozen=True)
class _Axis:
    """From values to heights, and the values that are written beside it."""

    low: float
    high: float
    ticks: Sequence[float]
    shown: Callable[[float], str]
    scale: Callable[[float], float] = field(default=lambda value: value)

    def y(self, value: float) -> float:
        low, high = self.scale(self.low), self.scale(self.high)
        share = (self.scale(min(max(value, self.low), self.high)) - low) / (high - low)
        return round(BOTTOM - share * (BOTTOM - TOP), 1)

    @property
    def labels(self) -> tuple[tuple[float, str], ...]:
        return tuple((self.y(tick), self.shown(tick)) for tick in self.ticks)


def of_nights(nights: Sequence[Night]) -> list[Chart]:
    """Return the charts of these nights, newest first as `nights.read` gives them."""
    past = list(reversed(nights))
    accepted = [{"accepted": night.accepted} for night in past]
    return [
        _figures(past, "accuracy", "Held-out accuracy"),
        _figures(past, "auc", "Held-out AUC"),
        _columns(past, accepted, "Files accepted", "{:,.0f}"),
        _columns(past, [night.quarantined for night in past], "Files quarantined, by reason", "{:,.0f}"),
        _drift(past),
        _columns(past, [night.minutes for night in past], "Minutes, by task", "{:,.1f}"),
    ]


def of_record(watched: Watched, most: int) -> Chart:
    """Return the chart of the champion's newest `most` deliveries: how right it was on patients new to it, and the
    confidence sequence of all so far."""
    title, shown = "Champion on new patients", watched.deliveries[-most:]
    if not shown or watched.promised is None:
        return Chart(title, watched.in_words)
    known = [one.accuracy for one in shown if one.accuracy is not None]
    axis = _linear(
        min(*known, shown[-1].low, watched.promised), max(*known, shown[-1].high, watched.promised), most=1.0
    )
    places = [_x(place, shown) for place in range(len(shown))]
    held_out = axis.y(watched.promised)
    lines = (
        ("promised", f"{LEFT},{held_out} {RIGHT},{held_out}"),
        ("sequence", " ".join(f"{x},{axis.y(one.low)}" for x, one in zip(places, shown, strict=True))),
        ("sequence", " ".join(f"{x},{axis.y(one.high)}" for x, one in zip(places, shown, strict=True))),
    )
    kind = "alarm" if watched.alarm else "champion"
    marks = tuple(
        Mark(
            kind,
            x,
            axis.y(one.accuracy),
            axis.y(one.accuracy),
            axis.y(one.accuracy),
            f"{one.at[:10]}, {one.key}: {one.accuracy:.3f} on {several(one.patients, 'patient')}",
        )
        for x, one in zip(places, shown, strict=True)
        if one.accuracy is not None
    )
    legend = (
        (kind, "accuracy of a delivery, at the held-out mix"),
        ("sequence", "95 % of all so far"),
        ("promised", "when held out"),
    )
    days = _spread([one.at[:10] for one in shown])
    return Chart(title, watched.in_words, legend, axis.labels, days, lines, marks)


def _figures(nights: Sequence[Night], metric: str, title: str) -> Chart:
    marks: list[tuple[str, int, Model]] = []
    for place, night in enumerate(nights):
        marks += [(kind, place, model) for kind, model in _models(night) if metric in model.figures]
    if not marks:
        return Chart(title, "No night has measured a candidate yet.")
    values = [model.figures[metric] for _, _, model in marks]
    axis = _linear(min(f.low for f in values), max(f.high for f in values), most=1.0)
    line = " ".join(
        f"{_x(place, nights)},{axis.y(model.figures[metric].value)}"
        for kind, place, model in marks
        if kind == "champion"
    )
    newest = marks[-1][2].figures[metric].value
    return Chart(
        title,
        f"{title}: {several(len(marks), 'measurement')}, the newest {newest:.3f}.",
        (("champion", "champion"), ("candidate", "candidate"), ("refused", "refused candidate; 95 % intervals")),
        axis.labels,
        _days(nights),
        (("champion", line),),
        tuple(_mark(kind, place, model, metric, axis, nights) for kind, place, model in marks),
    )


def _models(night: Night) -> Iterable[tuple[str, Model]]:
    if night.champion:
        yield "champion", night.champion
    if night.candidate:
        yield "refused" if night.verdict == "refused" else "candidate", night.candidate


def _mark(kind: str, place: int, model: Model, metric: str, axis: _Axis, nights: Sequence[Night]) -> Mark:
    figure, name = model.figures[metric], f"version {model.version}" if model.version else "candidate"
    says = f"{_date(nights[place])}: {name} {figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f}), {kind}"
    return Mark(kind, _x(place, nights), axis.y(figure.value), axis.y(figure.low), axis.y(figure.high), says)


def _columns(nights: Sequence[Night], counts: Sequence[Mapping[str, float]], title: str, shown: str) -> Chart:
    totals: dict[str, float] = {}
    for night in counts:
        for name, count in night.items():
            totals[name] = totals.get(name, 0) + count
    names = sorted((name for name in totals if totals[name]), key=lambda name: -totals[name])
    if not names:
        return Chart(title, "None in these nights.")
    kinds = {name: f"part-{place}" if place < COLOURS else "part-other" for place, name in enumerate(names)}
    axis = _linear(0, max(sum(night.values()) for night in counts))
    bars, width = [], min(max((RIGHT - LEFT) / len(nights) * 0.8, 0.5), WIDEST)
    for place, night in enumerate(counts):
        top = 0.0
        for name in names:
            if count := night.get(name, 0):
                y, below = axis.y(top + count), axis.y(top)
                says = f"{_date(nights[place])}: {name} {shown.format(count)}"
                x = round(_x(place, nights) - width / 2, 1)
                bars.append(Bar(kinds[name], x, y, round(width, 1), round(below - y, 1), says))
                top += count
    legend = [(kinds[name], f"{name} {shown.format(totals[name])}") for name in names[:COLOURS]]
    if rest := names[COLOURS:]:
        legend.append(
            ("part-other", f"{several(len(rest), 'other')} {shown.format(sum(totals[name] for name in rest))}")
        )
    says = f"{title}: {', '.join(f'{name} {shown.format(totals[name])}' for name in names)}."
    return Chart(title, says, tuple(legend), axis.labels, _days(nights), bars=tuple(bars))


def _drift(nights: Sequence[Night]) -> Chart:
    title, ticks = "Drift of deliveries, p", (1e-4, 1e-3, 1e-2, 0.1, 1.0)
    axis = _Axis(SMALLEST_P, 1.0, ticks, _short, math.log10)
    marks = []
    for place, night in enumerate(nights):
        for arrival in night.deliveries:
            for channel, p in arrival.drift.items():
                kind, y = "alarm" if channel in arrival.alarms else "calm", axis.y(p)
                says = f"{_date(night)}: {arrival.name}, {channel}, p = {p:.2g}{', alarm' if kind == 'alarm' else ''}"
                marks.append(Mark(kind, _x(place, nights), y, y, y, says))
    if not marks:
        return Chart(title, "No delivery was compared with the dataset in these nights.")
    alarms = sum(mark.kind == "alarm" for mark in marks)
    legend = (("calm", "a channel of a delivery"), ("alarm", "with an alarm"))
    says = f"{title}: {several(len(marks), 'comparison')}, {several(alarms, 'alarm')}."
    return Chart(title, says, legend, axis.labels, _days(nights), marks=tuple(marks))


def _linear(low: float, high: float, most: float = math.inf) -> _Axis:
    """Return an axis of some four steps of 1, 2 or 5 times a power of ten; nothing above `most` is marked."""
    span = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / 4))
    step = next(power * times for times in (1, 2, 5, 10) if span / (power * times) <= 5)
    last = math.ceil(high / step - 1e-9)
    first = math.floor(min(low, most - step) / step + 1e-9)
    ticks = [step * count for count in range(first, max(last, first + 1) + 1)]
    marked = [tick for tick in ticks if tick <= most + step / 1e6]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return _Axis(ticks[0], min(ticks[-1], most), marked, lambda value: _short(value, digits))


def _short(value: float, digits: int = 4) -> str:
    """Write a value without the zero before its point, and without zeros at its end where `digits` is not asked for."""
    if value == 0:
        return "0"
    text = f"{value:,.{digits}f}" if digits < 4 else f"{value:g}".replace("1e-04", "0.0001")
    return text.removeprefix("0") if text.startswith("0.") else text


def _x(place: int, nights: Sequence[object]) -> float:
    return round(LEFT + (place + 0.5) * (RIGHT - LEFT) / len(nights), 1)


def _days(nights: Sequence[Night]) -> tuple[tuple[float, str], ...]:
    return _spread([_date(night) for night in nights])


def _spread(days: Sequence[str]) -> tuple[tuple[float, str], ...]:
    """Return the first, the middle and the last day, each with its place; of few the last one alone."""
    places = sorted({0, len(days) // 2, len(days) - 1}) if len(days) > 4 else [len(days) - 1]
    return tuple((_x(place, days), days[place]) for place in places)


def _date(night: Night) -> str:
    return night.started[:10]
