"""One self-contained HTML page and one Markdown model card per candidate.

The page opens offline and loads nothing: plots are SVG in the page's own colours, radiographs are data URIs, there is
no script. Decision and reasons come first, in words; tables and plots after. A radiograph is named by the first twelve
digits of its digest, never by file or patient. The trade-off: the gallery makes a page of about one megabyte.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from markupsafe import escape

from xray_pipeline.base.pages import template
from xray_pipeline.evaluation import stress
from xray_pipeline.evaluation.bootstrap import LEVEL
from xray_pipeline.evaluation.cases import Floats
from xray_pipeline.evaluation.metric_table import METRICS
from xray_pipeline.evaluation.metrics import Evaluation
from xray_pipeline.evaluation.slices import Slice
from xray_pipeline.gate.evidence import Evidence
from xray_pipeline.gate.policy import Decision
from xray_pipeline.report import figures
from xray_pipeline.report.examples import Example, Images
from xray_pipeline.report.wording import candidate_of, cell, difference, headline, in_words

if TYPE_CHECKING:
    from xray_pipeline.evaluation.suspects import Suspect


LEAKS = ("patient-on-two-sides", "copy-across-split")
LISTED = 12  # slices of one dimension shown without unfolding
SUSPECTS = 12  # of each kind with a picture


@dataclass(frozen=True)
class Arrival:
    """One delivery: radiographs accepted, files quarantined by reason code, and what else was noticed.

    `tonight`: this night's; otherwise an earlier one's that the champion has not learnt from.
    """

    name: str
    fit: bool
    accepted: int
    quarantined: Mapping[str, int]
    notes: tuple[str, ...] = ()
    tonight: bool = True


@dataclass(frozen=True, eq=False)
class Suspects:
    """Probable mislabels and outliers among `looked_at` radiographs: counts by kind, and the worst of each kind with
    their pixels uint8 [S, S]."""

    looked_at: int
    counts: Mapping[str, int]
    shown: tuple[tuple[Suspect, Images], ...]


@dataclass(frozen=True, eq=False)
class Report:
    """Everything a page and a card are made from.

    `labels` [N], `candidate` [N, C] and `champion` [N, C] (None without one) are the held-out rows in one order;
    `disagreements` and `errors` come from `examples`; `dataset` counts radiographs by side of the split; `recipe` and
    `lineage` are shown as they are: names to values, no patient data.
    """

    model_name: str
    decision: Decision
    evidence: Evidence
    labels: Sequence[str]
    candidate: Floats
    champion: Floats | None
    disagreements: tuple[Example, ...] = ()
    errors: tuple[Example, ...] = ()
    arrivals: tuple[Arrival, ...] = ()
    dataset: Mapping[str, int] = field(default_factory=dict)
    recipe: Mapping[str, object] = field(default_factory=dict)
    lineage: Mapping[str, str] = field(default_factory=dict)
    suspects: Suspects | None = None


def render(report: Report) -> str:
    """Return the HTML page. Raises KeyError when the evidence lacks the candidate's evaluation."""
    return template("report", "report.html.j2").render(**_context(report))


def without_pictures(page: str) -> str:
    """Return a page made by `render` with the radiographs left out, for who may see figures but no images of people."""
    return re.sub(r"<img [^>]*>", '<div class="none">kept in the store</div>', page)


def is_of(page: str, decision: Decision) -> bool:
    """Whether an HTML page made by `render` shows exactly this decision."""
    return str(escape(_as_data(decision))) in page


def model_card(report: Report) -> str:
    """Return the model card in Markdown, in the sections of Mitchell et al. 2019."""
    return template("report", "model_card.md.j2").render(**_context(report, plots=False))


# --- what the templates get


