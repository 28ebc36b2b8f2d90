"""One self-contained HTML page and one Markdown model card per candidate.

The page opens offline and loads nothing: plots are SVG in the page's own colours, radiographs are data URIs, there is
no script. Decision and reasons come first, in words; tables and plots after. A radiograph is named by the first twelve
digits of its digest, never by file or patient. The trade-off: the gallery makes a page of about one megabyte.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
from markupsafe import escape

from xray_pipeline.base import pages
from xray_pipeline.base.pages import template
from xray_pipeline.evaluation.bootstrap import LEVEL
from xray_pipeline.evaluation.metrics import Evaluation
from xray_pipeline.evaluation.sweep import Cuts, at_cuts
from xray_pipeline.gate.policy import Decision
from xray_pipeline.report import figures, galleries, tables
from xray_pipeline.report.contents import IN_PRODUCTION, Record, Report
from xray_pipeline.report.wording import candidate_of, cuts_in_words, headline, in_words, warnings

LEAKS = ("patient-on-two-sides", "copy-across-split")


def render(report: Report) -> str:
    """Return the HTML page. Raises KeyError when the evidence lacks the candidate's evaluation."""
    rated = _rated(candidate_of(report.evidence))
    drawn = {
        "plots": [(name, _plots(report, c)) for c, name in rated],
        "galleries": galleries.galleries(report),
        "suspects": galleries.suspects(report),
        "record": _record(report.record),
        "as_data": _as_data(report.decision),
    }
    return template("report", "report.html.j2").render(**_context(report), **drawn)


def model_card(report: Report) -> str:
    """Return the model card in Markdown, in the sections of Mitchell et al. 2019."""
    return template("report", "model_card.md.j2").render(**_context(report))


def without_pictures(page: str) -> str:
    """Return a page made by `render` with the radiographs left out, for who may see figures but no images of people."""
    return pages.without_pictures(page, '<div class="none">kept in the store</div>')


UNREGISTERED = "not registered"


def with_version(text: str, version: int) -> str:
    """Return a page or card, made before its candidate was registered, with the version it became."""
    return re.sub(rf"(Version: ){UNREGISTERED}", rf"\g<1>{version}", text, count=1)


def is_of(page: str, decision: Decision) -> bool:
    """Whether an HTML page made by `render` shows exactly this decision."""
    return str(escape(_as_data(decision))) in page


# --- what the templates get


def _context(report: Report) -> dict[str, Any]:
    evidence, decision = report.evidence, report.decision
    ours, slices = candidate_of(evidence), evidence.slices or ()
    return {
        "report": report,
        "subject": report.subject,
        "in_production": IN_PRODUCTION,
        "version": report.subject.version or UNREGISTERED,
        "decision": decision,
        "evidence": evidence,
        "ours": ours,
        "theirs": evidence.champion,
        "tone": "bad" if decision.verdict == "refused" else "good" if decision.may_promote else "mixed",
        "headline": headline(decision),
        "warnings": warnings(decision, evidence),
        "words": [*in_words(evidence, report.subject.rival), *_cuts(report)],
        "reasons": [reason for reason in decision.reasons if "(clause " in reason and not reason.startswith("Warning")],
        "level": f"{100 * LEVEL:.0f} %",
        "metrics": tables.metrics(evidence),
        "by_class": tables.by_class(evidence),
        "confusions": [(name.capitalize(), evaluation) for name, _, evaluation in report.models()],
        "dimensions": tables.dimensions(slices),
        "slice_axis": tables.Axis.of(slices, "accuracy"),
        "stress": tables.stressed(evidence.stress or ()),
        "stress_axis": tables.Axis.of(evidence.stress or (), "auc"),
        "unknown": tables.unknown(slices),
        "lineage": {
            name[:1].upper() + name[1:]: value for name, value in {**_lineage(report), **report.lineage}.items()
        },
        "differing": report.differing(),
        "leaks": sum(arrival.quarantined.get(reason, 0) for arrival in report.arrivals for reason in LEAKS),
        "drift": "not measured" if evidence.alarms is None else "; ".join(evidence.alarms) or "no alarm stands",
    }


def _as_data(decision: Decision) -> str:
    return json.dumps(decision.to_dict(), indent=1, sort_keys=True)


def _rated(evaluation: Evaluation) -> list[tuple[int, str]]:
    classes = list(enumerate(evaluation.classes))
    return classes[1:] if len(classes) == 2 else classes


def _cuts(report: Report) -> list[str]:
    """What the models' cuts did, in words; nothing without a champion or with more than two classes."""
    models = report.models()
    if len(models) < 2 or len(models[0][2].classes) != 2:
        return []
    (_, ours, one), (_, theirs, two) = models
    truth = np.asarray(report.labels) == one.classes[1]
    own, auc = ((one.metrics[name].value, two.metrics[name].value) for name in ("accuracy", "auc"))
    half = (at_cuts(ours[:, 1], truth, 0.5).accuracy.item(), at_cuts(theirs[:, 1], truth, 0.5).accuracy.item())
    return [cuts_in_words(Cuts(own, half, auc), (one.threshold, two.threshold), report.subject.rival)]


def _lineage(report: Report) -> dict[str, str]:
    evidence, decision = report.evidence, report.decision
    ours, theirs = candidate_of(evidence), evidence.champion
    champion = (
        {"Champion": f"version {report.subject.champion}", "Model files of the champion": theirs.model_digest}
        if theirs
        else {}
    )
    return {
        "Candidate": report.subject.candidate,
        "Model files of the candidate": ours.model_digest,
        **champion,
        "Snapshot of the dataset": evidence.snapshot,
        "Held-out rows (patients and labels)": ours.rows,
        "Policy": f"{decision.policy_name}, {decision.policy}",
        "Bootstrap": f"{ours.resamples:,} resamples of patients, seed {ours.seed}",
    }


def _record(record: Record | None) -> dict[str, Any] | None:
    """The drawing of the champion's record and the rows of its table, the newest delivery first."""
    if record is None:
        return None
    drawn = ""
    if record.promised is not None and any(one.accuracy is not None for one in record.deliveries):
        drawn = figures.record(record.deliveries, record.promised)
    return {"drawn": drawn, "rows": tables.recorded(record.deliveries)}


def _plots(report: Report, c: int) -> list[str]:
    """The plots of one class against the rest, with those by cut where there are two classes."""
    models = report.models()
    two = len(models[0][2].classes) == 2
    of, truth = models[0][2].classes[c], np.asarray(report.labels) == models[0][2].classes[c]
    curves = [
        figures.Curve(who, truth, table[:, c], evaluation.threshold if two else None)
        for who, table, evaluation in models
    ]
    return [
        figures.roc(curves, of),
        figures.precision_recall(curves, of),
        figures.calibration(curves, of),
        *(figures.by_cut(curves, of) if two else ()),
        *(figures.histogram(curve, of) for curve in curves),
    ]
