"""Tidying that is killed between any two effects, and tidying beside somebody who works on an old candidate."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from candidates import SMALL
from forks import FORKS, forked
from grown_old import OldSite, overrides

from xray_pipeline.base.errors import EvaluationError, RegistryError, RegistryUnavailable
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import DirectoryStore, open_store
from xray_pipeline.command import answers
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.models.mlflow_client import MlflowClient
from xray_pipeline.night import model_steps, tidy
from xray_pipeline.night import pair as comparing
from xray_pipeline.night.run import Run
from xray_pipeline.registry import loading, tidied
from xray_pipeline.registry.loading import Champions
from xray_pipeline.registry.mlflow_registry import Registry
from xray_pipeline.training import in_use, mlflow_files
from xray_pipeline.training.recipe import load_recipe
from xray_pipeline.training.train import train

pytestmark = pytest.mark.slow
Lay = Callable[..., OldSite]
EFFECTS = (
    *((DirectoryStore, name) for name in ("write", "write_if_absent", "delete")),
    *((MlflowClient, name) for name in ("delete_logged_model", "set_tag", "set_model_version_tag")),
)


def _tidy_and_die(settings: Settings, now: float, last: int) -> None:
    """Tidy, and be killed right after the effect of this number."""
    count = 0

    def counted(effect: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            done = effect(*args, **kwargs)
            count += 1
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        return run

    for owner, name in EFFECTS:
        setattr(owner, name, counted(getattr(owner, name)))
    repository = mlflow_files.get_artifact_repository

    def watched(place: str) -> Any:
        found = repository(place)
        found.delete_artifacts = counted(found.delete_artifacts)
        return found

    mlflow_files.get_artifact_repository = watched
    tidy.tidy(Run(settings, SMALL, "alice"), now=now)


def left(site: OldSite) -> list[str]:
    home = site.settings.home
    return sorted(
        str(path.relative_to(home)) for name in ("store", "artifacts") for path in (home / name).rglob("*")
        if path.is_file() or name == "artifacts"
    )  # fmt: skip


def test_killed_after_any_effect_and_run_again(old_site: Lay) -> None:
    keep = {"keep_candidates": 2}  # so that one goes: the version that was superseded
    whole = old_site("whole", **keep)
    tidy.tidy(whole.run, now=whole.later)
    wanted, killed = left(whole), 0
    for number in range(1, 100):
        site = old_site(f"killed-{number}", **keep)
        process = forked(_tidy_and_die, site.settings, site.later, number)
        process.start()
        process.join(120)
        assert process.exitcode in (0, -signal.SIGKILL)
        tidy.tidy(site.run, now=site.later)
        assert left(site) == wanted, number
        if process.exitcode == 0:
            break
        killed += 1
    assert killed >= 15
    assert [found["text"] for found in answers.verify(site.settings) if not found["holds"]] == []


def _work_on(conn: Any, settings: Settings) -> None:
    """Do what a night does with a candidate that it finds trained: train, load, say which model it has."""
    conn.send("ready")
    conn.recv()
    dataset, registry = Dataset(settings), Registry(settings)
    snapshot = dataset.snapshot()
    assert snapshot is not None
    recipe = load_recipe("head", {**SMALL, **overrides("refused")})
    made = train(dataset, snapshot, recipe, settings, Champions(registry))
    conn.send((made.digest, made.model_uri))


def test_a_night_that_takes_up_an_old_candidate_has_its_model_afterwards(old_site: Lay) -> None:
    """Whoever comes first: the candidate stays, or the night trains it anew."""
    for number in range(4):
        site = old_site(f"race-{number}")
        ours, theirs = FORKS.Pipe()
        process = forked(_work_on, theirs, site.settings)
        process.start()
        assert ours.recv() == "ready"
        ours.send("go")
        time.sleep(0.8 * number)
        tidy.tidy(site.run, now=site.later)
        digest, uri = ours.recv()
        process.join(60)
        refused = site.candidates["refused"]
        assert digest == refused.digest
        registry = Registry(site.settings)
        both = comparing.pair(site.run, registry, digest, 2)
        assert both.candidate.model_uri == uri
        assert both.models[0].digest == refused.model_digest
        assert [
            entry.key for entry in open_store(site.settings.store).list("candidates") if "leaving" in entry.key
        ] == []


def test_a_night_between_the_looking_and_the_taking_keeps_its_candidate(
    old_site: Lay, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = old_site("site")
    store, registry, refused = open_store(site.settings.store), Registry(site.settings), site.candidates["refused"]
    take_away = in_use.take_away

    def late(*args: Any) -> bool:
        comparing.pair(site.run, registry, refused.digest, 2)
        return take_away(*args)

    monkeypatch.setattr(in_use, "take_away", late)
    done = tidy.tidy(site.run, now=site.later)
    assert refused.digest not in {one.candidate for one in done.removals}
    assert tidied.of_candidate(store, refused.digest) == []
    assert comparing.pair(site.run, registry, refused.digest, 2).models


def test_what_is_being_taken_away_is_scored_by_nobody(old_site: Lay) -> None:
    site = old_site("site")
    store, refused = open_store(site.settings.store), site.candidates["refused"]
    assert in_use.take_away(store, refused.digest, _seen(site))
    with pytest.raises(EvaluationError, match="xray tidy"):
        comparing.pair(site.run, Registry(site.settings), refused.digest, 2)
    tidy.tidy(site.run)  # by now somebody has taken it up: it stays
    assert comparing.pair(site.run, Registry(site.settings), refused.digest, 2).models


@pytest.mark.parametrize("effects", [1, 2])  # the note that it leaves; the record of the removal
def test_a_night_after_a_killed_tidying_trains_anew_and_waits_for_no_other(old_site: Lay, effects: int) -> None:
    site = old_site("site", keep_candidates=2)
    old = site.candidates["superseded"]
    process = forked(_tidy_and_die, site.settings, site.later, effects)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    run = Run(site.settings, {**SMALL, **overrides("superseded")})
    made = model_steps.train(run, old.snapshot)
    assert made.candidate == old.digest
    anew = comparing.pair(run, Registry(site.settings), old.digest, 2)
    assert anew.candidate.model_uri != old.model_uri
    assert anew.models[0].digest == old.model_digest
    assert model_steps.train(run, old.snapshot) == made  # nothing is trained a third time
    assert comparing.pair(run, Registry(site.settings), old.digest, 2).candidate == anew.candidate


def test_one_that_cannot_be_removed_stops_no_other(old_site: Lay, monkeypatch: pytest.MonkeyPatch) -> None:
    site = old_site("site")
    first = min(old.digest for name, old in site.candidates.items() if name in ("superseded", "refused"))
    store, size = open_store(site.settings.store), mlflow_files.size
    bad = next(old.run_id for old in site.candidates.values() if old.digest == first)

    def broken(run_id: str, *rest: Any) -> Any:
        if run_id == bad:
            raise RegistryUnavailable("MLflow did not answer")
        return size(run_id, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(mlflow_files, "size", broken)
        with pytest.raises(RegistryUnavailable, match="did not answer"):
            tidy.tidy(site.run, now=site.later)
    assert not in_use.leaves(store, first)
    assert tidied.of_candidate(store, first) == []
    assert {one.candidate for one in tidy.tidy(site.run, now=site.later).removals} == {first}


def _seen(site: OldSite) -> str:
    folder = open_store(site.settings.store).child(f"candidates/{site.candidates['refused'].digest}")
    return next((entry.version for entry in folder.list() if entry.key == in_use.USED), "")


def test_a_version_that_became_champion_meanwhile_stays(old_site: Lay, monkeypatch: pytest.MonkeyPatch) -> None:
    site = old_site("site")
    take_away, client = in_use.take_away, site.client

    def late(*args: Any) -> bool:
        client.set_registered_model_alias(site.settings.model_name, "champion", "3")
        return take_away(*args)

    monkeypatch.setattr(in_use, "take_away", late)
    done = tidy.tidy(site.run, now=site.later)
    assert 3 not in {one.version for one in done.removals}
    assert loading.load(Registry(site.settings), 3)


def test_an_mlflow_that_is_away_changes_nothing(old_site: Lay) -> None:
    site = old_site("site")
    before = left(site)
    away = Run(site.settings.model_copy(update={"tracking_uri": "http://127.0.0.1:9"}), SMALL)
    with pytest.raises(RegistryError):
        tidy.tidy(away, now=site.later)
    assert left(site) == before
