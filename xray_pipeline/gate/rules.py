"""The rules a policy can be made of: each judges one thing in the evidence and says in a sentence what it found.

A rule never raises and never passes for want of evidence: what is missing, not a number or out of range fails it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from xray_pipeline.evaluation.metric_table import BY_NAME, NEEDED
from xray_pipeline.gate.confidence import RECORD, USES, confidence
from xray_pipeline.gate.finding import Finding, number_of

if TYPE_CHECKING:
    from xray_pipeline.evaluation.metrics import Evaluation
    from xray_pipeline.gate.evidence import Evidence

    _Judge = Callable[[Evidence, Mapping[str, float]], "Finding"]

Stage = Literal["evidence", "register", "first", "promote", "release"]

PARTS = (
    "training data",
    "recipe",
    "backbone",
    "starting weights",
    "image preparation",
    "threshold rule",
    "software",
)
"""What a candidate may have otherwise than the champion; `lineage.changed` finds which it has. Classes are not among
them: models of other classes are never compared."""


@dataclass(frozen=True)
class Rule:
    """How a rule judges, when it applies, which numbers a policy gives it, and whether a policy may leave it out."""

    stage: Stage
    judge: _Judge
    numbers: tuple[str, ...] = ()
    required: bool = False
    parts: tuple[str, ...] = ()
    """What its list `allowed` may name; each becomes a number of the clause, 1 when it is allowed, else 0."""
    optional: tuple[str, ...] = ()
    """Numbers that a policy may leave out, all of them: what they are for is not done then."""


def _metric(evaluation: Evaluation | None, name: str) -> float | None:
    """A metric's value when it and its interval are numbers from 0 to 1."""
    interval = evaluation.metrics.get(name) if evaluation else None
    found = [number_of(x) for x in (interval.value, interval.low, interval.high)] if interval else [None]
    return found[0] if all(x is not None and 0 <= x <= 1 for x in found) else None


def _missing(evaluation: Evaluation | None) -> str:
    """What a decision needs and this evaluation lacks, in words; "" when it is whole."""
    if evaluation is None:
        return "no evaluation"
    counts = number_of(evaluation.n), number_of(evaluation.patients)
    if any(count is None or count < 1 for count in counts):
        return f"{evaluation.n} radiographs of {evaluation.patients} patients"
    return ", ".join(name for name in NEEDED if _metric(evaluation, name) is None)


def _candidate_measured(evidence: Evidence, _: Mapping[str, float]) -> Finding:
    missing = _missing(evidence.candidate)
    why = f"The candidate lacks: {missing}." if missing else "The candidate is measured."
    return Finding(not missing, missing or "all there", "all there", why)


def _champion_measured(evidence: Evidence, _: Mapping[str, float]) -> Finding:
    if not evidence.champion_known:
        stray = evidence.champion is not None or evidence.comparison is not None
        why = (
            "A champion was measured, but the ledger knows none: the registry is not the ledger's."
            if stray
            else "There is no champion yet."
        )
        return Finding(not stray, "measured" if stray else "no champion", "no champion", why)
    missing = _missing(evidence.champion)
    if not missing and number_of(evidence.comparison and evidence.comparison.p_value) is None:
        missing = "comparison with the candidate"
    why = f"The ledger knows a champion, but it lacks: {missing}." if missing else "The champion is measured."
    return Finding(not missing, missing or "all there", "all there", why)


def _same_snapshot(evidence: Evidence, _: Mapping[str, float]) -> Finding:
    models = [evaluation for evaluation in (evidence.candidate, evidence.champion) if evaluation]
    named = {evaluation.snapshot for evaluation in models} | {evidence.snapshot}
    same = len(named) == 1 and bool(evidence.snapshot) and bool(models)
    actual = ", ".join(sorted(digest[:12] or "none" for digest in named))
    why = f"Snapshot {actual}." if same else f"More than one snapshot, or none, was measured on: {actual}."
    return Finding(same, actual, evidence.snapshot[:12] or "a snapshot", why)


def _same_rows(evidence: Evidence, _: Mapping[str, float]) -> Finding:
    measured = [x for x in (evidence.candidate, evidence.champion, evidence.comparison) if x is not None]
    seen = {(x.n, x.patients, x.rows) for x in measured}
    actual = " / ".join(sorted(f"{n} radiographs of {patients} patients, {rows[:12]}" for n, patients, rows in seen))
    same = len(seen) == 1 and all(rows for _, _, rows in seen)
    why = f"Measured on {actual}." if same else f"Not measured on the same radiographs: {actual or 'none'}."
    return Finding(same, actual, "one set of radiographs", why)


def _accuracy_above(evidence: Evidence, numbers: Mapping[str, float]) -> Finding:
    ours, theirs = _metric(evidence.candidate, "accuracy"), _metric(evidence.champion, "accuracy")
    if ours is None or theirs is None:
        return Finding(False, None, None, "Held-out accuracy of candidate or champion is missing.")
    passed = ours - theirs > numbers["more_than"]
    margin = f" + {numbers['more_than']:g}" if numbers["more_than"] else ""
    why = (
        f"Held-out accuracy {ours:.4f} is {'above' if passed else 'not above'} the champion's {theirs:.4f}{margin} "
        f"({ours - theirs:+z.4f})."
    )
    return Finding(passed, ours, theirs + numbers["more_than"], why)


