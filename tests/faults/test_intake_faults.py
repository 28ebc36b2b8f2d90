"""Whole deliveries with what goes wrong in them, through check and commit, and what must be left afterwards.

After each, every file is accepted or quarantined once, the delivery is as it was, and another night changes nothing.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import time
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydantic import SecretStr
from pydicom.dataset import Dataset as Tags
from pydicom.sequence import Sequence
from samples import chunk, dicom, jpeg, lay_files, picture, png, written

from xray_pipeline.base.errors import TrainingError
from xray_pipeline.base.settings import IntakeRules, Settings
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.intake import alarms, verdicts
from xray_pipeline.intake import books as bookkeeping
from xray_pipeline.intake.verdicts import Checked
from xray_pipeline.night import intake_steps
from xray_pipeline.night.run import Run
from xray_pipeline.training.recipe import load_recipe

GOOD = {f"{('NORMAL', 'PNEUMONIA')[n % 2]}/patient{n:03d}_1.jpeg": jpeg(seed=n) for n in range(300, 306)}


def lay(settings: Settings, files: dict[str, bytes], name: str = "delivery") -> Path:
    return lay_files(Path(settings.incoming, name), files)


def lenient(settings: Settings, **rules: Any) -> Run:
    """A run that takes a delivery however many of its files are quarantined; the key makes sides the same each time."""
    asked = IntakeRules(**{"max_quarantined_share": 1.0, "max_leak_share": 1.0, **rules})
    return Run(settings.model_copy(update={"rules": asked, "patient_key": SecretStr("key of the tests")}))


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def through(run: Run, name: str = "delivery") -> tuple[Checked, dict[str, str]]:
    """Check and commit; return the verdict and what became of each file. The invariants hold, and a repeat is idle."""
    folder = Path(run.settings.incoming, name)
    before = contents(folder)
    checked = intake_steps.check_delivery(run, name)
    intake_steps.commit_deliveries(run, [name])
    assert contents(folder) == before
    if not checked.fit:
        assert name not in Dataset(run.settings).manifests()
        return checked, {}
    table = Dataset(run.settings).manifest(name)
    listed = sum(1 for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    bookkeeping_files = sum((folder / extra).exists() for extra in ("labels.csv", "_SUCCESS"))
    assert bookkeeping.balance(table, listed - bookkeeping_files).holds
    assert bookkeeping.verify(run.settings)[0]
    snapshot = Dataset(run.settings).snapshot()
    assert intake_steps.find_deliveries(run) == []
    assert Dataset(run.settings).snapshot() == snapshot
    return checked, {row.file: row.reason or row.verdict for row in table.itertuples()}


def accepted(run: Run) -> int:
    snapshot = Dataset(run.settings).snapshot()
    return snapshot.images if snapshot else 0


# 24: a file is still being copied during the scan


COPY_SLOWLY = """
import sys, time
source, target = sys.argv[1:]
data = open(source, "rb").read()
with open(target, "wb", buffering=0) as file:
    for start in range(0, len(data), 256):
        file.write(data[start : start + 256])
        print(start, flush=True)
        time.sleep(0.02)
