"""The version in shadow on a real installation: who takes a turn, what it says, and when it is put forward."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from new_patients import deliver
from two_nights import SETTINGS
from typer.testing import CliRunner

from xray_pipeline.base.errors import Damaged, LedgerError
from xray_pipeline.base.settings import Settings
from xray_pipeline.command import main as cli
from xray_pipeline.evaluation import prospective
from xray_pipeline.night import contender, damage, judging, look_ahead, promotion, shadow, tidy, whole
from xray_pipeline.night.run import Run
from xray_pipeline.registry import decisions
from xray_pipeline.registry.ledger import Ledger
from xray_pipeline.registry.state import State

pytestmark = pytest.mark.usefixtures("no_pause")

LENIENT = Path(SETTINGS["policy"]).read_text()
RECORD = "record_budget = 1000\nrecord_half_life = 5\nrecord_max_level = 1\nrecord_deliveries = 2\n"


@pytest.fixture
def run(two_nights: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Version 1, trained badly, is champion; version 2 waits, for held-out patients can show nothing."""
    two_nights(tmp_path)
    policy = tmp_path / "policy.toml"
    policy.write_text(LENIENT.replace("budget = 1000.0", f"budget = 0.0\n{RECORD}"))
    for name, value in {**SETTINGS, "home": tmp_path, "policy": policy}.items():
        monkeypatch.setenv(f"XRAY_{name.upper()}", str(value))
    return Run(Settings(), who="a test", name="tonight")


def state(run: Run) -> State:
    return Ledger(run.store()).state()


def standing(run: Run) -> Any:
    now = state(run)
    return shadow.standing(run, now.registered[2].candidate, now)


def test_the_challenger_takes_a_turn_and_is_put_forward_once_new_patients_have_shown_it(run: Run) -> None:
    assert contender.to_put_forward(run) == {}
    look_ahead.look_ahead(run, deliver(run, 41, patients=60))
    (turn,) = shadow.turns(run.store())
    assert (turn.number, turn.version, turn.champion) == (1, 2, 1)
    found = standing(run)
    assert (found.turn, found.deliveries) == (1, 1)
    assert found.patients > 30
    assert found.difference > 0
    evidence, decision = judging.judged(run, state(run).registered[2].decision["evidence"])
    assert (evidence.shadow, decision.may_promote) == (found, True)
    put = {"version": 2, "candidate": turn.candidate, "champion": 1}
    assert contender.to_put_forward(run) == put
    assert contender.to_put_forward(run) == put  # the same night, started again
    assert contender.to_put_forward(replace(run, name="tomorrow")) == {}
    assert contender.in_turn(run, state(run)) == turn
    assert damage.damaged(run.store()) == []
    said = CliRunner().invoke(cli.app, ["watch"]).output
    assert re.search(
        r"Version 2 is in shadow: on \d\d new patients of 1 delivery its accuracy is \+0\.\d{3} from", said
    )
    asked = promotion.request(run, 2, turn.candidate)
    assert asked.void == ""
    assert "In shadow, on " in asked.text


def test_where_nobody_is_asked_it_is_promoted_that_night(run: Run) -> None:
    deliver(run, 42, patients=60)
    automatic = Run(run.settings.model_copy(update={"promotion": "auto"}), {}, "schedule", "night")
    whole.whole(automatic)
    now = state(run)
    assert (now.champion, now.since.kind if now.since else "") == (2, "promoted")
    assert "In shadow" in str(now.since.decision if now.since else "")
    assert standing(run) is None  # it is the champion


