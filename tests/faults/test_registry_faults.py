"""Faults between the pipeline and MLflow: lost answers, a server that is away, SIGKILL, two processes at once.

After each, the same checker that `xray verify` uses finds I1, I2, I3 and I6 intact.
"""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import FaultProxy, at, once, run_proxy
from forks import FORKS, forked
from mlflow_server import MlflowServer, run_mlflow, run_postgres
from small_models import Candidate, logged

from xray_pipeline.base.errors import RegistryUnavailable
from xray_pipeline.base.settings import Settings
from xray_pipeline.registry import decisions as operations
from xray_pipeline.registry import manual_changes
from xray_pipeline.registry.entries import Entry, Move
from xray_pipeline.registry.ledger import LostRace
from xray_pipeline.registry.mlflow_registry import Registry
from xray_pipeline.registry.verify import check

DECISION = {"verdict": "registered", "may_promote": True, "automatic": True}


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A server on each kind of database: their ways to isolate two writers differ."""
    if request.param == "sqlite":
        yield request.getfixturevalue("mlflow_server")
        return
    with run_postgres() as uri, run_mlflow(tmp_path_factory.mktemp("mlflow-postgres"), database=uri) as server:
        yield server


def registry_of(server: MlflowServer, home: Path) -> Registry:
    return Registry(Settings(home=home, tracking_uri=server.uri, model_name=f"m{uuid.uuid4().hex}"))


@pytest.fixture
def direct(mlflow_server: MlflowServer, tmp_path: Path) -> Registry:
    """The registry without a proxy in between."""
    return registry_of(mlflow_server, tmp_path)


@pytest.fixture
def proxy(mlflow_server: MlflowServer) -> Iterator[FaultProxy]:
    with run_proxy(mlflow_server.uri) as running:
        yield running


def through(registry: Registry, proxy: FaultProxy) -> Settings:
    return registry.settings.model_copy(update={"tracking_uri": proxy.uri})


def register(settings: Settings, candidate: Candidate, before: int | None) -> Entry:
    return operations.register(
        Registry(settings), candidate, who="schedule", why="better", decision=DECISION, champion_before=before
    )


def promote(settings: Settings, version: int, before: int | None) -> Entry:
    return operations.promote(
        Registry(settings), version, who="schedule", why="the policy allows it", expected_champion=before,
        decision=DECISION,
    )  # fmt: skip


def rollback(settings: Settings, request: str) -> Entry:
    return operations.rollback(Registry(settings), who="alice", why="because", request=request)


def named(model: Candidate, number: int) -> Candidate:
    return replace(model, digest=f"{number:064x}")


def broken(registry: Registry) -> list[str]:
    return [f"{f.invariant}: {f.text}" for f in check(Registry(registry.settings)) if not f.holds]


# Case 8 and 17: answers that never come


@pytest.mark.parametrize("fault", ["lose", "drop", "503"])
@pytest.mark.parametrize("part", ["registered-models/create", "model-versions/create", "set-tag", "alias"])
def test_one_fault_in_any_call_is_survived(
    direct: Registry, proxy: FaultProxy, model: Candidate, fault: str, part: str
) -> None:
    proxy.decide = once(fault, "POST", part)
    entry = register(through(direct, proxy), model, None)
    proxy.decide = once(fault, "POST", part)
    promote(through(direct, proxy), 1, None)
    assert entry.version == min(direct.versions())
    assert len(direct.versions()) == 1
    assert direct.aliases() == {"champion": 1, "challenger": None}
    assert broken(direct) == []


def test_a_version_whose_answer_is_lost_again_and_again_is_found_by_the_next_run(
    direct: Registry, proxy: FaultProxy, model: Candidate
) -> None:
    proxy.decide = once("lose", "POST", "model-versions/create", times=100)
    with pytest.raises(RegistryUnavailable, match="registering"):
        register(through(direct, proxy), model, None)
    assert len(direct.versions()) == 3  # MLflow's own client asked three times
    proxy.decide = lambda method, path: ""
    assert register(through(direct, proxy), model, None).version == 1
    assert list(direct.versions()) == [1]
    assert broken(direct) == []


@pytest.mark.parametrize("fault", ["lose", "drop", "503"])
def test_a_used_number_is_not_taken_whichever_answer_is_lost(
    direct: Registry, proxy: FaultProxy, model: Candidate, fault: str
) -> None:
    for number in (1, 2):
        move = Move("rejected", who="alice", why="of a time that MLflow has forgotten", version=number)
        direct.ledger.append(move)
    proxy.decide = once(fault, "POST", "model-versions/create")
    entry = register(through(direct, proxy), model, None)
    assert entry.version is not None
    assert entry.version > 2
    assert list(direct.versions()) == [entry.version]
    assert broken(direct) == []


@pytest.mark.parametrize("fault", ["drop", "503"])
def test_a_server_that_is_away_changes_nothing(
    direct: Registry, proxy: FaultProxy, model: Candidate, fault: str
) -> None:
    register(direct.settings, model, None)
    before = direct.ledger.entries()
    proxy.decide = lambda method, path: fault
    proxy.requests.clear()
    for attempt in (
        lambda: promote(through(direct, proxy), 1, None),
        lambda: register(through(direct, proxy), named(model, 2), None),
        lambda: rollback(through(direct, proxy), "r"),
        lambda: manual_changes.reconcile(Registry(through(direct, proxy))),
    ):
        with pytest.raises(RegistryUnavailable, match="did not answer"):
            attempt()
    assert len(proxy.requests) == 4 * 3  # each gives up after its first question was asked three times
    assert direct.ledger.entries() == before
    assert broken(direct) == []


def test_a_database_that_goes_away_changes_nothing(tmp_path: Path) -> None:
    with ExitStack() as database, ExitStack() as services:
        uri = database.enter_context(run_postgres())
        direct = registry_of(services.enter_context(run_mlflow(tmp_path / "server", database=uri)), tmp_path)
        register(direct.settings, logged(direct.settings), None)
        before = direct.ledger.entries()
        database.close()
        for attempt in (lambda: promote(direct.settings, 1, None), lambda: rollback(direct.settings, "r")):
            with pytest.raises(RegistryUnavailable, match="did not answer"):
                attempt()
        assert Registry(direct.settings).ledger.entries() == before


def test_a_slow_answer_is_waited_for_and_a_very_slow_one_is_not(
    direct: Registry, proxy: FaultProxy, model: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    proxy.delay, proxy.decide = 1.0, once("slow", "POST", "model-versions/create")
    assert register(through(direct, proxy), model, None).version == 1
    proxy.delay, proxy.decide = 3.0, once("slow", "POST", "alias", times=100)
    with pytest.raises(RegistryUnavailable):
        promote(through(direct, proxy), 1, None)
    assert direct.ledger.state().champion == 1  # committed; the alias is still to follow
    proxy.decide = lambda method, path: ""
    assert manual_changes.reconcile(Registry(through(direct, proxy))).champion == 1
    assert broken(direct) == []


# Cases 7 and 9: killed between any two side effects


def _child(conn: Any, work: Callable[..., Entry], arguments: tuple[Any, ...]) -> None:
    conn.send(os.getpid())
    conn.recv()
    conn.send(work(*arguments).sequence)


def killed_at(proxy: FaultProxy, number: int, fault: str, work: Callable[..., Entry], *arguments: Any) -> bool:
    """Run `work` in a process that is killed at its change of this number in MLflow; say whether it came that far."""
    ours, theirs = FORKS.Pipe()
    process = forked(_child, theirs, work, arguments)
    process.start()
    proxy.victim, proxy.decide = ours.recv(), at(number, fault)
    ours.send("go")
    process.join(60)
    proxy.decide = lambda method, path: ""
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@pytest.mark.parametrize("fault", ["kill before", "kill after"])
def test_killed_at_any_change_and_run_again(direct: Registry, proxy: FaultProxy, model: Candidate, fault: str) -> None:
    """ "Kill before" leaves what was done on this side after the last change, "kill after" what was not."""
    settings = through(direct, proxy)
    Registry(settings).add(named(model, 0).digest, model.model_uri, model.run_id)  # the model itself is there
    alive: set[str] = set()
    number, version, champion = 0, 1, None
    while len(alive) < 3:
        number += 1
        candidate = named(model, number)
        if "register" not in alive and not killed_at(proxy, number, fault, register, settings, candidate, champion):
            alive.add("register")
        version = register(settings, candidate, champion).version or 0
        assert [v for v, tags in direct.versions().items() if tags["xray.candidate"] == candidate.digest] == [version]
        if "promote" not in alive and not killed_at(proxy, number, fault, promote, settings, version, champion):
            alive.add("promote")
        assert promote(settings, version, champion).version == version
        if champion is not None and "rollback" not in alive:
            if not killed_at(proxy, number, fault, rollback, settings, f"r{number}"):
                alive.add("rollback")
            assert rollback(settings, f"r{number}").version == champion
        champion = direct.ledger.state().champion
        assert direct.aliases()["champion"] == champion
        assert broken(direct) == []
    kinds = [entry.kind for entry in direct.ledger.entries()]
    assert number > 8
    assert kinds.count("registered") == kinds.count("promoted") == number
    assert "manual-change" not in kinds


# Case 10 and case 6: two at once


def _racer(conn: Any, rounds: int, work: Callable[..., str], arguments: tuple[Any, ...]) -> None:
    for number in range(rounds):
        conn.recv()
        conn.send(work(number, *arguments))


def race(rounds: int, works: list[tuple[Callable[..., str], tuple[Any, ...]]], prepare: Callable[[int], None]) -> Any:
    """Run the works side by side, round by round, each in a process of its own; yield what they said."""
    pipes, racers = [], []
    for work, arguments in works:
        ours, theirs = FORKS.Pipe()
        racers.append(forked(_racer, theirs, rounds, work, arguments))
        racers[-1].start()
        theirs.close()  # else nobody notices when that process dies
        pipes.append(ours)
    try:
        for number in range(rounds):
            prepare(number)
            for pipe in pipes:
                pipe.send("go")
            yield number, [pipe.recv() for pipe in pipes]
    finally:
        for pipe in pipes:
            pipe.close()  # a racer that still waits for the next round ends
        for racer in racers:
            racer.join(30)
            racer.kill()
    assert [racer.exitcode for racer in racers] == [0] * len(racers)


def _register_one(number: int, settings: Settings, model: Candidate) -> str:
    return str(register(settings, named(model, number), None).version)


def test_two_processes_register_one_candidate_many_times(database: MlflowServer, tmp_path: Path) -> None:
    direct = registry_of(database, tmp_path)
    model = logged(direct.settings)
    works = [(_register_one, (direct.settings, model))] * 2
    for number, said in race(15, works, lambda number: None):
        assert said[0] == said[1]
        carriers = [v for v, tags in direct.versions().items() if tags["xray.candidate"] == f"{number:064x}"]
        assert [str(v) for v in carriers] == said[:1]
    assert len(direct.versions()) == len(direct.ledger.entries()) == 15
    assert broken(direct) == []


def _promote_one(number: int, settings: Settings, odd: int) -> str:
    registry = Registry(settings)
    before = registry.ledger.state().champion
    try:
        operations.promote(
            registry, 2 * number + 1 + odd, who=f"racer {odd}", why="faster", expected_champion=before,
            decision=DECISION,
        )  # fmt: skip
    except LostRace as lost:
        return str(lost.winner.version)
    return "won"


def test_two_processes_promote_at_once_many_times(database: MlflowServer, tmp_path: Path) -> None:
    """Both decide against the same champion; one wins, and the other is told who did."""
    rounds = 25
    direct = registry_of(database, tmp_path)
    model = logged(direct.settings)

    def prepare(number: int) -> None:
        champion = direct.ledger.state().champion
        for odd in (0, 1):
            register(direct.settings, named(model, 2 * number + odd), champion)

    works = [(_promote_one, (direct.settings, odd)) for odd in (0, 1)]
    lost = 0
    for number, said in race(rounds, works, prepare):
        champion = direct.ledger.state().champion
        assert direct.aliases()["champion"] == champion
        if said != ["won", "won"]:  # else one read the champion only after the other had won
            lost += 1
            assert sorted(said) == sorted(["won", str(champion)])
        assert champion in (2 * number + 1, 2 * number + 2)
    assert lost > rounds // 4
    assert "manual-change" not in [entry.kind for entry in direct.ledger.entries()]
    assert broken(direct) == []
