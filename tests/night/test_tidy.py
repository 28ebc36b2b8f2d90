"""What `xray tidy` removes and what it leaves, and what everybody who asks for the removed is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from candidates import trained
from commands import Run
from grown_old import OldSite, overrides

from xray_pipeline.base.errors import EvaluationError, LedgerError, RegistryError
from xray_pipeline.base.storage import open_store
from xray_pipeline.command import answers
from xray_pipeline.night import health, promotion, reproduce, tidy, versions
from xray_pipeline.night import pair as comparing
from xray_pipeline.registry import decisions, lost_entries, manual_changes, tidied
from xray_pipeline.registry.loading import load
from xray_pipeline.registry.mlflow_registry import Registry
from xray_pipeline.training import mlflow_run
from xray_pipeline.training.candidate import find_candidate

pytestmark = pytest.mark.slow
Lay = Callable[..., OldSite]
STAY = ("first champion", "champion", "challenger")
GO = ("superseded", "refused")
TOLD = f"removed by tidy on {datetime.now(UTC):%Y-%m-}"


@pytest.fixture
def site(old_site: Lay) -> OldSite:
    return old_site("site")


@pytest.fixture
def tidy_site(site: OldSite) -> OldSite:
    """The installation, tidied as if long afterwards."""
    tidy.tidy(site.run, now=site.later)
    return site


def files(site: OldSite) -> dict[str, bytes]:
    home = site.settings.home
    parts = (path for name in ("store", "artifacts") for path in (home / name).rglob("*"))
    return {str(path.relative_to(home)): path.read_bytes() for path in parts if path.is_file()}


def model_id(site: OldSite, name: str) -> str:
    return site.candidates[name].model_uri.removeprefix("models:/")


def test_what_nobody_needs_goes_and_all_else_stays_as_it_is(site: OldSite) -> None:
    before = files(site)
    would = tidy.look(site.run, now=site.later)
    assert files(site) == before
    done = tidy.tidy(site.run, now=site.later)
    after = files(site)
    assert {one.candidate for one in done.removals} == {site.candidates[name].digest for name in GO}
    assert {one.version for one in done.removals} == {3, None}
    assert done.bytes() == would.bytes()
    assert done.bytes().keys() == {"MLflow", "checkpoints", "pictures", "predictions", "reports", "stress"}
    assert done.kept == 3
    removed = before.keys() - after.keys()
    assert sum(len(before[path]) for path in removed if not path.endswith("/used")) == sum(done.bytes().values())
    gone = [word for name in GO for word in (*_words(site, name), site.candidates[name].model_digest)]
    assert all(any(word in path for word in gone) for path in removed)
    left = [path for path in after if any(word in path for word in gone)]
    names = {path.rpartition("/")[2] for path in left if "tidied/" not in path}
    assert names == {"candidate.json", "environment.json", "recipe.json", "run.json"}
    assert {path: after[path] for path in before if path in after} == {p: before[p] for p in before.keys() & after}


def _words(site: OldSite, name: str) -> tuple[str, str, str]:
    return site.candidates[name].digest, site.candidates[name].run_id, model_id(site, name)


def test_mlflow_keeps_runs_and_versions_and_says_what_went(tidy_site: OldSite) -> None:
    client, registry = tidy_site.client, Registry(tidy_site.settings)
    for name in GO:
        run = client.get_run(tidy_site.candidates[name].run_id)
        assert "removed on" in run.data.tags["xray.tidied"]
        assert "operating_threshold" in run.data.metrics
        assert not mlflow_run.still_logged(tidy_site.candidates[name].model_uri)
    assert all(mlflow_run.still_logged(tidy_site.candidates[name].model_uri) for name in STAY)
    tags = registry.versions()
    assert [version for version in tags if "xray.tidied" in tags[version]] == [3]
    assert all(load(registry, version) for version in (1, 2, 4))


def test_again_it_finds_nothing(tidy_site: OldSite) -> None:
    before = files(tidy_site)
    assert tidy.tidy(tidy_site.run, now=tidy_site.later).removals == ()
    assert files(tidy_site) == before


def test_who_did_it_and_when_is_kept(tidy_site: OldSite) -> None:
    store, digest = open_store(tidy_site.settings.store), tidy_site.candidates["superseded"].digest
    (record,) = tidied.of_candidate(store, digest)
    assert (record.who, record.version, record.model) == ("alice", 3, tidy_site.candidates["superseded"].model_uri)
    assert record == Registry(tidy_site.settings).removed(3)
    assert Registry(tidy_site.settings).removed(4) is None


@pytest.mark.parametrize(
    ("changed", "gone"),
    [
        ({"keep_candidates": 5}, 0),
        ({"keep_candidates": 2}, 1),  # the refused one is the newest but one
        ({"keep_candidates": 1, "keep_days": 61}, 0),
        ({"keep_candidates": 1, "approval_hours": 61 * 24}, 0),
    ],
)
def test_the_newest_and_the_young_stay(site: OldSite, changed: dict[str, float], gone: int) -> None:
    run = replace(site, settings=site.settings.model_copy(update=changed)).run
    assert len(tidy.look(run, now=site.later).removals) == gone


def test_now_all_is_young(site: OldSite) -> None:
    assert tidy.look(site.run).removals == ()


def test_an_alias_of_somebody_or_another_registered_model_keeps_a_version(site: OldSite) -> None:
    client = site.client
    client.set_registered_model_alias(site.settings.model_name, "shadow", "3")
    refused = site.candidates["refused"]
    client.create_registered_model("theirs")
    client.create_model_version("theirs", refused.model_uri, refused.run_id, model_id=model_id(site, "refused"))
    assert tidy.tidy(site.run, now=site.later).removals == ()


def test_what_was_champion_by_hand_stays_though_that_was_undone(site: OldSite) -> None:
    registry = Registry(site.settings)
    site.client.set_registered_model_alias(registry.name, "champion", "3")
    manual_changes.record_manual_change(registry)
    promotion.adopt(site.run, True, "put back")
    assert 3 not in {one.version for one in tidy.look(site.run, now=site.later).removals}


def test_what_was_scored_lately_stays_for_whoever_is_asked(site: OldSite) -> None:
    comparing.pair(site.run, Registry(site.settings), site.candidates["superseded"].digest, 2)
    (removal,) = tidy.tidy(site.run, now=site.later).removals
    assert removal.candidate == site.candidates["refused"].digest


def test_all_that_must_hold_holds_afterwards(tidy_site: OldSite) -> None:
    findings = answers.verify(tidy_site.settings)
    assert [finding["text"] for finding in findings if not finding["holds"]] == []
    (told,) = [finding["text"] for finding in findings if TOLD in finding["text"]]
    assert told.startswith("version 3: ")


def test_a_champion_that_was_removed_is_no_sound_one(tidy_site: OldSite) -> None:
    registry = Registry(tidy_site.settings)
    tidy_site.client.set_registered_model_alias(registry.name, "champion", "3")
    manual_changes.record_manual_change(registry)
    with pytest.raises(RegistryError, match=TOLD):
        decisions.adopt(registry, accept=True, who="alice", why="because")
    assert any(TOLD in f["text"] and not f["holds"] for f in answers.verify(tidy_site.settings))
    assert promotion.adopt(tidy_site.run, True, "put back")["version"] == 2


def test_a_removed_version_can_t_be_promoted_and_is_told_why(tidy_site: OldSite) -> None:
    decisions.answer(Registry(tidy_site.settings), "rejected", 4, who="alice", why="no", expected_champion=2)
    asked = promotion.request(tidy_site.run, 3)
    assert TOLD in asked.void
    assert asked.evidence == ""
    with pytest.raises(LedgerError, match=TOLD):
        promotion.reopen(tidy_site.run, 3, "another look")
    for attempt in (
        lambda: reproduce.reproduce(tidy_site.settings, 3),
        lambda: load(Registry(tidy_site.settings), 3),
        lambda: answers.predict_files(tidy_site.settings, "models:/chest-xray/3", [Path(__file__)]),
    ):
        with pytest.raises(RegistryError, match=TOLD):
            attempt()
    for version, against in ((3, 2), (2, 3)):
        with pytest.raises((EvaluationError, RegistryError), match=TOLD):
            versions.compare(tidy_site.run, version, against)
    with pytest.raises(LedgerError, match="never champion"):
        promotion.rollback(tidy_site.run, 3, "back")
    assert promotion.rollback(tidy_site.run, 1, "back", untried=True)["version"] == 1


def test_a_refused_candidate_is_told_of_too(tidy_site: OldSite) -> None:
    with pytest.raises(EvaluationError, match=TOLD):
        comparing.pair(tidy_site.run, Registry(tidy_site.settings), tidy_site.candidates["refused"].digest, 2)


def test_entries_that_are_lost_leave_a_removed_version_out(
    tidy_site: OldSite, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(tidy_site.settings.store)
    for entry in list(store.list("ledger")):
        if entry.key > "ledger/00000004.json":
            store.delete(entry.key)
    registry = Registry(tidy_site.settings)
    assert registry.model.ahead() is not None
    with pytest.raises(RegistryError):
        tidy.tidy(tidy_site.run, now=tidy_site.later)
    lost_entries.give_up(registry, lambda digest: find_candidate(store, digest), accept=True, who="alice", why="lost")
    assert TOLD in caplog.text
    assert registry.ledger.state().registered.keys() == {1, 2, 4}


def test_trained_again_it_is_there_again(tidy_site: OldSite) -> None:
    before = tidy_site.candidates["refused"]
    again = trained(tidy_site.settings, **overrides("refused"))
    assert again.digest == before.digest
    assert again.model_uri != before.model_uri
    registry = Registry(tidy_site.settings)
    assert comparing.pair(tidy_site.run, registry, again.digest, 2).models[0].digest == before.model_digest
    assert tidy.tidy(tidy_site.run, now=tidy_site.later).removals == ()
    waits = tidy_site.candidates["challenger"].digest
    Path(tidy_site.settings.store, "candidates", waits, "candidate.json").touch()  # so that the other is not the newest
    (removal,) = tidy.tidy(tidy_site.run, now=tidy_site.later + 86_400).removals
    assert removal.model == again.model_uri
    assert len(tidied.of_candidate(open_store(tidy_site.settings.store), again.digest)) == 2


def test_a_training_that_nobody_went_on_with_loses_its_checkpoints(site: OldSite) -> None:
    store, digest = open_store(site.settings.store), "e" * 64
    store.write(f"candidates/{digest}/recipe.json", b"{}")
    store.write(f"candidates/{digest}/checkpoints/000000001-{'0' * 64}.pt", b"tensors")
    assert digest not in {one.candidate for one in tidy.look(site.run, now=site.later).removals}
    done = tidy.tidy(site.run, now=site.later + 86_400)
    assert [one.bytes for one in done.removals if one.candidate == digest] == [{"checkpoints": 7, "MLflow": 0}]
    assert [entry.key for entry in store.list(f"candidates/{digest}")] == [f"candidates/{digest}/recipe.json"]


def test_the_command_asks_for_one_of_two_words(site: OldSite, xray: Run) -> None:
    place = {"XRAY_HOME": str(site.settings.home), "XRAY_KEEP_CANDIDATES": "1"}
    assert xray("tidy", **place).returncode == 2
    assert xray("tidy", "--dry-run", "--yes", **place).returncode == 2
    done = xray("tidy", "--dry-run", "--json", **place)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"removed": False, "removals": [], "kept": 5, "bytes": {}}


def test_the_history_tells_of_removed_versions(tidy_site: OldSite, xray: Run) -> None:
    done = xray("history", XRAY_HOME=str(tidy_site.settings.home))
    assert done.returncode == 0
    assert f"version 3: its files were {TOLD}" in done.stdout


def test_health_counts_what_there_is(site: OldSite) -> None:
    (found,) = [part for part in health.check(site.settings) if part.part == "space"]
    assert found.well
    for kind in ("candidates", "reports", "predictions", "dataset", "MLflow's artifacts", "cache"):
        assert f"{kind}: " in found.text