def _floor(metric: str) -> _Judge:
    name = metric.replace("_", " ").replace("auc", "AUC")

    def judge(evidence: Evidence, numbers: Mapping[str, float]) -> Finding:
        value, least = _metric(evidence.candidate, metric), numbers["at_least"]
        if value is None:
            return Finding(False, None, least, f"The candidate's {name} is missing.")
        passed = value >= least
        return Finding(passed, value, least, f"Held-out {name} is {value:.4f}; the floor is {least:g}.")

    return judge


def _patients(evidence: Evidence, numbers: Mapping[str, float]) -> Finding:
    found = number_of(evidence.candidate.patients if evidence.candidate else 0) or 0
    least = numbers["at_least"]
    return Finding(
        found >= least, found, least, f"{found:g} held-out patients were measured; at least {least:g} are asked."
    )


def _drop(metric: str) -> _Judge:
    """Judge how far a metric got worse."""
    name, sign = BY_NAME[metric].title, 1 if BY_NAME[metric].higher_is_better else -1

    def judge(evidence: Evidence, numbers: Mapping[str, float]) -> Finding:
        ours, theirs = _metric(evidence.candidate, metric), _metric(evidence.champion, metric)
        if ours is None or theirs is None:
            return Finding(False, None, numbers["at_most"], f"{name} of candidate or champion is missing.")
        worse = sign * (theirs - ours)
        why = f"{name} {ours:.4f}, champion {theirs:.4f}; worse by at most {numbers['at_most']:g} is allowed."
        return Finding(worse <= numbers["at_most"], worse, numbers["at_most"], why)

    return judge


def _parts(which: Literal["slices", "stress"], metric: str) -> _Judge:
    """Judge the part where the candidate loses most against the champion, by the upper end of the interval."""

    def judge(evidence: Evidence, numbers: Mapping[str, float]) -> Finding:
        most = numbers["at_most"]
        parts = evidence.slices if which == "slices" else evidence.stress
        parts_are = "slices" if which == "slices" else "perturbations"
        if not parts:
            return Finding(False, None, most, f"No {which} were measured.")
        losses: list[tuple[float, str]] = []
        small = 0
        for part in parts:
            if part.dimension == "baseline":
                continue
            patients = number_of(part.patients)
            if patients is not None and patients < numbers.get("min_patients", 0):
                small += 1
                continue
            found = part.difference.get(metric)
            value = number_of(found.high) if found else None
            if value is None:
                return Finding(False, None, most, f"{part.dimension} {part.value}: the difference is missing.")
            losses.append((0.0 - value, part.value if which == "stress" else f"{part.dimension} {part.value}"))
        if not losses:
            why = f"None of the {parts_are} has enough patients to be judged."
            return Finding(False, "none large enough", most, why)
        loss, where = max(losses)
        what = f"{metric.replace('_', ' ').replace('auc', 'AUC')}, candidate minus champion"
        why = (
            f"Worst of the {parts_are}: {where}. Of {what}, the upper end of the interval is {-loss:+z.4f}; "
            f"no lower than {-most:+zg} is allowed."
        )
        if small:
            why += f" Of too few patients to be judged: {small} of {len(losses) + small}."
        return Finding(loss <= most, loss, most, why)

    return judge


def _border_only(evidence: Evidence, numbers: Mapping[str, float]) -> Finding:
    """Judge whether the candidate tells the classes apart where no lung is left, by the lower end of the interval."""
    warn, stop = numbers["warn_above"], numbers["stop_above"]
    most = min(warn, stop)
    baseline = [part for part in evidence.stress or () if part.dimension == "baseline"]
    auc = baseline[0].candidate.get("auc") if baseline else None
    low = number_of(auc.low) if auc else None
    if auc is None or low is None:
        return Finding(False, None, warn, "What the candidate says of the border alone was not measured.")
    passed, warned = low <= stop, low > warn
    shown = f"(AUC {auc.value:.3f}, at least {low:.3f} beyond doubt; .5 is chance)"
    if warned or not passed:
        why = (
            f"Shortcut: with only the border of a radiograph left, the candidate still tells the classes apart {shown}."
            " Letters, collimation or position give the class away; see Stress."
        )
    elif low > 0.5:
        why = (
            f"With only the border of a radiograph left, the candidate tells the classes apart somewhat {shown}; "
            f"up to {most:g} is taken without a warning."
        )
    else:
        why = f"With only the border of a radiograph left, the candidate does not tell the classes apart {shown}."
    return Finding(passed, low, most, why, warning=passed and warned)


