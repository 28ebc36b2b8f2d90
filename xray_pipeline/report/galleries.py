"""The radiographs on a page: what the models disagree on, the candidate's worst errors, suspects."""

from __future__ import annotations

from typing import Any

from xray_pipeline.base.text import several
from xray_pipeline.report import figures
from xray_pipeline.report.contents import Report
from xray_pipeline.report.examples import Example
from xray_pipeline.report.redacting import SHOWN
from xray_pipeline.report.wording import candidate_of


def galleries(report: Report) -> list[dict[str, Any]]:
    """The radiographs to look at: where the two models differ, and the candidate's worst errors."""
    shown = [("errors", "Worst errors", "The candidate is wrong here and most sure of it.", report.errors)]
    if report.evidence.champion is not None:
        text = f"The two models name {several(report.differing(), 'radiograph')} differently; these most."
        shown.insert(0, ("disagreements", "Where the two differ", text, report.disagreements))
    return [
        {"anchor": anchor, "title": title, "text": text, "cards": [_card(example, report) for example in examples]}
        for anchor, title, text, examples in shown
    ]


def _card(example: Example, report: Report) -> dict[str, Any]:
    classes = candidate_of(report.evidence).classes
    tiles = [("radiograph", figures.overlay(example.pixels), "")]
    for who, map_, says, p in (
        ("candidate", example.candidate_map, example.candidate_says, example.candidate),
        ("champion", example.champion_map, example.champion_says, example.champion),
    ):
        if p is not None:
            right = "right" if says == example.label else "wrong"
            text = (
                f"{says} ({right}), {classes[-1]} {p[-1]:.3f}"
                if len(classes) == 2
                else f"{says} ({right}), {max(p):.3f}"
            )
            tiles.append((who, figures.overlay(example.pixels, map_) if map_ is not None else "", text))
    return {"digest": example.digest[:SHOWN], "label": example.label, "tiles": tiles}


def suspects(report: Report) -> list[dict[str, Any]]:
    """Each kind of suspect: its title and text, how many there are, and the worst with their pictures."""
    if report.suspects is None:
        return []
    kinds = {
        "mislabel": ("Probable mislabels", "A model trained without the patient is sure of another class."),
        "outlier": ("Outliers", "Unlike the radiographs of all other patients."),
    }
    sections = []
    for kind, (title, text) in kinds.items():
        cards = [
            {
                "digest": suspect.digest[:SHOWN],
                "picture": figures.overlay(pixels),
                "label": suspect.label,
                "says": f"{suspect.says} {suspect.p:.2f}",
            }
            for suspect, pixels in report.suspects.shown
            if suspect.kind == kind
        ]
        sections.append({"title": title, "text": text, "count": report.suspects.counts.get(kind, 0), "cards": cards})
    return sections
