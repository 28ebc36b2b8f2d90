"""What a check is told of earlier deliveries: equal to a plain reading of all manifests, whatever the cache holds."""

from __future__ import annotations

import base64
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from plain_history import PlainHistory

from xray_pipeline.base.errors import Damaged, DatasetError, RadiographDamaged
from xray_pipeline.base.records import digest_of
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import open_store
from xray_pipeline.dataset.amendments import Amended
from xray_pipeline.dataset.extracts import Extracts
from xray_pipeline.dataset.fingerprints import SIDE, fingerprint
from xray_pipeline.dataset.history import History
from xray_pipeline.dataset.parquet import to_parquet
from xray_pipeline.dataset.rows import Rows
from xray_pipeline.dataset.snapshots import decisive, held, said_of
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.dataset.table import Row, of_rows
from xray_pipeline.dataset.thumbnails import Shelf
from xray_pipeline.images.png import png_bytes

PIXELS = [np.random.default_rng(n).integers(0, 256, (SIDE, SIDE), np.uint8) for n in range(3)]
PRINTS = [fingerprint(pixels) for pixels in PIXELS]
REASONS = ("", "", "", "label-conflict", "duplicate", "withdrawn", "unreadable")


def hexes(rng: np.random.Generator, digits: int, of: int) -> str:
    return f"{int(rng.integers(of)) + 1:0{digits}x}"


def made(rng: np.random.Generator) -> dict[str, pd.DataFrame]:
    """Manifests of few files, radiographs and patients, so that they meet in every way; none need make sense."""
    keys = [
        f"day{n}" if part == 1 else f"day{n}+{part}" for n in range(3) for part in range(1, int(rng.integers(1, 5)))
    ]
    return {key: table(rng, int(rng.integers(0, 7))) for key in keys}


def table(rng: np.random.Generator, count: int) -> pd.DataFrame:
    rows = []
    for _ in range(count):
        reason = REASONS[rng.integers(len(REASONS))]
        read = reason != "unreadable" and (reason != "label-conflict" or rng.random() < 0.9)
        digest = hexes(rng, 64, 8) if read else ""
        shown = PRINTS[int(digest, 16) % 3] if read and (not reason or rng.random() < 0.9) else ("", "")
        near = hexes(rng, 64, 8) if read and rng.random() < 0.25 else ""
        rows.append(
            Row(
                *(f"NORMAL/{rng.integers(4)}.png", int(rng.integers(1, 3)), f"v{rng.integers(2)}"),
                patient=hexes(rng, 32, 5) if read else "",
                label=("NORMAL", "PNEUMONIA")[rng.integers(2)],
                side=("train", "validation", "held-out")[rng.integers(3)] if not reason else "",
                verdict="quarantined" if reason else "accepted",
                reason=reason,
                digest=digest,
                suffix=".png",
                statistics=rng.bytes(64).hex() if read and rng.random() < 0.8 else "",
                age_years=float(rng.integers(90)) if rng.random() < 0.5 else float("nan"),
                phash=shown[0],
                thumbnail=shown[1],
                near_copy=near,
                withdraws=" ".join(hexes(rng, 64, 8) for _ in range(2)) if near and rng.random() < 0.3 else "",
            )
        )
    return of_rows(rows)


def amendments(rng: np.random.Generator) -> Amended:
    return Amended(
        {hexes(rng, 64, 8): "NORMAL" for _ in range(rng.integers(3))},
        {hexes(rng, 64, 8): 1 for _ in range(rng.integers(3))},
        {hexes(rng, 32, 5): 2 for _ in range(rng.integers(2))},
    )


def stored(digest: str, suffix: str) -> bytes:
    """The radiographs with an even digest lie in the store."""
    if int(digest, 16) % 2:
        raise RadiographDamaged(f"{digest}{suffix} is missing")
    return png_bytes(PIXELS[int(digest, 16) % 3])


def rows_of(tables: dict[str, pd.DataFrame], cache: Path) -> Rows:
    """Of radiographs with an odd digest the manifests hold thumbnails, as those of earlier versions did."""
    extracts, parts = Extracts(cache), {}
    shelf = Shelf(
        open_store(cache / "store"), cache / "extracts", stored, lambda key, row: tables[key].at[row, "thumbnail"]
    )
    for key, table in tables.items():
        odd = table["digest"].str.fullmatch("0*[1357]")
        shelf.keep(table[~odd])
        data = to_parquet(table.assign(thumbnail=table["thumbnail"].where(odd, "")), {"delivery": key})
        parts[key] = extracts.of(digest_of(data), key, lambda data=data: data)
    return Rows(parts, shelf)


