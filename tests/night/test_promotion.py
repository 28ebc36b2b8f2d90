"""Asking about a version, answering, and acting on the answer, on a real MLflow server."""

from __future__ import annotations

import getpass
import json
import platform
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import MlflowServer
from small_models import Candidate
from two_nights import SETTINGS
from typer.testing import CliRunner, Result

from xray_pipeline.base import records
from xray_pipeline.base.errors import EvaluationError, LedgerError, ModelRefused
from xray_pipeline.base.settings import Settings
from xray_pipeline.command import main as cli
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.intake import alarms
from xray_pipeline.models.mlflow_client import MlflowClient
from xray_pipeline.night import decision_steps, judging, promotion, unanswered
from xray_pipeline.night import trial as model_server
from xray_pipeline.night.promotion import Request
from xray_pipeline.night.run import Registered, Run
from xray_pipeline.night.scores import in_charge, last_scores
from xray_pipeline.registry import decisions as operations
from xray_pipeline.registry.ledger import LostRace
from xray_pipeline.registry.mlflow_registry import Registry
from xray_pipeline.registry.verify import check
from xray_pipeline.report import places
from xray_pipeline.training import candidate as training

pytestmark = pytest.mark.usefixtures("no_pause")

DECISION = {"verdict": "registered", "may_promote": True, "automatic": True}
ADMIN = {"id": "admin", "name": "admin"}


# Answers


@dataclass(frozen=True)
class Asked:
    """Version 1 is champion, version 2 waits, and a person was asked about it."""

    run: Run
    request: Request
    register: Callable[[int, int | None], int]

    @property
    def registry(self) -> Registry:
        return self.run.registry()

    def answer(self, option: str, reason: str = "looks right", user: dict[str, str] | None = ADMIN) -> dict[str, Any]:
        given = {"chosen_options": [option], "params_input": {"reason": reason}, "responded_by_user": user}
        return promotion.record_answer(self.run, self.request, given, "run 1")

    def kinds(self) -> list[str]:
        return [entry.kind for entry in self.registry.ledger.entries()]


@pytest.fixture
def asked(mlflow_server: MlflowServer, tmp_path: Path, model: Candidate) -> Asked:
    settings = Settings(home=tmp_path, tracking_uri=mlflow_server.uri, model_name=f"m{uuid.uuid4().hex}")
    run = Run(settings, who="xray_promote")

    def register(number: int, before: int | None) -> int:
        candidate = replace(model, digest=f"{number:064x}")
        terms: dict[str, Any] = {"who": "schedule", "why": "better", "decision": DECISION, "champion_before": before}
        entry = operations.register(run.registry(), candidate, **terms)
        assert entry.version is not None
        return entry.version

    register(1, None)
    terms: dict[str, Any] = {"who": "schedule", "why": "first", "expected_champion": None, "decision": DECISION}
    operations.promote(run.registry(), 1, **terms)
    register(2, 1)
    return Asked(run, Request(2, 1, "", "", ""), register)


def test_an_approval_is_recorded_with_person_and_reason(asked: Asked) -> None:
    said = asked.answer("Approve")
    assert said == {"outcome": "approved", "version": 2, "who": "admin", "why": "looks right"}
    entry = asked.registry.ledger.entries()[-1]
    assert (entry.kind, entry.version, entry.champion_before, entry.who) == ("approved", 2, 1, "admin")


def test_answering_again_after_a_crash_adds_nothing(asked: Asked) -> None:
    assert asked.answer("Approve") == asked.answer("Approve")
    assert asked.kinds().count("approved") == 1


def test_a_rejection_takes_the_challenger_away(asked: Asked) -> None:
    assert asked.answer("Reject", "", ADMIN)["outcome"] == "rejected"
    assert asked.registry.aliases() == {"champion": 1, "challenger": None}
    assert all(finding.holds for finding in check(asked.registry))


