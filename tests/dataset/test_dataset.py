from __future__ import annotations

import collections
import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from samples import jpeg, png

from xray_pipeline.base.errors import ConfigError, DatasetError
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import DirectoryStore
from xray_pipeline.dataset.manifests import Manifests
from xray_pipeline.dataset.parquet import from_parquet, to_parquet
from xray_pipeline.dataset.split import side_of
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.intake import books as bookkeeping
from xray_pipeline.intake import commit as commits
from xray_pipeline.intake import verdicts
from xray_pipeline.night import intake_steps
from xray_pipeline.night.run import Committed, Run


def deliver(settings: Settings, name: str, seeds: range, label: str = "NORMAL") -> Path:
    """Lay a delivery of one image a patient; seed is image and patient at once."""
    folder = Path(settings.incoming) / name / label
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        (folder / f"patient{seed:04d}_1.jpeg").write_bytes(jpeg(seed=seed))
    return folder


def ingest(settings: Settings) -> Committed:
    run = Run(settings)
    keys = intake_steps.find_deliveries(run)
    for key in keys:
        intake_steps.check_delivery(run, key)
    return intake_steps.commit_deliveries(run, keys)


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.parametrize("when", ["while the first is stored", "in the instant before its commit"])
def test_two_deliveries_committed_at_once_are_judged_against_each_other(
    settings: Settings, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A night and `xray ingest` side by side: the same patients and images, for training here and held out there."""
    run = Run(settings)
    for name, side, seeds in (("a", "train", range(10)), ("b", "test", range(5, 13))):
        (Path(settings.incoming) / name / side).mkdir(parents=True)
        deliver(settings, f"{name}/{side}", seeds)
        assert intake_steps.check_delivery(run, name).fit
    moment = "_store_radiographs" if when.startswith("while") else "write_if_absent"
    target = commits if moment == "_store_radiographs" else DirectoryStore
    before = getattr(target, moment)

    def interrupted(self: object, *given: object) -> object:
        if moment == "_store_radiographs" or str(given[0]).startswith("commits/"):
            monkeypatch.setattr(target, moment, before)
            intake_steps.commit_deliveries(Run(settings), ["b"])  # the other process
        return before(self, *given)

    monkeypatch.setattr(target, moment, interrupted)
    intake_steps.commit_deliveries(run, ["a"])
    dataset = Dataset(settings)
    assert dataset.manifests() == ["a", "b"]
    snapshot = dataset.snapshot()
    assert snapshot is not None
    rows = dataset.rows(snapshot)
    assert len(rows) == 13
    assert rows["digest"].is_unique
    assert (rows.groupby("patient")["side"].nunique() == 1).all()
    assert bookkeeping.verify(run.settings)[0]


@pytest.mark.parametrize("who", ["its repeat", "another delivery"])
def test_a_commit_that_was_killed_before_its_manifest_is_finished(
    settings: Settings, who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(settings)
    for name, seeds in (("a", range(6)), ("b", range(4, 10))):
        deliver(settings, name, seeds)
        assert intake_steps.check_delivery(run, name).fit
    with monkeypatch.context() as killed:
        killed.setattr(Manifests, "_make", lambda self, version: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            intake_steps.commit_deliveries(run, ["a"])
    assert Dataset(settings).manifests() == ["a"]
    assert len(Dataset(settings).manifest("a")) == 6  # from its draft
    intake_steps.commit_deliveries(run, ["a"] if who == "its repeat" else ["b"])
    intake_steps.commit_deliveries(run, ["a", "b"])
    dataset = Dataset(settings)
    assert dataset.manifests() == ["a", "b"]
    assert (dataset.manifest("a")["verdict"] == "accepted").all()  # it came first
    assert dataset.manifest("b")["reason"].tolist() == ["duplicate"] * 2 + [""] * 4
    assert len(list(dataset.store.list("commits"))) == 2
    assert list(dataset.store.list("drafts")) == []
    assert bookkeeping.verify(run.settings)[0]


def test_a_delivery_that_changed_after_its_commit_was_killed_is_an_addition(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(settings)
    folder = deliver(settings, "a", range(6))
    intake_steps.check_delivery(run, "a")
    with monkeypatch.context() as killed:
        killed.setattr(Manifests, "_make", lambda self, version: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            intake_steps.commit_deliveries(run, ["a"])
    (folder / "patient0006_1.jpeg").write_bytes(b"no image")
    assert intake_steps.find_deliveries(run) == ["a+2"]
    assert Dataset(settings).manifests() == ["a"]


def test_a_site_says_which_families_of_file_names_are_a_slice(settings: Settings) -> None:
    deliver(settings, "a", range(3))
    ingest(settings)
    for pattern, expected in ((settings.source_pattern, ""), (r"^(patient|IM)\d", "patient"), (r"_(\d)\.", "1")):
        dataset = Dataset(settings.model_copy(update={"source_pattern": pattern}))
        snapshot = dataset.snapshot()
        assert snapshot is not None
        assert set(dataset.rows(snapshot)["source"]) == {expected}


@pytest.mark.parametrize(("pattern", "said"), [("(", "no regular expression"), ("IM", "has no group")])
def test_a_pattern_of_families_that_is_none_is_refused(pattern: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"XRAY_SOURCE_PATTERN.*{said}"):
        Settings(source_pattern=pattern)


def test_a_manifest_that_was_changed_or_lost_is_named(settings: Settings) -> None:
    for name, seeds in (("a", range(6)), ("b", range(6, 12)), ("c", range(12, 18))):
        deliver(settings, name, seeds)
        ingest(settings)
    dataset = Dataset(settings)
    table = dataset.manifest("a").assign(label="PNEUMONIA")
    dataset.store.write("manifests/a.parquet", to_parquet(table, {"delivery": "a"}))
    dataset.store.delete("manifests/b.parquet")
    assert bookkeeping.verify(settings) == (False, "missing, or not what was committed: the manifests of a, b")
    with pytest.raises(DatasetError, match=r"manifests/b.parquet, committed as commits/00000002.json, is missing"):
        intake_steps.find_deliveries(Run(settings))


def test_a_draft_that_was_never_committed_goes(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    deliver(settings, "a", range(6))
    ingest(settings)
    store = Dataset(settings).store
    monkeypatch.setattr("xray_pipeline.dataset.manifests.DRAFT_SECONDS", 3.0)
    store.write("drafts/old.parquet", b"")
    time.sleep(3.1)
    store.write("drafts/new.parquet", b"")
    intake_steps.find_deliveries(Run(settings))
    assert [entry.key for entry in store.list("drafts")] == ["drafts/new.parquet"]


def test_a_patient_on_two_sides_is_reported(settings: Settings) -> None:
    deliver(settings, "a", range(6))
    ingest(settings)
    dataset = Dataset(settings)
    table = dataset.manifest("a").iloc[:1].assign(side="held-out", digest="0" * 64, file="other")
    table["side"] = "train" if dataset.manifest("a")["side"][0] == "held-out" else "held-out"
    assert dataset.append("b", to_parquet(table, {"delivery": "b"}), 1)
    holds, text = bookkeeping.split(settings)
    assert not holds
    assert text == "1 patients are on two sides of the split"


def test_shares_of_the_split_are_kept() -> None:
    patients = [hashlib.sha256(str(n).encode()).hexdigest()[:32] for n in range(20_000)]
    sides = collections.Counter(side_of(p, "", "patient", 0.15, 0.15) for p in patients)
    assert {side: round(count / 20_000, 2) for side, count in sides.items()} == {
        "train": 0.70,
        "validation": 0.15,
        "held-out": 0.15,
    }


@pytest.mark.parametrize(
    ("mode", "given", "expected"),
    [
        ("patient", "held-out", "held-out"),
        ("patient", "train", "validation"),
        ("given", "train", "train"),
        ("given", "held-out", "held-out"),
    ],
)
def test_given_splits(mode: str, given: str, expected: str) -> None:
    patient = "2" * 32  # draws 0.133 of 1: validation
    assert side_of(patient, given, mode, 0.15, 0.05) == expected  # type: ignore[arg-type]


def test_a_night_repeated_changes_no_byte(settings: Settings) -> None:
    deliver(settings, "first", range(20))
    first = ingest(settings)
    before = contents(Path(settings.store))
    again = ingest(settings)
    assert again.snapshot == first.snapshot
    assert contents(Path(settings.store)) == before


def test_the_same_delivery_gives_the_same_manifest(settings: Settings, tmp_path: Path) -> None:
    deliver(settings, "first", range(20))
    first = ingest(settings)
    other = settings.model_copy(update={"store": str(tmp_path / "other")})
    assert ingest(other).snapshot == first.snapshot


def test_killed_before_the_manifest_leaves_no_trace_in_the_dataset(settings: Settings) -> None:
    deliver(settings, "first", range(20))
    first = ingest(settings)
    for folder in ("commits", "manifests", "snapshots"):
        shutil.rmtree(Path(settings.store) / "dataset" / folder)
    assert Dataset(settings).snapshot() is None
    assert ingest(settings).snapshot == first.snapshot


def test_a_manifest_that_is_lost_is_not_committed_anew(settings: Settings) -> None:
    deliver(settings, "first", range(5))
    ingest(settings)
    (Path(settings.store) / "dataset" / "manifests" / "first.parquet").unlink()
    with pytest.raises(DatasetError, match=r"manifests/first.parquet, committed as commits/00000001.json, is missing"):
        ingest(settings)


def test_deliveries_are_never_changed(settings: Settings) -> None:
    folder = deliver(settings, "first", range(5))
    before = contents(folder)
    ingest(settings)
    assert contents(folder) == before


def test_an_addition_gets_a_manifest_of_its_own(settings: Settings) -> None:
    deliver(settings, "first", range(10))
    one = ingest(settings)
    manifest = Path(settings.store) / "dataset" / "manifests" / "first.parquet"
    before = manifest.read_bytes()
    deliver(settings, "first", range(10, 15))
    two = ingest(settings)
    assert Dataset(settings).manifests() == ["first", "first+2"]
    assert manifest.read_bytes() == before
    assert (one.images, two.images) == (10, 15)


def test_sides_do_not_move_as_data_grows(settings: Settings) -> None:
    deliver(settings, "first", range(40))
    one = ingest(settings)
    deliver(settings, "second", range(40, 80))
    two = ingest(settings)
    dataset = Dataset(settings)
    before, after = (
        dataset.rows(dataset.open_snapshot(digest)).set_index("digest")["side"]
        for digest in (one.snapshot, two.snapshot)
    )
    assert after.loc[before.index].equals(before)


def test_the_same_image_under_two_labels_leaves_the_dataset(settings: Settings) -> None:
    deliver(settings, "first", range(5))
    ingest(settings)
    deliver(settings, "second", range(4, 12), label="PNEUMONIA")
    assert ingest(settings).images == 4 + 7


def test_deliveries_checked_side_by_side_are_judged_against_each_other(settings: Settings) -> None:
    deliver(settings, "a", range(5))
    deliver(settings, "b", range(3, 9))
    assert ingest(settings).images == 9
    assert (Dataset(settings).manifest("b")["reason"] == "duplicate").sum() == 2


def test_stored_radiographs_hold_no_metadata(settings: Settings) -> None:
    folder = Path(settings.incoming) / "first" / "NORMAL"
    folder.mkdir(parents=True)
    (folder / "patient0001_1.jpeg").write_bytes(jpeg(seed=1, comment=b"Jane Doe"))
    (folder / "patient0002_1.png").write_bytes(png(seed=2))
    ingest(settings)
    stored = list((Path(settings.store) / "dataset" / "radiographs").rglob("*.*"))
    assert len(stored) == 2
    assert not any(b"Jane" in path.read_bytes() for path in stored)


def test_a_changed_setting_is_refused(settings: Settings) -> None:
    deliver(settings, "first", range(5))
    ingest(settings)
    deliver(settings, "second", range(5, 9))
    with pytest.raises(DatasetError, match=r"split_held_out 0\.15, now 0\.3"):
        ingest(settings.model_copy(update={"split_held_out": 0.3}))


def test_another_patient_key_is_refused(settings: Settings) -> None:
    deliver(settings, "first", range(5))
    ingest(settings)
    (settings.home / "patient.key").write_text("another" * 9)
    with pytest.raises(DatasetError, match="patient_key is another one"):
        Dataset(settings).patient_key()


def test_machines_that_share_a_store_must_share_the_patient_key(settings: Settings, s3_env: None) -> None:
    shared = settings.model_copy(update={"store": "s3://hospital/store"})
    with pytest.raises(DatasetError, match="XRAY_PATIENT_KEY"):
        Dataset(shared).patient_key()
    assert not (settings.home / "patient.key").exists()


def test_the_patient_key_is_private(settings: Settings) -> None:
    Dataset(settings).patient_key()
    assert (settings.home / "patient.key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in settings.home.iterdir()] == ["patient.key"]


@pytest.mark.parametrize("content", ["", "\n", "0" * 31, "\0" * 64], ids=["empty", "a line", "short", "zeros"])
def test_a_patient_key_that_is_cut_short_is_refused(settings: Settings, content: str) -> None:
    Dataset(settings).patient_key()
    (settings.home / "patient.key").write_text(content)
    with pytest.raises(DatasetError, match=r"patient\.key has \d+ characters, 32 or more are needed; put your copy"):
        Dataset(settings).patient_key()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_patient_key_that_others_may_use_is_refused(settings: Settings, mode: int) -> None:
    key = Dataset(settings).patient_key()
    path = settings.home / "patient.key"
    path.chmod(mode)
    with pytest.raises(DatasetError, match=f"others may read the patient key; run: chmod 600 {path}"):
        Dataset(settings).patient_key()
    path.chmod(0o600)
    assert Dataset(settings).patient_key() == key


def test_a_patient_key_that_can_not_be_made_is_said(settings: Settings) -> None:
    settings.home.write_text("a file where the folder should be")
    with pytest.raises(DatasetError, match="set XRAY_PATIENT_KEY"):
        Dataset(settings).patient_key()


def processes(code: str, folder: Path) -> list[str]:
    """Run code that forks, in an interpreter of its own, and return the lines it prints."""
    head = "import os, signal, sys\nfrom pathlib import Path\nfrom xray_pipeline.dataset.store import Dataset\n"
    head += "from xray_pipeline.base.settings import Settings\nroot = Path(sys.argv[1])\n"
    done = subprocess.run(
        [sys.executable, "-c", head + code, str(folder)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_killed_at_any_line_the_patient_key_is_whole_or_not_there(tmp_path: Path) -> None:
    code = """
def child(home, stop):
    left = stop
    def trace(frame, event, _):
        nonlocal left
        if frame.f_code.co_filename.endswith("split.py"):
            left -= event == "line"
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace
    sys.settrace(trace)
    Dataset(Settings(home=home)).patient_key()
    os._exit(0)

for stop in range(1000):
    home = root / str(stop)
    pid = os.fork() or child(home, stop)
    status = os.waitpid(pid, 0)[1]
    path = home / "patient.key"
    print(os.WTERMSIG(status), path.stat().st_size if path.exists() else "none", flush=True)
    if status == 0:
        break
"""
    lines = [line.split() for line in processes(code, tmp_path)]
    assert lines[-1] == ["0", "64"]
    assert len(lines) > 10
    assert {signal for signal, _ in lines[:-1]} == {"9"}
    assert {size for _, size in lines} == {"none", "64"}


@pytest.mark.slow
def test_processes_that_start_at_once_agree_on_the_patient_key(tmp_path: Path) -> None:
    code = """
for number in range(100):
    home = root / str(number)
    go, start = os.pipe()
    answer, told = os.pipe()
    for _ in range(4):
        if not os.fork():
            os.close(start)
            os.read(go, 1)
            os.write(told, Dataset(Settings(home=home)).patient_key() + b"\\n")
            os._exit(0)
    os.close(start)
    for _ in range(4):
        assert os.wait()[1] == 0
    os.close(told)
    print(len(set(os.read(answer, 10_000).split(b"\\n")[:-1])), flush=True)
"""
    assert processes(code, tmp_path) == ["1"] * 100


def corrupt(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_one_flipped_bit_in_a_radiograph_stops(settings: Settings) -> None:
    deliver(settings, "first", range(5))
    snapshot = Dataset(settings).open_snapshot(ingest(settings).snapshot)
    dataset = Dataset(settings)
    row = dataset.rows(snapshot).iloc[0]
    corrupt(next((Path(settings.store) / "dataset" / "radiographs").rglob(f"{row.digest}*")))
    with pytest.raises(DatasetError, match="does not match its digest"):
        dataset.read(row.digest, row.suffix)


def test_one_changed_label_in_a_manifest_stops(settings: Settings) -> None:
    deliver(settings, "first", range(5))
    digest = ingest(settings).snapshot
    path = Path(settings.store) / "dataset" / "manifests" / "first.parquet"
    table = from_parquet(path.read_bytes(), "it")
    table.loc[0, "label"] = "PNEUMONIA"
    path.write_bytes(to_parquet(table, {"delivery": "first", "fingerprint": ""}))
    with pytest.raises(DatasetError, match=r"manifests/first.parquet in .* commits/00000001.json names"):
        Dataset(settings).open_snapshot(digest)


def test_reading_a_table_leaves_no_thread_that_could_outlive_the_program() -> None:
    threads = """
import os
import pandas as pd
from xray_pipeline.dataset.manifests import Manifests
from xray_pipeline.dataset.parquet import from_parquet, to_parquet

data = to_parquet(pd.DataFrame({f"column {n}": ["text"] * 30 for n in range(27)}), {})
before = os.listdir("/proc/self/task")
assert len(from_parquet(data, "it")) == 30
assert os.listdir("/proc/self/task") == before
"""
    done = subprocess.run([sys.executable, "-c", threads], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_manifest_of_another_version_is_refused_by_name(settings: Settings) -> None:
    deliver(settings, "first", range(5))
    ingest(settings)
    path = Path(settings.store) / "dataset" / "dataset.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "format": 9}))
    with pytest.raises(DatasetError, match=r"dataset.json in .* has format 9; this version reads 1"):
        Dataset(settings).patient_key()


def test_a_rejected_delivery_leaves_the_dataset_alone(settings: Settings) -> None:
    deliver(settings, "first", range(5), label="NORMALL")
    committed = ingest(settings)
    assert committed.snapshot == ""
    verdict = verdicts.checked(Run(settings).store(), "first")
    assert verdict is not None
    assert not verdict.fit
    assert "NORMAL" in verdict.why
