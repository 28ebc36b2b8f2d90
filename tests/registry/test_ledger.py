from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from msgspec import Raw

from xray_pipeline.base.errors import LedgerError
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import Store, open_store
from xray_pipeline.registry.chronology import SKEW, made_by, text
from xray_pipeline.registry.entries import KINDS, Entry, Move
from xray_pipeline.registry.ledger import Ledger, LostRace
from xray_pipeline.registry.state import aliases_since, replay


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(open_store(tmp_path))


def again(ledger: Ledger) -> Ledger:
    """The same ledger as another process sees it."""
    other = Ledger(ledger.store)
    other.store = ledger.store
    return other


def file_of(ledger: Ledger, sequence: int) -> Path:
    return Path(ledger.store.uri) / f"{sequence:08d}.json"


def say(ledger: Ledger, kind: Any, version: int | None = None, after: str | None = None, **fields: Any) -> Entry:
    return ledger.append(Move(kind, **{"who": "alice", "why": "because", "version": version, **fields}), after)


def test_an_empty_ledger_has_no_champion_and_is_not_made_by_looking(ledger: Ledger) -> None:
    assert ledger.state().champion is None
    assert not Path(ledger.store.uri).exists()


def test_entries_come_back_as_they_were_written(ledger: Ledger) -> None:
    written = [
        say(ledger, "registered", 1, candidate="c" * 64, decision={"clauses": [1, 2.5, None]}, snapshot="s" * 64),
        say(ledger, "promoted", 1, champion_before=None, artifact="a" * 64),
    ]
    assert again(ledger).entries() == written


def test_each_entry_holds_the_digest_of_the_file_before_it(ledger: Ledger) -> None:
    first, second = say(ledger, "registered", 1), say(ledger, "promoted", 1)
    assert first.previous == ledger.identity()
    assert second.previous == hashlib.sha256(file_of(ledger, 1).read_bytes()).hexdigest() == first.digest


def test_who_and_why_are_required(ledger: Ledger) -> None:
    for who, why in (("", "because"), ("alice", " ")):
        with pytest.raises(LedgerError, match="who and why"):
            say(ledger, "promoted", 1, who=who, why=why)


def test_numbers_json_does_not_have_are_kept_as_text(ledger: Ledger) -> None:
    entry = say(ledger, "refused", decision={"auc": math.nan, "all": [math.inf]})
    assert again(ledger).entries() == [entry]
    assert entry.decision == {"auc": "nan", "all": ["inf"]}


def at_time(monkeypatch: pytest.MonkeyPatch, moment: datetime, store: datetime | None = None) -> None:
    """Set this machine's clock and the store's own, to the same time unless another is given."""
    monkeypatch.setattr("xray_pipeline.registry.ledger._now", lambda: text(moment))
    monkeypatch.setattr("xray_pipeline.base.storage.DirectoryStore.clock", lambda self: (store or moment).timestamp())


NOON = datetime(2026, 3, 3, 12, tzinfo=UTC)


def hours(count: float) -> datetime:
    return NOON + timedelta(hours=count)