def _context(report: Report, plots: bool = True) -> dict[str, Any]:
    evidence, decision = report.evidence, report.decision
    ours = candidate_of(evidence)
    tone = "bad" if decision.verdict == "refused" else "good" if decision.may_promote else "mixed"
    shown = {
        "report": report,
        "decision": decision,
        "evidence": evidence,
        "ours": ours,
        "theirs": evidence.champion,
        "tone": tone,
        "headline": headline(decision),
        "words": in_words(report.evidence),
        "reasons": [reason for reason in decision.reasons if "(clause " in reason],
        "level": f"{100 * LEVEL:.0f} %",
        "metrics": _metrics(evidence),
        "by_class": _by_class(evidence),
        "confusions": [(n, e) for n, e in (("Candidate", ours), ("Champion", evidence.champion)) if e],
        "dimensions": _dimensions(evidence.slices or ()),
        "stress": _stress(evidence.stress or ()),
        "unknown": _unknown(evidence.slices or ()),
        "lineage": {
            name[:1].upper() + name[1:]: value for name, value in {**_lineage(report), **report.lineage}.items()
        },
        "differing": _differing(report),
        "leaks": sum(arrival.quarantined.get(reason, 0) for arrival in report.arrivals for reason in LEAKS),
        "drift": "not measured" if evidence.alarms is None else "; ".join(evidence.alarms) or "no alarm stands",
    }
    if not plots:
        return shown
    return {
        **shown,
        "plots": [(name, _plots(report, c)) for c, name in _rated(ours)],
        "galleries": _galleries(report),
        "suspects": _suspects(report),
        "as_data": _as_data(decision),
    }


def _as_data(decision: Decision) -> str:
    return json.dumps(decision.to_dict(), indent=1, sort_keys=True)


def _rated(evaluation: Evaluation) -> list[tuple[int, str]]:
    classes = list(enumerate(evaluation.classes))
    return classes[1:] if len(classes) == 2 else classes


def _metrics(evidence: Evidence) -> list[dict[str, Any]]:
    ours, theirs = candidate_of(evidence), evidence.champion
    differences = evidence.comparison.differences if evidence.comparison else {}
    return [
        {
            "name": metric.title,
            "explained": metric.words,
            "candidate": cell(ours.metrics.get(metric.name)),
            "champion": cell(theirs.metrics.get(metric.name) if theirs else None),
            "difference": difference(differences.get(metric.name), metric.higher_is_better),
        }
        for metric in METRICS
    ]


def _by_class(evidence: Evidence) -> list[dict[str, Any]]:
    """Each class of more than two against the rest: every metric, candidate beside champion."""
    ours, theirs = candidate_of(evidence), evidence.champion
    return [
        {
            "class": label,
            "rows": [
                {
                    "name": metric.title,
                    "candidate": cell(metrics.get(metric.name)),
                    "champion": cell(theirs.by_class.get(label, {}).get(metric.name) if theirs else None),
                }
                for metric in METRICS
            ],
        }
        for label, metrics in ours.by_class.items()
    ]


def _dimensions(slices: Sequence[Slice]) -> list[tuple[str, list[dict[str, Any]], list[dict[str, Any]]]]:
    """Each dimension with the slices shown at once (the worst, of many) and those to unfold."""
    found = []
    for dimension in dict.fromkeys(part.dimension for part in slices):
        parts = [part for part in slices if part.dimension == dimension]
        if [part.value for part in parts] == ["unknown"]:
            continue
        if len(parts) > LISTED:
            parts.sort(key=lambda part: part.candidate["accuracy"].value)
        rows = [_slice(part) for part in parts]
        found.append((dimension, rows[:LISTED], rows[LISTED:]))
    return found


def _unknown(slices: Sequence[Slice]) -> list[str]:
    known = {part.dimension for part in slices if part.value != "unknown"}
    return [d for d in dict.fromkeys(part.dimension for part in slices) if d not in known]


def _slice(part: Slice) -> dict[str, Any]:
    return {
        "value": part.value,
        "n": part.n,
        "patients": part.patients,
        "small": part.small,
        **{name: cell(part.candidate.get(name)) for name in ("accuracy", "auc")},
        **{name: cell(part.candidate.get(name)).value for name in ("sensitivity", "specificity")},
        "ece": cell(part.candidate.get("ece")).value,
        "champion": cell(part.champion.get("accuracy")).value,
        "champion_auc": cell(part.champion.get("auc")).value,
        "difference": difference(part.difference.get("accuracy")),
    }