@given(st.integers(0, 2**32 - 1))
@example(1534)  # of a radiograph of two patients a row that says nothing is withdrawn
@hypothesis_settings(max_examples=25, deadline=None)
def test_the_history_is_what_a_plain_reading_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tables, amended = made(rng), amendments(rng)
    with tempfile.TemporaryDirectory() as cache:
        rows = rows_of(tables, Path(cache))
        same(History(rows, amended), PlainHistory(tables, amended))
        paths = {"NORMAL/0.png", "NORMAL/1.png"}
        same(History(rows, amended).without("day1", paths), PlainHistory(tables, amended, "day1", paths))
        of_snapshot(rows, PlainHistory(tables, amended), amended)


def same(history: History, plain: PlainHistory) -> None:
    digests = [f"{n:064x}" for n in range(10)] + ["", "x", "g" * 64, "A" * 64]
    patients = [f"{n:032x}" for n in range(7)] + ["x"]
    for _ in range(2):  # one by one, and expected
        for digest in digests:
            assert history.labels(digest) == {row["digest"]: row["label"] for row in plain.held()}.get(digest)
            assert history.side_of(digest) == {row["digest"]: row["side"] for row in plain.held()}.get(digest, "")
        for patient in patients:
            accepted = (row for row in plain.rows if row["verdict"] == "accepted")
            assert history.side(patient) == {row["patient"]: row["side"] for row in accepted}.get(patient)
        history.expect(digests, patients)
    for name in ("day0", "day1", "day9"):
        own = [row for row in plain.rows if row["delivery"] == name]
        parts, seen = history.seen(name)
        assert all((row["file"], row["size"], row["version"]) in seen for row in own)
        assert len(seen._files) == len({(row["file"], row["size"], row["version"]) for row in own})
        assert parts == sum(key.partition("+")[0] == name for key in history.rows.parts)
    columns = ["digest", "label", "patient", "side", "verdict", "delivery"]
    assert history.said().to_dict("records") == [{name: row[name] for name in columns} for row in plain.said()]
    shows = [{name: row[name] for name in ("digest", "patient", "delivery")} for row in plain.rows if row["digest"]]
    assert history.brought().to_dict("records") == shows
    assert history.prints.texts() == [row["digest"] for row in plain.held()]
    turned = history.prints.take(np.arange(len(history.prints))[::-1])
    assert turned.texts() == [row["digest"] for row in plain.held()][::-1]
    places, names = history.held_labels
    assert [names[place] for place in places] == [row["label"] for row in plain.held()]
    assert history.prints.hashes(np.arange(len(history.prints))).tobytes().hex() == "".join(
        row["phash"] for row in plain.held()
    )
    shown = b"".join(base64.b64decode(row["thumbnail"]) for row in plain.held())
    assert history.prints.thumbnails(range(len(history.prints))).tobytes() == shown
    sides = Counter(row["side"] for row in plain.held())
    assert {side: len(some) for side, some in history.prints.by_side.items()} == sides
    kept = [row for row in plain.rows if row["phash"]]
    out_of = b"".join(base64.b64decode(row["thumbnail"]) for row in kept if plain.out(row))
    assert history.withdrawn.thumbnails(range(len(history.withdrawn))).tobytes() == out_of
    assert history.withdrawn.texts() == [row["digest"] for row in kept if plain.out(row)]
    assert history.shown.texts() == list(dict.fromkeys(row["digest"] for row in kept))
    out = plain.contested
    contested = [row for row in plain.said() if row["digest"] in out]
    if all(row["phash"] for row in contested):
        assert history.contested.texts() == [row["digest"] for row in contested]
    else:
        with pytest.raises(DatasetError, match="without a perceptual hash"):
            history.contested  # noqa: B018 - it is made when it is first asked for
    for most in (0, 3, 100):
        reference = history.reference(most)
        assert (reference.rows["digest"].tolist(), reference.patients) == plain.reference(most)
        assert dict(reference.labels) == Counter(row["label"] for row in plain.held())
        assert sum(reference.ages) == len(plain.held())