def test_clocks_that_are_a_little_apart_keep_the_order(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    at_time(monkeypatch, NOON)
    first = say(ledger, "registered", 1)
    at_time(monkeypatch, NOON - SKEW)
    assert say(ledger, "promoted", 1).at == first.at


def test_a_clock_that_is_set_back_is_kept_as_it_was(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    at_time(monkeypatch, NOON)
    say(ledger, "registered", 1)
    at_time(monkeypatch, hours(-1))
    assert say(ledger, "promoted", 1).at == text(hours(-1))


def test_a_clock_ahead_of_the_stores_own_is_refused(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xray_pipeline.registry.ledger._now", lambda: text(datetime.now(UTC) + 2 * SKEW))
    with pytest.raises(LedgerError, match=r"this machine's clock says .* the store's own .* set the clock right"):
        say(ledger, "registered", 1)
    assert ledger.entries() == []


def test_a_clock_far_ahead_of_the_newest_entry_is_refused_unless_so_long_nothing_was_decided(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a local disk the store's own time is the same wrong one."""
    at_time(monkeypatch, NOON)
    say(ledger, "registered", 1)
    at_time(monkeypatch, hours(24 * 500))
    with pytest.raises(LedgerError, match=r"500 days after the newest entry; .*XRAY_IDLE_DAYS=501, then repeat"):
        say(ledger, "promoted", 1)
    assert len(ledger.entries()) == 1
    say(Ledger(open_store(Path(ledger.store.uri).parent), idle_days=501), "promoted", 1)


def test_who_was_champion_while_a_clock_was_ahead_is_not_known(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    for hour, kind, version in ((0, "registered", 1), (1, "promoted", 1), (1, "registered", 2), (2000, "promoted", 2)):
        at_time(monkeypatch, hours(hour))
        say(ledger, kind, version)
    at_time(monkeypatch, hours(6))
    made_by_six = ledger.entries()
    assert [entry.sequence for entry in ledger.unsure(hours(5))] == [4]
    assert ledger.state(hours(6)).champion == 2  # it was made, whatever its clock said
    for hour in (8, 10):
        at_time(monkeypatch, hours(hour))
        say(ledger, "refused")
    for hour, champion, unsure in ((0.5, None, []), (2, 1, [4]), (7, 1, [4]), (8, 2, []), (9, 2, []), (3000, 2, [])):
        assert ledger.state(hours(hour)).champion == champion, hour
        assert [entry.sequence for entry in ledger.unsure(hours(hour))] == unsure, hour
    assert ledger.entries()[:4] == made_by_six


@given(st.lists(st.integers(0, 99), max_size=12), st.integers(0, 120), st.integers(0, 120))
@examples(max_examples=300, deadline=None)
def test_what_was_surely_made_by_then_is_part_of_what_was_possibly_made(times: list[int], until: int, now: int) -> None:
    def written(hour: int) -> str:
        return text(hours(hour))

    sure, possibly = made_by([written(hour) for hour in times], written(until), written(now))
    assert 0 <= sure <= possibly <= len(times)
    if sorted(times) == times and (not times or times[-1] <= now):
        assert sure == possibly == (len(times) if until >= now else sum(hour <= until for hour in times))


# Numbers


def test_a_number_means_one_candidate_for_good(ledger: Ledger) -> None:
    say(ledger, "registered", 1, candidate="a" * 64, artifact="d" * 64)
    for kind, version, candidate, artifact in (
        ("registered", 1, "b" * 64, "e" * 64),  # the number again
        ("registered", 2, "a" * 64, "e" * 64),  # the candidate again
        ("promoted", 1, "b" * 64, "d" * 64),
        ("rolled-back", 1, "a" * 64, "e" * 64),
    ):
        with pytest.raises(LedgerError, match="entry 1: registered version 1"):
            say(ledger, kind, version, candidate=candidate, artifact=artifact)
    say(ledger, "promoted", 1, candidate="a" * 64, artifact="d" * 64)
    assert len(ledger.entries()) == 2


def test_what_a_number_means_can_be_compared(ledger: Ledger, tmp_path: Path) -> None:
    say(ledger, "registered", 1, candidate="a" * 64, artifact="d" * 64)
    meant = ledger.state().models(1, None, 7)
    assert meant == {"1": ["a" * 64, "d" * 64]}
    assert ledger.state().other(json.loads(json.dumps(meant))) == ""
    other = Ledger(open_store(tmp_path / "other"))
    assert "version 1 (candidate aaaaaaaaaaaa) is not in this ledger" in other.state().other(meant)
    say(other, "registered", 1, candidate="b" * 64, artifact="d" * 64)
    assert "another model in this ledger (candidate bbbbbbbbbbbb)" in other.state().other(meant)


def test_numbers_that_were_used_by_hand_are_used(ledger: Ledger) -> None:
    before = {"champion": None, "challenger": None}
    found = {"champion": 7, "challenger": 8}
    say(ledger, "manual-change", 7, decision={"before": before, "found": found, "after": {**found, "challenger": None}})
    say(ledger, "registered", 1)
    assert ledger.state().used == {1, 7, 8}


# Replay


def test_the_newest_registered_version_is_the_challenger_until_it_is_decided(ledger: Ledger) -> None:
    say(ledger, "registered", 1)
    say(ledger, "registered", 2)
    assert ledger.state().challenger == 2
    say(ledger, "rejected", 1)
    assert ledger.state().challenger == 2
    say(ledger, "rejected", 2)
    assert ledger.state().challenger is None


def test_a_rejected_version_that_is_reopened_waits_again_and_a_missing_answer_changes_nothing(ledger: Ledger) -> None:
    say(ledger, "registered", 1)
    rejected = say(ledger, "rejected", 1)
    assert (ledger.state().challenger, ledger.state().rejected) == (None, {1: rejected})
    say(ledger, "reopened", 1)
    assert (ledger.state().challenger, ledger.state().rejected) == (1, {})
    missing = say(ledger, "not-answered", 1)
    say(ledger, "refused")
    assert (ledger.state().challenger, ledger.state().not_answered) == (1, missing)
    say(ledger, "approved", 1)
    assert ledger.state().not_answered is None
    say(ledger, "not-answered", 7)  # about a version that no longer waits
    assert ledger.state().not_answered is None


def test_rolling_back_goes_to_the_champion_before_and_then_to_the_one_before_that(ledger: Ledger) -> None:
    for version in (1, 2, 3):
        say(ledger, "registered", version)
        say(ledger, "promoted", version)
    assert ledger.state().previous == (1, 2)
    say(ledger, "rolled-back", 2)
    assert (ledger.state().champion, ledger.state().previous) == (2, (1,))
    say(ledger, "rolled-back", 1)
    assert (ledger.state().champion, ledger.state().previous) == (1, ())


def test_who_was_champion_at_a_time(ledger: Ledger) -> None:
    say(ledger, "registered", 1)
    first = say(ledger, "promoted", 1)
    time.sleep(0.002)
    second = say(ledger, "promoted", 2)
    noon = datetime.fromisoformat(first.at)
    assert ledger.state(at=noon - timedelta(days=1)).champion is None
    assert ledger.state(at=noon.astimezone()).champion == 1
    assert ledger.state(at=datetime.fromisoformat(second.at)).champion == 2
    with pytest.raises(LedgerError, match="time zone"):
        ledger.state(at=datetime(2026, 3, 3))


def test_a_change_by_hand_is_the_state_until_it_is_undone(ledger: Ledger) -> None:
    for version in (1, 2):
        say(ledger, "registered", version)
        say(ledger, "promoted", version)
    before = {"champion": 2, "challenger": None}
    after = {"champion": 1, "challenger": None}
    change = say(ledger, "manual-change", 1, decision={"before": before, "found": after, "after": after})
    state = ledger.state()
    assert (state.champion, state.by_hand, state.previous) == (1, (change,), (1, 2))
    undone = {"before": after, "after": before, "action": "undone"}
    say(ledger, "manual-change", 2, decision=undone)
    state = ledger.state()
    assert (state.champion, state.by_hand, state.previous) == (2, (), (1,))


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, int]]:
    kinds = [kind for kind in KINDS if kind != "manual-change"]
    return draw(st.lists(st.tuples(st.sampled_from(kinds), st.integers(1, 4)), max_size=25))


@given(histories())
@examples(max_examples=200, deadline=None)
def test_replay_keeps_one_champion_and_goes_back_only_to_earlier_ones(history: list[tuple[str, int]]) -> None:
    entries = [
        Entry(
            1,
            number,
            kind,
            "2026-03-01T00:00:00Z",
            "a",
            "b",
            version,
            "",
            None,
            Raw(b"{}"),
            "",
            "",
            "",
            "",
            f"{number:064d}",
        )  # type: ignore[arg-type]
        for number, (kind, version) in enumerate(history, 1)
    ]
    then = aliases_since(entries, 0)
    assert len(then) == len(entries) + 1
    crowned = False
    for count in range(len(entries) + 1):
        state = replay(entries[:count])
        assert then[count] == {"champion": state.champion, "challenger": state.challenger}
        crowned = crowned or (count > 0 and entries[count - 1].kind in ("promoted", "rolled-back"))
        assert (state.champion is not None) == crowned
        assert state.champion not in state.previous[-1:]
        assert set(state.previous) <= {e.version for e in entries[:count] if e.kind in ("promoted", "rolled-back")}


# Broken ledgers


@pytest.fixture
def three(ledger: Ledger) -> Ledger:
    for version in (1, 2, 3):
        say(ledger, "registered", version)
    return ledger


def test_a_missing_entry_is_named(three: Ledger) -> None:
    file_of(three, 2).unlink()
    with pytest.raises(LedgerError, match="entry 2 is missing"):
        again(three).entries()


def test_a_missing_beginning_is_named(three: Ledger) -> None:
    file_of(three, 0).unlink()
    with pytest.raises(LedgerError, match="entry 0 is missing"):
        again(three).entries()


def test_a_changed_entry_breaks_the_chain_after_it(three: Ledger) -> None:
    file_of(three, 2).write_text(file_of(three, 2).read_text().replace("alice", "mallory"))
    with pytest.raises(LedgerError, match="chain breaks at entry 3"):
        again(three).entries()


def test_another_beginning_breaks_the_chain(three: Ledger) -> None:
    file_of(three, 0).write_text(json.dumps({"format": 1, "kind": "beginning", "id": "other"}))
    with pytest.raises(LedgerError, match="chain breaks at entry 1"):
        again(three).entries()


@pytest.mark.parametrize("sequence", [0, 3])
def test_an_unknown_format_is_refused(three: Ledger, sequence: int) -> None:
    path = file_of(three, sequence)
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(LedgerError, match=f"entry {sequence} has format 2; this version reads 1"):
        again(three).entries()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 1}', b"\xff"])
def test_a_damaged_entry_is_named(three: Ledger, content: bytes) -> None:
    file_of(three, 3).write_bytes(content)
    with pytest.raises(LedgerError, match="entry 3"):
        again(three).entries()


def test_a_file_that_does_not_belong_is_named(three: Ledger) -> None:
    (Path(three.store.uri) / "notes.txt").write_text("hello")
    with pytest.raises(LedgerError, match=r"notes\.txt"):
        again(three).entries()


def test_a_ledger_that_grew_shorter_while_it_was_open_is_named(three: Ledger) -> None:
    three.entries()
    file_of(three, 3).unlink()
    with pytest.raises(LedgerError, match=r"has 2 entries and had 3 .* restart this process"):
        three.entries()


def test_a_ledger_that_disappears_is_not_an_empty_one(three: Ledger) -> None:
    for path in Path(three.store.uri).iterdir():
        path.unlink()
    with pytest.raises(LedgerError, match="is gone"):
        say(three, "promoted", 1)


# Races, crashes, repeats


def test_an_entry_decided_on_an_older_state_is_told_who_came_first(ledger: Ledger) -> None:
    head = ledger.state().head
    winner = say(again(ledger), "registered", 1, who="bob", why="first", after=head)
    with pytest.raises(LostRace, match="registered version 1 by bob") as lost:
        say(ledger, "registered", 2, after=head)
    assert lost.value.winner == winner
    assert ledger.entries() == [winner]


def test_a_head_of_another_ledger_is_refused(ledger: Ledger) -> None:
    say(ledger, "registered", 1)
    with pytest.raises(LedgerError, match="not of this ledger"):
        say(ledger, "promoted", 1, after="f" * 64)


def test_what_a_request_led_to_is_found_again(ledger: Ledger) -> None:
    first = say(ledger, "rolled-back", 1, request="run 7")
    say(ledger, "registered", 2)
    state = again(ledger).state()
    assert state.asked("rolled-back", "run 7") == first
    assert (state.asked("promoted", "run 7"), state.asked("registered", "")) == (None, None)


def _race(folder: Path, who: str, rounds: int, start: Any, losses: Any) -> None:
    ledger, lost_races = Ledger(open_store(folder)), 0
    start.wait()
    for _ in range(rounds):
        try:
            say(ledger, "approved", 1, who=who, after=ledger.state().head)
        except LostRace as lost:
            if lost.winner.who == who:
                raise AssertionError("lost against itself") from lost
            lost_races += 1
        say(ledger, "refused", who=who)
    losses.put(lost_races)


def test_two_processes_never_take_the_same_place(tmp_path: Path) -> None:
    rounds = 100
    context = multiprocessing.get_context("spawn")
    start, losses = context.Event(), context.Queue()
    racers = [context.Process(target=_race, args=(tmp_path, who, rounds, start, losses)) for who in ("alice", "bob")]
    for racer in racers:
        racer.start()
    time.sleep(1)
    start.set()
    for racer in racers:
        racer.join(60)
    assert [racer.exitcode for racer in racers] == [0, 0]
    entries = Ledger(open_store(tmp_path)).entries()
    for who in ("alice", "bob"):
        assert sum(e.kind == "refused" and e.who == who for e in entries) == rounds
    lost = losses.get(timeout=10) + losses.get(timeout=10)
    assert sum(e.kind == "approved" for e in entries) == 2 * rounds - lost


def test_a_killed_writer_leaves_a_whole_ledger(tmp_path: Path) -> None:
    code = """
import sys
from xray_pipeline.base.storage import open_store
from xray_pipeline.registry.entries import Move
from xray_pipeline.registry.ledger import Ledger
ledger = Ledger(open_store(sys.argv[1]))
while True:
    ledger.append(Move("refused", who="alice", why="x" * 5000))
"""
    for _ in range(5):
        before = len(Ledger(open_store(tmp_path)).entries())
        writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
        while len(Ledger(open_store(tmp_path)).entries()) < before + 3:
            time.sleep(0.01)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
    assert len(Ledger(open_store(tmp_path)).entries()) >= 15


def test_on_s3_it_is_the_same(s3: Any) -> None:
    store = open_store(f"s3://hospital/{os.getpid()}", Settings(s3_endpoint=s3.endpoint))
    ledger = Ledger(store)
    written = [say(ledger, "registered", version) for version in range(1, 13)]
    assert again(ledger).entries() == written
    with pytest.raises(LostRace):
        say(again(ledger), "promoted", 1, after=written[3].digest)


def test_threads_share_one_ledger(ledger: Ledger) -> None:
    written = [say(ledger, "registered", version) for version in range(1, 101)]
    for _ in range(20):
        fresh = again(ledger)
        with ThreadPoolExecutor(8) as pool:
            assert all(read == written for read in pool.map(lambda _, fresh=fresh: fresh.entries(), range(8)))


# Cost


class Counted:
    """A store that counts what is asked of it."""

    def __init__(self, store: Store) -> None:
        self.store, self.read_keys, self.listed = store, [], 0
        self.uri = store.uri

    def read(self, key: str) -> bytes:
        self.read_keys.append(key)
        return self.store.read(key)

    def list(self, prefix: str = "") -> Iterator[Any]:
        self.listed += 1
        return iter(self.store.list(prefix))


def test_each_entry_is_read_once_however_often_the_state_is_asked(three: Ledger) -> None:
    """What ten thousand entries cost, benchmarks/history.py measures."""
    fresh = again(three)
    counted = Counted(fresh.store)
    fresh.store = cast("Store", counted)
    for asked in range(1, 4):
        assert fresh.state().challenger == 3
        assert sorted(counted.read_keys) == [f"{number:08d}.json" for number in range(4)]
        assert counted.listed == asked
    say(three, "registered", 4)
    assert fresh.state().challenger == 4
    assert counted.read_keys[4:] == ["00000004.json"]


def test_importing_it_is_cheap() -> None:
    code = """
import sys
import xray_pipeline.registry.ledger
heavy = {"torch", "mlflow", "pandas", "numpy", "PIL", "pydantic", "boto3", "airflow"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)
