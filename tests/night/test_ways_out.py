"""Every way out that docs/operations.md gives, run as it stands there on a real installation in that trouble."""

from __future__ import annotations

import re
import shlex
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import reviewed
from two_nights import AFTER_FIRST, SETTINGS
from typer.testing import CliRunner, Result

from xray_pipeline.base import records
from xray_pipeline.base.errors import LedgerError
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import open_store
from xray_pipeline.command import main as cli
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.evaluation import prospective
from xray_pipeline.intake import alarms
from xray_pipeline.models.mlflow_client import MlflowClient
from xray_pipeline.night import amend, decision_steps, model_steps, promotion
from xray_pipeline.night.amend import Named
from xray_pipeline.night.run import Run, Trained
from xray_pipeline.registry import chronology
from xray_pipeline.registry.entries import Entry
from xray_pipeline.registry.ledger import Ledger
from xray_pipeline.registry.mlflow_registry import Registry
from xray_pipeline.registry.registered_model import FOLLOWED_TAG

pytestmark = pytest.mark.usefixtures("no_pause")

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
NO_DRIFT = '\n[[clause]]\nnumber = "4.9"\nrule = "no-drift"\ntext = "No drift alarm stands."\n'
RUN: set[str] = set()


def commands(heading: str = "") -> list[str]:
    """The commands of a part of the document, or of all of it, without their comments."""
    part = DOCUMENT if not heading else re.split(r"^#+ ", DOCUMENT.split(f"# {heading}\n", 1)[1], flags=re.M)[0]
    lines = [line for block in re.findall(r"```sh\n(.*?)```", part, re.S) for line in block.splitlines()]
    return [re.sub(r"\s+#.*", "", line) for line in lines if line.startswith("xray ")]


class Site:
    """An installation of the test's own, whose store and MLflow can be kept and put back."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home, self.monkeypatch = home, monkeypatch
        for name, value in {**SETTINGS, "home": home}.items():
            monkeypatch.setenv(f"XRAY_{name.upper()}", str(value))

    @property
    def settings(self) -> Settings:
        return Settings()

    @property
    def registry(self) -> Registry:
        return Registry(self.settings)

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.settings.tracking_uri, self.settings.tracking_uri)

    @property
    def ledger(self) -> list[Entry]:
        return Ledger(open_store(self.settings.store)).entries()

    def xray(self, *arguments: str) -> Result:
        return CliRunner().invoke(cli.app, arguments)

    def do(self, command: str, **others: str) -> Result:
        """Run a command of the document, with these words in place of those there."""
        assert command in commands()
        RUN.add(command)
        for word, other in others.items():
            command = command.replace(word, other)
        done = self.xray(*shlex.split(command)[1:])
        assert done.exit_code == 0, (command, done.output, done.exception)
        return done

    def trouble(self, *arguments: str) -> str:
        """Run a command that can't be done; say why not."""
        done = self.xray(*arguments)
        assert done.exit_code != 0
        return f"{done.output} {done.exception}"

    def whole(self) -> None:
        done = self.do("xray verify")
        assert "NOT" not in done.output

    def champion(self) -> int | None:
        aliases = self.registry.aliases()
        assert aliases["champion"] == self.registry.ledger.state().champion
        return aliases["champion"]

    def keep_mlflow(self) -> Callable[[], None]:
        """Copy MLflow's database; return what puts it back, at another place so that no connection remembers."""
        kept = Path(shutil.copy(self.settings.tracking_uri.removeprefix("sqlite:///"), self.home / "kept.db"))

        def put_back() -> None:
            other = kept.rename(self.home / "put-back.db")
            self.monkeypatch.setenv("XRAY_TRACKING_URI", f"sqlite:///{other}")

        return put_back

    def promote(self) -> None:
        promotion.promote(Run(self.settings, who="alice"), promotion.request(Run(self.settings), 2), "alice", "better")