def _changes(evidence: Evidence, numbers: Mapping[str, float]) -> Finding:
    allowed = ", ".join(part for part in PARTS if numbers.get(part)) or "nothing"
    if evidence.changed is None:
        return Finding(False, None, allowed, "What the candidate has otherwise than the champion is not known.")
    actual = ", ".join(evidence.changed) or "nothing"
    outside = [part for part in evidence.changed if not numbers.get(part)]
    why = f"Changed against the champion: {actual}."
    return Finding(not outside, actual, allowed, f"{why} Not allowed: {', '.join(outside)}." if outside else why)


def _alarms(evidence: Evidence, _: Mapping[str, float]) -> Finding:
    if evidence.alarms is None:
        return Finding(False, None, "no alarm", "Drift was not measured.")
    actual = ", ".join(evidence.alarms) or "no alarm"
    why = " ".join(f"{said}." for said in (f"Drift: {actual}", *evidence.acknowledged))
    return Finding(not evidence.alarms, actual, "no alarm", why)


def _withdrawn(evidence: Evidence, numbers: Mapping[str, float]) -> Finding:
    count = number_of(evidence.withdrawn)
    if count is None or count < 0:
        return Finding(False, None, 0.0, "Whether the candidate learned from what is withdrawn by now is not known.")
    if not count:
        return Finding(True, count, 0.0, "The candidate learned from nothing that is withdrawn by now.")
    why = f"The candidate learned from {count:g} radiographs that are withdrawn by now; see `xray amend list`."
    stop = bool(numbers["stop"])
    return Finding(not stop, count, 0.0, why, warning=not stop)


def _watched(evidence: Evidence, numbers: Mapping[str, float]) -> Finding:
    """Judge a candidate by what was delivered last, where the champion is no longer as good as it was."""
    if evidence.watch is None:
        return Finding(False, None, "no alarm", "Whether an alarm about the champion stands is not known.")
    if not (alarm := evidence.watch.alarm):
        return Finding(True, "no alarm", "no alarm", "No alarm about the champion stands.")
    recent, least = evidence.watch.recent, numbers["min_patients"]
    gap = recent.difference.get("accuracy") if recent else None
    value = number_of(gap.value) if gap else None
    if recent is None or value is None or not recent.patients >= least:
        patients = recent.patients if recent else 0
        why = f"{alarm} Of what came last, {patients} patients are new to both models; {least:g} are asked."
        return Finding(False, patients, least, why)
    why = (
        f"{alarm} On the {recent.patients} patients of the newest {evidence.watch.deliveries} deliveries that are new "
        f"to both models, the candidate's accuracy is {value:+z.4f} from the champion's."
    )
    return Finding(value > 0, value, 0.0, why)


def _approval(evidence: Evidence, _: Mapping[str, float]) -> Finding:
    known = evidence.promotion in ("auto", "approve")
    why = {
        "auto": "Promotion is set to auto: no person is asked.",
        "approve": "A person decides on promoting it.",
    }.get(evidence.promotion, f"Promotion is set to {evidence.promotion!r}, neither auto nor approve.")
    return Finding(known, evidence.promotion, "auto or approve", why)


RULES: Mapping[str, Rule] = {
    "candidate-measured": Rule("evidence", _candidate_measured, required=True),
    "champion-measured": Rule("evidence", _champion_measured, required=True),
    "same-snapshot": Rule("evidence", _same_snapshot, required=True),
    "same-rows": Rule("evidence", _same_rows, required=True),
    "accuracy-above-champion": Rule("register", _accuracy_above, ("more_than",), required=True),
    "first-accuracy": Rule("first", _floor("accuracy"), ("at_least",), required=True),
    "first-balanced-accuracy": Rule("first", _floor("balanced_accuracy"), ("at_least",)),
    "first-auc": Rule("first", _floor("auc"), ("at_least",), required=True),
    "first-patients": Rule("first", _patients, ("at_least",), required=True),
    "held-out-patients": Rule("promote", _patients, ("at_least",)),
    "confidence": Rule("promote", confidence, USES, required=True, optional=RECORD),
    "sensitivity-drop": Rule("promote", _drop("sensitivity"), ("at_most",), required=True),
    "specificity-drop": Rule("promote", _drop("specificity"), ("at_most",)),
    "auc-drop": Rule("promote", _drop("auc"), ("at_most",)),
    "ece-rise": Rule("promote", _drop("ece"), ("at_most",)),
    "slices": Rule("promote", _parts("slices", "accuracy"), ("at_most", "min_patients")),
    "stress": Rule("promote", _parts("stress", "auc"), ("at_most", "min_patients")),
    "border-only": Rule("release", _border_only, ("warn_above", "stop_above")),
    "changes": Rule("promote", _changes, parts=PARTS),
    "no-drift": Rule("release", _alarms),
    "withdrawn": Rule("release", _withdrawn, ("stop",)),
    "watched": Rule("promote", _watched, ("margin", "false_alarms", "deliveries", "min_patients")),
    "approval": Rule("release", _approval, required=True),
}
"""What a clause may ask. It applies: "evidence" always, "register" when there is a champion, "first" when there is
none, "promote" to replacing a champion, "release" to any promotion."""
