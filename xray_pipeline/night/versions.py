"""Registered versions on the newest held-out radiographs: measured, kept, and compared by the policy.

While the figures that are kept (`night/scores`) are of the newest snapshot and of this code, nothing is scored.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from xray_pipeline.base.errors import ConfigError, LedgerError, XrayError
from xray_pipeline.base.progress import Progress
from xray_pipeline.gate.policy import Decision, load_policy
from xray_pipeline.gate.policy import decide as judge
from xray_pipeline.night import compose_report, gather, identity
from xray_pipeline.night import pair as comparing
from xray_pipeline.night.judging import in_short
from xray_pipeline.night.newest import inputs_of, newest_snapshot
from xray_pipeline.night.nights import moment
from xray_pipeline.night.run import Run
from xray_pipeline.night.scores import Scores, in_charge, keep, last_scores
from xray_pipeline.registry.entries import Entry
from xray_pipeline.registry.ledger import Ledger
from xray_pipeline.registry.state import State
from xray_pipeline.report import page as report
from xray_pipeline.report.places import comparison_key

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compared:
    """Two versions beside each other: their figures, what today's policy says of the first in place of the second, and
    the key of the report on it."""

    scores: Scores
    decision: Decision
    report: str


def compare(run: Run, version: int | None, against: int | None, progress: Progress | None = None) -> Compared:
    """Compare two registered versions on the newest held-out radiographs and write the report; changes nothing else.

    None means the challenger, and against the champion. Raises ConfigError, and as `score` does.
    """
    state = Ledger(run.store()).state()
    version, against = version or state.challenger, against or state.champion
    if version is None or against is None:
        raise ConfigError(f"there is no {'champion' if version else 'challenger'}; name two versions")
    if version == against:
        raise ConfigError(f"version {version} is the same as version {against}; name two")
    scores, registry = score(run, [version, against], progress), run.registry()
    candidate = registered(registry.ledger.state(), version).candidate
    both = comparing.pair(run, registry, candidate, against, progress, newest_snapshot(run))
    evidence = gather.evidence(run, registry, both, progress)
    decision = judge(evidence, load_policy(run.settings.policy))
    page = comparison_key(candidate, against, both.snapshot.digest)
    shown = compose_report.compose(run, registry, both, evidence, decision)
    run.store().write(page, report.render(shown).encode())
    log.info("version %d: %s", version, in_short(evidence, against))
    return Compared(scores, decision, page)


def score(run: Run, versions: Sequence[int], progress: Progress | None = None) -> Scores:
    """Return the figures of one or two registered versions on the newest snapshot, measured unless they are kept.

    Raises LedgerError for a version that was never registered, and what `identity.compare` and `night.pair.pair` raise.
    """
    identity.compare(run)
    state = Ledger(run.store()).state()
    candidates = [registered(state, version).candidate for version in versions]
    snapshot = newest_snapshot(run)
    digest = inputs_of(run, state, versions, snapshot.digest)
    earlier = last_scores(run.store(), state, versions)
    if earlier and earlier.inputs == digest:
        return earlier
    against = versions[1] if len(versions) > 1 else None
    measured = comparing.pair(run, run.registry(), candidates[0], against, progress, snapshot).measured
    about = (tuple(versions), state.models(*versions), moment(), digest)
    scores = Scores(*about, measured.evaluations, measured.comparison)
    keep(run.store(), scores)
    return scores


def refresh(run: Run) -> Scores | None:
    """Measure the champion, beside the challenger where one waits, for whoever looks next; None without a champion.

    What can't be measured is told in the log: the figures are for reading, nothing rests on them.
    """
    state = Ledger(run.store()).state()  # where nothing was ever decided, asking MLflow would make a database
    try:
        return score(run, in_charge(state)) if state.champion is not None else None
    except XrayError as error:
        log.warning("champion and challenger are not scored on the newest held-out radiographs: %s", error)
        return None


def registered(state: State, version: int) -> Entry:
    """Return the entry that registered a version. Raises LedgerError, naming those there are, for another number."""
    if version in state.registered:
        return state.registered[version]
    numbers = ", ".join(map(str, sorted(state.registered))) or "none"
    raise LedgerError(f"version {version} was never registered; there are: {numbers}")