"""


def test_a_delivery_that_is_still_copied_waits_and_is_whole_the_next_night(settings: Settings, tmp_path: Path) -> None:
    settings = settings.model_copy(update={"settle_seconds": 2})
    run, folder = lenient(settings), lay(settings, GOOD)
    source = tmp_path / "source.jpeg"
    source.write_bytes(jpeg(picture(9, 400, 400)))
    target = folder / "NORMAL" / "patient900_1.jpeg"
    command = [sys.executable, "-c", COPY_SLOWLY, str(source), str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as copying:
        assert copying.stdout is not None
        copying.stdout.readline()
        assert intake_steps.find_deliveries(run) == []  # it changed less than two seconds ago
        copying.stdout.read()
    time.sleep(2.2)
    assert intake_steps.find_deliveries(run) == ["delivery"]
    assert through(run)[1]["NORMAL/patient900_1.jpeg"] == "accepted"


def test_a_delivery_that_grows_between_finding_and_checking_is_not_judged_by_half(settings: Settings) -> None:
    run, folder = lenient(settings), lay(settings, GOOD)
    key = intake_steps.find_deliveries(run)[0]
    assert intake_steps.check_delivery(run, key).fit
    (folder / "NORMAL" / "patient901_1.jpeg").write_bytes(jpeg(seed=901))
    intake_steps.commit_deliveries(run, [key])  # what was judged is what is committed
    assert accepted(run) == len(GOOD)
    assert intake_steps.find_deliveries(run) == ["delivery+2"]


def _replace(path: Path) -> None:
    path.write_bytes(jpeg(seed=902))


def _spoil(path: Path) -> None:
    path.write_bytes(b"no image")


def _put_a_folder_in_its_place(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("change", [_replace, _spoil, Path.unlink, _put_a_folder_in_its_place])
def test_a_delivery_that_changes_between_check_and_commit_is_left_to_the_next_night(
    settings: Settings, change: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    run, folder = lenient(settings), lay(settings, GOOD)
    other = {f"NORMAL/patient{n}_1.jpeg": jpeg(seed=n) for n in range(400, 404)}
    lay(settings, other, "other")
    for key in ("delivery", "other"):
        intake_steps.check_delivery(run, key)
    change(folder / next(iter(GOOD)))
    intake_steps.commit_deliveries(run, ["delivery", "other"])
    assert Dataset(run.settings).manifests() == ["other"]
    assert "row 0 of delivery delivery" in caplog.text
    assert "between check and commit" in caplog.text
    assert not any(name.rpartition("/")[2] in caplog.text for name in GOOD)
    assert verdicts.checked(run.store(), "delivery") is None
    intake_steps.check_delivery(run, "delivery")
    intake_steps.commit_deliveries(run, ["delivery"])
    whole = change is _replace
    assert accepted(run) == len(GOOD) + len(other) - (not whole)


# 25, 28, 29: files that end by a written rule


def _cut(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


def _animated() -> bytes:
    data = png(seed=1)
    return data[:33] + chunk(b"acTL", struct.pack(">II", 2, 0)) + data[33:]


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return _saved(Image.fromarray(picture(11)), "JPEG", exif=exif)


def _palette(colours: list[int]) -> bytes:
    image = Image.fromarray((picture(12) // 64), "P")
    image.putpalette(colours)
    return _saved(image, "PNG")


def _alpha(opacity: int) -> bytes:
    image = Image.fromarray(picture(13)).convert("LA")
    image.putalpha(opacity)
    return _saved(image, "PNG")


def _without_pixels() -> bytes:
    tags = pydicom.dcmread(io.BytesIO(dicom(seed=4)))
    del tags.PixelData
    return written(tags)


RULED: dict[str, tuple[bytes, str]] = {
    "zero bytes": (b"", "empty"),
    "truncated JPEG": (_cut(jpeg(seed=1), 0.6), "truncated"),
    "truncated PNG": (_cut(png(seed=1), 0.6), "truncated"),
    "JPEG with garbage behind": (jpeg(seed=1) + b"garbage", "trailing-garbage"),
    "PNG with garbage behind": (png(seed=1) + b"garbage", "trailing-garbage"),
    "16 bit": (png(picture(2).astype(np.uint16) * 257), "accepted"),
    "CMYK": (_saved(Image.fromarray(picture(3)).convert("CMYK"), "JPEG"), "cmyk"),
    "opaque alpha": (_alpha(255), "accepted"),
    "half transparent": (_alpha(100), "transparent"),
    "palette of greys": (_palette([0, 0, 0, 80, 80, 80, 160, 160, 160, 255, 255, 255]), "accepted"),
    "palette of colours": (_palette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255]), "coloured"),
    "rotated by EXIF": (_rotated(), "accepted"),
    "animated": (_animated(), "animated"),
    "1 x 1": (png(np.full((1, 1), 7, np.uint8)), "too-small"),
    "1 x 20000": (png(np.arange(20_000, dtype=np.uint16).reshape(1, -1).astype(np.uint8)), "too-small"),
    "100 x 20000": (png(np.tile(np.arange(20_000) % 251, (100, 1)).astype(np.uint8)), "extreme-aspect"),
    "DICOM without pixels": (_without_pixels(), "no-pixels"),
    "DICOM of an unknown transfer syntax": (dicom(seed=5).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0"),
                                            "unsupported-transfer-syntax"),
    "DICOM that starts as a program": (dicom(seed=6, preamble=b"MZ" + bytes(126)), "executable"),
    "DICOM with a huge length": (dicom(seed=7)[:-40] + struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, 0xFFFFFFF0),
                                 "corrupt"),
}  # fmt: skip


@pytest.mark.parametrize("what", RULED)
def test_a_file_ends_by_its_written_rule_and_the_others_go_on(settings: Settings, what: str) -> None:
    data, outcome = RULED[what]
    run = lenient(settings)
    lay(settings, {**GOOD, "NORMAL/patient999_1.jpeg": data})
    _, found = through(run)
    got = found.pop("NORMAL/patient999_1.jpeg")
    assert got == outcome or {got, outcome} <= {"corrupt", "truncated"}
    assert set(found.values()) == {"accepted"}


def test_a_monochrome1_dicom_enters_the_dataset_with_black_as_air(settings: Settings) -> None:
    pixels = picture(21)
    lay(settings, {**GOOD, "NORMAL/a.dcm": dicom(255 - pixels, PhotometricInterpretation="MONOCHROME1")})
    run = lenient(settings)
    through(run)
    table = Dataset(settings).manifest("delivery").set_index("file")
    row = table.loc["NORMAL/a.dcm"]
    stored = Image.open(io.BytesIO(Dataset(settings).read(row["digest"], row["suffix"])), formats=["PNG"])
    assert np.array_equal(np.asarray(stored), pixels)


def _nested(depth: int) -> bytes:
    inner = Tags()
    inner.PatientID = "deep"
    for _ in range(depth):
        outer = Tags()
        outer.ReferencedStudySequence = Sequence([inner])
        inner = outer
    return dicom(seed=8, ReferencedStudySequence=Sequence([inner]))


def test_a_deeply_nested_dicom_ends_in_bounded_time(settings: Settings) -> None:
    lay(settings, {**GOOD, "NORMAL/a.dcm": _nested(60)})
    _, found = through(lenient(settings))
    assert found["NORMAL/a.dcm"] in ("accepted", "corrupt")


# 26: decompression bombs


PEAK = """
def peak():  # KB, of this program alone: ru_maxrss begins with what its parent had
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""

