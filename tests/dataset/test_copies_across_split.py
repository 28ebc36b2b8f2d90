"""Near copies in whole deliveries: which file stays, which is quarantined, and what is listed."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import jpeg, picture, png

from xray_pipeline.base.errors import DatasetError
from xray_pipeline.base.settings import IntakeRules, Settings
from xray_pipeline.dataset.history import EMPTY
from xray_pipeline.dataset.parquet import to_parquet
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.intake import check as intake
from xray_pipeline.intake import deliveries
from xray_pipeline.intake.commit import commit
from xray_pipeline.intake.conflicts import mark_conflicts
from xray_pipeline.intake.verdicts import Intake
from xray_pipeline.night import intake_steps
from xray_pipeline.night.run import Run

KEY, NOW = b"key of the tests", 1e12
LENIENT = IntakeRules(max_quarantined_share=1, max_leak_share=1)


@pytest.fixture
def given(settings: Settings) -> Settings:
    return settings.model_copy(update={"split_mode": "given", "rules": LENIENT})


def image(seed: int) -> Any:
    return picture(seed, 200, 180)


def near(seed: int, kind: int = 0) -> bytes:
    """A near copy of `image(seed)`, in one of four kinds."""
    pixels = image(seed)
    if kind == 0:
        return jpeg(pixels, quality=60)
    if kind == 1:
        return jpeg(pixels[3:-3, 2:-2], quality=90)
    if kind == 2:
        return png(np.rint(pixels * 0.8).astype(np.uint8))
    return png(pixels[::2, ::2])


def lay(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def judged(folder: Path, settings: Settings, history: Any = EMPTY) -> Intake:
    return intake.check(deliveries.at(str(folder), settings, history, NOW), settings, history, KEY)


def outcomes(result: Intake) -> dict[str, str]:
    return {row.file: row.reason or row.verdict for row in result.table.itertuples()}


def committed(settings: Settings, folder: Path) -> Dataset:
    dataset = Dataset(settings)
    key = dataset.patient_key()
    history = dataset.history()
    commit(dataset, intake.check(deliveries.at(str(folder), settings, history, NOW), settings, history, key))
    return dataset


@pytest.mark.parametrize("sides", list(itertools.permutations(("train", "val", "test"), 2)))
def test_of_two_sides_in_a_delivery_the_stricter_keeps_its_image(
    tmp_path: Path, given: Settings, sides: tuple[str, str]
) -> None:
    # Names in both orders: what stays does not depend on which path comes first.
    files = {f"{sides[0]}/NORMAL/a.png": png(image(1)), f"{sides[1]}/NORMAL/b.jpg": near(1)}
    files[f"{sides[0]}/PNEUMONIA/c.png"] = png(image(2))
    result = judged(lay(tmp_path, files), given)
    stays = min(sides, key=("test", "val", "train").index)
    expected = {name: "accepted" if name.startswith(stays) else "copy-across-split" for name in files}
    assert outcomes(result) == expected | {f"{sides[0]}/PNEUMONIA/c.png": "accepted"}
    out = result.table[result.table["reason"] == "copy-across-split"].iloc[0]
    stayed = result.table[result.table["file"].str.startswith(stays) & (result.table["label"] == "NORMAL")].iloc[0]
    assert out["near_copy"] == stayed["digest"]
    assert (out["side"], stayed["near_copy"]) == ("", "")


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize(("first", "second"), [("train", "test"), ("test", "train")])
def test_what_the_dataset_holds_stays(tmp_path: Path, given: Settings, first: str, second: str, kind: int) -> None:
    dataset = committed(given, lay(tmp_path / "one", {f"{first}/NORMAL/a.png": png(image(1))}))
    files = {f"{second}/NORMAL/x.img": near(1, kind), f"{second}/NORMAL/y.png": png(image(2))}
    result = judged(lay(tmp_path / "two", files), given, dataset.history())
    assert outcomes(result) == {f"{second}/NORMAL/x.img": "copy-across-split", f"{second}/NORMAL/y.png": "accepted"}
    side = {"train": "train", "test": "held-out"}[first]
    assert result.table["detail"][0] == f"near copy of an image in {side}, in the dataset"
    assert result.table["near_copy"][0] == dataset.manifest("one")["digest"][0]


def test_exact_copies_across_the_split_are_told_from_mere_duplicates(tmp_path: Path, given: Settings) -> None:
    files = {
        "test/NORMAL/z.png": png(image(1)),
        "train/NORMAL/a.png": png(image(1)),
        "test/NORMAL/zz.png": png(image(1)),
    }
    result = judged(lay(tmp_path / "one", files), given)
    assert outcomes(result) == {
        "test/NORMAL/z.png": "accepted",
        "test/NORMAL/zz.png": "duplicate",
        "train/NORMAL/a.png": "copy-across-split",
    }
    dataset = committed(given, tmp_path / "one")
    again = {"train/NORMAL/q.png": png(image(1)), "test/NORMAL/q.png": png(image(1)), "val/NORMAL/n.png": png(image(5))}
    result = judged(lay(tmp_path / "two", again), given, dataset.history())
    assert outcomes(result) == {
        "test/NORMAL/q.png": "duplicate",
        "train/NORMAL/q.png": "copy-across-split",
        "val/NORMAL/n.png": "accepted",
    }


def test_near_copies_of_strangers_by_the_patient_split(tmp_path: Path, settings: Settings) -> None:
    lenient = settings.model_copy(update={"rules": LENIENT})
    files = {f"NORMAL/patient{n}_1.png": png(image(n)) for n in range(30)}
    files |= {f"NORMAL/patient{n + 100}_1.jpg": near(n, n % 4) for n in range(30)}
    table = judged(lay(tmp_path, files), lenient).table
    sides: dict[int, set[str]] = {}
    for row in table[table["verdict"] == "accepted"].itertuples():
        sides.setdefault(int(row.file.split("patient")[1].split("_")[0]) % 100, set()).add(row.side)
    assert all(len(found) == 1 for found in sides.values())
    assert len(sides) == 30
    assert (table["reason"] == "copy-across-split").sum() > 5


def test_near_copies_on_one_side_are_accepted_and_listed(tmp_path: Path, given: Settings) -> None:
    dataset = committed(given, lay(tmp_path / "one", {"train/NORMAL/a.png": png(image(1))}))
    files = {"train/NORMAL/x.jpg": near(1), "train/NORMAL/y.png": png(image(2)), "train/NORMAL/z.jpg": near(2)}
    files["test/NORMAL/w.jpg"] = near(1, 1)
    result = judged(lay(tmp_path / "two", files), given, dataset.history())
    assert list(outcomes(result).values()) == ["copy-across-split", "accepted", "accepted", "accepted"]
    digest = dataset.manifest("one")["digest"][0][:12]
    assert result.result["near_copies"] == {
        "across_split": 1,
        "two_labels": 0,
        "same_side": 3,
        "listed": [
            {"row": 0, "of": f"dataset {digest}", "verdict": "quarantined", "why": "across the split"},
            {"row": 1, "of": f"dataset {digest}", "verdict": "accepted", "why": "same side"},
            {"row": 2, "of": "row 3", "verdict": "accepted", "why": "same side"},
            {"row": 3, "of": "row 2", "verdict": "accepted", "why": "same side"},
        ],
    }
    assert "1 across the split, quarantined; 3 on the same side, accepted." in result.page
    assert "z.jpg" not in result.page


def test_near_copies_under_two_labels_are_called_that(tmp_path: Path, given: Settings) -> None:
    files = {"train/NORMAL/a.png": png(image(1)), "train/PNEUMONIA/b.jpg": near(1), "train/NORMAL/c.png": png(image(2))}
    result = judged(lay(tmp_path, files), given)
    assert result.result["near_copies"] == {
        "across_split": 0,
        "two_labels": 2,
        "same_side": 0,
        "listed": [
            {"row": 0, "of": "row 2", "verdict": "quarantined", "why": "two labels"},
            {"row": 2, "of": "row 0", "verdict": "quarantined", "why": "two labels"},
        ],
    }
    assert (
        "0 across the split, quarantined; 0 on the same side, accepted; 2 with two labels, quarantined." in result.page
    )
    assert "quarantined, two labels" in result.page


@pytest.mark.parametrize("side", ["train", "test"])
def test_near_copies_under_two_labels_are_out_both(tmp_path: Path, given: Settings, side: str) -> None:
    files = {"train/NORMAL/a.png": png(image(1)), "train/NORMAL/c.png": png(image(2))}
    files[f"{side}/PNEUMONIA/b.jpg"] = near(1)
    table = judged(lay(tmp_path, files), given).table.set_index("file")
    assert table["reason"].to_dict() == {
        "train/NORMAL/a.png": "label-conflict",
        f"{side}/PNEUMONIA/b.jpg": "label-conflict",
        "train/NORMAL/c.png": "",
    }
    assert table.at["train/NORMAL/a.png", "detail"] == "near copies labelled NORMAL and PNEUMONIA in this delivery"


def test_a_near_copy_under_another_label_withdraws_the_dataset_s(tmp_path: Path, given: Settings) -> None:
    first = {"train/NORMAL/a.png": png(image(1)), "train/NORMAL/c.png": png(image(2))}
    committed(given, lay(tmp_path / "incoming" / "one", first))
    before = Dataset(given).snapshot()
    second = {"train/PNEUMONIA/b.jpg": near(1), "train/PNEUMONIA/d.png": png(image(3))}
    dataset = committed(given, lay(tmp_path / "incoming" / "two", second))
    late = dataset.manifest("two").iloc[0]
    assert (late["reason"], late["detail"]) == (
        "label-conflict",
        "near copies labelled NORMAL and PNEUMONIA in the dataset and here",
    )
    after = dataset.snapshot()
    assert before is not None
    assert after is not None
    assert (len(dataset.rows(before)), len(dataset.rows(after))) == (2, 2)
    assert late["near_copy"] not in set(dataset.rows(after)["digest"])


GROUPS = [(0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 3), (3, 1, 0)]  # kinds of near copies


@pytest.mark.parametrize("kinds", GROUPS)
def test_all_copies_of_an_image_with_two_labels_are_out(
    tmp_path: Path, given: Settings, kinds: tuple[int, ...]
) -> None:
    files = {f"train/NORMAL/a{n}.img": near(1, kind) for n, kind in enumerate(kinds)}
    files |= {"train/NORMAL/a.png": png(image(1)), "train/PNEUMONIA/b.jpg": jpeg(image(1), quality=80)}
    files |= {"train/NORMAL/c.png": png(image(2)), "train/NORMAL/d.jpg": near(2)}
    result = judged(lay(tmp_path, files), given)
    expected = {name: "accepted" if name[13:15] in ("c.", "d.") else "label-conflict" for name in files}
    assert outcomes(result) == dict(sorted(expected.items()))


def test_copies_of_the_same_image_under_two_labels_are_out_too(tmp_path: Path, given: Settings) -> None:
    files = {"train/NORMAL/a.png": png(image(1)), "train/PNEUMONIA/a.png": png(image(1)), "train/NORMAL/b.jpg": near(1)}
    assert set(outcomes(judged(lay(tmp_path, files), given)).values()) == {"label-conflict"}


@pytest.mark.parametrize("exact", [True, False])
def test_all_the_dataset_s_copies_are_withdrawn(tmp_path: Path, given: Settings, exact: bool) -> None:
    one = {f"train/NORMAL/a{n}.img": near(1, n) for n in range(4)} | {"train/NORMAL/c.png": png(image(2))}
    dataset = committed(given, lay(tmp_path / "one", one))
    assert set(dataset.manifest("one")["reason"]) == {""}
    two = {"train/PNEUMONIA/b.img": near(1) if exact else png(image(1)), "train/PNEUMONIA/d.png": png(image(3))}
    dataset = committed(given, lay(tmp_path / "two", two))
    snapshot = dataset.snapshot()
    assert snapshot is not None
    assert dataset.rows(snapshot)["label"].tolist() in (["NORMAL", "PNEUMONIA"], ["PNEUMONIA", "NORMAL"])
    # What comes later is another copy of an image with two labels, whichever it is given.
    three = {"train/NORMAL/x.jpg": jpeg(image(1), quality=70), "train/PNEUMONIA/y.img": near(1, 2)}
    result = judged(lay(tmp_path / "three", three | {"train/NORMAL/z.png": png(image(4))}), given, dataset.history())
    assert list(outcomes(result).values()) == ["label-conflict", "accepted", "label-conflict"]


def test_a_copy_of_what_was_never_accepted_for_its_labels_is_out(tmp_path: Path, given: Settings) -> None:
    one = {"train/NORMAL/a.png": png(image(1)), "train/PNEUMONIA/b.jpg": near(1), "train/NORMAL/c.png": png(image(2))}
    dataset = committed(given, lay(tmp_path / "one", one))
    two = {"train/NORMAL/x.img": near(1, 1), "train/NORMAL/y.png": png(image(1)), "train/NORMAL/z.png": png(image(3))}
    result = judged(lay(tmp_path / "two", two), given, dataset.history())
    assert list(outcomes(result).values()) == ["label-conflict", "label-conflict", "accepted"]
    assert "delivered under two labels before" in result.table["detail"][0]


def test_the_dataset_s_copies_in_pairs_are_withdrawn_together(tmp_path: Path, given: Settings) -> None:
    """Each names one near copy, its nearest, and so the four do not name each other."""
    files = {f"train/NORMAL/a{n}.jpg": jpeg(image(1), quality=q) for n, q in enumerate((95, 94, 40, 39))}
    committed(given, lay(tmp_path / "one", files | {"train/NORMAL/c.png": png(image(2))}))
    two = {"train/PNEUMONIA/b.img": near(1, 2), "train/PNEUMONIA/d.png": png(image(3))}
    dataset = committed(given, lay(tmp_path / "two", two))
    assert len(dataset.manifest("two")["withdraws"][0].split()) == 4
    snapshot = dataset.snapshot()
    assert snapshot is not None
    assert snapshot.images == 2


def test_different_images_of_one_patient_are_no_copies(tmp_path: Path, given: Settings) -> None:
    files = {f"train/NORMAL/patient1_{n}.png": png(image(n)) for n in range(12)}
    result = judged(lay(tmp_path, files), given)
    assert set(outcomes(result).values()) == {"accepted"}
    assert result.result["near_copies"]["listed"] == []
    assert "Near copies" not in result.page


def test_judging_again_changes_nothing(tmp_path: Path, given: Settings) -> None:
    files = {
        f"{side}/NORMAL/{n}.jpg": near(n % 5, i) for i, side in enumerate(("train", "val", "test")) for n in range(5)
    }
    table = judged(lay(tmp_path, files), given).table
    assert to_parquet(mark_conflicts(table, EMPTY, given), {}) == to_parquet(table, {})
    one = given.model_copy(update={"workers": 1})
    assert to_parquet(judged(tmp_path, one).table, {}) == to_parquet(table, {})


@pytest.mark.parametrize(
    ("copy", "reason"),
    [({"test/NORMAL/x.img": near(1)}, "copy-across-split"), ({"train/NORMAL/x.png": png(image(1))}, "duplicate")],
)
def test_a_copy_is_looked_at_anew_at_the_commit(
    tmp_path: Path, given: Settings, copy: dict[str, bytes], reason: str
) -> None:
    """Another delivery, committed between check and commit, puts its chest under two labels."""
    dataset = committed(given, lay(tmp_path / "one", {"train/NORMAL/a.png": png(image(1))}))
    files = copy | {"train/NORMAL/y.png": png(image(2))}
    checked = judged(lay(tmp_path / "three", files), given, dataset.history())
    assert sorted(checked.table["reason"]) == ["", reason]
    committed(given, lay(tmp_path / "two", {"train/PNEUMONIA/b.img": near(1, 2), "train/NORMAL/c.png": png(image(3))}))
    commit(dataset, checked)
    assert sorted(dataset.manifest("three")["reason"]) == ["", "label-conflict"]


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_deliveries_checked_side_by_side_leave_one_side(
    tmp_path: Path, given: Settings, order: tuple[str, str]
) -> None:
    lay(tmp_path / "a", {"train/NORMAL/1.png": png(image(1)), "train/NORMAL/2.png": png(image(2))})
    lay(tmp_path / "b", {"test/NORMAL/1.jpg": near(1), "test/NORMAL/3.png": png(image(3))})
    dataset = Dataset(given)
    key, history = dataset.patient_key(), dataset.history()
    checked = {
        n: intake.check(deliveries.at(str(tmp_path / n), given, history, NOW), given, history, key) for n in order
    }
    assert all((result.table["verdict"] == "accepted").all() for result in checked.values())
    for name in order:
        commit(dataset, checked[name])
    assert [(dataset.manifest(name)["reason"] == "copy-across-split").sum() for name in order] == [0, 1]


def test_the_night_gives_the_same_manifests_in_another_store(given: Settings, tmp_path: Path) -> None:
    for name, sides in {"one": ("train", "val"), "two": ("test", "train")}.items():
        files = {f"{side}/NORMAL/{n}.jpg": near(n, i) for i, side in enumerate(sides) for n in range(4)}
        lay(Path(given.incoming) / name, files)

    def manifests(settings: Settings) -> list[bytes]:
        run = Run(settings)
        keys = intake_steps.find_deliveries(run)
        for key in keys:
            intake_steps.check_delivery(run, key)
        intake_steps.commit_deliveries(run, keys)
        folder = Path(settings.store) / "dataset" / "manifests"
        return [(folder / f"{name}.parquet").read_bytes() for name in ("one", "two")]

    first = manifests(given)
    assert manifests(given.model_copy(update={"store": str(tmp_path / "other"), "workers": 1})) == first


def test_a_committed_row_without_a_hash_stops_the_check(tmp_path: Path, given: Settings) -> None:
    dataset = committed(given, lay(tmp_path / "one", {"train/NORMAL/a.png": png(image(1))}))
    table = dataset.manifest("one").assign(phash="")
    assert dataset.append("two", to_parquet(table, {}), 1)
    lay(tmp_path / "three", {"test/NORMAL/b.png": png(image(2))})
    with pytest.raises(DatasetError, match="without a perceptual hash"):
        judged(tmp_path / "three", given, Dataset(given).history())


def test_many_leaks_reject_the_delivery(tmp_path: Path, settings: Settings) -> None:
    rules = IntakeRules(max_quarantined_share=1, max_leak_share=0.1)
    strict = settings.model_copy(update={"split_mode": "given", "rules": rules})
    files = {f"test/NORMAL/{n}.png": png(image(n)) for n in range(9)}
    assert judged(lay(tmp_path, files | {"train/NORMAL/0.jpg": near(0)}), strict).fit
    result = judged(lay(tmp_path, {"train/NORMAL/1.jpg": near(1)}), strict)
    assert result.failures == ("Few images or patients are on two sides of the split: 18.2%, wanted 10.0% or less.",)


def test_real_copies_across_the_split(shared: Path, tmp_path: Path, given: Settings) -> None:
    from PIL import Image

    files = sorted((shared / "data" / "chest_xray" / "train" / "NORMAL").glob("*.jpeg"))[:40]
    for number, file in enumerate(files):
        lay(tmp_path, {f"train/NORMAL/{file.name}": file.read_bytes()})
        if number % 4 == 0:
            pixels = np.asarray(Image.open(file).convert("L"))
            lay(tmp_path, {f"test/NORMAL/patient{number}.jpg": jpeg(np.ascontiguousarray(pixels[2:, 3:]), quality=70)})
    table = judged(tmp_path, given).table
    assert (table["reason"] == "copy-across-split").sum() == 10
    assert (table[table["reason"] != ""]["given_split"] == "train").all()
