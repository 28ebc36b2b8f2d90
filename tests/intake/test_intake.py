from __future__ import annotations

import contextlib
import hashlib
import hmac
import html
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from s3_server import BUCKET, S3Server
from samples import dicom, jpeg, picture, png

from xray_pipeline.base.errors import ConfigError, DeliveryError, StorageUnavailable
from xray_pipeline.base.settings import IntakeRules, Settings
from xray_pipeline.base.storage import DirectoryStore, Entry, open_store
from xray_pipeline.dataset.amendments import NOTHING
from xray_pipeline.dataset.fingerprints import Prints
from xray_pipeline.dataset.history import EMPTY, Reference, Seen
from xray_pipeline.dataset.parquet import from_parquet, to_parquet
from xray_pipeline.dataset.revisions import path_key
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.dataset.table import COLUMNS
from xray_pipeline.images import radiograph
from xray_pipeline.images.raster import Limits
from xray_pipeline.intake import deliveries
from xray_pipeline.intake import scan as reading
from xray_pipeline.intake.books import balance
from xray_pipeline.intake.check import check
from xray_pipeline.intake.commit import commit
from xray_pipeline.intake.conflicts import mark_conflicts
from xray_pipeline.intake.deliveries import Delivery, Reading, find
from xray_pipeline.intake.labelled import Labels
from xray_pipeline.intake.layout import Place, escape, unescape
from xray_pipeline.intake.placing import Said, Source, places
from xray_pipeline.intake.rules import QUARANTINED
from xray_pipeline.intake.verdicts import Intake

KEY = b"key of the tests"
NOW = time.time() + 1_000_000  # later than any file a test lays, however long the tests before it took


class Past:
    """A dataset of a test's own making."""

    amended, erased, withdrawn = NOTHING, None, Prints.joined([])

    def __init__(
        self,
        labels: dict[str, str] | None = None,
        sides: dict[str, str] | None = None,
        parts: Iterable[pd.DataFrame] = (),
    ) -> None:
        self._labels, self._sides, self._parts = labels or {}, sides or {}, list(parts)

    def seen(self, name: str) -> tuple[int, Seen]:
        rows = [
            (path_key(file), size, version)
            for part in self._parts
            for file, size, version in part[["file", "size", "version"]].itertuples(index=False, name=None)
        ]
        return len(self._parts), Seen(rows, None)

    def expect(self, digests: Iterable[str], patients: Iterable[str]) -> None:
        self.expected = {*digests, *patients}

    def side_of(self, digest: str) -> str:
        assert digest in self.expected
        return ""

    def labels(self, digest: str) -> str | None:
        return self._labels.get(digest)

    def side(self, patient: str) -> str | None:
        return self._sides.get(patient)

    def reference(self, most: int) -> Reference:
        return EMPTY.reference(most)

    held_labels = EMPTY.held_labels

    @property
    def prints(self) -> Prints:
        return Prints.joined([])

    @property
    def contested(self) -> Prints:
        return Prints.joined([])


