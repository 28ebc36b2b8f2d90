"""MLflow, the store or both put back to an older state: what is noticed, what goes on, and the ways out."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_models import Candidate, logged

from xray_pipeline.base.errors import LedgerError, ModelRefused, RegistryError, TrainingError
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import open_store
from xray_pipeline.models.mlflow_client import MlflowClient, mlflow
from xray_pipeline.night import promotion
from xray_pipeline.night.promotion import Request
from xray_pipeline.night.run import Run
from xray_pipeline.registry import decisions as operations
from xray_pipeline.registry import loading, lost_entries, manual_changes
from xray_pipeline.registry.entries import Entry, Move
from xray_pipeline.registry.ledger import Ledger
from xray_pipeline.registry.loading import load
from xray_pipeline.registry.mlflow_registry import Registry
from xray_pipeline.registry.questions import why_void
from xray_pipeline.registry.registered_model import FOLLOWED_TAG
from xray_pipeline.registry.state import State
from xray_pipeline.registry.verify import check

pytestmark = pytest.mark.usefixtures("no_pause")

DECISION = {"verdict": "registered", "may_promote": True, "automatic": True, "compared_patients": 10}
SCHEDULE: dict[str, Any] = {"who": "schedule", "why": "better", "decision": DECISION}
ALICE: dict[str, Any] = {"who": "alice", "why": "because"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Candidate]]:
    """MLflow's database with four logged models and no version."""
    folder = tmp_path_factory.mktemp("mlflow")
    settings = Settings(home=folder)
    mlflow.set_tracking_uri(settings.tracking_uri)
    mlflow.create_experiment(settings.experiment, artifact_location=(folder / "artifacts").as_uri())
    return folder / "mlflow.db", [logged(settings, seed) for seed in range(4)]


class Site:
    """A store, and an MLflow that can be put back; candidates 1 to 4 are trained."""

    def __init__(self, folder: Path, database: Path, candidates: list[Candidate]) -> None:
        self.folder, self.candidates = folder, candidates
        self.copies = 0
        self.put_back_mlflow(database)

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def keep_mlflow(self) -> Path:
        self.copies += 1
        return Path(shutil.copy(self.database, self.folder / f"kept-{self.copies}.db"))

    def put_back_mlflow(self, kept: Path) -> None:
        self.copies += 1
        self.database = Path(shutil.copy(kept, self.folder / f"mlflow-{self.copies}.db"))
        self.settings = Settings(home=self.folder, tracking_uri=f"sqlite:///{self.database}")

    def overwrite_mlflow(self, kept: Path) -> None:
        """Put an older state into the database under the feet of who works with it, by SQLite's own backup."""
        with closing(sqlite3.connect(kept)) as source, closing(sqlite3.connect(self.database)) as target:
            source.backup(target)

    def keep_store(self) -> Path:
        self.copies += 1
        return Path(shutil.copytree(self.store, self.folder / f"store-{self.copies}"))

    def put_back_store(self, kept: Path) -> None:
        shutil.rmtree(self.store)
        shutil.copytree(kept, self.store)

    @property
    def registry(self) -> Registry:
        """As another process opens it."""
        return Registry(self.settings)

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.settings.tracking_uri, self.settings.tracking_uri)

    @property
    def run(self) -> Run:
        return Run(self.settings, who="alice")

    def register(self, number: int, before: int | None) -> int:
        candidate = self.candidates[number - 1]
        version = operations.register(self.registry, candidate, champion_before=before, **SCHEDULE).version
        assert version is not None
        return version

    def promote(self, version: int, before: int | None) -> Entry:
        return operations.promote(self.registry, version, expected_champion=before, **SCHEDULE)

    def refuse(self, number: int, champion: int | None) -> None:
        operations.refuse(self.registry, self.candidates[number - 1], champion_before=champion, **SCHEDULE)

    def find(self, digest: str) -> Candidate:
        for candidate in self.candidates:
            if candidate.digest == digest:
                return candidate
        raise TrainingError("was not trained to its end")

    def kinds_in_store(self) -> list[str]:
        return [entry.kind for entry in Ledger(open_store(self.settings.store)).entries()]

    def kinds(self) -> list[str]:
        return [entry.kind for entry in self.registry.ledger.entries()]

    def broken(self) -> list[str]:
        return [f"{finding.invariant} {finding.text}" for finding in check(self.registry) if not finding.holds]


