from __future__ import annotations

import collections
import hashlib
import json
import shutil
from pathlib import Path

import pytest
from samples import jpeg, png

from xray_pipeline import night
from xray_pipeline.dataset import Dataset, side_of
from xray_pipeline.errors import DatasetError
from xray_pipeline.night import Run
from xray_pipeline.settings import Settings


def deliver(settings: Settings, name: str, seeds: range, label: str = "NORMAL") -> Path:
    """Lay a delivery of one image a patient; seed is image and patient at once."""
    folder = Path(settings.incoming) / name / label
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        (folder / f"patient{seed:04d}_1.jpeg").write_bytes(jpeg(seed=seed))
    return folder


def ingest(settings: Settings) -> night.Committed:
    run = Run(settings)
    keys = night.find_deliveries(run)
    for key in keys:
        night.check_delivery(run, key)
    return night.commit_deliveries(run, keys)


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


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
    shutil.rmtree(Path(settings.store) / "dataset" / "manifests")
    shutil.rmtree(Path(settings.store) / "dataset" / "snapshots")
    assert Dataset(settings).snapshot() is None
    assert ingest(settings).snapshot == first.snapshot


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
    (settings.home / "patient.key").write_text("another")
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
    from xray_pipeline.dataset import from_parquet, to_parquet

    table = from_parquet(path.read_bytes(), "it")
    table.loc[0, "label"] = "PNEUMONIA"
    path.write_bytes(to_parquet(table, {"delivery": "first", "fingerprint": ""}))
    with pytest.raises(DatasetError, match="manifest first has digest"):
        Dataset(settings).open_snapshot(digest)


def test_a_manifest_of_another_version_is_refused_by_name(settings: Settings) -> None:
    deliver(settings, "first", range(5))
    ingest(settings)
    path = Path(settings.store) / "dataset" / "dataset.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "format": 1}))
    with pytest.raises(DatasetError, match="format 1, now 2"):
        Dataset(settings).patient_key()


def test_a_rejected_delivery_leaves_the_dataset_alone(settings: Settings) -> None:
    deliver(settings, "first", range(5), label="NORMALL")
    committed = ingest(settings)
    assert committed.snapshot == ""
    verdict = night.checked(Run(settings).store(), "first")
    assert verdict is not None
    assert not verdict.fit
    assert "NORMAL" in verdict.why
