from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import MlflowServer
from small_models import Candidate, logged

from xray_pipeline.base.errors import LedgerError, ModelRefused, RegistryError, RegistryUnavailable, StorageUnavailable
from xray_pipeline.base.settings import Settings
from xray_pipeline.models.mlflow_client import MlflowClient
from xray_pipeline.registry import commit, manual_changes
from xray_pipeline.registry import decisions as operations
from xray_pipeline.registry.entries import Entry, Move
from xray_pipeline.registry.ledger import LostRace
from xray_pipeline.registry.loading import load
from xray_pipeline.registry.mlflow_registry import Registry
from xray_pipeline.registry.questions import rollback_target, why_void
from xray_pipeline.registry.verify import check
from xray_pipeline.registry.version_status import WHERE

pytestmark = pytest.mark.usefixtures("no_pause")

DECISION = {"verdict": "registered", "may_promote": True, "automatic": True}
ASKS = {**DECISION, "automatic": False}


@pytest.fixture
def registry(mlflow_server: MlflowServer, tmp_path: Path) -> Registry:
    return Registry(Settings(home=tmp_path, tracking_uri=mlflow_server.uri, model_name=f"m{uuid.uuid4().hex}"))


@pytest.fixture
def client(registry: Registry) -> MlflowClient:
    """Somebody who opens MLflow and does as he pleases."""
    return MlflowClient(registry.settings.tracking_uri)


@pytest.fixture
def candidate(model: Candidate) -> Callable[[int], Candidate]:
    """Candidates that differ in name only."""
    return lambda number: replace(model, digest=f"{number:064x}")


def register(registry: Registry, candidate: Candidate, before: int | None, **fields: Any) -> Entry:
    given = {"who": "schedule", "why": "accuracy 0.95 above 0.94", "decision": DECISION, **fields}
    return operations.register(registry, candidate, champion_before=before, **given)


def promote(registry: Registry, version: int, before: int | None, **fields: Any) -> Entry:
    given = {"who": "schedule", "why": "the policy allows it", "decision": DECISION, **fields}
    return operations.promote(registry, version, expected_champion=before, **given)


def holds(registry: Registry) -> bool:
    return all(finding.holds for finding in check(registry))


def failures(registry: Registry) -> list[tuple[str, str]]:
    return [(finding.invariant, finding.text) for finding in check(registry) if not finding.holds]


@pytest.fixture
def two(registry: Registry, candidate: Callable[[int], Candidate]) -> Registry:
    """Version 1 was champion, version 2 is."""
    for version in (1, 2):
        before = version - 1 or None
        assert register(registry, candidate(version), before).version == version
        promote(registry, version, before)
    assert holds(registry)
    return registry


# Registering


def test_registering_leaves_a_challenger_with_its_story(
    registry: Registry, candidate: Callable[[int], Candidate], client: MlflowClient
) -> None:
    made = candidate(1)
    entry = register(registry, made, None, tags={"xray.recipe": "r", "xray.night": "n"})
    assert registry.aliases() == {"champion": None, "challenger": 1}
    version = client.get_model_version(registry.name, "1")
    assert version.description.split("\n\n") == ["accuracy 0.95 above 0.94", WHERE]
    assert version.tags == {
        "xray.status": "challenger",
        "xray.decided": f"{entry.at[:10]} by schedule, ledger entry {entry.sequence}",
        "xray.recipe": "r",
        "xray.night": "n",
        "xray.candidate": made.digest,
        "xray.digests": f"artifact {entry.artifact}, model {made.model_digest[:12]}, snapshot {made.snapshot[:12]}",
    }
    assert (entry.kind, entry.candidate, entry.snapshot) == ("registered", made.digest, made.snapshot)
    assert holds(registry)


