"""Who learned from what was withdrawn, and what the night after an amendment does."""

from __future__ import annotations

import pytest
from candidates import promoted, trained

from xray_pipeline.base.settings import Settings
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.night import amend, health, intake_steps, judging, model_steps
from xray_pipeline.night.affected import Affected, affected, champion_learned_withdrawn, learned_withdrawn
from xray_pipeline.night.amend import Named
from xray_pipeline.night.pair import pair
from xray_pipeline.night.run import Run, Trained

pytestmark = pytest.mark.slow


def test_after_an_amendment_all_is_trained_and_measured_anew_and_the_past_is_known(grown: Settings) -> None:
    run, dataset = Run(grown, who="Ada"), Dataset(grown)
    first = trained(grown)
    champion = promoted(grown, first, None)
    waiting = trained(grown, seed=1, epochs=2)
    kept = model_steps.evaluate(run, Trained(waiting.digest, "")).evidence
    before = dataset.rows(dataset.open_snapshot(first.snapshot))
    lost, held_out = (before[before["side"] == side].iloc[0] for side in ("train", "held-out"))

    found = affected(grown, "radiograph", lost["digest"])
    assert found == [
        Affected(first.digest, champion, "champion", 1, 0, first.snapshot),
        Affected(waiting.digest, None, "never registered", 1, 0, first.snapshot),
    ]
    assert [(one.learned, one.measured) for one in affected(grown, "radiograph", held_out["digest"])] == [(0, 1)] * 2
    assert affected(grown, "delivery", "first")[0].learned == int((before["side"] != "held-out").sum())
    assert champion_learned_withdrawn(grown) == (champion, 0)

    amend.amend(run, [Named("withdraw", "patient-of", lost["digest"])], "consent withdrawn")
    other = {"NORMAL": "PNEUMONIA", "PNEUMONIA": "NORMAL"}[held_out["label"]]
    amend.amend(run, [Named("relabel", "radiograph", held_out["digest"], other)], "read again")
    assert champion_learned_withdrawn(grown) == (champion, 1)
    (part,) = [part for part in health.check(grown) if part.part == "withdrawn"]
    assert (part.well, part.text) == (
        False,
        f"version {champion}, the champion, learned from 1 radiographs that are withdrawn by now",
    )
    assert affected(grown, "radiograph", lost["digest"]) == found
    assert any("withdrawn by now" in said for said in judging.judged(run, kept)[1].warnings)
    assert run.evidence(kept).withdrawn == 0  # what was decided earlier keeps what it was decided on

    committed = intake_steps.commit_deliveries(run, [])
    assert (committed.snapshot != first.snapshot, committed.images) == (True, len(before) - 1)
    candidate = trained(grown)
    assert candidate.digest not in (first.digest, waiting.digest)
    both = pair(run, run.registry(), candidate.digest, champion)
    assert both.rows.set_index("digest")["label"][held_out["digest"]] == other
    evaluated = model_steps.evaluate(run, Trained(candidate.digest, ""))
    evidence = run.evidence(evaluated.evidence)
    assert evidence.withdrawn == 0
    assert evidence.champion is not None
    assert evidence.candidate is not None
    assert {evidence.champion.snapshot, evidence.candidate.snapshot} == {committed.snapshot}
    assert not any("withdrawn" in said for said in judging.judged(run, evaluated.evidence)[1].warnings)

    run.store().delete(f"candidates/{candidate.digest}/recipe.json")  # nobody knows what its training started from
    assert learned_withdrawn(grown, candidate.digest) is None
    assert learned_withdrawn(grown, first.digest) == 1
