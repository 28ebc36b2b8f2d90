"""The whole DAG, by `dag.test()`, on a real MLflow server: nights one after the other over the same home."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import phantom
import pytest
from mlflow_server import MlflowServer
from samples import png
from two_nights import SETTINGS

from xray_pipeline.base import records
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import open_store
from xray_pipeline.command import answers
from xray_pipeline.dataset.parquet import read_parquet
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.evaluation import prospective
from xray_pipeline.models.mlflow_client import MlflowClient
from xray_pipeline.night import review
from xray_pipeline.night.nights import in_words, outcome
from xray_pipeline.night.nights import read as read_nights
from xray_pipeline.registry.mlflow_registry import Registry
from xray_pipeline.report.page import without_pictures
from xray_pipeline.training.candidate import find_candidate

pytestmark = pytest.mark.timeout(900)  # two trainings in one test, on whatever cores there are

ROOT = Path(__file__).resolve().parents[3]


class Nights:
    """Runs `xray_retrain` again and again."""

    def __init__(self, home: Path, server: MlflowServer) -> None:
        self.home = home
        self.waiting = home / "waiting"
        phantom.lay(self.waiting, deliveries=2, patients=200, seed=0)
        (home / "incoming").mkdir()
        self.tries: dict[str, int] = {}
        self.settings = Settings(home=home, tracking_uri=server.uri, settle_seconds=0)

    def deliver(self, name: str) -> None:
        (self.waiting / name).rename(self.home / "incoming" / name)

    def run(self, **conf: Any) -> tuple[dict[str, str], dict[str, Any]]:
        """Run the DAG; return the state of each task and what `conclude` said."""
        spec = importlib.util.spec_from_file_location("retrain", ROOT / "dags" / "retrain.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        run = module.dag_object.test(run_conf=conf)
        instances = {ti.task_id: str(ti.state) for ti in run.get_task_instances()}
        self.tries = {ti.task_id: ti.try_number for ti in run.get_task_instances()}
        said = next(ti for ti in run.get_task_instances() if ti.task_id == "conclude").xcom_pull("conclude")
        return instances, said or {}

    def explained(self) -> set[str]:
        """The radiographs that the newest evaluation drew for review."""
        material = review.material(open_store(self.settings.store, self.settings))
        assert material is not None
        return set(material.explained)


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory, mlflow_server: MlflowServer, airflow_db: None) -> Any:
    home = tmp_path_factory.mktemp("nights")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("XRAY_")]:
            patch.delenv(name)
        patch.setenv("XRAY_HOME", str(home))
        patch.setenv("XRAY_TRACKING_URI", mlflow_server.uri)
        for name, value in SETTINGS.items():
            patch.setenv(f"XRAY_{name.upper()}", str(value))
        yield Nights(home, mlflow_server)


def test_nights(nights: Nights) -> None:
    states, said = nights.run()
    assert states["conclude"] == "success"
    assert "Nothing to train on" in said["message"]

    first, second = sorted(path.name for path in nights.waiting.iterdir())
    nights.deliver(first)
    states, said = nights.run(promotion="auto")
    assert states.pop("ask_again") == "skipped"
    assert set(states.values()) == {"success"}
    assert said["alias"] == "champion", said
    assert Registry(nights.settings).aliases()["champion"] == said["version"]
    explained = nights.explained()

    before = len(answers.history(nights.settings)[1])
    states, said = nights.run(promotion="auto")
    assert states["train"] == "success"
    assert {states[task] for task in ("evaluate", "decide", "register", "promote")} == {"skipped"}
    assert "Nothing new" in said["message"]
    assert len(answers.history(nights.settings)[1]) == before

    nights.deliver(second)
    misspelt = nights.home / "incoming" / "misspelt" / "PNEUMONA"
    misspelt.mkdir(parents=True)
    (misspelt / "a.png").write_bytes(png())
    states, said = nights.run(promotion="auto")
    assert states["conclude"] == "success"
    assert said["decision"]["verdict"] in ("registered", "refused")
    assert said["champion"]["version"] == 1
    named = [entry.candidate for entry in Registry(nights.settings).ledger.entries() if entry.kind != "promoted"]
    assert [said["champion"]["digest"], said["candidate"]["digest"]] == [named[0], named[-1]]
    assert len(json.dumps(said)) < 4096
    assert states["look_ahead"] == "success"
    champion_scored_only_new(nights, explained | nights.explained())
    report_tells(nights, second)

    states, said = nights.run(recipe="no-such-recipe")
    assert (states["find_deliveries"], states["train"], states["conclude"]) == ("failed", "upstream_failed", "failed")
    assert nights.tries["find_deliveries"] == 1  # a wrong name stays wrong
    records_tell(nights)


def records_tell(nights: Nights) -> None:
    """Of all five nights, the failed one too, newest first."""
    past = read_nights(open_store(nights.settings.store, nights.settings))
    assert past.damaged == ()
    kinds = [outcome(night) for night in past.nights]
    assert kinds[0] == "failed"
    assert kinds[1] in ("promoted", "refused")
    assert kinds[2:] == ["quiet", "promoted", "quiet"]
    failed, newest, quiet, first, empty = past.nights
    champion = 2 if kinds[1] == "promoted" else 1
    assert in_words(failed).startswith(f"failed in find_deliveries; no deliveries; champion {champion} since ")
    assert "rejected: misspelt" in in_words(newest)
    assert newest.run
    assert set(newest.minutes) >= {"find_deliveries", "check_delivery", "commit_deliveries", "train", "evaluate"}
    assert "registered as version 1, is the champion" in in_words(first)
    assert "nothing new to decide: candidate" in in_words(quiet)
    assert "nothing to train on: no delivery was ever accepted; no champion yet" in in_words(empty)


def champion_scored_only_new(nights: Nights, explained: set[str]) -> None:
    """The held-out radiographs, what the look ahead asked about and what was explained, none of them twice."""
    store, dataset = open_store(nights.settings.store, nights.settings), Dataset(nights.settings)
    newest = dataset.snapshot()
    assert newest is not None
    sides = dataset.rows(newest).set_index("digest")["side"]
    held_out = set(sides.index[sides == "held-out"])
    champion = find_candidate(store, Registry(nights.settings).ledger.state().registered[1].candidate)
    keys = [entry.key for entry in store.list(f"predictions/{champion.model_digest}")]
    parts = [set(read_parquet(store.read(key))["digest"]) for key in keys]
    tried = Registry(nights.settings).ledger.state().registered[1].decision["trial"]
    assert (tried["radiographs"] > 0, tried["largest_difference"] <= 1e-5) == (True, True)
    asked = {digest for said in prospective.read(store, champion.digest)[0] for digest in said.digests}
    assert min(len(held_out - asked), len(asked - held_out), len(explained - held_out - asked)) > 0
    assert set.union(*parts) == held_out | asked | explained
    assert sum(map(len, parts)) == len(set.union(*parts))


def report_tells(nights: Nights, second: str) -> None:
    """Of the last night: what came in, what was rejected, and where the candidate comes from."""
    store = open_store(nights.settings.store, nights.settings)
    entry = Registry(nights.settings).ledger.entries()[-1]
    folder = f"reports/{entry.candidate}/against-1"
    page, card = (store.read(f"{folder}/{name}").decode() for name in ("report.html", "model-card.md"))
    trained = find_candidate(store, entry.candidate)
    client = MlflowClient(nights.settings.tracking_uri)
    for name, text in (("report.html", without_pictures(page)), ("model-card.md", card)):
        assert Path(client.download_artifacts(trained.run_id, name)).read_text(encoding="utf-8") == text
    assert "none: from the command line" not in card  # but the Airflow run
    assert {"- weights: `the backbone's own`", "- augmentation.flip: `0.0`"} <= set(card.splitlines())
    environment = records.read(store, f"candidates/{entry.candidate}/environment.json", list[dict[str, Any]])[0]
    for text in (page, card):
        assert "misspelt" in text
        assert "PNEUMONA" not in text  # a folder can be a patient's name
        assert second in text
        assert "Changed against the champion: training data." in text
        for digest in (environment["weights"], environment["code"], entry.snapshot, trained.recipe):
            assert digest in text
    assert f'/deliveries/{second}">{second}</a></td><td class="when">this night</td><td class="good">fit' in page
    assert '>misspelt</a></td><td class="when">waits</td><td class="bad">rejected' in page