@pytest.fixture
def site(two_nights: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    two_nights(tmp_path)
    return Site(tmp_path, monkeypatch)


def test_looking(site: Site) -> None:
    health, nights, history, watch = commands("Check the night")
    site.do(health)
    site.do(nights)
    assert site.do(history).output.endswith("champion: version 1; challenger: 2\n")
    assert site.do(watch).output.startswith("No alarm about version 1")
    site.whole()


def test_a_champion_that_got_worse_is_looked_into(site: Site) -> None:
    *looks, acknowledge = commands("Is the champion still as good as it was?")
    for look in looks:
        site.do(look)
    run = Run(site.settings, who="alice")
    (said,), _ = prospective.read(run.store(), site.ledger[0].candidate)
    table = Dataset(site.settings).manifest(said.delivery)
    labels = table[table["verdict"] == "accepted"].set_index("digest")["label"]
    answers = zip(said.digests, prospective.answered([said])["named"], strict=True)
    right = [(digest, said.classes[1 - name]) for digest, name in answers if labels[digest] == said.classes[name]]
    wrong = [Named("relabel", "radiograph", digest, other) for digest, other in right]
    amend.amend(run, wrong, "all that the champion said is wrong")
    assert "Version 1 is no longer as good as it was when held out" in site.trouble("watch")
    assert site.xray("watch").exit_code == 3
    assert "acknowledged by" in site.do(acknowledge).output
    site.whole()


def test_a_version_is_approved_and_gone_back_from(site: Site) -> None:
    reopen, promote, compare = commands("Approve or reject")
    run = Run(site.settings, who="alice")
    promotion.record_answer(
        run, promotion.request(run, 2), {"chosen_options": ["Reject"], "responded_by_user": {"name": "alice"}}
    )
    assert "rejected" in site.trouble("promote", "2", "--reason", "better")
    site.do(reopen, **{"reopen 4": "reopen 2"})
    site.do(compare, **{"3 7": "2 1"})
    site.do(promote, **{"promote 4": "promote 2"})
    assert site.champion() == 2
    back, to = commands("Roll back")
    site.do(back)
    assert site.champion() == 1
    site.do(to)
    assert site.champion() == 2
    site.whole()


def test_an_alarm_is_settled(site: Site) -> None:
    policy = site.home / "policy.toml"
    policy.write_text(Path(SETTINGS["policy"]).read_text() + NO_DRIFT)
    site.monkeypatch.setenv("XRAY_POLICY", str(policy))
    key = sorted(path.name for path in (site.home / "incoming").iterdir())[-1]
    checked = Path(site.settings.store) / "intake" / key / alarms.CHECKED
    store = open_store(checked.parent)
    records.write(
        store, checked.name, {**records.unsealed(store.read(checked.name), checked.name), "alarms": ["pixels"]}
    )
    acknowledge, promote = commands("A drift alarm")
    assert "clause 4.9" in site.trouble("promote", "2", "--reason", "better")
    site.do(acknowledge, **{"2026-03-03": key})
    site.do(promote, **{"promote 12": "promote 2"})
    assert site.champion() == 2
    site.whole()


def test_readers_elsewhere_are_asked(site: Site) -> None:
    ask, take_in = commands("Radiographs to look at")
    reviewed.draw(site.settings)
    site.do(ask, march=str(site.home / "march"))
    lines = (site.home / "march" / "worklist.csv").read_text().splitlines()[1:]
    assert len(lines) == 3
    files = {f"{reader}.csv": site.home / f"{reader}.csv" for reader in ("ann", "bob")}
    for path in files.values():
        path.write_text(f"digest,label\n{lines[0].partition(',')[0]},NORMAL\n")
    assert "1 relabelled by amendment 3" in site.do(take_in, **{name: str(path) for name, path in files.items()}).output
    site.whole()


def test_labels_are_corrected_and_patients_withdrawn(site: Site) -> None:
    first, second = sorted(path.name for path in (site.home / "incoming").iterdir())
    table = Dataset(site.settings).manifest(first)
    ill = table[(table["verdict"] == "accepted") & (table["label"] == "PNEUMONIA") & (table["near_copy"] == "")]
    ill = ill.drop_duplicates("patient").head(5)
    one, other, third, person, another = (f"{first}/{row}" for row in ill.index)
    of_section = commands("A wrong label, a patient who withdraws, a delivery that was a mistake")
    by_digest, by_row, of_patient, by_radiograph, of_delivery, by_list, listed, undo, affected = of_section
    site.do(by_digest, **{"3fa9c0d1": ill["digest"].iloc[0]})
    site.do(by_row, **{"2026-03-03/17": other})
    name = Path(table["file"][int(person.rpartition("/")[2])]).name
    site.do(of_patient, **{"IM-0117": name})
    site.do(by_radiograph, **{"2026-03-03/18": another})
    site.do(of_delivery, **{"2026-03-03": second})
    (site.home / "corrections.csv").write_text(f"file,label\n{third},NORMAL\n")
    site.do(by_list, **{"corrections.csv": str(site.home / "corrections.csv")})
    assert one not in site.do(listed).output
    site.do(undo, **{"undo 42": "undo 7"})
    assert "version 1" in site.do(affected, **{"IM-0117": name}).output
    site.whole()
    erase, look = commands("A patient's data must be erased")
    assert "erased from dataset" in site.do(erase, **{"IM-0117": name}).output
    assert ("nothing is left of " in (said := site.do(look).output), "NOT" in said) == (True, False)


def test_room_is_made(site: Site) -> None:
    look, remove = commands("Make room")
    site.do(look)
    site.do(remove)
    site.whole()


def test_a_damaged_radiograph_is_put_back(site: Site) -> None:
    look, mend = commands("A radiograph is damaged")
    site.do(look)
    path = sorted((Path(site.settings.store) / "dataset" / "radiographs").rglob("*.*"))[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    site.do(mend)
    assert path.read_bytes() == whole
    site.whole()


@pytest.mark.parametrize(("keep", "champion"), [(0, 2), (1, 1)])
def test_a_change_by_hand_is_settled(site: Site, keep: int, champion: int) -> None:
    site.client.set_registered_model_alias("chest-xray", "champion", "2")
    site.do(commands("A change made by hand in MLflow")[keep])
    assert site.champion() == champion
    site.whole()


def test_a_mark_that_was_edited_is_deleted(site: Site) -> None:
    site.client.set_registered_model_tag("chest-xray", FOLLOWED_TAG, "hello")
    assert "delete the tag in MLflow" in site.trouble("adopt", "--reason", "because")
    site.client.delete_registered_model_tag("chest-xray", FOLLOWED_TAG)
    site.whole()


def test_a_backup_of_both_is_put_back(site: Site) -> None:
    put_back, store = site.keep_mlflow(), site.home / "kept"
    shutil.copytree(site.settings.store, store)
    site.promote()
    put_back()
    shutil.rmtree(site.settings.store)
    shutil.copytree(store, site.settings.store)
    assert commands("Restore from a backup") == ["xray verify"]
    site.whole()
    assert site.champion() == 1


def test_a_champion_that_an_older_mlflow_lost(site: Site) -> None:
    site.promote()
    site.monkeypatch.setenv("XRAY_TRACKING_URI", f"sqlite:///{site.home / AFTER_FIRST}")
    assert "MLflow is older than the ledger: it lacks versions [2]" in site.trouble("verify")
    assert "restore MLflow's newest backup, or `xray rollback --to`" in site.trouble("retrain")
    back, accept = commands("MLflow is older than the ledger")
    site.do(back)
    assert site.champion() == 1
    site.do(accept)
    assert site.champion() == 1
    site.whole()


@pytest.mark.parametrize(("way", "champion"), [(0, 2), (1, 1)])
def test_newest_entries_that_are_lost_for_good(site: Site, way: int, champion: int) -> None:
    site.promote()
    for path in sorted((Path(site.settings.store) / "ledger").iterdir())[-2:]:
        path.unlink()
    assert "`xray adopt --lost`" in site.trouble("rollback", "--reason", "because", "--untried")
    site.do(commands("The ledger is older than MLflow")[way])
    assert site.champion() == champion
    assert site.ledger[-1].decision["entries"] == 2
    site.whole()


@pytest.mark.parametrize("known", [True, False])
def test_a_commit_that_is_lost_for_good(site: Site, known: bool) -> None:
    """One that MLflow knows of, or one whose process was killed before it told MLflow: its manifest tells of it."""
    dataset = Dataset(site.settings)
    commits, (*_, key) = dataset.finish(), dataset.manifests()
    if not known:
        data = dataset.store.read(f"manifests/{key}.parquet")
        assert dataset.append("killed", data, len(commits))
        commits, key = dataset.finish(), "killed"
    assert commits[-1].manifest == key
    dataset.store.delete(commits[-1].place)
    assert "`xray adopt --lost" in site.trouble("retrain")
    site.do(commands("The ledger is older than MLflow")[0])
    assert site.ledger[-1].decision["manifests"] == [f"manifests/{key}.parquet"]
    assert key not in Dataset(site.settings).manifests()
    site.whole()
    assert "nothing to give up" in site.trouble("adopt", "--lost", "--reason", "once more")


def test_a_refusal_of_the_night_that_the_ledger_lost_is_noticed(site: Site) -> None:
    """Its comparison was counted; without it the next one would be judged too kindly."""
    policy = site.home / "policy.toml"
    policy.write_text(Path(SETTINGS["policy"]).read_text().replace("more_than = 0.0", "more_than = 0.9"))
    site.monkeypatch.setenv("XRAY_POLICY", str(policy))
    run, candidate = Run(site.settings, who="schedule"), site.ledger[-1].candidate
    assert decision_steps.decide(run, model_steps.evaluate(run, Trained(candidate, ""))).verdict == "refused"
    last = site.ledger[-1]
    (Path(site.settings.store) / "ledger" / f"{last.sequence:08d}.json").unlink()
    assert (last.kind, last.sequence) == ("refused", 4)
    assert "followed the ledger to entry 4" in site.trouble("verify")
    assert "followed the ledger to entry 4" in site.trouble("retrain")


def test_who_was_champion_while_a_clock_was_ahead_is_said_not_to_be_known(site: Site) -> None:
    before, ahead = site.ledger[-1].at, chronology.text(datetime.now(UTC) + timedelta(days=1000))
    with site.monkeypatch.context() as wrong:
        wrong.setattr("xray_pipeline.registry.ledger._now", lambda: ahead)
        with pytest.raises(LedgerError, match=r"the store's own .* set the clock right"):
            site.promote()
        wrong.setenv("XRAY_IDLE_DAYS", "2000")
        wrong.setattr("xray_pipeline.base.storage.DirectoryStore.clock", lambda self: time.time() + 1000 * 86_400)
        site.promote()
    assert site.ledger[-1].at == ahead
    time.sleep(0.01)
    done = site.xray("history", "--at", chronology.text(datetime.fromisoformat(before) + timedelta(milliseconds=1)))
    assert done.exit_code == 3
    assert "perhaps made by then, for a clock was wrong: entry 5: promoted version 2" in done.output
    assert done.output.endswith("champion: can't be known, version 1 or version 2; challenger: 2 or none\n")
    assert site.do("xray history").output.endswith("champion: version 2; challenger: none\n")


def test_the_past_is_asked(site: Site) -> None:
    past = next(command for command in commands() if "--at" in command)
    assert "champion: none" in site.do(past).output


@pytest.mark.slow
def test_each_command_of_the_document_was_run() -> None:
    """Those of this file, in their order, ran before."""
    assert set(commands()) - RUN == set()