def test_a_request_nobody_answered_is_asked_again_once_and_may_then_be_answered(asked: Asked) -> None:
    assert unanswered.to_ask_again(asked.run) == {}
    said = asked.answer("Reject", "", None)
    assert (said["outcome"], said["who"]) == ("not-answered", promotion.NOBODY)
    assert asked.answer("Reject", "", None) == said
    assert asked.kinds().count("not-answered") == 1
    assert asked.registry.aliases() == {"champion": 1, "challenger": 2}  # it still waits
    tonight, tomorrow = replace(asked.run, name="night 1"), replace(asked.run, name="night 2")
    again = {"version": 2, "candidate": f"{2:064x}", "champion": 1}
    assert unanswered.to_ask_again(tonight) == unanswered.to_ask_again(tonight) == again
    assert unanswered.to_ask_again(tomorrow) == {}  # the request of that night is open
    assert asked.answer("Approve")["outcome"] == "approved"
    assert unanswered.to_ask_again(tomorrow) == {}
    assert all(finding.holds for finding in check(asked.registry))


def test_a_rejected_version_is_reopened_with_a_reason_and_then_promoted(asked: Asked, client: MlflowClient) -> None:
    with pytest.raises(LedgerError, match="version 2 is not rejected"):
        promotion.reopen(asked.run, 2, "it was the wrong one")
    asked.answer("Reject", "the wrong one")
    assert "`xray reopen 2` lets it be asked again" in promotion.request(asked.run, 2).void
    alice = replace(asked.run, who="alice")
    done = promotion.reopen(alice, 2, "it was the wrong one", "run 2")
    assert (done["version"], done["who"], done["why"]) == (2, "alice", "it was the wrong one")
    assert promotion.reopen(alice, 2, "it was the wrong one", "run 2") == done
    assert asked.kinds()[-2:] == ["rejected", "reopened"]
    assert asked.registry.aliases() == {"champion": 1, "challenger": 2}
    assert status(client, asked, 2) == ("challenger", "alice")
    answer = {"chosen_options": ["Approve"], "params_input": {"reason": "seen again"}, "responded_by_user": ADMIN}
    assert promotion.record_answer(asked.run, asked.request, answer, "run 3")["outcome"] == "approved"
    assert all(finding.holds for finding in check(asked.registry))


def test_a_version_is_not_reopened_while_another_waits(asked: Asked) -> None:
    asked.answer("Reject", "the wrong one")
    asked.register(3, 1)
    with pytest.raises(LedgerError, match="version 3 waits; decide on that, or reject it first"):
        promotion.reopen(asked.run, 2, "it was the wrong one")
    with pytest.raises(LedgerError, match="version 9 is not in the ledger"):
        promotion.reopen(asked.run, 9, "it was the wrong one")
    assert asked.kinds()[-1] == "registered"


@pytest.mark.parametrize(("reason", "user"), [("", ADMIN), ("  ok ", ADMIN), ("looks right", None)])
def test_an_approval_needs_a_person_and_a_reason(asked: Asked, reason: str, user: dict[str, str] | None) -> None:
    assert asked.answer("Approve", reason, user)["outcome"] == "void"
    assert "approved" not in asked.kinds()