def lay(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def two_classes(**more: bytes) -> dict[str, bytes]:
    return {"NORMAL/a.jpg": jpeg(seed=1), "PNEUMONIA/b.jpg": jpeg(seed=2), **more}


def judged(folder: Path | str, settings: Settings, history: Any = EMPTY) -> Intake:
    return check(deliveries.at(str(folder), settings, history, NOW), settings, history, KEY)


def rows(result: Intake) -> dict[str, Any]:
    return {row.file: row for row in result.table.itertuples()}


def outcomes(result: Intake) -> dict[str, str]:
    return {file: row.reason or row.verdict for file, row in rows(result).items()}


def patient(text: str) -> str:
    return hmac.new(KEY, text.encode(), hashlib.sha256).hexdigest()[:32]


def with_rules(settings: Settings, **rules: Any) -> Settings:
    return settings.model_copy(update={"rules": IntakeRules(**rules)})


# finding deliveries


def test_finds_settled_and_unsettled_deliveries_by_name(tmp_path: Path) -> None:
    lay(tmp_path, {"b/NORMAL/1.jpg": b"1", "a/NORMAL/1.jpg": b"22", "c/NORMAL/1.jpg": b"3", "c/_SUCCESS": b""})
    old = time.time() - 5000
    os.utime(tmp_path / "a/NORMAL/1.jpg", (old, old))
    found = find(open_store(tmp_path), EMPTY, 600, time.time())
    assert [(d.name, d.part, d.files, d.bytes, d.settled) for d in found] == [
        ("a", 1, 1, 2, False),  # its file's time is old, but it arrived just now
        ("b", 1, 1, 1, False),
        ("c", 1, 1, 1, True),
    ]
    assert all(d.settled for d in find(open_store(tmp_path), EMPTY, 600, time.time() + 601))


def test_a_clock_far_ahead_does_not_hold_a_delivery_back(tmp_path: Path) -> None:
    lay(tmp_path, {"a/NORMAL/1.jpg": b"1"})
    os.utime(tmp_path / "a/NORMAL/1.jpg", (NOW + 10**8, NOW + 10**8))
    assert find(open_store(tmp_path), EMPTY, 600, NOW)[0].settled


def test_objects_dated_days_ahead_are_left_out_one_by_one() -> None:
    class Listed(DirectoryStore):
        def list(self, prefix: str = "") -> Iterator[Entry]:
            yield from (Entry(f"a/NORMAL/{n}.jpg", 1, "v", modified) for n, modified in enumerate(times))

    times = [NOW + 10 * 86_400, NOW - 5]
    assert not find(Listed(Path("/in")), EMPTY, 600, NOW)[0].settled
    assert find(Listed(Path("/in")), EMPTY, 600, NOW + 600)[0].settled
    times = [NOW + 10 * 86_400]
    assert find(Listed(Path("/in")), EMPTY, 600, NOW)[0].settled  # nothing else can be said of it, and it must not wait


def test_nothing_new_is_left_out_and_additions_are_a_part_of_their_own(tmp_path: Path, settings: Settings) -> None:
    lay(tmp_path / "day", two_classes() | {"_SUCCESS": b""})
    first = judged(tmp_path / "day", settings)
    past = Past(parts=[first.table])
    assert find(open_store(tmp_path), past, 600, NOW) == []
    lay(tmp_path / "day", {"NORMAL/c.jpg": jpeg(seed=3)})
    (addition,) = find(open_store(tmp_path), past, 600, time.time())
    assert (addition.key, addition.part, addition.files, addition.settled) == ("day+2", 2, 1, False)
    (settled,) = find(open_store(tmp_path), past, 600, NOW)
    assert settled.settled
    second = check(settled, settings, past, KEY)
    assert outcomes(second) == {"NORMAL/c.jpg": "accepted"}


def test_a_file_that_was_replaced_is_an_addition(tmp_path: Path, settings: Settings) -> None:
    lay(tmp_path / "day", two_classes())
    past = Past(parts=[judged(tmp_path / "day", settings).table])
    lay(tmp_path / "day", {"NORMAL/a.jpg": jpeg(seed=9)})
    assert find(open_store(tmp_path), past, 0, NOW)[0].files == 1


@pytest.mark.parametrize("files", [["labels.csv"], ["x.jpeg"], ["x.dcm"], ["train/NORMAL/1.jpg"], ["NORMAL/1.jpg"]])
def test_incoming_that_is_a_delivery_is_refused(tmp_path: Path, files: list[str]) -> None:
    lay(tmp_path, dict.fromkeys(files, b"1"))
    with pytest.raises(DeliveryError, match="point at its parent"):
        find(open_store(tmp_path), EMPTY, 0, NOW, Reading(("NORMAL", "PNEUMONIA")))


def test_stray_files_hidden_folders_and_links_beside_deliveries_are_ignored(tmp_path: Path) -> None:
    lay(tmp_path, {"in/a/NORMAL/1.jpg": b"1", "in/README.txt": b"hello", "in/.trash/NORMAL/1.jpg": b"1", "out/1": b""})
    (tmp_path / "in" / "link").symlink_to(tmp_path / "out")
    assert [d.name for d in find(open_store(tmp_path / "in"), EMPTY, 0, NOW)] == ["a"]


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Without root's right to read everything."""
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(me)


@pytest.mark.parametrize(
    ("shut", "rows_of_b"),
    [
        ("b/PNEUMONIA", {"NORMAL/1.jpg": "accepted", "NORMAL/ward/2.jpg": "not-an-image", "PNEUMONIA/": "unreadable"}),
        ("b/NORMAL/ward", {"NORMAL/1.jpg": "accepted", "NORMAL/ward/": "unreadable", "PNEUMONIA/1.jpg": "accepted"}),
        ("b", {"./": "unreadable"}),
    ],
)
def test_a_folder_that_can_not_be_listed_is_a_row_of_its_delivery(
    settings: Settings, shut: str, rows_of_b: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    with tempfile.TemporaryDirectory() as name:
        files = {f"{d}/{c}/1.jpg": jpeg(seed=len(c)) for d in "abc" for c in ("NORMAL", "PNEUMONIA")}
        folder = lay(Path(name), files | {"b/NORMAL/ward/2.jpg": b"1"})
        folder.chmod(0o755)
        judged(folder / "a", settings)  # imports what nobody may not read
        (folder / shut).chmod(0)
        with nobody():
            found = find(open_store(folder), EMPTY, 0, NOW)
            table = check(found[1], settings, EMPTY, KEY)
        (folder / shut).chmod(0o755)
        assert [d.name for d in found] == ["a", "b", "c"]
        assert outcomes(table) == rows_of_b
        assert "1 folders or files can't be looked at" in " ".join(table.warnings)
        ours = [record for record in caplog.records if record.name.startswith("xray_pipeline")]
        assert not [record for record in ours if record.levelno >= logging.WARNING]


def test_files_of_a_folder_that_may_not_be_entered_are_rows(settings: Settings) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = lay(Path(name), two_classes())
        folder.chmod(0o755)
        judged(folder, settings)  # imports what nobody may not read
        (folder / "NORMAL").chmod(0o444)
        with nobody():
            found = outcomes(judged(folder, settings))
        (folder / "NORMAL").chmod(0o755)
        assert found == {"NORMAL/a.jpg": "unreadable", "PNEUMONIA/b.jpg": "accepted"}


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A delivery with a path in it that is longer than the system can open; it can be made and removed step by step."""
    folder = lay(tmp_path / "in" / "day", two_classes())
    here = Path.cwd()
    os.chdir(folder / "NORMAL")
    try:
        for _ in range(18):
            os.mkdir("x" * 250)
            os.chdir("x" * 250)
        Path("lost.jpg").write_bytes(jpeg(seed=3))
        yield folder
    finally:
        os.chdir(here)
        subprocess.run(["rm", "-rf", str(folder)], check=True)


def test_a_path_that_is_too_long_is_a_row_and_hides_nothing_else(deep: Path, settings: Settings) -> None:
    assert [d.name for d in find(open_store(deep.parent), EMPTY, 0, NOW)] == ["day"]
    found = judged(deep, settings)
    assert sorted(outcomes(found).values()) == ["accepted", "accepted", "unreadable"]
    assert "its path is too long" in next(row.detail for row in rows(found).values() if row.reason)


def test_folders_of_disks_and_unpackers_are_no_deliveries(tmp_path: Path) -> None:
    names = ("$RECYCLE.BIN", "System Volume Information", "__MACOSX", "lost+found", "@eaDir", ".Trashes", ".git")
    lay(tmp_path, {f"{name}/NORMAL/1.jpg": b"1" for name in (*names, "day")})
    left_out: list[str] = []
    assert [d.name for d in find(open_store(tmp_path), EMPTY, 0, NOW, left_out=left_out)] == ["day"]
    assert left_out == []


def test_objects_whose_folder_has_no_safe_name_are_told_and_those_inside_a_delivery_are_rows(
    settings: Settings,
) -> None:
    class Listed(DirectoryStore):
        def list(self, prefix: str = "", *, closed: bool = False) -> Iterator[Entry]:
            yield from (Entry(key, 1, "v", 1.0) for key in keys)

    keys = ["/NORMAL/1.jpg", "../NORMAL/1.jpg", "day/NORMAL/1.jpg"]
    left_out: list[str] = []
    assert [d.name for d in find(Listed(Path("/in")), EMPTY, 0, NOW, left_out=left_out)] == ["day"]
    assert left_out == [
        "/in: 2 objects are left out, as the name of their folder is no path ('//', '.' or '..'); rename it"
    ]
    entries = [Entry(key, 1, "v", 1.0) for key in ("NORMAL/1.jpg", "/NORMAL/2.jpg", "NORMAL//3.jpg", "../4.jpg")]
    found = places(Source(Listed(Path("/in")), settings, KEY, "x"), entries).places
    assert [place.reason for place in found.values()] == ["", *["unreadable"] * 3]


def test_stray_files_are_seen_beside_an_unreadable_folder() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = lay(Path(name), {"b/NORMAL/1.jpg": b"1", "z.jpeg": b"1"})
        folder.chmod(0o755)
        (folder / "b").chmod(0)
        with nobody(), pytest.raises(DeliveryError, match="point at its parent"):
            find(open_store(folder), EMPTY, 0, NOW)


def test_incoming_that_can_not_be_listed_is_an_error() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = lay(Path(name) / "in", {"b/NORMAL/1.jpg": b"1"})
        folder.parent.chmod(0o755)
        folder.chmod(0)
        with nobody(), pytest.raises(StorageUnavailable, match="Permission denied"):
            find(open_store(folder), EMPTY, 0, NOW)
        folder.chmod(0o755)


def test_a_store_that_does_not_answer_is_an_error_for_all(tmp_path: Path) -> None:
    class Dead(DirectoryStore):
        def list(self, prefix: str = "") -> Iterator[Entry]:
            raise StorageUnavailable("no answer") from OSError(5, "Input/output error")

    with pytest.raises(StorageUnavailable):
        find(Dead(tmp_path), EMPTY, 0, NOW)


def test_missing_incoming_holds_nothing(tmp_path: Path) -> None:
    assert find(open_store(tmp_path / "none"), EMPTY, 0, NOW) == []


@pytest.mark.parametrize("name", ["plus+2", "percent%2B", "new\nline", b"latin-\xe9", "é" * 100, "x" * 250])
def test_delivery_names_are_safe_as_keys(tmp_path: Path, name: str | bytes) -> None:
    lay(tmp_path / os.fsdecode(os.fsencode(name)), {"NORMAL/1.jpg": jpeg()})
    (found,) = find(open_store(tmp_path), EMPTY, 0, NOW)
    assert "+" not in found.name
    assert found.name.isprintable()
    assert len(found.name.encode()) <= 160
    assert Delivery(**json.loads(json.dumps(asdict(found)))) == found
    assert len(list(open_store(found.uri).list())) == 1


def test_names_that_differ_stay_apart(tmp_path: Path) -> None:
    for name in ("x" * 250, "x" * 251, "a+2", "a%2B2", "a"):
        lay(tmp_path / name, {"NORMAL/1.jpg": b"1"})
    assert len({d.key for d in find(open_store(tmp_path), EMPTY, 0, NOW)}) == 5


def test_fingerprint_follows_every_file_and_labels_csv(tmp_path: Path, settings: Settings) -> None:
    def fingerprint() -> str:
        return deliveries.at(str(tmp_path), settings, EMPTY, NOW).fingerprint

    lay(tmp_path, {"a.jpg": jpeg(), "labels.csv": b"file,label\na.jpg,NORMAL\n"})
    seen = [fingerprint(), fingerprint()]
    lay(tmp_path, {"labels.csv": b"file,label\na.jpg,PNEUMONIA\n"})
    seen.append(fingerprint())
    lay(tmp_path, {"b.jpg": jpeg()})
    seen.append(fingerprint())
    lay(tmp_path, {"_SUCCESS": b""})
    seen.append(fingerprint())
    assert [len({*seen[: n + 1]}) for n in range(5)] == [1, 1, 2, 3, 3]


# layouts


def test_table_has_one_typed_row_per_file_in_order(tmp_path: Path, settings: Settings) -> None:
    table = judged(lay(tmp_path, two_classes() | {"NORMAL/z.txt": b"hello"}), settings).table
    assert list(table.columns) == list(COLUMNS)
    assert list(table["file"]) == ["NORMAL/a.jpg", "NORMAL/z.txt", "PNEUMONIA/b.jpg"]
    numbers = {column: str(table[column].dtype) for column in ("size", "width", "height", "bits", "age_years")}
    assert numbers == {"size": "int64", "width": "int64", "height": "int64", "bits": "int64", "age_years": "float64"}
    assert all(pd.api.types.is_string_dtype(table[column]) for column in COLUMNS if column not in numbers)
    assert table.equals(from_parquet(to_parquet(table, {}), "it"))


def test_same_files_give_the_same_table_bytes(tmp_path: Path, settings: Settings) -> None:
    lay(tmp_path, {f"NORMAL/{n}.jpg": jpeg(seed=n) for n in range(20)} | {"PNEUMONIA/x.jpg": jpeg(seed=99)})
    tables = [judged(tmp_path, settings.model_copy(update={"workers": n})).table for n in (1, 5)]
    assert to_parquet(tables[0], {}) == to_parquet(tables[1], {})


def test_row_of_a_jpeg(tmp_path: Path, settings: Settings) -> None:
    data = jpeg(seed=1)
    row = rows(judged(lay(tmp_path, {"NORMAL/person7_virus_1.jpeg": data}), settings))["NORMAL/person7_virus_1.jpeg"]
    stored = radiograph.normalise(data, radiograph.Limits())
    assert (row.size, row.source_digest) == (len(data), hashlib.sha256(data).hexdigest())
    assert (row.digest, row.suffix) == (stored.digest, ".jpg")
    assert (row.format, row.width, row.height, row.mode, row.bits) == ("jpeg", 80, 96, "L", 8)
    assert (row.label, row.given_split, row.verdict, row.reason, row.detail) == ("NORMAL", "", "accepted", "", "")
    assert row.patient == patient("patient:person7_virus")
    assert row.side in ("train", "validation", "held-out")


def test_split_folders_in_any_spelling(tmp_path: Path, settings: Settings) -> None:
    names = {"train": "train", "Training": "train", "VAL": "validation", "valid": "validation"}
    names |= {"validation": "validation", "test": "held-out", "Testing": "held-out"}
    files = {f"{name}/NORMAL/{n}.jpg": jpeg(seed=n) for n, name in enumerate(names)}
    result = judged(lay(tmp_path, files), settings.model_copy(update={"split_mode": "given"}))
    found = {row.file.split("/")[0]: row.given_split for row in rows(result).values()}
    assert found == names
    assert (result.table["side"] == result.table["given_split"]).all()


def test_in_patient_mode_only_given_test_decides(tmp_path: Path, settings: Settings) -> None:
    files = {f"{split}/NORMAL/{n}.jpg": jpeg(seed=n) for n in range(60) for split in (("train", "test")[n % 2],)}
    table = judged(lay(tmp_path, files), settings).table
    assert set(table.loc[table["given_split"] == "held-out", "side"]) == {"held-out"}
    assert set(table.loc[table["given_split"] == "train", "side"]) == {"train", "validation", "held-out"}


def test_classes_in_another_case_and_folders_below_them(tmp_path: Path, settings: Settings) -> None:
    table = judged(lay(tmp_path, {"normal/x/1.jpg": jpeg(), "Pneumonia/y/z/2.jpg": jpeg(seed=2)}), settings).table
    labels = dict(zip(table["file"], table["label"], strict=True))
    assert labels == {"Pneumonia/y/z/2.jpg": "PNEUMONIA", "normal/x/1.jpg": "NORMAL"}


@pytest.mark.parametrize(
    ("folder", "nearest"), [("PNEUMONA", "PNEUMONIA"), ("Normals", "NORMAL"), ("train/pneumnia", "PNEUMONIA")]
)
def test_misspelt_class_stops_and_suggests(tmp_path: Path, settings: Settings, folder: str, nearest: str) -> None:
    with pytest.raises(DeliveryError, match=rf"did you mean {nearest}\?"):
        judged(lay(tmp_path, two_classes() | {f"{folder}/1.jpg": jpeg()}), settings)


def test_unknown_class_stops_without_repeating_what_may_be_a_name(tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(DeliveryError, match="named like no class") as caught:
        judged(lay(tmp_path, two_classes() | {"DOE_JANE/1.jpg": jpeg()}), settings)
    assert "JANE" not in str(caught.value)


def test_no_class_folder_at_all_stops(tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(DeliveryError, match=r"neither a folder for a class \(NORMAL, PNEUMONIA\) nor labels.csv"):
        judged(lay(tmp_path, {"1.jpg": jpeg()}), settings)


def test_empty_or_missing_delivery_is_said(tmp_path: Path, settings: Settings) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(DeliveryError, match="nothing to check: it is empty; does it exist"):
            deliveries.at(str(folder), settings, EMPTY, NOW)
    lay(tmp_path, {"labels.csv": b"file,label\na.jpg,NORMAL\n", "_SUCCESS": b"", ".DS_Store": b"x"})
    with pytest.raises(DeliveryError, match="nothing to check: it has only bookkeeping or litter"):
        deliveries.at(str(tmp_path), settings, EMPTY, NOW)
    with pytest.raises(DeliveryError, match=r"labels\.csv is a file; a delivery is a folder"):
        deliveries.at(str(tmp_path / "labels.csv"), settings, EMPTY, NOW)


def test_class_folders_that_are_links_are_said(tmp_path: Path, settings: Settings) -> None:
    lay(tmp_path, two_classes(**{"in/notes.txt": b"x"}))
    for name in ("NORMAL", "PNEUMONIA"):
        (tmp_path / "in" / name).symlink_to(tmp_path / name)
    with pytest.raises(DeliveryError, match="2 symbolic links in it are never followed, deliver real folders"):
        judged(tmp_path / "in", settings)


def test_one_class_is_enough(tmp_path: Path, settings: Settings) -> None:
    result = judged(lay(tmp_path, {"NORMAL/1.jpg": jpeg()}), settings)
    assert result.fit


LITTER = [
    *(".DS_Store", "NORMAL/._a.jpg", "NORMAL/Thumbs.db", "NORMAL/desktop.ini", "__MACOSX/NORMAL/a.jpg"),
    *(".ipynb_checkpoints/a-checkpoint.jpg", "NORMAL/.ipynb_checkpoints/a.jpg", ".Trashes/501/a.jpg", ".git/config"),
    *("$RECYCLE.BIN/S-1-5/$R1.jpg", "System Volume Information/x", "lost+found/#12", ".anything/NORMAL/a.jpg"),
    *("@eaDir/a.jpg@SynoFile", "train/.hidden/a.jpg", "__pycache__/x.pyc", ".directory", "NORMAL/.nfs0001"),
    *("~$labels.xlsx", ".~lock.labels.csv#", "labels.csv~", "labels.csv.bak", "~WRL0001.tmp", "Backup of labels.xlk"),
    *("README", "README.md", "Read me.txt", "LICENSE", "licence.pdf", "DICOMDIR", "train/README.txt", "SHA256SUMS.txt"),
]
NO_LITTER = ["NORMAL/.a.jpg", "NORMAL/..jpg", "NORMAL/a.jpg~", "NORMAL/a.dcm.bak", "NORMAL/README.md", "notes.txt"]


def test_litter_is_listed_and_is_neither_class_nor_file(tmp_path: Path, settings: Settings) -> None:
    given = {f"{name}": jpeg(seed=50 + n) for n, name in enumerate(LITTER)}
    found = judged(lay(tmp_path, two_classes() | given), settings)
    assert {file: reason for file, reason in outcomes(found).items() if reason != "system-file"} == dict.fromkeys(
        two_classes(), "accepted"
    )
    assert set(outcomes(found)) == {*given, *two_classes()}
    kept = balance(found.table, 2 + len(LITTER))
    assert (kept.files, kept.quarantined, kept.litter, kept.holds) == (2, 0, len(LITTER), True)
    assert "<b>2</b>files" in found.page


def test_what_only_looks_like_litter_is_a_file(tmp_path: Path, settings: Settings) -> None:
    files = two_classes() | {name: jpeg(seed=50 + n) for n, name in enumerate(NO_LITTER)}
    found = outcomes(judged(lay(tmp_path, files), settings))
    assert found.pop("notes.txt") == "no-class"
    assert set(found.values()) == {"accepted"}


def test_litter_beside_a_labels_csv_and_links_in_it_are_litter(tmp_path: Path, settings: Settings) -> None:
    folder = lay(tmp_path, {"a.jpg": jpeg(), "labels.csv": b"file,label\na.jpg,NORMAL\n", "README.md": b"x"})
    lay(folder, {"~$labels.xlsx": b"x", ".cache/x.jpg": b"x"})
    (folder / ".cache" / "link").symlink_to(folder)
    found = outcomes(judged(folder, settings))
    assert found.pop("a.jpg") == "accepted"
    assert set(found.values()) == {"system-file"}


@pytest.mark.parametrize("below", ["", "train/"])
@pytest.mark.parametrize(
    ("wrap", "said"),
    [("chest_xray", "one folder too deep, in 'chest_xray'"), ("out/2026", "2 folders too deep, in 'out/2026'")],
)
def test_class_folders_that_lie_too_deep_are_refused_with_where(
    tmp_path: Path, settings: Settings, below: str, wrap: str, said: str
) -> None:
    files = {f"{wrap}/{below}{name}": data for name, data in two_classes().items()}
    with pytest.raises(DeliveryError, match=said):
        judged(lay(tmp_path, files | {"__MACOSX/x/._a": b"x", ".DS_Store": b"x", "README": b"x"}), settings)


def test_a_labels_csv_that_lies_too_deep_is_told(tmp_path: Path, settings: Settings) -> None:
    files = {"export/labels.csv": b"file,label\na.jpg,NORMAL\n", "export/images/a.jpg": jpeg()}
    with pytest.raises(DeliveryError, match="one folder too deep, in 'export'"):
        judged(lay(tmp_path, files), settings)


def test_class_folders_in_several_others_are_told_without_names(tmp_path: Path, settings: Settings) -> None:
    files = {f"{who}/NORMAL/a.jpg": jpeg() for who in ("DOE_JANE", "ROE_JOHN")}
    with pytest.raises(DeliveryError, match="too deep, in 2 other folders") as caught:
        judged(lay(tmp_path, files), settings)
    assert "JANE" not in str(caught.value)


def test_every_misspelt_folder_is_named_and_misspelt_sides_too(tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(
        DeliveryError, match=r"'NORML'; did you mean NORMAL\? And one 'PNEUMONA'; did you mean PNEUMONIA"
    ):
        judged(lay(tmp_path / "a", {"NORML/a.jpg": jpeg(), "PNEUMONA/b.jpg": jpeg(seed=1)}), settings)
    with pytest.raises(DeliveryError, match=r"'trian'; did you mean train\?"):
        judged(lay(tmp_path / "b", {"trian/NORMAL/a.jpg": jpeg(), "test/NORMAL/b.jpg": jpeg(seed=1)}), settings)


CSV = b"""file,label,patient_id,split
a.jpg,NORMAL,P1,train
sub/b.jpg,pneumonia,P2,test
c.dcm,NORMAL,,
"""


def test_labels_csv(tmp_path: Path, settings: Settings) -> None:
    files = {
        "a.jpg": jpeg(),
        "sub/b.jpg": jpeg(seed=2),
        "c.dcm": dicom(seed=3),
        "d.jpg": jpeg(seed=4),
        "labels.csv": CSV,
    }
    result = judged(lay(tmp_path, files), settings)
    found = rows(result)
    assert {file: (row.label, row.given_split, row.patient) for file, row in found.items() if file != "d.jpg"} == {
        "a.jpg": ("NORMAL", "train", patient("patient:P1")),
        "sub/b.jpg": ("PNEUMONIA", "held-out", patient("patient:P2")),
        "c.dcm": ("NORMAL", "", patient("patient:patient-3")),
    }
    assert found["d.jpg"].reason == "not-listed"
    assert result.result["bookkeeping"] == ["labels.csv"]


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbffile,label\r\na.jpg,NORMAL\r\n",
        b"File;Label\na.jpg;normal\n",
        b"label\tfile\nNORMAL\ta.jpg",
        b'"file","label","more"\n"./a.jpg","NORMAL","x,y"\n\n',
        b"file,label\na.jpg,NORMAL\n,\n , \n,,,\n",
        b"file,label,patient_id\na.jpg,NORMAL,,,\n",
        b"sep=;\r\nfile;label\r\na.jpg;NORMAL\r\n",
        b"\xef\xbb\xbfSEP=\t\nfile\tlabel\na.jpg\tNORMAL",
    ],
)
def test_labels_csv_as_programs_write_it(tmp_path: Path, settings: Settings, text: bytes) -> None:
    assert outcomes(judged(lay(tmp_path, {"a.jpg": jpeg(), "labels.csv": text}), settings)) == {"a.jpg": "accepted"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "must start with the columns"),
        (b"name,label\na.jpg,NORMAL\n", "must start with the columns"),
        (b"file,label,label\na.jpg,NORMAL,NORMAL\n", "must start with the columns"),
        (b"file,label\na.jpg\n", "line 2 .* has 1 columns, not 2"),
        (b"file,label\na.jpg,NORMAL,more\n", "line 2 .* has 3 columns, not 2"),
        (b"sep=,\nfile,label\na.jpg\n", "line 3 .* has 1 columns, not 2"),
        (b"file,label\n" + b"\n" * 32_000_000, "32,000,011 bytes, 32,000,000 are allowed"),
        (b"file,label\na.jpg,NORML\n", "line 2 .*did you mean NORMAL?"),
        (b"file,label\na.jpg,HERNIA\n", "line 2 .*like no class"),
        (b"file,label,split\na.jpg,NORMAL,later\n", "line 2 .*none of train, val, test"),
        (b"file,label\n,NORMAL\n", "line 2 .*names no file"),
        (b"file,label\n\xff\xfe,NORMAL\n", "not UTF-8"),
        (b'file,label\n"a.jpg,NORMAL' + b"x" * 200_000, "not CSV"),
    ],
)
def test_labels_csv_that_can_not_be_read_stops(tmp_path: Path, settings: Settings, text: bytes, message: str) -> None:
    with pytest.raises(DeliveryError, match=message):
        judged(lay(tmp_path, {"a.jpg": jpeg(), "labels.csv": text}), settings)


def of_12_bits(seed: int, most: int = 4095) -> bytes:
    return png(np.rint(picture(seed).astype(float) * (most / 255)).astype(np.uint16))


def test_16_bit_pngs_of_fewer_bits_are_noted_counted_and_stored_as_they_are_shown(
    tmp_path: Path, settings: Settings
) -> None:
    files = two_classes() | {f"NORMAL/{n}.png": of_12_bits(n) for n in range(3, 6)}
    result = judged(lay(tmp_path, files), settings)
    found = rows(result)
    assert [(found[f"NORMAL/{n}.png"].mode, found[f"NORMAL/{n}.png"].bits) for n in range(3, 6)] == [("I;16", 12)] * 3
    assert "scaled to the whole range: 3 of 12 bits" in result.page
    assert result.warnings == ()
    assert "scaled" not in judged(lay(tmp_path / "other", two_classes()), settings).page


def test_mixed_depths_of_16_bit_pngs_are_warned_of(tmp_path: Path, settings: Settings) -> None:
    files = two_classes() | {f"NORMAL/{n}.png": of_12_bits(n) for n in range(3, 6)}
    result = judged(lay(tmp_path, files | {"NORMAL/dark.png": of_12_bits(9, 900)}), settings)
    assert result.fit
    assert "1 of 10 bits, 3 of 12 bits" in result.warnings[0]
    assert "scaled to the whole range: 1 of 10 bits, 3 of 12 bits" in result.page
    assert "Drift alarm" not in result.page
    told = judged(tmp_path, with_rules(settings, png_bits=12))
    assert told.warnings == ()
    assert rows(told)["NORMAL/dark.png"].bits == 12


def test_labels_csv_may_say_the_depth_of_a_16_bit_png(tmp_path: Path, settings: Settings) -> None:
    dark, text = of_12_bits(9, 900), "file;label;bits\na.png;NORMAL;{}\nb.png;PNEUMONIA;\n"
    lay(tmp_path, {"a.png": dark, "b.png": of_12_bits(8)})
    for said, bits in (("12", 12), (" 12.0", 12), ("16", 16), ("", 10)):
        lay(tmp_path, {"labels.csv": text.format(said).encode()})
        result = judged(tmp_path, with_rules(settings, png_bits=14) if bits == 16 else settings)
        found = rows(result)
        assert (found["a.png"].bits, found["a.png"].verdict) == (bits, "accepted")
        assert found["b.png"].bits == (14 if bits == 16 else 12)
        again = reading.reread(open_store(tmp_path), "a.png", Limits.of(settings.rules), found["a.png"].bits)
        assert again.digest == found["a.png"].digest
    for said in ("7", "17", "12 bits", "-1", "12.5"):
        lay(tmp_path, {"labels.csv": text.format(said).encode()})
        with pytest.raises(DeliveryError, match=r"^line 2 of labels\.csv .* has bits that are none of 8 to 16"):
            judged(tmp_path, settings)
    lay(tmp_path, {"labels.csv": b"file,label,bits\na.png,NORMAL,8\nb.png,NORMAL,12\nb.png,NORMAL,14\n"})
    assert outcomes(judged(tmp_path, settings)) == {"a.png": "wrong-depth", "b.png": "listed-twice"}


def test_depth_that_was_said_is_committed(settings: Settings) -> None:
    text = b"file,label,bits\na.png,NORMAL,12\nb.png,PNEUMONIA,\n"
    lay(Path(settings.incoming) / "first", {"a.png": of_12_bits(9, 900), "b.png": of_12_bits(8), "labels.csv": text})
    dataset = Dataset(settings)
    commit(dataset, judged(Path(settings.incoming) / "first", settings))
    for row in dataset.rows(dataset.snapshot()).itertuples():
        pixels = radiograph.decode(dataset.read(row.digest, row.suffix))
        assert pixels.max() == pytest.approx(65535 if row.label == "PNEUMONIA" else 900 / 4095 * 65535, abs=1)


def test_labels_csv_must_be_a_regular_file(tmp_path: Path, settings: Settings) -> None:
    lay(tmp_path, {"in/a.jpg": jpeg(), "out.csv": b"file,label\na.jpg,NORMAL\n"})
    (tmp_path / "in" / "labels.csv").symlink_to(tmp_path / "out.csv")
    with pytest.raises(DeliveryError, match="not a regular file"):
        judged(tmp_path / "in", settings)


def test_listed_files_that_are_not_there_or_outside_have_rows_and_are_never_opened(
    tmp_path: Path, settings: Settings
) -> None:
    listed = "".join(
        f"{name},NORMAL\n" for name in ("a.jpg", "gone.jpg", "../secret.jpg", str(tmp_path / "secret.jpg"))
    )
    lay(tmp_path, {"in/a.jpg": jpeg(), "secret.jpg": jpeg(seed=5), "in/labels.csv": f"file,label\n{listed}".encode()})
    found = outcomes(judged(tmp_path / "in", settings))
    assert found.pop("a.jpg") == "accepted"
    assert list(found.values()) == ["missing"] * 3


def test_listed_names_may_be_in_another_unicode_form(tmp_path: Path, settings: Settings) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    text = f"file,label\n{composed}1.jpg,NORMAL\n{composed}2.jpg,NORMAL\n{decomposed}2.jpg,PNEUMONIA\n".encode()
    files = {f"{decomposed}1.jpg": jpeg(), f"{composed}2.jpg": jpeg(seed=2), f"{decomposed}2.jpg": jpeg(seed=3)}
    result = judged(lay(tmp_path, files | {"labels.csv": text}), settings)
    assert outcomes(result) == dict.fromkeys(files, "accepted")
    assert rows(result)[f"{decomposed}2.jpg"].label == "PNEUMONIA"


FOLDERS, CASE, EXTENSIONS = "leading folders", "upper and lower case", "extensions"


@pytest.mark.parametrize(
    ("files", "names", "aside"),
    [
        (["a1.jpg", "a2.jpg"], ["D:\\data\\cxr\\a1.jpg", "D:\\data\\cxr\\a2.jpg"], FOLDERS),
        (["a1.jpg", "a2.jpg"], ["/data/cxr/a1.jpg", "/data/cxr/a2.jpg"], FOLDERS),
        (["a1.jpg", "a2.jpg"], ["cxr/a1.jpg", "cxr/a2.jpg"], FOLDERS),
        (["a1.jpg", "a2.jpg"], ["C:\\x\\a1.jpg", "E:\\y\\a2.jpg"], FOLDERS),
        (["a1.jpg", "a2.jpg"], ["a1.jpg", "\\\\server\\share\\a2.jpg"], FOLDERS),
        (["p1/x.jpg", "p2/x.jpg"], ["D:\\cxr\\p1\\x.jpg", "D:\\cxr\\p2\\x.jpg"], FOLDERS),
        (["images/a1.jpg", "images/a2.jpg"], ["a1.jpg", "a2.jpg"], FOLDERS),
        (["images/a1.jpg", "images/a2.jpg"], ["/mnt/x/a1.jpg", "/mnt/x/a2.jpg"], FOLDERS),
        (["images_001/a1.jpg", "images_002/a2.jpg"], ["a1.jpg", "a2.jpg"], FOLDERS),
        (["a1.jpg", "a2.jpg"], ["A1.JPG", "a2.Jpg"], CASE),
        (["a1.jpg", "A2.JPG"], ["A1.jpg", "a2.jpg"], CASE),
        (["a1.jpg", "a2.jpg"], ["a1", "a2"], EXTENSIONS),
        (["a1.jpg", "a2.jpg"], ["a1.png", "a2.dcm"], EXTENSIONS),
        (["1.2.840.1", "1.2.840.2"], ["1.2.840.1.dcm", "1.2.840.2.dcm"], EXTENSIONS),
        (["a1.jpg", "a2.jpg"], ["D:\\CXR\\A1.PNG", "D:\\CXR\\A2.PNG"], f"{FOLDERS} and {CASE} and {EXTENSIONS}"),
        (["p/a1.jpg", "p/a2.jpg"], ["p\\a1.jpg", ".\\p\\a2.jpg"], "backslashes"),
    ],
)
def test_listed_names_that_are_written_otherwise_are_matched_and_it_is_said(
    tmp_path: Path, settings: Settings, files: list[str], names: list[str], aside: str
) -> None:
    lay(tmp_path, {file: jpeg(seed=seed) for seed, file in enumerate(files)})
    lay(tmp_path, {"labels.csv": f"file,label\n{names[0]},NORMAL\n{names[1]},PNEUMONIA\n".encode()})
    found = judged(tmp_path, settings)
    assert outcomes(found) == dict.fromkeys(files, "accepted")
    assert [rows(found)[file].label for file in files] == ["NORMAL", "PNEUMONIA"]
    said = " ".join(found.warnings)
    assert aside in said
    assert not any(name.strip("./") in said for name in (*files, *names))
    assert all(html.escape(warning) in found.page for warning in found.warnings)


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a1.jpg"], ["D:\\x\\a1.jpg", "D:\\y\\a1.jpg"]),
        (["a1.jpg"], ["siteA/a1.jpg", "siteB/a1.jpg"]),
        (["p1/x.jpg", "p2/x.jpg"], ["x.jpg"]),
        (["a1.jpg", "A1.jpg"], ["A1.JPG"]),
        (["a1.jpg", "a1.png"], ["a1.dcm"]),
        (["b.jpg", "a1.jpg", "A1.jpg"], ["b.jpg", "a1.JPG"]),
    ],
)
def test_listed_names_that_fit_several_files_refuse_the_delivery(
    tmp_path: Path, settings: Settings, files: list[str], names: list[str]
) -> None:
    lay(tmp_path / "day", {file: jpeg(seed=seed) for seed, file in enumerate(files)})
    lay(tmp_path / "day", {"labels.csv": "\n".join(["file,label", *(f"{name},NORMAL" for name in names)]).encode()})
    with pytest.raises(DeliveryError, match=r"labels\.csv of delivery day .*(fit several files|one of its)") as caught:
        judged(tmp_path / "day", settings)
    assert "write each path as it is inside the delivery" in str(caught.value)


def test_names_of_nothing_that_is_here_are_refused_with_a_hint(tmp_path: Path, settings: Settings) -> None:
    lay(tmp_path / "day", {"a.jpg": jpeg(), "labels.csv": b"file,label\nD:\\x\\b.jpg,NORMAL\n"})
    with pytest.raises(
        DeliveryError, match=r"none of the 1 names in labels\.csv of delivery day is one of its 1 files"
    ):
        judged(tmp_path / "day", settings)


def test_a_stray_line_takes_no_file_of_another_folder(tmp_path: Path, settings: Settings) -> None:
    lay(tmp_path, {"p1/a.jpg": jpeg(), "p3/b.jpg": jpeg(seed=1), "b.jpg": jpeg(seed=2), "x\\y.jpg": jpeg(seed=3)})
    text = b"file,label\np1/a.jpg,NORMAL\np2/b.jpg,PNEUMONIA\nx\\y.jpg,NORMAL\n"
    found = judged(lay(tmp_path, {"labels.csv": text}), settings)
    assert outcomes(found) == {
        "p1/a.jpg": "accepted",
        "x\\x5cy.jpg": "accepted",  # a backslash may be part of a name
        "p2/b.jpg": "missing",
        "p3/b.jpg": "not-listed",
        "b.jpg": "not-listed",
    }


@pytest.mark.parametrize(
    ("ids", "several"),
    [
        (["7", "7.0", "0007"], 1),
        (["7", "8"], 0),
        (["7.0", "8.0"], 0),
        (["P7", "p007", "9", "09"], 2),
        (["1.2.0", "1.2"], 0),
    ],
)
def test_patient_ids_in_several_forms_are_told_and_never_changed(
    tmp_path: Path, settings: Settings, ids: list[str], several: int
) -> None:
    files = {f"{n}.jpg": jpeg(seed=n) for n in range(len(ids))}
    text = "".join(f"{n}.jpg,NORMAL,{identifier}\n" for n, identifier in enumerate(ids))
    found = judged(lay(tmp_path, {**files, "labels.csv": f"file,label,patient_id\n{text}".encode()}), settings)
    assert [rows(found)[file].patient for file in files] == [patient(f"patient:{identifier}") for identifier in ids]
    told = [warning for warning in found.warnings if "patient_id" in warning]
    assert len(told) == bool(several)
    assert all(f"writes {several} patients in more than one way" in warning for warning in told)
    assert not any(form in " ".join(told) for form in ("7.0", "0007", "007", "09"))


LISTED = """
from xray_pipeline.base.settings import Settings
from xray_pipeline.intake import placing
from xray_pipeline.base.storage import Entry, open_store
import sys
def peak():  # KB
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
names = int(sys.argv[2])
entries = [Entry(f"{n}.jpg", 1, "v", 0.0) for n in range(names if sys.argv[3] == "there" else 3)]
entries.append(Entry("labels.csv", 1, "v", 0.0))
before = peak()
said = placing.places(placing.Source(open_store(sys.argv[1]), Settings(), b"key", "x"), entries)
print((peak() - before) * 1024 // names, len(said.places), len(said.missing))
"""


@pytest.mark.parametrize("kind", ["there", "absent"])
def test_a_long_labels_csv_takes_little_more_memory_than_what_is_kept_of_it(tmp_path: Path, kind: str) -> None:
    count = 300_000
    text = "".join(f"{n}.jpg,NORMAL,{n // 3}\n" for n in range(count))
    lay(tmp_path, {"labels.csv": f"file,label,patient_id\n{text}".encode()})
    command = [sys.executable, "-c", LISTED, str(tmp_path), str(count), kind]
    bytes_a_line, found, missing = map(int, subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.split())
    assert (found, missing) == ((count, 0) if kind == "there" else (3, count - 3))
    assert bytes_a_line < 430


def test_a_list_of_very_many_files_that_are_not_there_is_refused_at_once(tmp_path: Path, settings: Settings) -> None:
    text = "".join(f"{n}.jpg,NORMAL\n" for n in range(20_003))
    lay(tmp_path, {f"{n}.jpg": jpeg(seed=n) for n in range(3)} | {"labels.csv": f"file,label\n{text}".encode()})
    with pytest.raises(DeliveryError, match="names 20,000 files that are not in it, beside 3 that are"):
        judged(tmp_path, settings)


def test_a_file_listed_under_two_labels_is_a_conflict(tmp_path: Path, settings: Settings) -> None:
    text = b"file,label\na.jpg,NORMAL\nb.jpg,NORMAL\na.jpg,PNEUMONIA\n"
    found = outcomes(judged(lay(tmp_path, {"a.jpg": jpeg(), "b.jpg": jpeg(seed=2), "labels.csv": text}), settings))
    assert found == {"a.jpg": "label-conflict", "b.jpg": "accepted"}


def test_a_file_listed_often_and_differently_says_how(tmp_path: Path, settings: Settings) -> None:
    lines = ["a.jpg,NORMAL,1", "a.jpg,PNEUMONIA,1", "a.jpg,PNEUMONIA,1", "b.jpg,NORMAL,1", "b.jpg,NORMAL,2"]
    lines += ["b.jpg,NORMAL,2", "c.jpg,NORMAL,1", "c.jpg,NORMAL,1"]
    text = "\n".join(["file,label,patient_id", *lines]).encode()
    files = {f"{name}.jpg": jpeg(seed=seed) for seed, name in enumerate("abc")}
    result = judged(lay(tmp_path, files | {"labels.csv": text}), settings)
    assert outcomes(result) == {"a.jpg": "label-conflict", "b.jpg": "listed-twice", "c.jpg": "accepted"}
    assert rows(result)["b.jpg"].detail == "listed more than once and differently, last in line 7 of labels.csv"


def test_labels_csv_against_the_class_folder_is_a_conflict(tmp_path: Path, settings: Settings) -> None:
    names = ["NORMAL/a.jpg", "train/Pneumonia/b.jpg", "NORMAL/c.jpg", "ward/d.jpg"]
    text = "".join(f"{name},NORMAL\n" for name in names).replace("c.jpg,NORMAL", "c.jpg,pneumonia")
    files = {name: jpeg(seed=seed) for seed, name in enumerate(names)}
    found = judged(lay(tmp_path, files | {"labels.csv": f"file,label\n{text}".encode()}), settings)
    kept = {"NORMAL/a.jpg": "accepted", "ward/d.jpg": "accepted"}
    assert outcomes(found) == kept | {"NORMAL/c.jpg": "label-conflict", "train/Pneumonia/b.jpg": "label-conflict"}


# patients


def test_patient_is_dicoms_then_listed_then_in_the_name_then_the_file(tmp_path: Path, settings: Settings) -> None:
    lines = ("file,label,patient_id", "a.dcm,NORMAL,listed", "IM-0001-1.jpg,NORMAL,listed", "IM-0002-1.jpg,NORMAL,")
    text = "\n".join((*lines, "x.jpg,NORMAL,")).encode()
    files = {
        "a.dcm": dicom(PatientID=" in dicom "),
        "IM-0001-1.jpg": jpeg(seed=1),
        "IM-0002-1.jpg": jpeg(seed=2),
        "x.jpg": jpeg(seed=3),
    }
    found = rows(judged(lay(tmp_path, files | {"labels.csv": text}), settings))
    assert {file: row.patient for file, row in found.items()} == {
        "a.dcm": patient("patient:in dicom"),
        "IM-0001-1.jpg": patient("patient:listed"),
        "IM-0002-1.jpg": patient("patient:IM-0002"),
        "x.jpg": patient(f"file:{hashlib.sha256(jpeg(seed=3)).hexdigest()}"),
    }


@pytest.mark.parametrize("identifier", ["", "0", "ANONYMOUS", "anonymized", "N/A", "---", "unknown", "DEIDENTIFIED"])
def test_placeholders_are_no_patient(tmp_path: Path, settings: Settings, identifier: str) -> None:
    data = dicom(PatientID=identifier)
    row = rows(judged(lay(tmp_path, {"NORMAL/a.dcm": data}), settings))["NORMAL/a.dcm"]
    assert row.patient == patient(f"file:{hashlib.sha256(data).hexdigest()}")


def test_a_pattern_that_does_not_compile_is_refused_before_anything_is_read() -> None:
    with pytest.raises(ConfigError, match=r"XRAY_RULES__PATIENT_PATTERN: .*no regular expression"):
        Settings(rules={"patient_pattern": "("})


# copies, conflicts, sides


def test_copies_inside_a_delivery_keep_the_first(tmp_path: Path, settings: Settings) -> None:
    secret = jpeg(seed=1, comment=b"not the same bytes")
    result = judged(lay(tmp_path, two_classes() | {"NORMAL/copy.jpg": secret, "NORMAL/c.png": png(seed=3)}), settings)
    assert outcomes(result)["NORMAL/copy.jpg"] == "duplicate"
    assert rows(result)["NORMAL/copy.jpg"].detail == "the same image as row 0"
    assert result.fit


def test_the_same_image_in_another_format_is_a_copy(tmp_path: Path, settings: Settings) -> None:
    files = {"NORMAL/a.png": png(seed=1), "NORMAL/b.dcm": dicom(seed=1), "NORMAL/c.jpg": jpeg(seed=2)}
    assert outcomes(judged(lay(tmp_path, files), settings))["NORMAL/b.dcm"] == "duplicate"


def test_one_image_under_two_labels_is_out_twice(tmp_path: Path, settings: Settings) -> None:
    found = judged(lay(tmp_path, two_classes() | {"PNEUMONIA/a.jpg": jpeg(seed=1)}), settings)
    assert outcomes(found) == {
        "NORMAL/a.jpg": "label-conflict",
        "PNEUMONIA/a.jpg": "label-conflict",
        "PNEUMONIA/b.jpg": "accepted",
    }
    assert (found.table.loc[found.table["verdict"] == "quarantined", "side"] == "").all()


def test_against_the_dataset(tmp_path: Path, settings: Settings) -> None:
    digests = [radiograph.normalise(jpeg(seed=n), radiograph.Limits()).digest for n in (1, 2)]
    history = Past(labels={digests[0]: "NORMAL", digests[1]: "NORMAL"})
    found = outcomes(judged(lay(tmp_path, two_classes()), settings, history))
    assert found == {"NORMAL/a.jpg": "duplicate", "PNEUMONIA/b.jpg": "label-conflict"}


def test_a_patient_given_on_two_sides_is_out(tmp_path: Path, settings: Settings) -> None:
    files = {f"train/NORMAL/patient{n}_1.jpg": jpeg(seed=n) for n in range(40)}
    files |= {"test/NORMAL/patient0_2.jpg": jpeg(seed=100), "test/NORMAL/patient1_2.jpg": jpeg(seed=101)}
    found = judged(lay(tmp_path, files), settings)
    table = found.table
    for name in ("patient0_", "patient1_"):
        mine = table[table["file"].str.contains(name)]
        by_hash = mine.loc[mine["given_split"] == "train", "reason"].iloc[0] == ""
        assert set(mine["reason"]) == ({""} if by_hash else {"patient-on-two-sides"})
    assert (table["reason"] == "patient-on-two-sides").sum() in (2, 4)


def test_a_patient_of_the_datasets_other_side_is_out(tmp_path: Path, settings: Settings) -> None:
    given = settings.model_copy(update={"split_mode": "given"})
    files = {"train/NORMAL/patient1_1.jpg": jpeg(seed=1), "test/NORMAL/patient2_1.jpg": jpeg(seed=2)}
    history = Past(sides={patient("patient:patient1"): "held-out", patient("patient:patient2"): "held-out"})
    found = outcomes(judged(lay(tmp_path, files), given, history))
    assert list(found.values()) == ["accepted", "patient-on-two-sides"]


def test_in_given_mode_a_file_needs_a_side(tmp_path: Path, settings: Settings) -> None:
    given = settings.model_copy(update={"split_mode": "given"})
    found = outcomes(judged(lay(tmp_path, {"val/NORMAL/1.jpg": jpeg(), "NORMAL/2.jpg": jpeg(seed=2)}), given))
    assert found == {"NORMAL/2.jpg": "no-given-split", "val/NORMAL/1.jpg": "accepted"}


def test_rejudging_against_a_grown_dataset(tmp_path: Path, settings: Settings) -> None:
    table = judged(lay(tmp_path, two_classes()), settings).table
    digest = table["digest"][0]
    again = mark_conflicts(table, Past(labels={digest: "NORMAL"}), settings)
    assert list(again["reason"]) == ["duplicate", ""]
    assert list(table["reason"]) == ["", ""]
    assert mark_conflicts(again, Past(labels={digest: "NORMAL"}), settings).equals(again)
    assert mark_conflicts(table, EMPTY, settings).equals(table)


# what is never opened


def test_links_and_special_files_are_rows_and_never_opened(tmp_path: Path, settings: Settings) -> None:
    folder = lay(tmp_path / "in", two_classes())
    lay(tmp_path, {"outside/secret.jpg": jpeg(seed=7)})
    (folder / "NORMAL" / "link.jpg").symlink_to(tmp_path / "outside" / "secret.jpg")
    (folder / "NORMAL" / "dangling.jpg").symlink_to(tmp_path / "nowhere")
    (folder / "PNEUMONIA" / "folder").symlink_to(tmp_path / "outside")
    (folder / "linked").symlink_to(tmp_path / "outside")
    os.mkfifo(folder / "NORMAL" / "fifo.jpg")
    found = outcomes(judged(folder, settings))
    assert {file: reason for file, reason in found.items() if reason != "accepted"} == {
        "NORMAL/link.jpg": "symlink",
        "NORMAL/dangling.jpg": "symlink",
        "PNEUMONIA/folder": "symlink",
        "linked": "symlink",
        "NORMAL/fifo.jpg": "special-file",
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a device")
def test_devices_are_never_opened(tmp_path: Path, settings: Settings) -> None:
    folder = lay(tmp_path, two_classes())
    try:
        os.mknod(folder / "NORMAL" / "zero.jpg", 0o600 | 0o020000, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("this machine lets nobody make a device")
    assert outcomes(judged(folder, settings))["NORMAL/zero.jpg"] == "special-file"


def test_odd_names_stay_apart(tmp_path: Path, settings: Settings) -> None:
    names = [
        "caf\u00e9.jpg".encode(),
        "cafe\u0301.jpg".encode(),
        b"A.jpg",
        b"a.jpg",
        b"new\nline.jpg",
        b"back\\x41slash.jpg",
        b"latin-\xe9.jpg",
        b"x" * 251 + b".jpg",
        b" ",
        b"..jpg",
        b"%2e%2e.jpg",
        "\u202egpj.exe".encode(),
    ]
    folder = lay(tmp_path, {"PNEUMONIA/b.jpg": jpeg(seed=99)})
    (folder / "NORMAL").mkdir()
    for seed, name in enumerate(names):
        (folder / "NORMAL" / os.fsdecode(name)).write_bytes(jpeg(seed=seed))
    result = judged(folder, settings)
    assert len(result.table) == len(names) + 1
    assert set(outcomes(result).values()) == {"accepted"}
    assert {unescape(file) for file in result.table["file"]} == {
        "PNEUMONIA/b.jpg",
        *(f"NORMAL/{os.fsdecode(name)}" for name in names),
    }
    store = open_store(folder)
    for row in result.table.itertuples():
        assert reading.reread(store, row.file, Limits.of(settings.rules)).digest == row.digest
    assert result.table["file"].map(lambda file: file.encode().decode() == file).all()


@given(st.binary(min_size=1, max_size=40).map(os.fsdecode))
@hypothesis_settings(max_examples=200, deadline=None)
def test_escaping_a_name_can_be_undone(name: str) -> None:
    escaped = escape(name)
    assert unescape(escaped) == name
    assert escaped.encode().decode() == escaped
    assert "\n" not in escaped


def test_unreadable_files_are_quarantined(settings: Settings) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = lay(Path(name), two_classes())
        folder.chmod(0o755)
        (folder / "NORMAL" / "a.jpg").chmod(0)
        me = os.geteuid()
        if me == 0:
            os.seteuid(65534)  # root reads what nobody else may
        try:
            assert outcomes(judged(folder, settings))["NORMAL/a.jpg"] == "unreadable"
        finally:
            os.seteuid(me)


def test_files_that_vanish_or_change_during_the_check(tmp_path: Path, settings: Settings) -> None:
    files = {f"NORMAL/{n}.jpg": jpeg(seed=n) for n in range(12)}
    folder = lay(tmp_path, files)
    delivery = deliveries.at(str(folder), settings, EMPTY, NOW)

    def meddle(done: int, total: int, what: str) -> None:
        if done == 1:
            (folder / "NORMAL/3.jpg").unlink()
            (folder / "NORMAL/0.jpg").write_bytes(jpeg(seed=50))

    result = check(delivery, settings.model_copy(update={"workers": 1}), EMPTY, KEY, meddle)
    found = outcomes(result)
    assert (found["NORMAL/3.jpg"], found["NORMAL/0.jpg"]) == ("vanished", "changed")
    assert sorted(found.values()).count("accepted") == 10


def test_a_delivery_that_grew_since_it_was_found_is_not_judged(tmp_path: Path, settings: Settings) -> None:
    delivery = deliveries.at(str(lay(tmp_path, two_classes())), settings, EMPTY, NOW)
    lay(tmp_path, {"NORMAL/new.jpg": jpeg(seed=3)})
    with pytest.raises(DeliveryError, match="changed since it was found"):
        check(delivery, settings, EMPTY, KEY)


def test_archives_and_disguises_are_refused_unopened(tmp_path: Path, settings: Settings) -> None:
    archive = shutil.make_archive(str(tmp_path / "a"), "zip", lay(tmp_path / "zip", {"NORMAL/x.jpg": jpeg()}))
    files = {"NORMAL/a.zip": Path(archive).read_bytes(), "NORMAL/page.dcm": b"<html>", "NORMAL/x.jpeg": b"%PDF-1.4"}
    found = outcomes(judged(lay(tmp_path / "in", two_classes() | files), settings))
    assert [found[name] for name in files] == ["archive", "not-an-image", "not-an-image"]


def test_large_files_are_quarantined_unread(tmp_path: Path, settings: Settings) -> None:
    rules = with_rules(settings, max_file_bytes=5000)
    row = rows(judged(lay(tmp_path, two_classes() | {"NORMAL/big.jpg": bytes(5001)}), rules))["NORMAL/big.jpg"]
    assert (row.reason, row.source_digest) == ("too-large", "")


# the whole


def test_every_file_is_accounted_for(tmp_path: Path, settings: Settings) -> None:
    files = two_classes() | {"NORMAL/bad.jpg": b"x", "README": b"y", "NORMAL/copy.jpg": jpeg(seed=1)}
    result = judged(lay(tmp_path, files), settings)
    assert set(result.table["file"]) == set(files)
    assert result.result["accepted"] + sum(result.result["quarantined"].values()) == len(files)
    assert set(result.table.loc[result.table["verdict"] == "quarantined", "reason"]) <= QUARANTINED.keys()
    sizes = dict(zip(result.table["file"], result.table["size"], strict=True))
    assert sizes == {file: len(data) for file, data in files.items()}


def test_a_delivery_is_never_changed(tmp_path: Path, settings: Settings) -> None:
    folder = lay(tmp_path, two_classes() | {"NORMAL/bad.jpg": b"x"})

    def state() -> list[tuple[str, int, bytes]]:
        return [(str(p), p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()]

    before = state()
    judged(folder, settings)
    assert state() == before


def test_progress_is_told_for_every_file(tmp_path: Path, settings: Settings) -> None:
    told: list[tuple[int, int, str]] = []
    delivery = deliveries.at(str(lay(tmp_path / "day", two_classes())), settings, EMPTY, NOW)
    check(delivery, settings, EMPTY, KEY, lambda *now: told.append(now))
    assert told == [(1, 2, "checking day"), (2, 2, "checking day")]


def test_no_patient_data_in_page_result_or_log(
    tmp_path: Path, settings: Settings, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    who: dict[str, Any] = {
        "PatientName": "DOE^JANE",
        "PatientID": "MRN-4711",
        "PatientBirthDate": "19400305",
        "StudyDate": "20040826",
    }
    files = {
        "NORMAL/DOE_JANE_1.dcm": dicom(**who, seed=1),
        "NORMAL/DOE_JANE_2.jpg": jpeg(seed=2, comment=b"DOE^JANE"),
        "NORMAL/DOE_JANE_3.dcm": dicom(**who, seed=3, Rows=900),
        "NORMAL/DOE_JANE_4.dcm": dicom(**who, seed=4, Modality="DOE^JANE"),
        "NORMAL/DOE_JANE_5.txt": b"DOE^JANE",
        "NORMAL/DOE_JANE_6.dcm": dicom(**who, seed=1),
    }
    result = judged(lay(tmp_path / "day", files), settings)
    columns = result.table.drop(columns=["file"]).to_csv()
    said = "\n".join(
        [result.page, json.dumps(result.result), *result.failures, columns, caplog.text, *capfd.readouterr()]
    )
    for secret in ("JANE", "DOE", "4711", "19400305", "1940-03-05", "20040826"):
        assert secret not in said
    stored = reading.reread(open_store(tmp_path / "day"), "NORMAL/DOE_JANE_1.dcm", radiograph.Limits())
    assert b"JANE" not in stored.data


def test_s3_delivery_gives_the_same_table(s3: S3Server, tmp_path: Path, settings: Settings) -> None:
    files = two_classes() | {"NORMAL/bad.jpg": b"x", "NORMAL/d.dcm": dicom(seed=5), "_SUCCESS": b""}
    root = f"s3://{BUCKET}/incoming-{os.getpid()}"
    remote = settings.model_copy(update={"s3_endpoint": s3.endpoint})
    store = open_store(root, remote)
    for name, data in files.items():
        store.write(f"day/{name}", data)
    (delivery,) = find(store, EMPTY, 3600, time.time())
    assert (delivery.name, delivery.settled, delivery.files) == ("day", True, 4)
    there = check(delivery, remote, EMPTY, KEY).table.drop(columns=["version"])
    here = judged(lay(tmp_path / "day", files), settings).table.drop(columns=["version"])
    assert there.equals(here)


@contextlib.contextmanager
def denied(s3: S3Server, action: str, resource: str) -> Iterator[None]:
    """The server's own policy denies an action on objects or, where `resource` is "", on the bucket."""
    import boto3

    client = boto3.client("s3", endpoint_url=s3.endpoint)
    arn = "/".join(filter(None, [f"arn:aws:s3:::{BUCKET}", resource]))
    statement = {"Effect": "Deny", "Principal": "*", "Action": [action], "Resource": [arn]}
    client.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
    try:
        yield
    finally:
        client.delete_bucket_policy(Bucket=BUCKET)


def test_an_object_that_s3_denies_is_a_row_and_a_denied_listing_stops(s3: S3Server, settings: Settings) -> None:
    root = f"s3://{BUCKET}/denied-{os.getpid()}"
    remote = settings.model_copy(update={"s3_endpoint": s3.endpoint})
    store = open_store(root, remote)
    for name, data in (two_classes() | {"NORMAL/c.jpg": jpeg(seed=3)}).items():
        store.write(f"day/{name}", data)
    day = f"denied-{os.getpid()}/day"
    with denied(s3, "s3:GetObject", f"{day}/NORMAL/c.jpg"):
        found = judged(f"{root}/day", remote)
    assert outcomes(found) == {
        "NORMAL/a.jpg": "accepted",
        "NORMAL/c.jpg": "unreadable",
        "PNEUMONIA/b.jpg": "accepted",
    }
    with denied(s3, "s3:GetObject", f"{day}/*"):
        assert set(outcomes(judged(f"{root}/day", remote)).values()) == {"unreadable"}
    with denied(s3, "s3:ListBucket", ""), pytest.raises(StorageUnavailable, match="AccessDenied"):
        find(store, EMPTY, 0, NOW)


def test_labels_csv_that_may_not_be_read_stops_its_delivery(settings: Settings) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = lay(Path(name), {"a.jpg": jpeg(), "labels.csv": b"file,label\na.jpg,NORMAL\n"})
        folder.chmod(0o755)
        (folder / "labels.csv").chmod(0)
        with nobody(), pytest.raises(DeliveryError, match=r"no permission to read labels\.csv"):
            judged(folder, settings)


@pytest.mark.parametrize("key", ["NORMAL//x.jpg", "NORMAL/../../x.jpg", "/NORMAL/x.jpg"])
def test_keys_that_are_no_paths_are_never_read(tmp_path: Path, settings: Settings, key: str) -> None:
    store = DirectoryStore(tmp_path)
    reader = reading.Reader(Source(store, settings, KEY, "x"), KEY, Said({key: Place("NORMAL")}), Labels(store))
    assert reader.row(Entry(key, 1, "v", 0.0)).reason == "unreadable"


@pytest.mark.parametrize(
    ("kind", "files", "limit"),
    [
        ("directory", 60, 15_000_000),  # 60 files hold 29 MB, decoded as much again
        # And 130 64 MB; 25 MB are the clients', 15 MB answers that were read.
        pytest.param("s3", 130, 55_000_000, marks=pytest.mark.slow),
    ],
    ids=["directory", "s3"],
)
def test_memory_does_not_grow_with_the_number_of_files(
    tmp_path: Path, settings: Settings, kind: str, files: int, limit: int, request: pytest.FixtureRequest
) -> None:
    import numpy as np

    uri, two = str(tmp_path), settings.model_copy(update={"workers": 2})
    if kind == "s3":
        uri = f"s3://{BUCKET}/memory-{os.getpid()}"
        two = two.model_copy(update={"s3_endpoint": request.getfixturevalue("s3").endpoint})
    store = open_store(uri, two)
    big = np.random.default_rng(0).integers(0, 256, (700, 700), np.uint8)
    for n in range(files):
        big[0, :2] = n, 255
        store.write(f"NORMAL/{n}.png", png(big, compress_level=1))
    check(deliveries.at(uri, two, EMPTY, NOW), two, EMPTY, KEY)
    tracemalloc.start()
    try:
        check(deliveries.at(uri, two, EMPTY, NOW), two, EMPTY, KEY)
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


SCAN = """
import sys, time
from pathlib import Path
from xray_pipeline.intake import check as intake
from xray_pipeline.images import radiograph
from xray_pipeline.dataset.parquet import to_parquet
from xray_pipeline.intake import deliveries, scan as reading
from xray_pipeline.dataset.history import EMPTY, History
from xray_pipeline.base.settings import Settings
reading._JOURNAL_FROM = 1
settings = Settings(home=sys.argv[1], workers=2)
reads = 0
normalise = radiograph.normalise
def counted(data, limits):
    global reads
    reads += 1
    time.sleep(float(sys.argv[3]))
    return normalise(data, limits)
radiograph.normalise = counted
found = deliveries.at(sys.argv[2], settings, EMPTY, 1e12)
result = intake.check(found, settings, EMPTY, b"k", lambda *now: print(now[0], flush=True))
Path(sys.argv[1], "table").write_bytes(to_parquet(result.table, {}))
print("read", reads)
"""


@pytest.mark.slow
def test_a_killed_scan_goes_on_where_it_stopped(tmp_path: Path) -> None:
    delivery = lay(tmp_path / "day", {f"NORMAL/patient{n}_1.jpg": jpeg(seed=n) for n in range(60)})
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def scan(home: str, delay: float) -> subprocess.Popen[str]:
        arguments = [sys.executable, "-c", SCAN, str(tmp_path / home), str(delivery), str(delay)]
        return subprocess.Popen(arguments, env=env, stdout=subprocess.PIPE, text=True)

    killed = scan("killed", 0.1)
    assert killed.stdout is not None
    while killed.stdout.readline().strip() != "25":
        assert killed.poll() is None
    killed.kill()
    killed.communicate()
    (journal,) = (tmp_path / "killed" / "cache" / "intake").iterdir()
    assert journal.stat().st_mode & 0o777 == 0o600
    assert b"patient" not in journal.read_bytes()
    with journal.open("ab") as file:
        file.write(b'["torn')
    outcomes = [scan(home, 0).communicate(timeout=120)[0].split() for home in ("killed", "whole")]
    assert int(outcomes[0][-1]) <= 35
    assert int(outcomes[1][-1]) == 60
    assert (tmp_path / "killed" / "table").read_bytes() == (tmp_path / "whole" / "table").read_bytes()
    assert list((tmp_path / "killed" / "cache" / "intake").iterdir()) == []


def test_a_small_delivery_leaves_nothing_in_the_cache(tmp_path: Path, settings: Settings) -> None:
    judged(lay(tmp_path / "day", two_classes()), settings)
    assert not settings.cache.exists()


def test_a_dead_store_is_an_error_not_a_quarantine(tmp_path: Path, settings: Settings) -> None:
    class Dead(DirectoryStore):
        def read(self, key: str) -> bytes:
            raise StorageUnavailable("no answer")

    source, labels = Source(Dead(tmp_path), settings, KEY, "x"), Labels(DirectoryStore(tmp_path))
    reader = reading.Reader(source, KEY, Said({"a": Place("NORMAL")}), labels)
    with pytest.raises(StorageUnavailable):
        reader.row(Entry("a", 1, "v", 0.0))


@pytest.mark.parametrize("name", ["layout_ipynb_checkpoints", "layout_one_too_deep", "layout_windows_paths"])
def test_reported_layouts_end_as_they_should(shared: Path, settings: Settings, name: str) -> None:
    folder = shared / "data" / "reports" / name
    if name == "layout_one_too_deep":
        with pytest.raises(DeliveryError, match="lie one folder too deep, in 'chest_xray'; deliver that folder itself"):
            judged(folder, settings)
        return
    found = judged(folder, settings)
    assert found.fit
    kept = {file: reason for file, reason in outcomes(found).items() if not file.startswith(".")}
    assert len(kept) == (8 if name == "layout_ipynb_checkpoints" else 4)
    assert set(kept.values()) == {"accepted"}
    assert found.result["quarantined"] == ({"system-file": 1} if name == "layout_ipynb_checkpoints" else {})


def test_real_delivery_into_the_dataset(shared: Path, settings: Settings) -> None:
    dataset = Dataset(settings)
    folder = shared / "data" / "fullres_sample"
    delivery = deliveries.at(str(folder), settings, dataset.history(), NOW)
    result = check(delivery, settings, dataset.history(), dataset.patient_key())
    assert result.fit
    assert len(result.table) == (result.table["verdict"] == "accepted").sum() == 106
    commit(dataset, result)
    with pytest.raises(DeliveryError, match="in the dataset already"):
        deliveries.at(str(folder), settings, dataset.history(), NOW)
    snapshot = dataset.snapshot()
    assert snapshot is not None
    assert snapshot.images == 106


def test_byte_identical_real_files_are_found(shared: Path, tmp_path: Path, settings: Settings) -> None:
    manifest = pd.read_csv(shared / "data" / "chest_xray_manifest.csv")
    groups = manifest[manifest["duplicate_group"].notna()]
    for row in groups.itertuples():
        target = tmp_path / str(row.label) / str(row.file)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(shared / "data" / "chest_xray" / str(row.split) / str(row.label) / str(row.file), target)
    found = judged(tmp_path, settings).table
    expected = len(groups) - groups["duplicate_group"].nunique()
    assert (found["reason"] == "duplicate").sum() == expected
    assert threading.active_count() < 50