IN_BOUNDED_MEMORY = f"""
{PEAK}
import sys
from xray_pipeline.night import intake_steps
from xray_pipeline.night.run import Run
from xray_pipeline.base.settings import IntakeRules, Settings
run = Run(Settings(home=sys.argv[1], settle_seconds=0, rules=IntakeRules(max_quarantined_share=1.0)))
intake_steps.check_delivery(run, "warm")
before = peak()
checked = intake_steps.check_delivery(run, "delivery")
print(peak() - before, dict(checked.quarantined))
"""


def _claims(side: int) -> bytes:
    """A PNG whose header claims side x side pixels and whose data would inflate to them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    data = png(np.zeros((2048, 2048), np.uint8))
    return data[:8] + header + data[33:]


def test_a_bomb_is_refused_at_its_header_in_bounded_memory(settings: Settings) -> None:
    start = jpeg(seed=1)
    frame = start.index(b"\xff\xc0")
    bomb = start[: frame + 5] + struct.pack(">HH", 60_000, 60_000) + start[frame + 9 :]
    lay(settings, GOOD, "warm")
    lay(settings, {**GOOD, "NORMAL/a.png": _claims(60_000), "NORMAL/b.jpeg": bomb})
    done = subprocess.run(
        [sys.executable, "-c", IN_BOUNDED_MEMORY, str(settings.home)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    grown, _, quarantined = done.stdout.strip().partition(" ")
    assert "'bomb': 2" in quarantined
    assert int(grown) < 100_000  # KB; the pictures would take 3.6 GB each


# 27: other formats under our names


def _zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("../../../outside.jpeg", jpeg(seed=50))
        archive.writestr("bomb", bytes(1_000_000))
    return out.getvalue()


def _tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.LNKTYPE, "/etc/passwd"
        archive.addfile(link)
        climbing = tarfile.TarInfo("../../climbed.jpeg")
        climbing.size = 3
        archive.addfile(climbing, io.BytesIO(b"abc"))
    return out.getvalue()


DISGUISED = {
    "a.jpeg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "b.jpeg": b"SIMPLE  =                    T" + b" " * 2850,
    "c.png": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "d.jpeg": b"%PDF-1.7\n1 0 obj\n",
    "e.dcm": b"<!doctype html><script>alert(1)</script>",
    "f.jpeg": b"GIF89a" + bytes(40),
    "g.dcm": dicom(seed=30, preamble=b"%PDF-1.7".ljust(128, b"\0")),
    "h.dcm": dicom(seed=31, preamble=b"GIF89a".ljust(128, b"\0")),
}


def test_other_formats_under_our_names_are_refused(settings: Settings) -> None:
    run = lenient(settings)
    lay(settings, {**GOOD, **{f"NORMAL/{name}": data for name, data in DISGUISED.items()}})
    _, found = through(run)
    assert {found[f"NORMAL/{name}"] for name in DISGUISED} == {"not-an-image", "polyglot"}
    assert accepted(run) == len(GOOD)


# 32: archives


def test_archives_are_refused_and_nothing_of_them_lands_anywhere(settings: Settings, tmp_path: Path) -> None:
    run = lenient(settings)
    lay(settings, {**GOOD, "NORMAL/a.jpeg": _zip(), "NORMAL/b.zip": _zip(), "PNEUMONIA/c.dcm": _tar()})
    before = {str(path) for path in tmp_path.rglob("*")}
    _, found = through(run)
    assert [found[name] for name in ("NORMAL/a.jpeg", "NORMAL/b.zip", "PNEUMONIA/c.dcm")] == ["archive"] * 3
    made = {str(path) for path in tmp_path.rglob("*")} - before
    assert not any("outside" in path or "climbed" in path or path.endswith("link") for path in made)


# 31: paths


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Makes UNIX sockets, and closes them."""
    made: list[socket.socket] = []
    here = Path.cwd()

    def make(path: Path) -> None:
        os.chdir(path.parent)  # a socket's address is short
        try:
            one = socket.socket(socket.AF_UNIX)
            one.bind(path.name)
            made.append(one)
        finally:
            os.chdir(here)

    yield make
    for one in made:
        one.close()