def test_of_two_who_roll_back_untried_at_once_one_is_told(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    terms: dict[str, Any] = {"who": "schedule", "why": "better", "decision": DECISION}
    operations.promote(asked.registry, 2, **terms, expected_champion=1)
    operations.promote(asked.registry, asked.register(3, 2), **terms, expected_champion=2)
    rollback = operations.rollback

    def after_another(*given: Any, **named: Any) -> Any:
        monkeypatch.setattr(operations, "rollback", rollback)
        promotion.rollback(replace(asked.run, who="bob"), None, "complaints", untried=True)
        return rollback(*given, **named)

    monkeypatch.setattr(operations, "rollback", after_another)
    with pytest.raises(LostRace, match="rolled-back version 2 by bob"):
        promotion.rollback(replace(asked.run, who="alice"), None, "complaints", untried=True)
    assert asked.registry.aliases()["champion"] == 2


@pytest.mark.parametrize("what", ["another champion", "a newer challenger"])
def test_a_request_is_void_when_the_question_has_changed(asked: Asked, what: str) -> None:
    if what == "another champion":
        terms: dict[str, Any] = {"who": "bob", "why": "urgent", "expected_champion": 1}
        operations.answer(asked.registry, "approved", 2, **terms)
        operations.promote(asked.registry, 2, **terms, decision=DECISION)
    else:
        asked.register(3, 1)
    before = asked.kinds()
    said = asked.answer("Approve")
    assert said["outcome"] == "void"
    assert ("champion is now version 2" if what == "another champion" else "version 3 was registered") in said["why"]
    assert asked.kinds() == before
    assert said["why"] in asked.registry.resolve(2).tags["xray.request"]


def test_a_new_request_is_void_for_a_version_that_no_longer_waits(asked: Asked) -> None:
    assert promotion.request(asked.run, 1).void == "version 1 is the champion already"
    asked.register(3, 1)
    assert "version 3 was registered meanwhile" in promotion.request(asked.run, 2).void
    asked.answer("Reject")
    with pytest.raises(LedgerError, match="version 9 was never registered"):
        promotion.request(asked.run, 9)


# What somebody sees who only opens MLflow


@pytest.fixture
def client(asked: Asked) -> MlflowClient:
    return MlflowClient(asked.run.settings.tracking_uri)


def status(client: MlflowClient, asked: Asked, version: int) -> tuple[str, str]:
    tags = client.get_model_version(asked.run.settings.model_name, str(version)).tags
    return tags["xray.status"], tags["xray.decided"].partition(" by ")[2].partition(",")[0]


def test_mlflow_tells_what_became_of_each_version(asked: Asked, client: MlflowClient) -> None:
    assert status(client, asked, 1) == ("champion", "schedule")
    assert status(client, asked, 2) == ("challenger", "schedule")
    asked.answer("Approve")
    terms: dict[str, Any] = {"who": "admin", "why": "looks right", "expected_champion": 1, "decision": DECISION}
    operations.promote(asked.registry, 2, **terms)
    assert status(client, asked, 2) == ("champion", "admin")
    assert status(client, asked, 1) == ("replaced", "admin")
    promotion.rollback(replace(asked.run, who="bob"), None, "complaints", untried=True)
    assert status(client, asked, 1) == ("champion", "bob")
    assert status(client, asked, 2) == ("rolled back", "bob")
    text = client.get_model_version(asked.run.settings.model_name, "2").description
    assert text.startswith("better\n")
    found = [line.split("Z ", 1)[1] for line in text.splitlines() if line.startswith("- ")]
    assert found == [
        "approved by admin: looks right",
        "promoted by admin: looks right",
        "rolled back: version 1 is champion, by bob: complaints",
    ]


def test_mlflow_tells_of_rejected_and_superseded_versions(asked: Asked, client: MlflowClient) -> None:
    asked.register(3, 1)
    assert status(client, asked, 2)[0] == "superseded"
    promotion.record_answer(
        asked.run,
        replace(asked.request, version=3),
        {"chosen_options": ["Reject"], "params_input": {"reason": "no"}, "responded_by_user": ADMIN},
    )
    assert status(client, asked, 3) == ("rejected", "admin")


def test_a_story_that_a_crash_left_untold_is_told_by_the_next_change(asked: Asked, client: MlflowClient) -> None:
    client.delete_model_version_tag(asked.run.settings.model_name, "1", "xray.status")
    asked.answer("Reject")
    assert status(client, asked, 1)[0] == "champion"


# Whole: two nights, then the question about the second one's version


@pytest.fixture(scope="module")
def nights(two_nights: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory) -> Run:
    home = tmp_path_factory.mktemp("home")
    two_nights(home)
    return Run(Settings(home=home, **SETTINGS), who="alice")


def xray(run: Run, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Result:
    """Run the command on the settings of these nights."""
    for name in ("home", "tracking_uri", "model_name", "policy", "patient_key", "bootstrap", "stress_images", "device"):
        value = getattr(run.settings, name)
        monkeypatch.setenv(f"XRAY_{name.upper()}", value.get_secret_value() if name == "patient_key" else str(value))
    return CliRunner().invoke(cli.app, arguments)


def test_a_version_is_asked_about_with_its_evidence(nights: Run) -> None:
    asked = promotion.request(nights)
    assert (asked.version, asked.champion, asked.void, asked.automatic) == (2, 1, "", False)
    assert len(str(asked.to_dict())) < 4096  # what passes between tasks is small
    figure, gap = r"0\.\d{3} \(.*?\)", r"\+0\.\d{3} \([+-]\d\.\d{3} to \+\d\.\d{3}\)"
    assert re.search(rf"\| Accuracy \| {figure} \| {figure} \| {gap} \|", asked.text)
    assert "Different from the champion: recipe, training data." in asked.text
    assert "No drift alarm stands." in asked.text
    assert re.match(r"accuracy 0\.\d{3} against version 1's 0\.\d{3}: \+0\.\d{3} \(", asked.figures)
    assert "is above the champion's" in asked.text
    assert nights.store().exists(places.report_key(asked.candidate, 1))


def test_an_alarm_is_settled_by_a_person_whom_the_decision_and_the_report_name(nights: Run, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    no_drift = '\n[[clause]]\nnumber = "4.9"\nrule = "no-drift"\ntext = "No drift alarm stands."\n'
    policy.write_text(Path(SETTINGS["policy"]).read_text() + no_drift)
    nights = replace(nights, settings=nights.settings.model_copy(update={"policy": str(policy)}))
    store, asked = nights.store(), promotion.request(nights)
    snapshot = Dataset(nights.settings).snapshot()
    assert snapshot
    page, key = places.report_key(asked.candidate, 1), sorted(snapshot.manifests)[-1]
    calm = store.read(f"intake/{key}/{alarms.CHECKED}")
    raised = {**records.read(store, f"intake/{key}/{alarms.CHECKED}", dict[str, Any]), "alarms": ["pixels"]}
    records.write(store, f"intake/{key}/{alarms.CHECKED}", raised)
    assert f"Drift: {key}: pixels. (clause 4.9)" in promotion.request(nights).void
    assert b"Not to be promoted." in store.read(page)
    alarms.acknowledge(store, key, "alice", "a new detector <room 2>")
    settled = promotion.request(nights)
    assert settled.void == ""
    said = f"Drift: no alarm. {key}: pixels, acknowledged by alice on "
    (clause,) = [c for c in judging.judged(nights, settled.evidence)[1].clauses if c.number == "4.9"]
    assert clause.why.startswith(said)
    assert said in store.read(page).decode()
    assert b"Not to be promoted." not in store.read(page)
    store.write(f"intake/{key}/{alarms.CHECKED}", calm)


def test_mlflow_gets_the_report_without_radiographs_unless_asked(nights: Run) -> None:
    asked, store = promotion.request(nights), nights.store()
    key, run_id = places.report_key(asked.candidate, 1), training.find_candidate(store, asked.candidate).run_id

    def in_mlflow() -> str:
        return Path(MlflowClient().download_artifacts(run_id, "report.html")).read_text(encoding="utf-8")

    assert store.read(key).count(b"data:image/") > 0
    assert b"Version: 2." in store.read(key)  # written into it when it was registered
    assert (in_mlflow().count("data:image/"), in_mlflow().count("<svg ")) == (0, store.read(key).count(b"<svg "))
    store.delete(key)
    promotion.request(replace(nights, settings=nights.settings.model_copy(update={"mlflow_pictures": True})))
    assert in_mlflow() == store.read(key).decode()


def test_mlflow_tells_the_held_out_figures_with_what_they_were_measured_on(nights: Run) -> None:
    asked = promotion.request(nights)
    candidate = training.find_candidate(nights.store(), asked.candidate)
    measured = nights.evidence(asked.evidence).candidate
    client = MlflowClient(nights.settings.tracking_uri)
    run = client.get_run(candidate.run_id)
    model = client.get_logged_model(candidate.model_uri.removeprefix("models:/"))
    figures = run.data.metrics
    by_model = {metric.key: metric for metric in model.metrics}
    for name in ("accuracy", "auc", "sensitivity", "specificity", "balanced_accuracy", "brier", "ece"):
        interval = measured.metrics[name]
        expected = {"": interval.value, "_low": interval.low, "_high": interval.high}
        assert {end: figures[f"held_out_{name}{end}"] for end in expected} == pytest.approx(expected)
        assert by_model[f"held_out_{name}"].dataset_name == "held-out"
    drawer = {each.dataset.name: json.loads(each.dataset.profile) for each in run.inputs.dataset_inputs}
    assert drawer.keys() == {"snapshot", "held-out"}
    assert drawer["held-out"].items() >= {"radiographs": measured.n, "patients": measured.patients}.items()
    assert drawer["snapshot"]["patients"] > measured.patients
    note = run.data.tags["mlflow.note.content"]
    assert len(note.split("\n\n")) == 3
    assert f"runs/{candidate.run_id}/artifacts/report.html" in note


def test_the_model_server_answers_as_was_judged(nights: Run) -> None:
    asked = promotion.request(nights)
    assert model_server.try_version(nights, asked.candidate, 2) <= model_server.TOLERANCE


def test_another_models_answers_are_noticed(nights: Run) -> None:
    first = nights.registry().ledger.state().registered[1].candidate
    with pytest.raises(ModelRefused, match="otherwise than was judged"):
        model_server.try_version(nights, first, 2)


def test_a_night_boots_the_model_server_once_in_one_environment(nights: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = promotion.request(nights)
    models = nights.registry().ledger.state().models(2, 1)
    registered = Registered(asked.candidate, asked.evidence, None, models, 2, "")
    monkeypatch.setattr(model_server, "TOLERANCE", -1.0)  # nothing is that close
    with pytest.raises(LostRace):  # version 1 is the champion; the server was tried when version 2 was registered
        decision_steps.promote(nights, registered)
    monkeypatch.setattr(platform, "node", lambda: "another-worker")
    with pytest.raises(ModelRefused, match="otherwise than was judged"):
        decision_steps.promote(nights, registered)


def test_a_server_that_does_not_come_up_is_ended(nights: Run) -> None:
    with (
        pytest.raises(EvaluationError, match="the model server ended"),
        model_server.serving(nights.settings, f"models:/{nights.settings.model_name}/99"),
    ):
        pytest.fail("there is no version 99")


def test_a_version_whose_server_answers_otherwise_is_not_promoted(nights: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = nights.registry().ledger.entries()
    monkeypatch.setattr(model_server, "TOLERANCE", -1.0)  # nothing is that close
    done = xray(nights, monkeypatch, "promote", "2", "--reason", "looks right")
    assert isinstance(done.exception, ModelRefused)
    assert nights.registry().ledger.entries() == before


def test_a_version_is_promoted_by_a_person(
    nights: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    done = xray(nights, monkeypatch, "promote", "2", "--reason", "looks right")
    assert done.exit_code == 0, done.output
    assert re.search(r"the model server on models:/\S+/2 answered \d+ radiographs", caplog.text)
    registry = nights.registry()
    assert registry.aliases() == {"champion": 2, "challenger": None}
    entry = registry.ledger.entries()[-1]
    assert (entry.kind, entry.who, entry.why) == ("promoted", getpass.getuser(), "looks right")
    assert all(finding.holds for finding in check(registry))


def test_going_back_tries_the_model_server_unless_it_must_be_at_once(
    nights: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = nights.registry()
    with monkeypatch.context() as patch:
        patch.setattr(model_server, "TOLERANCE", -1.0)
        refused = xray(nights, monkeypatch, "rollback", "--reason", "complaints")
        assert isinstance(refused.exception, ModelRefused)
        assert registry.ledger.state().champion == 2
        assert xray(nights, monkeypatch, "rollback", "--reason", "complaints", "--untried").exit_code == 0
        assert registry.ledger.entries()[-1].decision == {"model_server_off_by": None}
        state = registry.ledger.state()
        figures = last_scores(nights.store(), state, in_charge(state))
        assert figures  # of who is in charge now, for whoever looks next
        assert figures.versions[0] == 1
    promotion.rollback(nights, 2, "it was the network", "run 2")
    assert promotion.rollback(nights, 2, "it was the network", "run 2")["entry"] == len(registry.ledger.entries())
    tried = registry.ledger.entries()[-1]
    assert (tried.kind, tried.version, tried.champion_before) == ("rolled-back", 2, 1)
    assert tried.decision["model_server_off_by"] <= model_server.TOLERANCE
    assert all(finding.holds for finding in check(registry))


def test_a_promotion_that_is_repeated_adds_nothing(nights: Run) -> None:
    promotion.rollback(nights, 1, "complaints again", untried=True)
    asked = promotion.request(nights, 2)
    promoted = promotion.promote(nights, asked, "alice", "looks right", "run 3")
    assert promotion.promote(nights, asked, "alice", "looks right", "run 3") == promoted
    assert promoted.entry == len(nights.registry().ledger.entries())
    assert all(finding.holds for finding in check(nights.registry()))
