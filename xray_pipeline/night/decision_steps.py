"""The last steps of the night: the policy decides, and registry and ledger follow.

They can be repeated, as those of intake_steps.py.
"""

from __future__ import annotations

import logging
from dataclasses import asdict

from xray_pipeline.base import logs
from xray_pipeline.base.errors import RegistryError
from xray_pipeline.night import compose_report, judging, lineage, repair, trial
from xray_pipeline.night import pair as comparing
from xray_pipeline.night.run import Decided, Evaluated, Promoted, Registered, Run, end
from xray_pipeline.registry import decisions as operations
from xray_pipeline.training import candidate as training

log = logging.getLogger(__name__)


@repair.mending
def decide(run: Run, evaluated: Evaluated) -> Decided:
    """Apply the policy to the evidence and write the report; a refusal is recorded in the ledger.

    Raises ConfigError, LedgerError, and what `evaluate` raises.
    """
    logs.about(candidate=evaluated.candidate)
    (evidence, decision), registry = judging.judged(run, evaluated.evidence), run.registry()
    judging.expect_same(registry, evaluated.models)
    both = comparing.pair(run, registry, evaluated.candidate, evaluated.champion)
    page = compose_report.write_report(run, registry, both, evidence, decision)
    log.info("report: %s in %s", page, run.settings.store)
    for reason in decision.reasons:
        log.info("%s", reason)
    if decision.verdict == "refused":
        operations.refuse(
            registry,
            training.find_candidate(run.store(), evaluated.candidate),
            who=run.who,
            why=" ".join(decision.reasons),
            decision=judging.recorded(evidence, decision, evaluated.evidence),
            champion_before=evaluated.champion,
        )
    end(" ".join(decision.reasons[:2]))
    about = (evaluated.candidate, evaluated.evidence, evaluated.champion, evaluated.models)
    return Decided(*about, decision.verdict, decision.automatic, decision.reasons)


@repair.mending
def register(run: Run, decided: Decided) -> Registered:
    """Make the candidate a version with alias `challenger`, once, after its logged model gave the same answers again.

    Raises LostRace, RegistryError, ModelRefused.
    """
    logs.about(candidate=decided.candidate)
    (evidence, decision), registry = judging.judged(run, decided.evidence), run.registry()
    judging.expect_same(registry, decided.models)
    candidate = training.find_candidate(run.store(), decided.candidate)
    tried = trial.try_candidate(run, registry, candidate)
    why = " ".join(decision.reasons)
    entry = operations.register(
        registry,
        candidate,
        who=run.who,
        why=why,
        decision={**judging.recorded(evidence, decision, decided.evidence), "trial": asdict(tried)},
        champion_before=decided.champion,
        tags={"xray.recipe": lineage.recipe_of(run.store(), candidate.digest).name, "xray.night": run.name or run.who},
    )
    if entry.version is None:
        raise RegistryError(f"ledger entry {entry.sequence} registered no version")
    compose_report.name_version(run, registry, candidate, decided.champion, entry.version)
    waits = "" if decision.automatic else f"version {entry.version} waits as challenger: {judging.why_waits(decision)}"
    models = registry.ledger.state().models(entry.version, decided.champion)
    end(waits or f"version {entry.version} is registered; the policy promotes it without asking a person")
    return Registered(candidate.digest, decided.evidence, decided.champion, models, entry.version, waits)


@repair.mending
def promote(run: Run, registered: Registered) -> Promoted:
    """Make the version the champion, with the policy's consent instead of a person's.

    The model server is tried on it, unless it was in this very environment when the version was registered: the files
    are compared and loaded in any case.

    Raises LostRace and its kin, EvaluationError when the server on the version answers otherwise than was judged.
    """
    logs.about(candidate=registered.candidate)
    (evidence, decision), registry = judging.judged(run, registered.evidence), run.registry()
    judging.expect_same(registry, registered.models)
    # By this name a repeat finds its entry: it must not undo a rollback that came since.
    request = judging.automatic(registered.version, registered.champion)
    state = registry.ledger.state()
    tried = state.registered[registered.version].decision.get("trial", {})  # an entry that was lost told of one
    if not state.asked("promoted", request) and tried.get("environment") != trial.environment():
        trial.try_version(run, registered.candidate, registered.version)
    entry = operations.promote(
        registry,
        registered.version,
        who=run.who,
        why=" ".join(decision.reasons),
        expected_champion=registered.champion,
        decision=judging.recorded(evidence, decision, registered.evidence),
        request=request,
    )
    before = f"in place of version {registered.champion}" if registered.champion else "the first one"
    end(f"version {registered.version} is the champion, {before}")
    return Promoted(registered.version, entry.sequence, entry.candidate, entry.artifact)