def test_one_that_lacks_more_than_confidence_takes_no_turn_nor_does_one_where_the_policy_has_none(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Path(run.settings.policy)
    whole_policy = policy.read_text()
    for wrong in (
        whole_policy.replace("at_least = 20", "at_least = 100000"),
        whole_policy.replace(RECORD, ""),
        whole_policy.replace("record_budget = 1000", "record_budget = 0"),
        LENIENT,  # it may be promoted as it is
    ):
        policy.write_text(wrong)
        assert contender.in_turn(run, state(run)) is None
        assert shadow.turns(run.store()) == []
    policy.write_text(whole_policy)
    now = state(run)
    judged_against_none = msgspec.structs.replace(now.registered[2], champion_before=None)
    assert contender.in_turn(run, replace(now, registered={**now.registered, 2: judged_against_none})) is None
    assert contender.in_turn(run, now)


def test_a_turn_ends_with_its_deliveries_a_rejection_or_another_champion(run: Run) -> None:
    for seed in (43, 44):
        look_ahead.look_ahead(run, deliver(run, seed, patients=20))
    (turn,) = shadow.turns(run.store())
    assert standing(run).deliveries == 2
    assert contender.in_turn(run, state(run)) == turn  # nobody else waits, and it had its turn
    now = state(run)
    assert turn.counts(now)
    assert not turn.counts(replace(now, champion=2))
    assert not turn.counts(replace(now, registered={1: now.registered[1]}))
    decisions.answer(run.registry(), "rejected", 2, who="a test", why="it looks at letters", expected_champion=1)
    assert not turn.counts(state(run))
    assert standing(run) is None
    assert contender.to_put_forward(run) == {}


def test_it_is_put_forward_again_when_another_was_registered_meanwhile(run: Run) -> None:
    look_ahead.look_ahead(run, deliver(run, 41, patients=60))
    assert contender.to_put_forward(run)
    registry, now = run.registry(), state(run)
    terms: dict[str, Any] = {"who": "ops", "why": "a look at another one", "request": "test"}
    asked = replace(run, name="tomorrow")
    assert contender.to_put_forward(asked) == {}
    entry = decisions.put_forward(registry, 2, 1, **terms)
    assert (entry.kind, state(run).challenger) == ("reopened", 2)
    assert contender.to_put_forward(asked)["version"] == 2  # asked because of that entry
    assert now.champion == 1
    decisions.answer(registry, "rejected", 2, who="a test", why="no more", expected_champion=1)
    with pytest.raises(LedgerError, match="can't be put forward"):
        decisions.put_forward(registry, 2, 1, **{**terms, "request": "another"})


def test_turns_that_can_not_be_read_stop_no_night_and_count_for_nothing(run: Run) -> None:
    look_ahead.look_ahead(run, deliver(run, 46, patients=20))
    (turn,) = shadow.turns(run.store())
    key = "prospective/turns/000001.json"
    data = run.store().read(key)
    for damaged in (b"{", data.replace(b'"version": 2', b'"version": 1')):
        run.store().write(key, damaged)
        with pytest.raises(Damaged, match="turns/000001"):
            shadow.turns(run.store())
        assert standing(run) is None
        assert len(damage.damaged(run.store())) == 1
        assert look_ahead.look_ahead(run, deliver(run, 47, patients=20)).champion == 1
    run.store().delete(key)
    shadow.keep(run.store(), replace(turn, number=2))
    with pytest.raises(Damaged, match=r"turns/000001\.json is missing"):
        shadow.turns(run.store())


def test_of_two_nights_that_give_a_turn_one_does(run: Run) -> None:
    now = state(run)
    one = contender.in_turn(run, now)
    assert one
    assert not shadow.keep(run.store(), replace(one, version=1))
    assert shadow.keep(run.store(), one)  # the same again
    assert contender.in_turn(run, now) == one


def test_who_is_in_shadow_is_not_tidied(run: Run) -> None:
    look_ahead.look_ahead(run, deliver(run, 48, patients=20))
    candidate = state(run).registered[2].candidate
    registry = run.registry()
    registry._client.delete_registered_model_alias(run.settings.model_name, "challenger")
    strict = Run(run.settings.model_copy(update={"keep_candidates": 1, "keep_days": 0}))
    assert candidate not in {one.candidate for one in tidy.look(strict, now=4e9).removals}
    assert prospective.recorded(run.store(), candidate)
