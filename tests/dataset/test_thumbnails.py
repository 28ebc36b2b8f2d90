"""Thumbnails stand in no manifest: they are made of stored radiographs, and stored where nothing else shows them."""

from __future__ import annotations

import base64
import io
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from laid import FILES, ingest, lay
from PIL import Image
from samples import dicom, jpeg, png

from xray_pipeline.base.errors import RadiographDamaged
from xray_pipeline.base.settings import IntakeRules, Settings
from xray_pipeline.dataset.fingerprints import fingerprint, hashes, small
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.dataset.thumbnails import Shown
from xray_pipeline.images import radiograph
from xray_pipeline.images.raster import Limits
from xray_pipeline.night import amend, erasing, repair
from xray_pipeline.night.amend import Named
from xray_pipeline.night.run import Run


def brighter(seed: int, by: int = 9) -> bytes:
    """A near copy of a JPEG, as a PNG."""
    out = io.BytesIO()
    Image.open(io.BytesIO(jpeg(seed=seed))).point(lambda grey: min(255, grey + by)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def dataset(settings: Settings) -> Dataset:
    """Four radiographs; then one under a second label, a near copy of another under a second one, one anew, a new
    one."""
    settings = settings.model_copy(update={"rules": IntakeRules(max_quarantined_share=0.9)})
    lay(settings, "mon", FILES)
    ingest(Run(settings))
    second = {
        "PNEUMONIA/patient1_1.jpg": FILES["NORMAL/patient1_1.jpg"],
        "NORMAL/patient4_2.png": brighter(4),
        "NORMAL/patient2_1.png": FILES["NORMAL/patient2_1.png"],
        "NORMAL/patient5_1.png": png(seed=5),
    }
    lay(settings, "tue", second)
    ingest(Run(settings))
    return Dataset(settings)


def row(dataset: Dataset, file: str) -> pd.Series:
    table = dataset.manifest("tue")
    return table[table["file"] == file].iloc[0]


def pictures(dataset: Dataset) -> dict[str, Path]:
    return {path.stem: path for path in Path(dataset.store.uri, "pictures").glob("*/*.png")}


def shown(of: pd.Series) -> Shown:
    return Shown(of["digest"], of["suffix"], of["phash"], of["verdict"] == "accepted")


def test_manifests_hold_no_thumbnails_and_the_store_those_of_what_is_nowhere_else(dataset: Dataset) -> None:
    for key in ("mon", "tue"):
        assert (dataset.manifest(key)["thumbnail"] == "").all()
    copy, again = row(dataset, "NORMAL/patient4_2.png"), row(dataset, "NORMAL/patient2_1.png")
    assert (copy["reason"], again["reason"]) == ("label-conflict", "duplicate")
    assert set(pictures(dataset)) == {copy["digest"]}


def test_thumbnails_are_what_the_check_saw(dataset: Dataset) -> None:
    prints = dataset.history().shown
    seen = {radiograph.normalise(data, Limits()).digest: data for data in (*FILES.values(), brighter(4), png(seed=5))}
    assert set(prints.texts()) == set(seen)
    expected = [fingerprint(radiograph.normalise(seen[digest], Limits()).pixels) for digest in prints.texts()]
    for _ in range(2):  # made, then kept
        found = prints.thumbnails(range(len(prints)))
        assert [base64.b64encode(one.tobytes()).decode() for one in found] == [one.thumbnail for one in expected]
    assert hashes(found).tobytes().hex() == "".join(one.phash for one in expected)


@pytest.mark.parametrize("data", [dicom(seed=3), dicom(seed=7), jpeg(seed=1), png(seed=2)])
def test_a_stored_radiograph_has_the_thumbnail_of_its_file(data: bytes) -> None:
    same(data)


def test_real_radiographs_have_the_thumbnails_of_their_files(shared: Path) -> None:
    files = [path for path in sorted(Path(shared, "data").glob("*/**/*")) if radiograph.sniff(_head(path))]
    assert len({same(path.read_bytes()) for path in files[:: max(1, len(files) // 300)]}) > 100


def _head(path: Path) -> bytes:
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(200)


def same(data: bytes) -> str:
    try:
        normalised = radiograph.normalise(data, Limits())
    except radiograph.RadiographError:
        return ""
    assert np.array_equal(small(radiograph.decode(normalised.data)), small(normalised.pixels))
    return normalised.digest


@pytest.mark.parametrize("damage", ["cut", "another", "gone", "no picture"])
def test_a_picture_that_is_not_what_was_judged_is_not_compared(dataset: Dataset, damage: str) -> None:
    copy = row(dataset, "NORMAL/patient4_2.png")
    path = pictures(dataset)[copy["digest"]]
    other = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40), np.uint8)).save(other, "PNG")
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": path.read_bytes()[:200], "another": other.getvalue(), "no picture": b"x"}[damage])
    said = "is missing from" if damage == "gone" else "is not what was judged"
    with pytest.raises(RadiographDamaged, match=rf"pictures/../{copy['digest']}.png .*{said}.*run `xray repair`"):
        Dataset(dataset.settings).thumbnails.of([shown(copy)])


def test_a_radiograph_that_is_missing_is_named(dataset: Dataset) -> None:
    new = row(dataset, "NORMAL/patient5_1.png")
    Path(dataset.store.uri, "radiographs", new["digest"][:2], f"{new['digest']}.png").unlink()
    with pytest.raises(RadiographDamaged, match="xray repair"):
        dataset.thumbnails.of([shown(new)])


def test_a_thumbnail_is_read_once_and_a_damaged_one_in_the_cache_is_made_anew(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = thumbnails(dataset)
    read: list[str] = []
    kind, plain = type(dataset.store), type(dataset.store).read
    monkeypatch.setattr(kind, "read", lambda self, key: read.append(key) or plain(self, key))

    def asked() -> int:
        read.clear()
        assert thumbnails(dataset) == before
        return len([key for key in read if key.startswith(("radiographs/", "pictures/"))])

    assert asked() == 0  # who commits has seen them
    shutil.rmtree(dataset.settings.cache)
    assert asked() == 6
    assert asked() == 0
    for path in kept(dataset):
        data = bytearray(path.read_bytes())
        data[700::1604] = bytes(byte ^ 255 for byte in data[700::1604])
        path.write_bytes(data)
    assert asked() == 6
    os.truncate(kept(dataset)[0], 2000)
    assert asked() > 0
    shutil.rmtree(dataset.settings.cache)
    dataset.settings.cache.write_bytes(b"a file is in the way")
    assert asked() == asked() == 6


def thumbnails(dataset: Dataset) -> bytes:
    shown = Dataset(dataset.settings).history().shown
    return shown.thumbnails(range(len(shown))).tobytes()


def kept(dataset: Dataset) -> list[Path]:
    return sorted(dataset.settings.cache.glob("extracts/*.thumbnails"))


def test_an_erased_picture_goes_with_its_radiograph(dataset: Dataset) -> None:
    run, copy = Run(dataset.settings), row(dataset, "NORMAL/patient4_2.png")
    pixels = dataset.thumbnails.of([shown(copy)]).tobytes()
    assert [path for path in kept(dataset) if pixels in path.read_bytes()]
    amend.amend(run, [Named("withdraw", "patient", "patient4", erase=True)], "asked for by the patient, twice")
    assert pictures(dataset) == {}
    assert not [path for path in kept(dataset) if pixels in path.read_bytes()]
    assert erasing.verify(run)[0]
    assert erasing.verify(run)[1].startswith("nothing is left of 2 erased radiographs")


def test_a_lost_picture_is_told_of_and_made_anew_of_its_original(dataset: Dataset) -> None:
    run, copy = Run(dataset.settings), row(dataset, "NORMAL/patient4_2.png")
    path = pictures(dataset)[copy["digest"]]
    before = path.read_bytes()
    assert repair.verify(run, quick=True)[0]
    for damage in (b"", before[:300]):
        path.write_bytes(damage) if damage else path.unlink()
        for quick in (True, False):
            holds, said = repair.verify(run, quick)
            assert not holds
            assert "of delivery tue row" in said
        assert len(repair.repair(run).repaired) == 1
        assert path.read_bytes() == before
    path.unlink()
    Path(dataset.settings.incoming, "tue", "NORMAL", "patient4_2.png").unlink()
    assert [one.digest for one in repair.repair(run).lost] == [copy["digest"]]


def test_a_check_that_asks_for_a_lost_picture_puts_it_back_first(dataset: Dataset) -> None:
    shutil.rmtree(dataset.settings.cache)
    shutil.rmtree(Path(dataset.store.uri, "pictures"))
    lay(dataset.settings, "wed", {"PNEUMONIA/patient8_1.png": brighter(4, 15), "NORMAL/patient9_1.png": png(seed=9)})
    ingest(Run(dataset.settings))
    table = dataset.manifest("wed").set_index("file")
    assert table["reason"].to_dict() == {"NORMAL/patient9_1.png": "", "PNEUMONIA/patient8_1.png": "label-conflict"}
    assert len(pictures(dataset)) == 2