@pytest.fixture
def site(tmp_path: Path, models: tuple[Path, list[Candidate]]) -> Site:
    """Version 1 is champion."""
    made = Site(tmp_path, *models)
    assert made.register(1, None) == 1
    made.promote(1, None)
    return made


# MLflow is older than the ledger


@pytest.fixture
def waiting(site: Site) -> Site:
    """Version 1 is champion, version 2 waits."""
    site.register(2, 1)
    return site


def while_promoting(site: Site, monkeypatch: pytest.MonkeyPatch, put_back: Callable[[], None], match: str) -> None:
    """Promote version 2, and put something back right after the ledger's entry; what is said must match."""
    follow = Registry.follow

    def meanwhile(registry: Registry) -> State:
        put_back()
        return follow(registry)

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "follow", meanwhile)
        with pytest.raises((RegistryError, LedgerError), match=match):
            promote_once(site)


def promote_once(site: Site) -> Entry:
    return operations.promote(site.registry, 2, expected_champion=1, request="one click", **SCHEDULE)


def test_an_mlflow_put_back_in_the_middle_of_a_promotion_loses_nothing_that_was_decided(
    waiting: Site, models: tuple[Path, list[Candidate]], monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = waiting.keep_mlflow()
    before_all = models[0]
    while_promoting(waiting, monkeypatch, lambda: waiting.overwrite_mlflow(before_all), "holds no model")
    assert waiting.kinds_in_store()[-1] == "promoted"
    for _ in range(2):
        with pytest.raises(RegistryError, match="holds no model"):
            promote_once(waiting)
    waiting.overwrite_mlflow(newest)
    assert promote_once(waiting).kind == "promoted"
    assert waiting.kinds().count("promoted") == 2
    assert waiting.registry.aliases() == {"champion": 2, "challenger": None}
    assert waiting.broken() == []


def test_an_mlflow_without_the_version_that_is_being_promoted_stops_until_it_is_put_back(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = site.keep_mlflow()
    site.register(2, 1)
    newest = site.keep_mlflow()
    said = "this is decided: .* restore MLflow's newest"
    while_promoting(site, monkeypatch, lambda: site.overwrite_mlflow(older), said)
    with pytest.raises(RegistryError, match=r"/2|restore MLflow's newest"):
        promote_once(site)
    assert site.kinds_in_store().count("promoted") == 2
    site.overwrite_mlflow(newest)
    promote_once(site)
    assert site.kinds().count("promoted") == 2
    assert site.registry.aliases() == {"champion": 2, "challenger": None}


@pytest.mark.parametrize("lost", ["the promotion", "its version, too"])
def test_a_store_put_back_in_the_middle_of_a_promotion_is_never_taken_for_a_promotion(
    site: Site, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    older = site.keep_store()
    site.register(2, 1)
    older = site.keep_store() if lost == "the promotion" else older
    newest: list[Path] = []

    def put_back() -> None:
        newest.append(site.keep_store())
        site.put_back_store(older)

    while_promoting(site, monkeypatch, put_back, "had 4 when this process read it")
    if lost != "the promotion":  # else it may be decided anew
        with pytest.raises(RegistryError, match=r"followed the ledger to entry 3 .* restore the newest copy"):
            promote_once(site)
    assert site.client.get_registered_model("chest-xray").aliases == {"champion": 1, "challenger": 2}
    site.put_back_store(newest[0])
    promote_once(site)
    assert site.kinds().count("promoted") == 2
    assert site.registry.aliases() == {"champion": 2, "challenger": None}
    assert site.broken() == []


@pytest.fixture
def older(site: Site) -> Site:
    """Version 2 was champion and is no more; MLflow was put back to before it was registered."""
    kept = site.keep_mlflow()
    site.register(2, 1)
    site.promote(2, 1)
    operations.rollback(site.registry, **ALICE)
    assert site.broken() == []
    site.put_back_mlflow(kept)
    return site


def test_a_number_that_the_ledger_has_used_is_not_given_to_another_model(
    older: Site, caplog: pytest.LogCaptureFixture
) -> None:
    assert older.register(3, 1) == 3
    assert "gave version 2 of chest-xray a number that the ledger has used" in caplog.text
    assert list(older.registry.versions()) == [1, 3]
    meant = older.registry.ledger.state().registered
    assert (meant[2].candidate, meant[3].candidate) == (older.candidates[1].digest, older.candidates[2].digest)
    with pytest.raises(RegistryError, match="/2"):
        promotion.rollback(older.run, 2, "because", untried=True)
    assert older.registry.aliases() == {"champion": 1, "challenger": 3}
    assert older.register(4, 1) == 4


def test_an_mlflow_that_is_older_is_told_recorded_and_accepted(older: Site) -> None:
    assert "I3 MLflow is older than the ledger: it lacks versions [2]; restore" in "\n".join(older.broken())
    before = len(older.kinds())
    for _ in range(2):
        manual_changes.reconcile(older.registry)
    entry = older.registry.ledger.entries()[-1]
    assert older.kinds()[before:] == ["manual-change"]
    assert (entry.version, entry.candidate, entry.decision["gone"]) == (1, older.candidates[0].digest, [2])
    assert entry.why == "version 2 is not in MLflow, which is older than the ledger"
    assert {line[:2] for line in older.broken()} == {"I1", "I2", "I3"}
    operations.adopt(older.registry, accept=True, who="alice", why="there is no newer backup")
    assert older.broken() == []
    assert older.registry.aliases() == {"champion": 1, "challenger": None}


def test_the_newest_backup_put_back_in_turn_is_whole_again(site: Site) -> None:
    old = site.keep_mlflow()
    site.register(2, 1)
    new = site.keep_mlflow()
    site.put_back_mlflow(old)
    manual_changes.reconcile(site.registry)
    site.put_back_mlflow(new)
    manual_changes.reconcile(site.registry)
    operations.adopt(site.registry, accept=False, who="alice", why="the newest backup was found")
    assert site.broken() == []
    assert site.registry.aliases() == {"champion": 1, "challenger": 2}
    site.put_back_mlflow(old)  # once more
    assert manual_changes.reconcile(site.registry).challenger is None


def test_a_challenger_that_is_lost_no_longer_waits_and_the_night_goes_on(site: Site) -> None:
    kept = site.keep_mlflow()
    site.register(2, 1)
    site.put_back_mlflow(kept)
    assert manual_changes.reconcile(site.registry).challenger is None
    with pytest.raises(RegistryError, match="/2"):
        operations.adopt(site.registry, accept=False, who="alice", why="I want it back")
    assert site.register(3, 1) == 3
    operations.adopt(site.registry, accept=True, who="alice", why="there is no newer backup")
    assert site.broken() == []


def test_what_a_killed_process_left_under_the_number_of_a_version_that_is_lost_goes(site: Site) -> None:
    older = site.keep_mlflow()
    assert site.register(2, 1) == 2
    site.put_back_mlflow(older)
    left = site.candidates[2]
    model_id, tags = left.model_uri.removeprefix("models:/"), {"xray.candidate": left.digest}
    name, client = site.settings.model_name, site.client
    client.create_model_version(name, left.model_uri, left.run_id, tags=tags, model_id=model_id)
    assert client.get_model_version(name, "2").tags["xray.candidate"] == left.digest
    assert site.register(3, 1) == 3
    operations.adopt(site.registry, accept=True, **ALICE)
    manual_changes.reconcile(site.registry)
    assert sorted(site.registry.versions()) == [1, 3]
    assert not [line for line in site.broken() if line.startswith("I2")]


def test_a_version_that_is_lost_is_not_let_wait_again_whoever_asks(site: Site) -> None:
    kept = site.keep_mlflow()
    site.register(2, 1)
    site.put_back_mlflow(kept)
    manual_changes.reconcile(site.registry)
    before = site.kinds()
    with pytest.raises(RegistryError, match="/2"):
        operations.put_forward(site.registry, 2, 1, None, **ALICE, request="put forward")
    assert site.kinds() == before
    assert site.register(3, 1) == 3
    operations.answer(site.registry, "rejected", 3, **ALICE, expected_champion=1)
    site.client.delete_model_version("chest-xray", "3")
    with pytest.raises(RegistryError, match="/3"):
        operations.reopen(site.registry, 3, **ALICE)
    assert manual_changes.reconcile(site.registry).challenger is None
    assert site.register(4, 1) == 4  # the night goes on


def test_a_champion_that_is_lost_stops_everything_until_a_person_goes_back(site: Site) -> None:
    kept = site.keep_mlflow()
    site.register(2, 1)
    site.promote(2, 1)
    site.put_back_mlflow(kept)
    for _ in range(2):
        with pytest.raises(RegistryError, match=r"champion to version 2 .* is not in MLflow; restore .*rollback --to"):
            manual_changes.reconcile(site.registry)
    assert site.kinds().count("manual-change") == 1
    promotion.rollback(site.run, 1, "version 2 is lost", untried=True)
    operations.adopt(site.registry, accept=True, who="alice", why="there is no newer backup")
    assert site.broken() == []
    assert site.register(3, 1) == 3


def test_another_model_under_a_used_number_is_never_followed(older: Site) -> None:
    """By hand, or by a version of this package that took the number."""
    foreign = older.candidates[3]
    tags = {**older.registry.resolve(foreign.model_uri).tags, "xray.candidate": foreign.digest}
    older.client.create_model_version(
        "chest-xray", foreign.model_uri, foreign.run_id, tags, model_id=foreign.model_uri.removeprefix("models:/")
    )
    assert any("version 2 is another model in MLflow" in line for line in older.broken())
    with pytest.raises(ModelRefused, match="/2"):
        promotion.rollback(older.run, 2, "because", untried=True)
    older.registry.ledger.append(Move("rolled-back", who="mallory", why="because", version=2, champion_before=1))
    with pytest.raises(RegistryError, match="champion to version 2 of chest-xray: it is another model in MLflow"):
        manual_changes.reconcile(older.registry)
    assert int(older.client.get_model_version_by_alias("chest-xray", "champion").version) == 1


def test_a_number_that_a_hand_made_version_had_is_used_too(site: Site) -> None:
    kept = site.keep_mlflow()
    foreign = site.candidates[3]
    made = site.client.create_model_version(
        "chest-xray", foreign.model_uri, model_id=foreign.model_uri.removeprefix("models:/")
    )
    site.client.set_registered_model_alias("chest-xray", "challenger", str(made.version))
    manual_changes.reconcile(site.registry)
    site.put_back_mlflow(kept)
    assert site.register(2, 1) == 3


# Tags edited by hand


def test_a_candidate_tag_on_another_version_is_not_believed(site: Site) -> None:
    wanted = site.candidates[1]
    site.client.set_model_version_tag("chest-xray", "1", "xray.candidate", wanted.digest)
    assert site.register(2, 1) == 2
    assert list(site.registry.versions()) == [1, 2]
    assert load(site.registry, 2).digest == wanted.model_digest
    assert load(site.registry, 1).digest == site.candidates[0].model_digest


@pytest.mark.parametrize("text", ["", "7", "{}", "[1]", '{"sequence": "x", "head": ""}'])
def test_a_mark_that_was_edited_is_named(site: Site, text: str) -> None:
    site.client.set_registered_model_tag("chest-xray", FOLLOWED_TAG, text)
    with pytest.raises(RegistryError, match=r"tag xray\.followed .* changed by hand; .*delete the tag in MLflow"):
        manual_changes.reconcile(site.registry)
    site.client.delete_registered_model_tag("chest-xray", FOLLOWED_TAG)
    manual_changes.reconcile(site.registry)
    assert site.broken() == []


# The ledger is older than MLflow


def lose(site: Site, count: int) -> None:
    for path in sorted((site.store / "ledger").iterdir())[-count:]:
        path.unlink()


def test_a_refusal_that_is_lost_is_noticed(site: Site) -> None:
    site.refuse(2, 1)
    lose(site, 1)
    with pytest.raises(RegistryError, match=r"followed the ledger to entry 3 .* `xray adopt --lost`"):
        manual_changes.reconcile(site.registry)
    assert any("followed the ledger to entry 3" in line for line in site.broken())


@pytest.fixture
def shorter(site: Site) -> Site:
    """Version 2 was promoted, then version 3 registered and candidate 4 refused; the ledger has lost all that."""
    site.register(2, 1)
    site.promote(2, 1)
    site.register(3, 2)
    site.refuse(4, 2)
    lose(site, 4)
    return site


def give_up(site: Site, accept: bool = True, find: Callable[[str], Candidate] | None = None) -> Entry:
    return lost_entries.give_up(site.registry, find or site.find, accept=accept, who="alice", why="no copy is newer")


def test_lost_entries_are_given_up_and_what_mlflow_has_is_taken(shorter: Site) -> None:
    entry = give_up(shorter)
    assert (entry.version, entry.candidate) == (2, shorter.candidates[1].digest)
    assert entry.decision["lost"]["sequence"] == 6
    assert entry.decision["entries"] == 4
    assert shorter.kinds() == ["registered", "promoted", "registered", "registered", "manual-change"]
    assert shorter.registry.aliases() == {"champion": 2, "challenger": 3}
    assert shorter.broken() == []
    shorter.promote(3, 2)
    assert operations.rollback(shorter.registry, 2, **ALICE).version == 2
    assert shorter.broken() == []
    with pytest.raises(LedgerError, match="nothing to give up"):
        give_up(shorter)


def test_a_champion_that_nothing_proves_is_not_taken(shorter: Site) -> None:
    """The store was put back as a whole: it does not know what was trained since."""

    def find(digest: str) -> Candidate:
        raise TrainingError("was not trained to its end")

    with pytest.raises(
        LedgerError, match=r"version 2, is not in what is left .* version 1 with `xray adopt --lost --undo`"
    ):
        give_up(shorter, find=find)
    with pytest.raises(RegistryError, match="followed the ledger to entry 6"):
        manual_changes.reconcile(shorter.registry)
    assert give_up(shorter, accept=False, find=find).version == 1
    assert shorter.registry.aliases() == {"champion": 1, "challenger": None}
    assert shorter.broken() == []
    assert shorter.register(4, 1) == 4  # MLflow still has the others


def test_a_candidate_of_other_weights_proves_nothing(shorter: Site) -> None:
    def find(digest: str) -> Candidate:
        return replace(shorter.find(digest), model_digest="f" * 64)

    with pytest.raises(LedgerError, match="no candidate in the store proves it"):
        give_up(shorter, find=find)


def test_giving_up_can_be_repeated_after_a_crash(shorter: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loading, "load", killed)  # versions are registered again, the entry is not there
        with pytest.raises(KeyboardInterrupt):
            give_up(shorter)
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "follow", killed)  # the entry is there, aliases and mark are not moved
        with pytest.raises(KeyboardInterrupt):
            give_up(shorter)
    manual_changes.reconcile(shorter.registry)
    assert shorter.kinds().count("manual-change") == 1
    assert shorter.registry.aliases() == {"champion": 2, "challenger": 3}
    assert shorter.broken() == []


def test_nothing_is_given_up_where_nothing_is_lost(site: Site) -> None:
    with pytest.raises(LedgerError, match="nothing to give up"):
        give_up(site)


# Both, to different ages: what a question or a task that is older than both still means


@pytest.fixture
def anew(site: Site) -> tuple[Site, Request]:
    """Version 2 was asked about; then both were put back, and another candidate became version 2."""
    database, store = site.keep_mlflow(), site.keep_store()
    site.register(2, 1)
    asked = Request(2, 1, "", "", "", models=site.registry.ledger.state().models(2, 1))
    asked = Request.from_dict(json.loads(json.dumps(asked.to_dict())))
    site.put_back_mlflow(database)
    site.put_back_store(store)
    assert site.register(3, 1) == 2
    return site, asked


def test_an_answer_about_another_model_of_that_number_is_void(anew: tuple[Site, Request]) -> None:
    site, asked = anew
    answer = {
        "chosen_options": ["Approve"],
        "params_input": {"reason": "looks right"},
        "responded_by_user": {"id": "admin", "name": "admin"},
    }
    said = promotion.record_answer(site.run, asked, answer, "run 1")
    assert (said["outcome"], site.kinds().count("approved")) == ("void", 0)
    assert "version 2 is another model in this ledger" in said["why"]
    assert why_void(site.registry.ledger.state(), 2, 1, asked.models) == said["why"]
    with pytest.raises(LedgerError, match=r"version 2 is another model .* put back since"):
        promotion.promote(site.run, asked, "alice", "because")
    assert promotion.request(site.run, 2, site.candidates[1].digest).void.startswith("version 2 is another model")


def test_a_store_older_than_mlflow_stops_whatever_mlflow_has(site: Site) -> None:
    store = site.keep_store()
    site.register(2, 1)
    database = site.keep_mlflow()
    site.promote(2, 1)
    site.put_back_store(store)
    site.put_back_mlflow(database)
    for attempt in (lambda: site.register(3, 1), lambda: operations.rollback(site.registry, **ALICE)):
        with pytest.raises(RegistryError, match="followed the ledger to entry 3"):
            attempt()


# What verify looks at


def test_verify_looks_at_every_version_there_ever_was(site: Site, models: tuple[Path, list[Candidate]]) -> None:
    site.register(2, 1)
    site.promote(2, 1)
    operations.rollback(site.registry, **ALICE)
    site.register(3, 1)
    site.register(4, 1)
    assert any("2 more versions load" in finding.text for finding in check(site.registry))
    for number in (2, 3):
        model_id = site.candidates[number - 1].model_uri.removeprefix("models:/")
        [folder] = (models[0].parent / "artifacts").rglob(model_id)
        [weights] = folder.rglob("model.safetensors")
        whole = weights.read_bytes()
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        found = site.broken()
        weights.write_bytes(whole)
        assert len(found) == 1
        assert found[0].startswith(f"I1 version {number} (registered or champion once)")


def test_verify_names_an_entry_that_gives_a_number_a_second_meaning(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "xray_pipeline.registry.ledger._check_meaning", lambda *_: None
    )  # as somebody writes who forges a ledger
    fields: dict[str, Any] = {"who": "mallory", "why": "because", "version": 1, "champion_before": 1}
    site.registry.ledger.append(Move("registered", **fields, candidate="f" * 64, decision=DECISION))
    site.registry.ledger.append(Move("rolled-back", **fields, candidate="f" * 64))
    found = [line for line in site.broken() if "a number that entry 1: registered version 1" in line]
    assert [line.split(":")[0] for line in found] == ["I2 entry 3", "I2 entry 4"]
    assert site.registry.ledger.state().registered[1].candidate == site.candidates[0].digest