def _stress(slices: Sequence[Slice]) -> list[dict[str, Any]]:
    untouched = {part.value: part for part in slices}.get(stress.UNTOUCHED)
    found = []
    for part in slices:
        row = _slice(part)
        row["change"] = "-"
        if untouched and part is not untouched and "auc" in part.candidate and "auc" in untouched.candidate:
            row["change"] = f"{part.candidate['auc'].value - untouched.candidate['auc'].value:+z.3f}"
        row["baseline"] = part.value == stress.BASELINE
        found.append(row)
    return found


def _lineage(report: Report) -> dict[str, str]:
    evidence, decision = report.evidence, report.decision
    ours = candidate_of(evidence)
    return {
        "Candidate (model files)": ours.model_digest,
        "Champion (model files)": evidence.champion.model_digest if evidence.champion else "none",
        "Snapshot of the dataset": evidence.snapshot,
        "Held-out rows (patients and labels)": ours.rows,
        "Policy": f"{decision.policy_name}, {decision.policy}",
        "Bootstrap": f"{ours.resamples:,} resamples of patients, seed {ours.seed}",
    }


def _differing(report: Report) -> int:
    theirs = report.evidence.champion
    if theirs is None or report.champion is None:
        return 0
    said = [
        _says(table, e) for table, e in ((report.candidate, candidate_of(report.evidence)), (report.champion, theirs))
    ]
    return int((said[0] != said[1]).sum())


def _says(table: Floats, evaluation: Evaluation) -> npt.NDArray[Any]:
    return table[:, 1] >= evaluation.threshold if table.shape[1] == 2 else table.argmax(axis=1)


def _plots(report: Report, c: int) -> list[str]:
    name = candidate_of(report.evidence).classes[c]
    truth = np.asarray(list(report.labels)) == name
    curves = [
        figures.Curve(who, truth, table[:, c], evaluation.threshold if len(evaluation.classes) == 2 else None)
        for who, table, evaluation in (
            ("candidate", report.candidate, report.evidence.candidate),
            ("champion", report.champion, report.evidence.champion),
        )
        if table is not None and evaluation is not None
    ]
    drawn = [figures.roc(curves, name), figures.precision_recall(curves, name), figures.calibration(curves, name)]
    return [*drawn, *(figures.histogram(curve, name) for curve in curves)]


# --- pictures


def _galleries(report: Report) -> list[dict[str, Any]]:
    theirs = report.evidence.champion is not None
    galleries = [("errors", "Worst errors", "The candidate is wrong here and most sure of it.", report.errors)]
    if theirs:
        text = f"The two models name {_differing(report):,} radiographs differently; these most."
        galleries.insert(0, ("disagreements", "Where the two differ", text, report.disagreements))
    return [
        {"anchor": anchor, "title": title, "text": text, "cards": [_card(example, report) for example in shown]}
        for anchor, title, text, shown in galleries
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
    return {"digest": example.digest[:12], "label": example.label, "tiles": tiles}


def _suspects(report: Report) -> list[dict[str, Any]]:
    """Each kind of suspect: its title and text, how many there are, and the worst with their pictures."""
    if report.suspects is None:
        return []
    kinds = {
        "mislabel": ("Probable mislabels", "A model trained without the patient is sure of another class."),
        "outlier": ("Outliers", "Unlike the radiographs of all other patients."),
    }
    found = []
    for kind, (title, text) in kinds.items():
        cards = [
            {
                "digest": suspect.digest[:12],
                "picture": figures.overlay(pixels),
                "label": suspect.label,
                "says": f"{suspect.says} {suspect.p:.2f}",
            }
            for suspect, pixels in report.suspects.shown
            if suspect.kind == kind
        ]
        found.append({"title": title, "text": text, "count": report.suspects.counts.get(kind, 0), "cards": cards})
    return found