def test_links_fifos_and_sockets_are_never_opened_and_have_rows(
    settings: Settings, tmp_path: Path, listener: Callable[[Path], None]
) -> None:
    run, folder = lenient(settings), lay(settings, GOOD)
    secret = tmp_path / "secret.jpeg"
    secret.write_bytes(jpeg(seed=60))
    (folder / "NORMAL" / "link.jpeg").symlink_to(secret)
    (folder / "NORMAL" / "loop.jpeg").symlink_to("loop.jpeg")
    (folder / "NORMAL" / "folder").symlink_to(tmp_path)
    os.mkfifo(folder / "NORMAL" / "fifo.jpeg")  # opening it would wait for ever
    listener(folder / "NORMAL" / "socket.jpeg")
    _, found = through(run)
    assert {found[f"NORMAL/{name}"] for name in ("link.jpeg", "loop.jpeg", "folder")} == {"symlink"}
    assert {found[f"NORMAL/{name}"] for name in ("fifo.jpeg", "socket.jpeg")} == {"special-file"}
    assert accepted(run) == len(GOOD)


def test_odd_names_are_distinct_records(settings: Settings) -> None:
    run, folder = lenient(settings), lay(settings, {})
    names = [
        "a\nb.jpeg",
        "a\\b.jpeg",
        "..jpeg",
        "é.jpeg",
        unicodedata.normalize("NFD", "é.jpeg"),
        "CASE.jpeg",
        "case.jpeg",
        "x" * 250 + ".jpeg",
        "%2e%2e%2fetc.jpeg",
        "-rf.jpeg",
    ]
    raw = [os.fsencode(name) for name in names] + [b"\xff\xfe.jpeg"]
    for seed, name in enumerate(raw):
        path = os.path.join(os.fsencode(folder), b"NORMAL", name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(os.fsdecode(path)).write_bytes(jpeg(seed=seed))
    _, found = through(run)
    assert len(found) == len(raw)
    assert set(found.values()) == {"accepted"}
    assert accepted(run) == len(raw)


@pytest.mark.parametrize("name", ["../../secret.jpeg", "/etc/hostname", "a\0b.jpeg", "NORMAL/../../x.jpeg"])
def test_labels_csv_can_not_lead_outside(settings: Settings, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.jpeg").write_bytes(jpeg(seed=61))
    run = lenient(settings)
    lay(settings, {"a.jpeg": jpeg(seed=1), "labels.csv": f"file,label\na.jpeg,NORMAL\n{name},NORMAL\n".encode()})
    checked, found = through(run)
    assert sorted(found.values()) == (["accepted", "missing"] if checked.fit else [])
    assert accepted(run) <= 1


# 33, 35, 36, 37: what files mean


def test_one_image_under_two_labels_is_out_twice_and_across_deliveries_too(settings: Settings) -> None:
    run = lenient(settings)
    lay(settings, {**GOOD, "NORMAL/patient800_1.jpeg": jpeg(seed=70), "PNEUMONIA/patient800_2.jpeg": jpeg(seed=70)})
    _, found = through(run)
    assert found["NORMAL/patient800_1.jpeg"] == found["PNEUMONIA/patient800_2.jpeg"] == "label-conflict"
    contradicted = jpeg(seed=300)  # NORMAL in the first delivery
    lay(settings, {"PNEUMONIA/patient801_1.jpeg": contradicted, "NORMAL/patient802_1.jpeg": jpeg(seed=71)}, "second")
    intake_steps.check_delivery(run, "second")
    intake_steps.commit_deliveries(run, ["second"])
    rows = Dataset(settings).rows(Dataset(settings).snapshot())  # type: ignore[arg-type]
    assert hashlib.sha256(contradicted).hexdigest() not in set(rows["digest"])
    assert len(rows) == len(GOOD) - 1 + 1


def test_a_patient_on_two_sides_is_excluded_and_counted(settings: Settings) -> None:
    settings = settings.model_copy(update={"split_mode": "given"})
    run = lenient(settings)
    lay(
        settings,
        {
            "train/NORMAL/patient1_1.jpeg": jpeg(seed=1),
            "test/NORMAL/patient1_2.jpeg": jpeg(seed=2),
            "train/PNEUMONIA/patient2_1.jpeg": jpeg(seed=3),
            "test/PNEUMONIA/patient3_1.jpeg": jpeg(seed=4),
        },
    )
    checked, _ = through(run)
    assert (checked.accepted, checked.quarantined) == (2, {"patient-on-two-sides": 2})


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("NORMAL", "PNEUMONA"), "did you mean PNEUMONIA"),
        (("NORMAL", "TUBERCULOSIS"), "named like no class"),
        (("images", "more"), "named like no class"),
    ],
    ids=["misspelt", "unknown", "missing"],
)
def test_a_class_that_is_not_ours_stops_the_delivery(
    settings: Settings, folders: tuple[str, ...], message: str
) -> None:
    run = lenient(settings)
    lay(settings, {f"{folder}/patient{n}_1.jpeg": jpeg(seed=n) for n, folder in enumerate(folders)})
    checked, _ = through(run)
    assert not checked.fit
    assert message in checked.why