def of_snapshot(rows: Rows, plain: PlainHistory, amended: Amended) -> None:
    assert decisive(rows) == plain.decisive()
    labels, withdrawn = said_of(rows, amended)
    unheeded = PlainHistory({}, amended)
    unheeded.rows = [row for row in plain.rows if plain.stands(row) and row["digest"]]
    said = [row for row in unheeded.rows if row["verdict"] == "accepted" or row["reason"] == "label-conflict"]
    gone = {row["digest"] for row in said if plain.out(row)}
    assert withdrawn == tuple(sorted(gone))
    known = {row["digest"] for row in said} - gone
    assert labels == {digest: label for digest, label in amended.labels.items() if digest in known}
    assert [row["digest"] for row, kept in zip(plain.rows, _held(rows, amended, plain), strict=True) if kept] == [
        row["digest"] for row in plain.held() if row["digest"] not in plain.contested
    ]


def _held(rows: Rows, amended: Amended, plain: PlainHistory) -> list[bool]:
    """A snapshot names the withdrawn radiographs one by one, as `said_of` gives them."""
    labels, gone = said_of(rows, amended)
    if any(row["digest"] in gone for row in plain.said()):  # one radiograph of two patients: it is out with the one
        return [row in plain.held() and row["digest"] not in plain.contested for row in plain.rows]
    return held(rows, Amended(labels, dict.fromkeys(gone, 1)), frozenset()).tolist()


# The cache


@pytest.fixture
def dataset(settings: Settings) -> Dataset:
    found = Dataset(settings)
    found.begin()
    for number in range(3):
        rows = table(np.random.default_rng(number), 20)
        assert found.append(f"day{number}", to_parquet(rows, {"delivery": f"day{number}"}), number)
    return found


def said(settings: Settings) -> list[object]:
    history = Dataset(settings).history()
    return [history.said().to_json(), history.reference(5).rows.to_json(), history.shown.texts()]


def extracts(settings: Settings) -> list[Path]:
    return sorted((settings.cache / "extracts").glob("*.arrow"))


def test_a_missing_extract_is_made_anew(dataset: Dataset) -> None:
    before = said(dataset.settings)
    extracts(dataset.settings)[1].unlink()
    assert said(dataset.settings) == before
    assert len(extracts(dataset.settings)) == 3


@pytest.mark.parametrize("damage", ["cut", "changed", "emptied"])
def test_a_damaged_extract_is_made_anew(dataset: Dataset, damage: str) -> None:
    before = said(dataset.settings)
    path = extracts(dataset.settings)[1]
    data = path.read_bytes()
    at = len(data) // 2
    other = bytes([data[at] ^ 1])
    path.write_bytes({"cut": data[:at], "changed": data[:at] + other + data[at + 1 :], "emptied": b""}[damage])
    assert said(dataset.settings) == before
    assert path.read_bytes() == data


def test_a_manifest_that_was_touched_is_read_again(dataset: Dataset) -> None:
    before = said(dataset.settings)
    path = Path(dataset.store.uri, "manifests", "day1.parquet")
    whole = path.read_bytes()
    shutil.copy(path, path.with_name("copy"))
    path.with_name("copy").replace(path)
    assert said(dataset.settings) == before
    path.write_bytes(whole[:-9] + b"x" + whole[-8:])
    with pytest.raises(Damaged, match=r"day1\.parquet"):
        said(dataset.settings)
    path.unlink()
    with pytest.raises(Damaged, match=r"day1\.parquet"):
        said(dataset.settings)


def test_only_new_manifests_are_read(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset.history()
    read: list[str] = []
    kind, plain = type(dataset.store), type(dataset.store).read
    monkeypatch.setattr(kind, "read", lambda self, key: read.append(key) or plain(self, key))
    dataset.append("day3", to_parquet(table(np.random.default_rng(3), 20), {"delivery": "day3"}), 3)
    read.clear()
    Dataset(dataset.settings).history().said()
    assert [key for key in read if key.startswith("manifests/")] == ["manifests/day3.parquet"]


def test_a_cache_that_takes_nothing_changes_no_answer(dataset: Dataset) -> None:
    before = said(dataset.settings)
    shutil.rmtree(dataset.settings.cache)
    dataset.settings.cache.write_bytes(b"a file is in the way")
    assert said(dataset.settings) == before
    shown = Dataset(dataset.settings).history().shown
    assert shown.thumbnails(range(len(shown))).any()


def test_counts_of_a_snapshot_are_kept_and_damaged_ones_made_anew(dataset: Dataset) -> None:
    before = dataset.snapshot()
    (path,) = (dataset.settings.cache / "counts").iterdir()
    path.write_bytes(path.read_bytes().replace(b": [", b": [7", 1))
    assert Dataset(dataset.settings).snapshot() == before
    assert Dataset(dataset.settings).snapshot() == before