def test_a_crash_between_entry_and_tags_is_made_good_by_the_repeat(
    registry: Registry, candidate: Callable[[int], Candidate], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as away:
        away.setattr(Registry, "versions", lambda self: _unavailable())
        with pytest.raises(RegistryUnavailable, match=r"this is decided: entry 1: registered version 1 .* is away"):
            register(registry, candidate(1), None)
    entry = register(registry, candidate(1), None)
    assert registry.versions()[1]["xray.decided"].endswith(f"ledger entry {entry.sequence}")
    assert holds(registry)


def _unavailable() -> Any:
    raise RegistryUnavailable("MLflow is away")


def test_registering_again_changes_nothing(registry: Registry, candidate: Callable[[int], Candidate]) -> None:
    first = register(registry, candidate(1), None)
    promote(registry, 1, None)
    assert register(registry, candidate(1), None) == first
    assert [entry.kind for entry in registry.ledger.entries()] == ["registered", "promoted"]
    assert list(registry.versions()) == [1]


def test_what_a_killed_process_left_beside_a_registered_version_goes(
    two: Registry, candidate: Callable[[int], Candidate], client: MlflowClient
) -> None:
    model = candidate(2)
    for _ in range(2):
        client.create_model_version(
            two.name, model.model_uri, model.run_id, {"xray.candidate": model.digest},
            model_id=model.model_uri.removeprefix("models:/"),
        )  # fmt: skip
    assert not holds(two)
    client.set_registered_model_alias(two.name, "theirs", "3")
    manual_changes.reconcile(two)
    assert list(two.versions()) == [1, 2, 3], "what somebody's own alias names stays"
    client.delete_registered_model_alias(two.name, "theirs")
    manual_changes.reconcile(two)
    assert list(two.versions()) == [1, 2]
    assert holds(two)


def test_a_candidate_is_not_registered_against_a_champion_of_yesterday(
    two: Registry, candidate: Callable[[int], Candidate]
) -> None:
    with pytest.raises(LostRace, match="promoted version 2"):
        register(two, candidate(3), 1)
    assert list(two.versions()) == [1, 2]


def test_a_model_other_than_the_one_evaluated_is_not_registered(
    registry: Registry, candidate: Callable[[int], Candidate]
) -> None:
    with pytest.raises(ModelRefused, match="recorded is ffffffffffff"):
        register(registry, replace(candidate(1), model_digest="f" * 64), None)
    assert registry.versions() == {}


def test_a_refusal_is_recorded_once_per_champion(two: Registry, candidate: Callable[[int], Candidate]) -> None:
    given: dict[str, Any] = {"who": "schedule", "why": "accuracy 0.90 below 0.94", "decision": {"verdict": "refused"}}
    first = operations.refuse(two, candidate(3), champion_before=2, **given)
    assert operations.refuse(two, candidate(3), champion_before=2, **given) == first
    assert operations.refuse(two, candidate(3), champion_before=1, **given) != first
    assert two.aliases() == {"champion": 2, "challenger": None}
    assert holds(two)


# Promoting


def test_promoting_moves_the_alias_and_tells_the_story(two: Registry, client: MlflowClient) -> None:
    assert two.aliases() == {"champion": 2, "challenger": None}
    version, entry = client.get_model_version(two.name, "2"), two.ledger.entries()[-1]
    assert version.tags["xray.status"] == "champion"
    assert version.tags["xray.decided"] == f"{entry.at[:10]} by schedule, ledger entry {entry.sequence}"
    assert "promoted by schedule: the policy allows it" in version.description


def test_what_an_earlier_release_wrote_on_versions_is_read_and_renewed(
    registry: Registry, candidate: Callable[[int], Candidate], client: MlflowClient
) -> None:
    entry = register(registry, candidate(1), None)
    client.delete_model_version_tag(registry.name, "1", "xray.digests")
    client.delete_model_version_tag(registry.name, "1", "xray.decided")
    stale = {"xray.since": entry.at, "xray.by": "schedule", "xray.why": "w", "xray.ledger-entry": "1 ab"}
    registry.tag(1, {**stale, "xray.decision": "d", "xray.artifact": entry.artifact, "xray.model": "m"})
    assert holds(registry)
    promote(registry, 1, None)
    tags = registry.versions()[1]
    assert tags.keys() == {"xray.status", "xray.decided", "xray.candidate", "xray.artifact", "xray.model"}
    assert (tags["xray.status"], tags["xray.artifact"]) == ("champion", entry.artifact)
    assert holds(registry)


def test_promoting_again_changes_nothing(two: Registry) -> None:
    head = two.ledger.state().head
    assert promote(two, 2, 1) == two.ledger.entries()[-1]
    assert two.ledger.state().head == head


def test_a_promotion_decided_against_another_champion_is_told_who_won(
    two: Registry, candidate: Callable[[int], Candidate]
) -> None:
    register(two, candidate(3), 2)
    with pytest.raises(LostRace, match="promoted version 2 by schedule"):
        promote(two, 3, 1)
    assert two.aliases() == {"champion": 2, "challenger": 3}


def test_what_the_ledger_does_not_know_is_not_promoted(two: Registry, model: Candidate) -> None:
    tags = two.resolve(model.model_uri).tags
    assert two.add("f" * 64, model.model_uri, model.run_id, tags) == 3
    with pytest.raises(LedgerError, match="version 3 is not in the ledger"):
        promote(two, 3, 2)


def test_nothing_is_promoted_without_a_decision(two: Registry, candidate: Callable[[int], Candidate]) -> None:
    register(two, candidate(3), 2)
    with pytest.raises(LedgerError, match="no decision"):
        promote(two, 3, 2, decision={})
    register(two, candidate(4), 2, decision={})
    with pytest.raises(LedgerError, match="no decision"):
        promote(two, 4, 2)


def test_a_promotion_waits_for_approval_of_exactly_that(two: Registry, candidate: Callable[[int], Candidate]) -> None:
    register(two, candidate(3), 2)
    with pytest.raises(LedgerError, match="nobody approved version 3"):
        promote(two, 3, 2, decision=ASKS)
    operations.answer(two, "approved", 3, who="alice", why="looks right", expected_champion=2)
    entry = promote(two, 3, 2, decision=ASKS, who="alice", why="looks right")
    assert entry.decision == {**ASKS, "promotion": "approve"}
    assert two.aliases()["champion"] == 3
    assert holds(two)


def test_an_approval_is_recorded_once_however_often_it_is_repeated(
    two: Registry, candidate: Callable[[int], Candidate]
) -> None:
    register(two, candidate(3), 2)
    first = operations.answer(two, "approved", 3, who="alice", why="looks right", expected_champion=2)
    assert (first.candidate, first.artifact) == (candidate(3).digest, two.resolve(3).artifact)
    for number, why in enumerate(("looks right", "it still does")):
        again = operations.answer(
            two, "approved", 3, who="alice", why=why, expected_champion=2, request=f"run {number}" if number else ""
        )
        assert again == first
    assert operations.answer(two, "approved", 3, who="bob", why="to me too", expected_champion=2).who == "bob"
    assert operations.answer(two, "approved", 3, who="alice", why="still", expected_champion=2) == first
    assert [entry.kind for entry in two.ledger.entries()].count("approved") == 2


@pytest.mark.parametrize("what", ["another champion", "a newer challenger", "a rejection"])
def test_an_approval_is_void_when_the_question_is_no_longer_the_same(
    two: Registry, candidate: Callable[[int], Candidate], what: str
) -> None:
    register(two, candidate(3), 2)
    operations.answer(two, "approved", 3, who="alice", why="looks right", expected_champion=2)
    if what == "another champion":
        operations.rollback(two, who="bob", why="complaints")
        operations.rollback(two, 2, who="bob", why="no, it was fine")
    elif what == "a newer challenger":
        register(two, candidate(4), 2)
    else:
        operations.answer(two, "rejected", 3, who="bob", why="no", expected_champion=2)
    with pytest.raises(LedgerError, match="nobody approved"):
        promote(two, 3, 2, decision=ASKS)


def test_a_void_question_says_why(two: Registry, candidate: Callable[[int], Candidate]) -> None:
    register(two, candidate(3), 2)
    assert why_void(two.ledger.state(), 3, 2) == ""
    assert "the champion is now version 2, was version 1" in why_void(two.ledger.state(), 3, 1)
    assert why_void(two.ledger.state(), 9, 2) == "version 9 is not in the ledger"
    register(two, candidate(4), 2)
    assert why_void(two.ledger.state(), 3, 2).startswith("version 4 was registered")
    with pytest.raises(LedgerError, match="can't be approved: version 4 was registered"):
        operations.answer(two, "approved", 3, who="alice", why="yes", expected_champion=2)
    operations.answer(two, "rejected", 4, who="alice", why="no", expected_champion=2)
    assert "it was rejected" in why_void(two.ledger.state(), 4, 2)


def test_a_rejected_version_no_longer_waits(two: Registry, candidate: Callable[[int], Candidate]) -> None:
    register(two, candidate(3), 2)
    first = operations.answer(two, "rejected", 3, who="alice", why="no", expected_champion=2, request="run 1")
    assert operations.answer(two, "rejected", 3, who="alice", why="no", expected_champion=2, request="run 1") == first
    manual_changes.reconcile(two)
    assert two.aliases() == {"champion": 2, "challenger": None}


# Rolling back


def test_rolling_back_goes_to_the_champion_before(two: Registry, client: MlflowClient) -> None:
    entry = operations.rollback(two, who="alice", why="too many false alarms")
    assert (entry.kind, entry.version, entry.champion_before) == ("rolled-back", 1, 2)
    assert two.aliases() == {"champion": 1, "challenger": None}
    assert "by alice: too many false alarms" in client.get_model_version(two.name, "1").description
    assert holds(two)
    with pytest.raises(LedgerError, match="no earlier champion"):
        operations.rollback(two, who="alice", why="again")


def test_the_same_request_rolls_back_once(two: Registry, candidate: Callable[[int], Candidate]) -> None:
    register(two, candidate(3), 2)
    promote(two, 3, 2)
    first = operations.rollback(two, who="alice", why="because", request="run 7")
    assert operations.rollback(two, who="alice", why="because", request="run 7") == first
    assert two.aliases()["champion"] == 2


def test_a_rollback_of_a_champion_that_is_no_longer_is_told_so(two: Registry) -> None:
    with pytest.raises(LostRace, match="promoted version 2"):
        operations.rollback(two, who="alice", why="because", expected_champion=1)


def test_mlflow_tells_that_nobody_answered(
    two: Registry, candidate: Callable[[int], Candidate], client: MlflowClient
) -> None:
    register(two, candidate(3), 2)
    terms: dict[str, Any] = {"who": "nobody", "why": "it is asked again", "expected_champion": 2, "request": "run 1"}
    entry = operations.answer(two, "not-answered", 3, **terms)
    version = client.get_model_version(two.name, "3")
    assert version.description.endswith("Z not answered: it is asked again")
    assert version.tags["xray.status"] == "challenger"
    assert version.tags["xray.decided"] == f"{entry.at[:10]} by nobody, ledger entry {entry.sequence}"


def test_going_back_needs_a_version_that_was_champion(two: Registry, candidate: Callable[[int], Candidate]) -> None:
    register(two, candidate(3), 2)
    with pytest.raises(LedgerError, match="version 3 was never champion"):
        operations.rollback(two, 3, who="alice", why="because")
    with pytest.raises(LedgerError, match="version 2 is the champion already"):
        operations.rollback(two, 2, who="alice", why="because")


def test_a_deleted_target_leaves_the_champion(two: Registry, client: MlflowClient) -> None:
    client.delete_model_version(two.name, "1")
    with pytest.raises(RegistryError, match="/1"):
        operations.rollback(two, who="alice", why="because")
    assert two.aliases()["champion"] == 2
    assert two.ledger.state().champion == 2


def test_a_changed_target_leaves_the_champion(registry: Registry, mlflow_server: MlflowServer) -> None:
    own = logged(registry.settings, seed=5)
    register(registry, own, None)
    promote(registry, 1, None)
    register(registry, logged(registry.settings, seed=6), 1)
    promote(registry, 2, 1)
    [folder] = mlflow_server.artifacts.rglob(own.model_uri.removeprefix("models:/"))
    (folder / "artifacts/artifacts/classifier/model.json").write_text("{}")
    with pytest.raises(ModelRefused, match=r"/1: .*changed since it was logged: artifacts/classifier/model\.json"):
        operations.rollback(registry, who="alice", why="because")
    assert registry.aliases()["champion"] == 2
    assert failures(registry)[0][0] == "I1"


# By hand


def test_a_champion_moved_by_hand_is_recorded_once_and_is_the_champion(two: Registry, client: MlflowClient) -> None:
    client.set_registered_model_alias(two.name, "champion", "1")
    assert manual_changes.reconcile(two).champion == 1
    assert manual_changes.reconcile(two).champion == 1
    (change,) = two.ledger.entries()[4:]
    assert change.kind == "manual-change"
    assert change.why == "moved by hand in MLflow: champion from version 2 to version 1"
    assert two.aliases()["champion"] == 1
    assert [invariant for invariant, _ in failures(two)] == ["I3"]


def test_a_hand_is_not_blamed_for_an_alias_that_a_crash_left_behind(
    two: Registry, candidate: Callable[[int], Candidate], client: MlflowClient
) -> None:
    model = candidate(3)
    version = two.add(model.digest, model.model_uri, model.run_id)
    said = {"who": "schedule", "why": "better", "decision": DECISION, "champion_before": 2}
    two.ledger.append(Move("registered", version=version, candidate=model.digest, **said))  # and was killed
    client.set_registered_model_alias(two.name, "champion", "1")
    state = manual_changes.reconcile(two)
    assert state.aliases == {"champion": 1, "challenger": 3}
    assert state.by_hand[0].why == "moved by hand in MLflow: champion from version 2 to version 1"
    assert two.aliases() == {"champion": 1, "challenger": 3}


def test_a_champion_alias_that_was_removed_is_recorded_and_set_again(two: Registry, client: MlflowClient) -> None:
    client.delete_registered_model_alias(two.name, "champion")
    assert manual_changes.reconcile(two).champion == 2
    assert two.aliases()["champion"] == 2
    entry = two.ledger.entries()[-1]
    assert (entry.kind, entry.decision["found"]["champion"], entry.version) == ("manual-change", None, 2)


def test_accepting_a_change_made_by_hand(two: Registry, client: MlflowClient) -> None:
    client.set_registered_model_alias(two.name, "champion", "1")
    entry = operations.adopt(two, accept=True, who="alice", why="version 2 was broken")
    assert entry.decision["action"] == "accepted"
    assert (two.ledger.state().champion, two.ledger.state().by_hand) == (1, ())
    assert two.aliases()["champion"] == 1
    assert holds(two)


def test_undoing_a_change_made_by_hand(two: Registry, client: MlflowClient) -> None:
    for version in ("1", "2", "1"):  # each is found by another night
        client.set_registered_model_alias(two.name, "champion", version)
        manual_changes.reconcile(two)
    operations.adopt(two, accept=False, who="alice", why="nobody asked for it")
    assert two.aliases()["champion"] == 2
    assert two.ledger.state().previous == (1,)
    assert holds(two)


def test_undoing_after_another_promotion_is_refused(
    two: Registry, client: MlflowClient, candidate: Callable[[int], Candidate]
) -> None:
    client.set_registered_model_alias(two.name, "champion", "1")
    manual_changes.reconcile(two)
    register(two, candidate(3), 1)
    promote(two, 3, 1)
    with pytest.raises(LedgerError, match="champion changed since"):
        operations.adopt(two, accept=False, who="alice", why="because")
    operations.adopt(two, accept=True, who="alice", why="because")
    assert two.aliases()["champion"] == 3


def test_undoing_keeps_a_challenger_registered_since(
    two: Registry, client: MlflowClient, candidate: Callable[[int], Candidate]
) -> None:
    client.set_registered_model_alias(two.name, "champion", "1")
    manual_changes.reconcile(two)
    register(two, candidate(3), 1)
    operations.adopt(two, accept=False, who="alice", why="nobody asked for it")
    assert two.aliases() == {"champion": 2, "challenger": 3}
    assert holds(two)


def test_a_champion_the_ledger_never_knew_is_recorded_and_can_be_undone(
    two: Registry, client: MlflowClient, model: Candidate
) -> None:
    client.create_model_version(two.name, model.model_uri, model_id=model.model_uri.removeprefix("models:/"))
    client.set_registered_model_alias(two.name, "champion", "3")
    assert manual_changes.reconcile(two).champion == 3
    with pytest.raises(ModelRefused, match="no record of its files"):
        load(two, 3)  # so a night stops here
    assert {invariant for invariant, _ in failures(two)} == {"I1", "I3"}
    with pytest.raises(ModelRefused):
        operations.adopt(two, accept=True, who="alice", why="it looked good")
    operations.adopt(two, accept=False, who="alice", why="nobody knows where it is from")
    assert two.aliases()["champion"] == 2
    assert holds(two)


def test_a_version_deleted_by_hand_is_not_registered_again(
    two: Registry, client: MlflowClient, candidate: Callable[[int], Candidate]
) -> None:
    client.delete_model_version(two.name, "1")
    assert register(two, candidate(1), None).version == 1
    assert list(two.versions()) == [2]


def test_there_is_nothing_to_adopt_when_nothing_was_changed(two: Registry) -> None:
    with pytest.raises(LedgerError, match="nothing was changed by hand"):
        operations.adopt(two, accept=True, who="alice", why="because")


def test_a_champion_that_was_deleted_is_replaced_by_rolling_back(two: Registry, client: MlflowClient) -> None:
    client.delete_model_version(two.name, "2")
    for _ in range(2):
        with pytest.raises(RegistryError, match="version 2"):
            manual_changes.reconcile(two)
    assert [entry.kind for entry in two.ledger.entries()].count("manual-change") == 1
    operations.rollback(two, who="alice", why="version 2 was deleted")
    assert two.aliases()["champion"] == 1


# What verify says


def test_a_moved_alias_is_reported(two: Registry, client: MlflowClient) -> None:
    client.set_registered_model_alias(two.name, "champion", "1")
    assert [invariant for invariant, _ in failures(two)] == ["I3"]
    assert two.ledger.state().sequence == 4  # looking records nothing


def test_a_duplicate_and_a_deleted_version_are_reported(
    two: Registry, client: MlflowClient, candidate: Callable[[int], Candidate]
) -> None:
    tags = {"xray.candidate": candidate(2).digest}
    model_id = candidate(2).model_uri.removeprefix("models:/")
    client.create_model_version(two.name, candidate(2).model_uri, tags=tags, model_id=model_id)
    client.delete_model_version(two.name, "1")
    found = failures(two)
    assert ("I2", "versions [2, 3] carry the same candidate") in found
    assert ("I2", "version 1 is in the ledger but not in MLflow") in found
    assert any(invariant == "I1" and text.startswith("version 1 (kept") for invariant, text in found)


def test_a_version_that_a_hand_crowned_before_it_was_registered_is_no_fault(
    two: Registry, client: MlflowClient, candidate: Callable[[int], Candidate]
) -> None:
    third = candidate(3)
    tags = {"xray.candidate": third.digest, **client.get_logged_model(third.model_uri.removeprefix("models:/")).tags}
    client.create_model_version(two.name, third.model_uri, tags=tags, model_id=third.model_uri.removeprefix("models:/"))
    client.set_registered_model_alias(two.name, "champion", "3")
    assert manual_changes.reconcile(two).champion == 3
    operations.adopt(two, accept=True, who="alice", why="it looked good")
    entry = register(two, third, 3)
    assert (entry.version, failures(two)) == (4, [])


def test_a_broken_chain_is_reported(two: Registry) -> None:
    path = Path(two.ledger.store.uri) / "00000002.json"
    path.write_text(path.read_text().replace("schedule", "mallory"))
    assert [invariant for invariant, _ in failures(two)] == ["ledger"]


def test_another_store_is_reported(two: Registry, tmp_path: Path) -> None:
    elsewhere = two.settings.model_copy(update={"tracking_uri": f"sqlite:///{tmp_path}/empty.db"})
    assert any("holds no model" in text for _, text in failures(Registry(elsewhere)))


def test_a_promotion_nobody_approved_is_reported(two: Registry, candidate: Callable[[int], Candidate]) -> None:
    register(two, candidate(3), 2)
    said = {"who": "mallory", "why": "because", "decision": {"promotion": "approve"}}
    two.ledger.append(Move("promoted", version=3, champion_before=2, **said))
    manual_changes.reconcile(two)
    assert [invariant for invariant, _ in failures(two)] == ["I6"]


def test_a_repeated_promotion_does_not_undo_a_rollback(two: Registry) -> None:
    """The worker dies after its entry; before the task is tried again, a person goes back."""
    operations.rollback(two, who="alice", why="complaints")
    before = two.ledger.entries()
    promote(two, 2, 1, request="auto 2 over 1")  # another question than that of `two`, which had no name
    operations.rollback(two, who="alice", why="complaints again")
    with pytest.raises(LostRace, match="rolled-back version 1 by alice"):
        promote(two, 2, 1, request="auto 2 over 1")
    assert two.aliases()["champion"] == 1
    assert len(two.ledger.entries()) == len(before) + 2


@pytest.mark.parametrize(
    ("decision", "approved", "why"),
    [
        ({"may_promote": False, "reasons": ["few"]}, True, "does not allow version 1 any more: few"),
        ({"may_promote": True, "automatic": False}, False, "nobody approved version 1 .* the policy asks a person"),
    ],
)
def test_what_the_policy_does_not_allow_at_that_moment_is_not_promoted(
    registry: Registry, candidate: Callable[[int], Candidate], decision: dict[str, Any], approved: bool, why: str
) -> None:
    register(registry, candidate(1), None)
    if approved:
        operations.answer(registry, "approved", 1, who="alice", why="looks right", expected_champion=None)
    with pytest.raises(LedgerError, match=why):
        promote(registry, 1, None, decision=decision)
    assert registry.aliases()["champion"] is None


def test_a_rollback_goes_back_to_a_champion_made_by_hand(
    two: Registry, candidate: Callable[[int], Candidate], client: MlflowClient
) -> None:
    register(two, candidate(3), 2)
    client.set_registered_model_alias(two.name, "champion", "3")
    operations.adopt(two, accept=True, who="alice", why="agreed")
    register(two, candidate(4), 3)
    promote(two, 4, 3)
    operations.rollback(two, 1, who="alice", why="far back")
    assert operations.rollback(two, 3, who="alice", why="not that far").version == 3


def test_what_a_rollback_goes_back_to_can_be_named(
    two: Registry, candidate: Callable[[int], Candidate], client: MlflowClient
) -> None:
    """Also a champion set by hand that nobody accepted: the default and its number mean the same."""
    register(two, candidate(3), 2)
    client.set_registered_model_alias(two.name, "champion", "3")
    manual_changes.reconcile(two)
    register(two, candidate(4), 3)
    promote(two, 4, 3)
    target = rollback_target(two.ledger.entries(), two.ledger.state(), None)
    assert rollback_target(two.ledger.entries(), two.ledger.state(), target) == target == 3


@pytest.mark.parametrize("fault", [RegistryUnavailable, StorageUnavailable])
def test_an_error_after_a_decision_says_whether_to_repeat_it(
    two: Registry, monkeypatch: pytest.MonkeyPatch, fault: type[Exception]
) -> None:
    def away(_: Registry) -> Any:
        raise fault("it is away")

    with monkeypatch.context() as broken:
        broken.setattr(commit, "describe_versions", away)
        with pytest.raises(fault, match=r"this is decided: entry 5: rolled-back version 1 .*don't run it again"):
            operations.rollback(two, who="alice", why="complaints")
        with pytest.raises(fault, match="run it again: it finds this entry"):
            operations.rollback(two, 2, who="alice", why="complaints", request="run 1")
    assert operations.rollback(two, 2, who="alice", why="complaints", request="run 1").sequence == 6