def test_a_delivery_below_the_least_number_of_files_is_rejected_by_rule(settings: Settings) -> None:
    lay(settings, dict(list(GOOD.items())[:2]))
    checked, _ = through(lenient(settings, min_files=3))
    assert (checked.fit, "Enough files are accepted: 2, wanted 3 or more" in checked.why) == (False, True)


def test_a_delivery_of_one_class_is_taken_by_default_and_rejected_where_the_rules_say_so(settings: Settings) -> None:
    lay(settings, {name: data for name, data in GOOD.items() if name.startswith("NORMAL")})
    checked, _ = through(lenient(settings, max_class_share=0.95), "delivery")
    assert not checked.fit
    assert "No class crowds out the others" in checked.why
    assert through(lenient(settings))[0].fit


def test_a_dataset_of_one_class_trains_nothing_and_says_why(settings: Settings) -> None:
    from xray_pipeline.registry.loading import Champions
    from xray_pipeline.registry.mlflow_registry import Registry
    from xray_pipeline.training.train import train

    lay(settings, {name: data for name, data in GOOD.items() if name.startswith("NORMAL")})
    run = lenient(settings)
    through(run)
    dataset = Dataset(settings)
    snapshot = dataset.snapshot()
    assert snapshot is not None
    with pytest.raises(TrainingError, match="deliver more patients"):
        train(dataset, snapshot, load_recipe("head", {"weights": "none"}), settings, Champions(Registry(settings)))


