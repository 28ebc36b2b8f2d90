"""Damaged radiographs are found, put back where a delivery proves them, and named where none does."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from candidates import SMALL
from commands import Run as Command
from laid import FILES, ingest, lay
from s3_server import BUCKET, S3Server
from samples import jpeg

from xray_pipeline.base.errors import RadiographDamaged
from xray_pipeline.base.settings import IntakeRules, Settings
from xray_pipeline.command import answers
from xray_pipeline.dataset.parquet import from_parquet
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.night import intake_steps, model_steps, repair
from xray_pipeline.night.run import Run


@pytest.fixture
def run(settings: Settings) -> Run:
    """A committed delivery that lies where it lay."""
    lay(settings, "first", FILES)
    ingest(Run(settings))
    return Run(settings)


def stored(run: Run, row: int = 0) -> Path:
    """The stored file of a row of delivery `first`."""
    digest = Dataset(run.settings).manifest("first")["digest"][row]
    (path,) = (Path(run.settings.store) / "dataset" / "radiographs").rglob(f"{digest}*")
    return path


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link(path: Path) -> None:
    kept = path.rename(path.with_name("elsewhere"))
    path.symlink_to(kept)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "one bit": flip,
    "cut short": lambda path: os.truncate(path, 100),
    "empty": lambda path: path.write_bytes(b""),
    "missing": Path.unlink,
    "another radiograph": lambda path: path.write_bytes(jpeg(seed=99)),
    "a link": link,
}


def dataset_line(run: Run, quick: bool = False) -> tuple[bool, str]:
    (found,) = [f for f in answers.verify(run.settings, quick) if f["invariant"] == "dataset"]
    return found["holds"], found["text"]


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_radiograph_is_named_by_row_and_put_back_bit_by_bit(
    run: Run, damage: Callable[[Path], object]
) -> None:
    for row in (0, 1, 2):  # a JPEG, a PNG, a DICOM
        path = stored(run, row)
        before = path.read_bytes()
        damage(path)
        holds, text = repair.verify(run)
        assert not holds
        assert f"delivery first row {row}: " in text
        assert "`xray repair`" in text
        assert "patient" not in text
        done = repair.repair(run)
        assert [one.rows for one in done.repaired] == [(("first", row),)]
        assert (done.read, done.lost) == (4, ())
        assert path.read_bytes() == before
        assert not path.is_symlink()
    assert repair.repair(run) == repair.Repaired(4, (), ())
    assert dataset_line(run) == (True, "stored radiographs: all 4 were read and match their digests")


def test_what_can_not_be_repaired_is_named_and_healed_by_the_same_image_in_any_delivery(
    run: Run,
    xray: Command,
) -> None:
    shutil.move(Path(run.settings.incoming) / "first", run.settings.home / "kept")
    before = stored(run, 2).read_bytes()
    flip(stored(run, 2))
    done = xray("repair")
    assert done.returncode == 3, done.stderr
    assert "of delivery first row 2: radiographs/" in done.stdout
    assert "deliver a lost one again" in done.stdout
    assert "patient" not in done.stdout
    said = json.loads(xray("repair", "--json").stdout)
    assert (said["read"], said["repaired"]) == (4, [])
    assert said["lost"][0]["rows"] == [["first", 2]]
    lay(run.settings, "again", {"PNEUMONIA/x.dcm": FILES["PNEUMONIA/patient3_1.dcm"]})
    checked = intake_steps.check_delivery(run, "again")
    assert not checked.fit  # nothing but a copy, as before
    assert stored(run, 2).read_bytes() == before
    assert xray("repair").returncode == 0


def test_the_delivery_copied_anew_heals_it(run: Run) -> None:
    shutil.rmtree(Path(run.settings.incoming) / "first")
    before = {path: path.read_bytes() for path in Path(run.settings.store, "dataset", "radiographs").rglob("*.*")}
    for path in before:
        flip(path)
    lay(run.settings, "first", FILES)
    ingest(run)
    assert {path: path.read_bytes() for path in before} == before
    assert Dataset(run.settings).manifest("first+2")["reason"].tolist() == ["duplicate"] * 4


def test_an_original_that_lies_in_a_rejected_delivery_is_found(run: Run) -> None:
    lay(run.settings, "copies", {"NORMAL/a.jpg": FILES["NORMAL/patient1_1.jpg"]})
    assert not intake_steps.check_delivery(run, "copies").fit
    shutil.rmtree(Path(run.settings.incoming) / "first")
    stored(run).unlink()
    assert len(repair.repair(run).repaired) == 1


def test_rules_that_came_since_and_a_moved_folder_of_deliveries_do_not_matter(run: Run) -> None:
    moved = shutil.move(run.settings.incoming, run.settings.home / "moved")
    strict = IntakeRules(min_side=500, max_pixels=100, max_file_bytes=50, max_aspect=1.01)
    stored(run).unlink()
    settings = run.settings.model_copy(update={"incoming": str(moved), "rules": strict})
    assert len(repair.repair(Run(settings)).repaired) == 1


def test_another_image_under_the_name_of_the_original_proves_nothing(run: Run) -> None:
    lay(run.settings, "first", {"NORMAL/patient1_1.jpg": jpeg(seed=50)})
    flip(stored(run))
    wrong = stored(run).read_bytes()
    done = repair.repair(run)
    assert (len(done.repaired), len(done.lost)) == (0, 1)
    assert stored(run).read_bytes() == wrong


def test_a_folder_in_place_of_a_radiograph_is_named(run: Run, xray: Command) -> None:
    folder(stored(run))
    assert not repair.verify(run)[0]
    done = xray("repair")
    assert done.returncode == 3
    assert "LOST: radiograph" in done.stdout
    assert "is a folder, not a file" in done.stdout


def test_a_quick_look_sees_all_that_is_missing_and_reads_some(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "SAMPLE", 1)
    assert repair.verify(run, quick=True) == (
        True,
        "stored radiographs: 1 of 4, drawn by lot, were read and match their digests, none is missing",
    )
    stored(run, 1).unlink()
    os.truncate(stored(run, 3), 0)
    for _ in range(5):
        assert len(repair.look(Dataset(run.settings), quick=True).damaged) == 2
    repair.repair(run)
    for row in range(4):
        flip(stored(run, row))
    assert not dataset_line(run, quick=True)[0]


def test_what_stands_damaged_in_the_way_of_a_commit_is_replaced(settings: Settings) -> None:
    """Left by a commit that was killed, and damaged since."""
    run = Run(settings)
    lay(settings, "first", FILES)
    intake_steps.check_delivery(run, "first")
    table = from_parquet(run.store().read("intake/first/table.parquet"), "it")
    for row in table.itertuples():
        Dataset(settings).put(row.digest, row.suffix, b"of another time")
    intake_steps.commit_deliveries(run, ["first"])
    assert repair.verify(run)[0]


def test_a_night_puts_back_what_it_meets_and_stops_where_it_can_not(grown: Settings) -> None:
    dataset = Dataset(grown)
    snapshot = dataset.snapshot()
    assert snapshot
    rows = dataset.rows(snapshot)
    paths = sorted(Path(grown.store, "dataset", "radiographs").rglob("*.*"))
    flip(paths[0])
    paths[1].unlink()
    run = Run(grown, {**SMALL, "epochs": 1})
    shutil.move(grown.incoming, grown.home / "away")
    with pytest.raises(RadiographDamaged, match="run `xray repair`"):
        model_steps.train(run, snapshot.digest)
    shutil.move(grown.home / "away", grown.incoming)
    assert model_steps.train(run, snapshot.digest).candidate
    assert len(rows) == len(paths)
    assert repair.verify(run)[0]


def test_it_works_on_s3(s3: S3Server, settings: Settings) -> None:
    place = f"s3://{BUCKET}/repair-{os.getpid()}"
    where = {"store": f"{place}/store", "s3_endpoint": s3.endpoint, "patient_key": "k" * 32}
    run = Run(Settings(**{**settings.model_dump(), **where}))
    lay(run.settings, "first", FILES)
    ingest(run)
    dataset = Dataset(run.settings)
    keys = sorted(entry.key for entry in dataset.store.list("radiographs"))
    dataset.store.write(keys[0], b"damaged")
    dataset.store.delete(keys[1])
    assert len(repair.look(dataset, quick=True).damaged) == 2
    assert len(repair.repair(run).repaired) == 2
    assert repair.verify(run)[0]
