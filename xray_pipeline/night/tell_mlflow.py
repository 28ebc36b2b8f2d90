"""What the night tells MLflow of a decision: the held-out figures with their intervals, and three lines with links."""

from __future__ import annotations

from xray_pipeline.base.text import several, shortened
from xray_pipeline.evaluation.metric_table import BY_NAME, HEADLINE
from xray_pipeline.evaluation.metrics import Evaluation
from xray_pipeline.gate.policy import Decision
from xray_pipeline.models.mlflow_figures import Seen, artifact_links, describe, log_figures
from xray_pipeline.night.pair import Pair
from xray_pipeline.report.wording import cell


def tell(both: Pair, measured: Evaluation, decision: Decision, page: str) -> None:
    """Log the candidate's figures on held-out radiographs, and describe its run; `page` is the report in the store.

    Raises RegistryError, RegistryUnavailable.
    """
    figures = {
        f"held_out_{name}{end}": value
        for name, interval in measured.metrics.items()
        for end, value in (("", interval.value), ("_low", interval.low), ("_high", interval.high))
    }
    counts = {"radiographs": measured.n, "patients": measured.patients}
    seen = Seen("held-out", measured.rows, "evaluation", {**counts, "snapshot": both.snapshot.digest[:12]})
    log_figures(both.candidate.run_id, both.candidate.model_uri, figures, seen)
    describe(both.candidate.run_id, _lines(both, measured, decision, page))


def _lines(both: Pair, measured: Evaluation, decision: Decision, page: str) -> list[str]:
    shown = [name for name in HEADLINE if name in measured.metrics]
    headline = ", ".join(f"{BY_NAME[name].title} {cell(measured.metrics[name])}" for name in shown)
    seen = f"{several(measured.n, 'held-out radiograph')} of {several(measured.patients, 'patient')}"
    against = "" if both.champion is None else f" against version {both.champion}"
    links = artifact_links(both.candidate.run_id, "report.html", "model-card.md")
    return [
        f"{headline}; on {seen}.",
        f"**{decision.verdict.capitalize()}**{against}: {shortened(' '.join(decision.reasons), 400)}",
        f"{' · '.join(links)} · with radiographs in the store: `{page}`",
    ]