# 34: copies of held-out radiographs


def test_an_exact_copy_of_a_held_out_radiograph_never_reaches_training(settings: Settings) -> None:
    run = lenient(settings)
    held_out, pixels = jpeg(seed=90), picture(91)
    lay(
        settings,
        {**GOOD, "test/NORMAL/patient90_1.jpeg": held_out, "test/NORMAL/patient91_1.png": png(pixels)},
    )
    # The same bytes, and the same pixels in another file format, of another patient for training.
    first = Path(settings.incoming, "delivery")
    for name in GOOD:
        (first / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (first / name).rename(first / "train" / name)
    for label in ("NORMAL", "PNEUMONIA"):
        (first / label).rmdir()
    through(run)
    lay(settings, {"NORMAL/patient95_1.jpeg": held_out, "NORMAL/patient96_1.dcm": dicom(pixels)}, "second")
    checked = intake_steps.check_delivery(run, "second")
    # The key decides the new patients' own side: on the held-out one they are copies within it.
    assert sum(checked.quarantined.values()) == 2
    assert set(checked.quarantined) <= {"copy-across-split", "duplicate"}


# 38: another scanner, polarity, source


def _patients(shared: Path, count: int, family: str = "") -> list[Path]:
    """Real radiographs of NORMAL and PNEUMONIA, one a patient, spread over the patients."""
    folder = shared / "data" / "chest_xray" / "train"
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob(f"{family}*.jpeg")):
        found.setdefault("_".join(path.name.split("_")[:2]) if "_" in path.name else path.name[:15], path)
    names = sorted(found, key=lambda name: hashlib.sha256(name.encode()).digest())
    return [found[name] for name in names[:count]]


def test_an_inverted_delivery_of_real_radiographs_raises_the_alarm_and_a_like_one_does_not(
    shared: Path, settings: Settings
) -> None:
    paths = _patients(shared, 190)
    run = lenient(settings)

    def deliver(name: str, part: list[Path], invert: bool) -> Checked:
        files = {}
        for path in part:
            data = path.read_bytes()
            if invert:
                pixels = 255 - np.asarray(Image.open(path, formats=["JPEG"]).convert("L"))
                data = jpeg(pixels)
            files[f"{path.parent.name}/{path.name}"] = data
        lay(settings, files, name)
        return through(run, name)[0]

    deliver("a", paths[:130], False)
    assert deliver("b", paths[130:160], False).warnings == ()
    assert "Pixels do not look like the dataset's" in deliver("c", paths[160:], True).warnings[0]
    assert alarms.of_delivery(run.store(), "c") == ("pixels",)


