from __future__ import annotations

from typing import Any

from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import open_store
from xray_pipeline.night import judging
from xray_pipeline.night.run import Run
from xray_pipeline.registry.entries import Move
from xray_pipeline.registry.ledger import Ledger


def test_a_candidate_that_was_promoted_and_taken_back_is_not_promoted_again_by_a_hand_that_makes_it_wait(
    settings: Settings,
) -> None:
    """The request that promoted it was carried out: to carry it out again would undo the rollback, each night."""
    run = Run(settings.model_copy(update={"promotion": "auto"}))
    ledger = Ledger(open_store(settings.store))
    said: dict[str, Any] = {"who": "schedule", "why": "better", "decision": {"automatic": True}}
    for version, before in ((1, None), (2, 1)):
        about = {**said, "version": version, "candidate": f"{version}" * 64, "champion_before": before}
        ledger.append(Move("registered", **about))
        assert not judging.concluded(run, about["candidate"])
        ledger.append(Move("promoted", **about, request=judging.automatic(version, before)))
        assert judging.concluded(run, about["candidate"])
    waits = {"before": {"champion": 2, "challenger": None}, "after": {"champion": 2, "challenger": 2}}
    ledger.append(Move("manual-change", "dora", "it waits", 2, "2" * 64, 2, {**waits, "action": "accepted"}))
    ledger.append(Move("rolled-back", "carol", "worse", 1, "1" * 64, 2))
    state = ledger.state()
    assert (state.champion, state.challenger) == (1, 2)
    assert judging.concluded(run, "2" * 64)
