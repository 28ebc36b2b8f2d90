"""The version in shadow on a real installation: who takes a turn, what it says, and when it is put forward."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from new_patients import deliver
from two_nights import SETTINGS
from typer.testing import CliRunner

from xray_pipeline.base.errors import Damaged, LedgerError
from xray_pipeline.base.settings import Settings
from xray_pipeline.command import main as cli
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.evaluation import prospective
from xray_pipeline.evaluation.shadow import Shadow
from xray_pipeline.night import contender, damage, judging, look_ahead, promotion, shadow, tidy, whole
from xray_pipeline.night.run import Run
from xray_pipeline.registry import decisions
from xray_pipeline.registry.ledger import Ledger, LostRace
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
    return shadow.standing(run, state(run).registered[2].candidate)


def in_turn(run: Run) -> Any:
    return contender.in_turn(run, Ledger(run.store()))


def test_the_challenger_takes_a_turn_and_is_put_forward_once_new_patients_have_shown_it(run: Run) -> None:
    assert contender.to_ask(run) == {}
    look_ahead.look_ahead(run, deliver(run, 41, patients=60))
    (turn,) = shadow.turns(run.store())
    assert (turn.number, turn.version, turn.champion) == (1, 2, 1)
    learned = Dataset(run.settings).open_snapshot(state(run).registered[2].snapshot).manifests
    assert turn.after == len(learned) == 2
    assert turn.deliveries(Dataset(run.settings))[-1] == "new-41"
    found = standing(run)
    assert (found.turn, found.deliveries) == (1, 1)
    assert found.patients > 30
    assert found.difference > 0
    evidence, decision = judging.judged(run, state(run).registered[2].decision["evidence"])
    assert (evidence.shadow, decision.may_promote) == (found, True)
    put = {"version": 2, "candidate": turn.candidate, "champion": 1}
    assert contender.to_ask(run) == put
    entry = Ledger(run.store()).entries()[-1]
    assert (entry.kind, "In shadow, on " in entry.why, state(run).challenger) == ("reopened", True, 2)
    assert contender.to_ask(run) == put  # the same night, started again
    assert contender.to_ask(replace(run, name="tomorrow")) == {}
    soon = Run(run.settings.model_copy(update={"approval_hours": 1e-9}), {}, "a test", "next week")
    assert contender.to_ask(soon) == put  # nobody answered: it may have been void
    assert Ledger(run.store()).entries()[-1] == entry
    assert in_turn(run) == turn
    assert damage.damaged(run.store()) == []
    said = CliRunner().invoke(cli.app, ["watch"]).output
    assert re.search(r"Version 2 is in shadow: on \d\d new patients of 1 delivery its accuracy is \+0\.\d{3}", said)
    asked = promotion.request(run, 2, turn.candidate)
    assert asked.void == ""
    assert "In shadow, on " in asked.text
    terms: dict[str, Any] = {"who": "a test", "why": "it is better", "expected_champion": 1}
    decisions.answer(run.registry(), "approved", 2, **terms)
    assert contender.to_ask(replace(run, name="later")) == {}  # nothing makes the approval void
    promotion.promote(run, asked, "a test", "it is better")
    assert state(run).champion == 2


def test_where_nobody_is_asked_it_is_promoted_that_night_and_a_rollback_stands(run: Run) -> None:
    deliver(run, 42, patients=60)
    automatic = Run(run.settings.model_copy(update={"promotion": "auto"}), {}, "schedule", "night")
    whole.whole(automatic)
    now = state(run)
    assert (now.champion, now.since.kind if now.since else "") == (2, "promoted")
    assert "In shadow" in str(now.since.decision if now.since else "")
    assert standing(run) is None  # it is the champion
    decisions.rollback(run.registry(), 1, who="ops", why="it frightens people", expected_champion=2)
    for promotes in ("auto", "approve"):
        again = Run(run.settings.model_copy(update={"promotion": promotes}), {}, "schedule", promotes)
        assert promotion.promote_put_forward(again) is None
        assert contender.to_ask(again) == {}
        assert in_turn(again) is None
    assert (state(run).champion, state(run).challenger) == (1, None)


def test_one_that_lacks_more_than_confidence_takes_no_turn_nor_does_one_where_the_policy_has_none(run: Run) -> None:
    policy = Path(run.settings.policy)
    whole_policy = policy.read_text()
    for wrong in (
        whole_policy.replace("at_least = 20", "at_least = 100000"),
        whole_policy.replace(RECORD, ""),
        whole_policy.replace("record_budget = 1000", "record_budget = 0"),
        LENIENT,  # it may be promoted as it is
    ):
        policy.write_text(wrong)
        assert in_turn(run) is None
        assert shadow.turns(run.store()) == []
    policy.write_text(whole_policy)
    assert in_turn(run)


def test_what_was_answered_before_a_turn_began_does_not_count_in_it(run: Run) -> None:
    policy = Path(run.settings.policy)
    whole_policy = policy.read_text()
    policy.write_text(whole_policy.replace(RECORD, ""))
    look_ahead.look_ahead(run, deliver(run, 41, patients=60))  # the challenger is asked, too
    policy.write_text(whole_policy)
    turn = in_turn(run)
    assert turn.deliveries(Dataset(run.settings)) == []
    assert standing(run) == Shadow(1, 0, 0, None, 0.0)
    assert contender.to_ask(run) == {}


def test_a_turn_ends_with_its_deliveries_or_a_rejection(run: Run) -> None:
    for seed in (43, 44, 49):
        look_ahead.look_ahead(run, deliver(run, seed, patients=20))
    (turn,) = shadow.turns(run.store())
    assert standing(run).deliveries == 3
    assert in_turn(run) == turn  # nobody else waits, and it had its turn
    decisions.answer(run.registry(), "rejected", 2, who="a test", why="it looks at letters", expected_champion=1)
    assert shadow.open_turn(run.store(), Ledger(run.store())) is None
    assert standing(run) is None
    assert contender.to_ask(run) == {}
    assert shadow.in_words(run) == ""


def test_it_is_put_forward_for_the_challenger_that_was_meant_and_not_when_it_was_rejected(run: Run) -> None:
    registry = run.registry()
    terms: dict[str, Any] = {"who": "ops", "why": "a look at another one"}
    with pytest.raises(LedgerError, match="version 2 waits by now"):
        decisions.put_forward(registry, 2, 1, None, **terms, request="one")
    with pytest.raises(LostRace, match="came first"):
        decisions.put_forward(registry, 2, 7, 2, **terms, request="two")
    entry = decisions.put_forward(registry, 2, 1, 2, **terms, request="three")
    assert decisions.put_forward(registry, 2, 1, 2, **terms, request="three") == entry
    decisions.answer(registry, "rejected", 2, who="a test", why="no more", expected_champion=1)
    with pytest.raises(LedgerError, match="can't be put forward"):
        decisions.put_forward(registry, 2, 1, None, **terms, request="four")


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
        assert contender.to_ask(run) == {}
        assert promotion.promote_put_forward(run) is None
        assert re.match(r"Who is in shadow can't be told: .*turns/000001", shadow.in_words(run))
        assert len(damage.damaged(run.store())) == 1
        assert look_ahead.look_ahead(run, deliver(run, 47, patients=20)).champion == 1
    run.store().delete(key)
    shadow.keep(run.store(), replace(turn, number=2))
    with pytest.raises(Damaged, match=r"turns/000001\.json is missing"):
        shadow.turns(run.store())


def test_of_two_nights_that_give_a_turn_one_does(run: Run) -> None:
    one = in_turn(run)
    assert one
    assert not shadow.keep(run.store(), replace(one, version=1))
    assert shadow.keep(run.store(), one)  # the same again
    assert in_turn(run) == one


def test_who_is_in_shadow_is_not_tidied(run: Run) -> None:
    look_ahead.look_ahead(run, deliver(run, 48, patients=20))
    candidate = state(run).registered[2].candidate
    registry = run.registry()
    registry._client.delete_registered_model_alias(run.settings.model_name, "challenger")
    strict = Run(run.settings.model_copy(update={"keep_candidates": 1, "keep_days": 0}))
    assert candidate not in {one.candidate for one in tidy.look(strict, now=4e9).removals}
    assert prospective.recorded(run.store(), candidate)