# 30: patient data


def test_nothing_of_a_patient_leaves_the_intake_tables(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    name = "Grimhilde"
    run = lenient(settings)
    lay(
        settings,
        {
            **GOOD,
            f"NORMAL/{name}_1.dcm": dicom(seed=40, PatientID=name, PatientName=name, StudyDescription=name),
            f"NORMAL/{name}_2.jpeg": b"broken " + name.encode(),
            f"PNEUMONIA/{name}_3.jpeg": jpeg(seed=41, comment=name.encode()),
        },
    )
    checked, found = through(run)
    told = [json.dumps(checked.to_dict()), caplog.text, json.dumps(bookkeeping.quarantine(run.settings))]
    tables = ("table.parquet", ".parquet")
    for path in Path(settings.store).rglob("*"):
        if path.is_file() and not (path.name.endswith(tables)):
            told.append(path.read_bytes().decode("latin-1"))
    assert len(found) == len(GOOD) + 3
    assert not any(name in text for text in told)


# 44: many files in one folder


MANY = f"""
{PEAK}
import sys, time
from xray_pipeline.intake import check as intake, deliveries, expectations
from xray_pipeline.dataset.history import EMPTY
from xray_pipeline.base.settings import Settings
expectations.version()
settings = Settings(home=sys.argv[1], settle_seconds=0)
def say(done, total, what):
    if done % 500 == 0:
        print("done", done, flush=True)
delivery = deliveries.at(sys.argv[2], settings, EMPTY, time.time())
found = intake.check(delivery, settings, EMPTY, b"key", say)
print("rows", len(found.table), found.table["verdict"].eq("accepted").sum(), flush=True)
print("rss", peak(), flush=True)
"""


def _many(folder: Path, count: int) -> Path:
    """So many files of a few pictures: names differ, bytes repeat."""
    (folder / "NORMAL").mkdir(parents=True)
    masters = [folder.parent / f"{folder.name}-{n}.jpeg" for n in range(4)]
    for n, master in enumerate(masters):
        master.write_bytes(jpeg(picture(n, 64, 64), quality=30))
    for n in range(count):
        os.link(masters[n % 4], folder / "NORMAL" / f"patient{n:06d}_1.jpeg")
    return folder


def _said(output: str, word: str) -> list[str]:
    return next(line.split()[1:] for line in output.splitlines() if line.startswith(word))


def test_memory_per_file_stays_small_however_many_files_a_folder_has(tmp_path: Path) -> None:
    used = {}
    for count in (5_000, 10_000):  # both more than are read before the first rows are packed
        folder = _many(tmp_path / f"d{count}", count)
        command = [sys.executable, "-c", MANY, str(tmp_path / f"home{count}"), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert _said(done.stdout, "rows") == [str(count), "4"]
        used[count] = int(_said(done.stdout, "rss")[0])
    assert used[10_000] - used[5_000] < 5_000 * 12  # KB; as Python objects, rows would take 16 a file


def test_a_scan_killed_at_a_random_file_goes_on_to_the_same_table(tmp_path: Path) -> None:
    folder, home = _many(tmp_path / "d", 3_000), tmp_path / "home"
    command = [sys.executable, "-c", MANY, str(home), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as scanning:
        assert scanning.stdout is not None
        for _ in range(3):
            assert scanning.stdout.readline().startswith("done")
        os.kill(scanning.pid, signal.SIGKILL)
    journal = next((home / "cache" / "intake").glob("*.jsonl"))
    assert journal.read_bytes().count(b"\n") >= 1_000  # so many files are not read again
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert _said(done.stdout, "rows") == ["3000", "4"]
    assert not journal.exists()
