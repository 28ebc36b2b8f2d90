from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from samples import jpeg, png
from small_disk import fill, read_only, small_disk

from xray_pipeline.base.errors import StorageUnavailable
from xray_pipeline.dataset import pixels
from xray_pipeline.dataset.pixels import PixelCache, RowCache
from xray_pipeline.images import radiograph


def stored(count: int) -> tuple[pd.DataFrame, dict[str, bytes]]:
    limits = radiograph.Limits()
    found = [radiograph.normalise(jpeg(seed=n) if n % 2 else png(seed=n), limits) for n in range(count)]
    rows = pd.DataFrame({"digest": [f.digest for f in found], "suffix": [f.suffix for f in found]})
    return rows, {f.digest: f.data for f in found}


def test_each_radiograph_is_decoded_once(tmp_path: Path) -> None:
    rows, data = stored(5)
    reads: list[str] = []

    def read(digest: str, suffix: str) -> bytes:
        reads.append(digest)
        return data[digest]

    assert PixelCache(tmp_path, 32).ensure(rows.iloc[:3], read) == 3
    assert PixelCache(tmp_path, 32).ensure(rows, read) == 2
    assert sorted(reads) == sorted(rows["digest"])


def test_pixels_come_in_the_order_asked_for(tmp_path: Path) -> None:
    rows, data = stored(6)
    cache = PixelCache(tmp_path, 32)
    cache.ensure(rows.iloc[::2], lambda digest, _: data[digest])
    cache.ensure(rows, lambda digest, _: data[digest])
    asked = [*list(rows["digest"])[::-1], rows["digest"][0]]
    expected = [radiograph.square(radiograph.decode(data[digest]), 32) for digest in asked]
    assert np.array_equal(cache.get(asked), np.stack(expected))


def test_an_unknown_digest_is_a_key_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        PixelCache(tmp_path, 32).get(["0" * 64])


@pytest.mark.parametrize("how", ["truncated", "no array", "garbage index", "other shape"])
def test_broken_shards_are_made_anew(tmp_path: Path, how: str) -> None:
    cache = RowCache(tmp_path, (4,), np.float32)
    cache.add(["a"], np.ones((1, 4), np.float32))
    array, index = next(tmp_path.glob("*.npy")), next(tmp_path.glob("*.json"))
    if how == "truncated":
        array.write_bytes(array.read_bytes()[:-1])
    elif how == "no array":
        array.unlink()
    elif how == "garbage index":
        index.write_bytes(b"\xff{")
    shape = (5,) if how == "other shape" else (4,)
    again = RowCache(tmp_path, shape, np.float32)
    assert again.missing(["a"]) == ["a"]
    again.add(["a"], np.full((1, *shape), 2, np.float32))
    assert again.get(["a"])[0, 0] == 2


@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_no_flipped_bit_is_read(tmp_path: Path, suffix: str) -> None:
    cache = RowCache(tmp_path, (4,), np.float32)
    cache.add(["a" * 8, "b" * 8], np.arange(8, dtype=np.float32).reshape(2, 4))
    array, index = next(tmp_path.glob("*.npy")), next(tmp_path.glob("*.json"))
    whole = {path: path.read_bytes() for path in (array, index)}
    spoilt = array if suffix == ".npy" else index
    for bit in range(0, 8 * len(whole[spoilt]), 3 if suffix == ".npy" else 1):
        data = bytearray(whole[spoilt])
        data[bit // 8] ^= 1 << bit % 8
        for path in whole:
            if path == spoilt or not path.exists():  # what is whole has been read by this process before
                path.write_bytes(data if path == spoilt else whole[path])
        found = RowCache(tmp_path, (4,), np.float32)
        if found.missing(["a" * 8, "b" * 8]):
            assert not array.exists()
        else:  # in a space between two values, say
            assert np.array_equal(found.get(["a" * 8, "b" * 8]), np.arange(8, dtype=np.float32).reshape(2, 4))


def test_rows_of_another_cache_or_order_are_not_read(tmp_path: Path) -> None:
    for name, value in (("one", 1), ("two", 2)):
        RowCache(tmp_path / name, (4,), np.float32).add(["a"], np.full((1, 4), value, np.float32))
    for path in (tmp_path / "one").iterdir():
        path.rename(tmp_path / "two" / path.name)
    found = RowCache(tmp_path / "two", (4,), np.float32)
    assert found.get(["a"])[0, 0] == 2
    (array,) = (tmp_path / "two").glob("*.npy")
    np.save(array, np.full((1, 4), 3, np.float32))  # as long as before
    assert RowCache(tmp_path / "two", (4,), np.float32).missing(["a"]) == ["a"]


def test_what_a_killed_process_left_is_swept_once_it_is_old(tmp_path: Path) -> None:
    RowCache(tmp_path, (4,), np.float32).add(["a"], np.ones((1, 4), np.float32))
    left = [tmp_path / f"{'0' * 32}.npy", tmp_path / ".xray-tmp-0"]
    for path in left:
        path.write_bytes(b"half")
    assert RowCache(tmp_path, (4,), np.float32).missing(["a"]) == []
    assert all(path.exists() for path in left)  # somebody may be writing it
    for path in left:
        os.utime(path, (1, 1))
    assert RowCache(tmp_path, (4,), np.float32).missing(["a"]) == []
    assert not any(path.exists() for path in left)
    assert len(list(tmp_path.iterdir())) == 2


def add(folder: Path, name: str) -> None:
    RowCache(folder, (4,), np.float32).add([name, "shared"], np.ones((2, 4), np.float32))


def test_no_array_of_what_is_forgotten_is_left_by_who_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = RowCache(tmp_path / "pixels-2", (1,), np.uint8)
    cache.add(["a" * 64, "b" * 64], np.array([[1], [2]], np.uint8))
    real = pixels._remove

    def killed(path: Path) -> None:
        real(path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pixels, "_remove", killed)
        with pytest.raises(KeyboardInterrupt):
            pixels.forget(tmp_path, {"a" * 64})
    assert [np.load(path).tolist() for path in tmp_path.glob("*/*.npy")] == [[[2]]]
    orphan = cache.folder / "orphan.npy"
    np.save(orphan, np.array([[1]], np.uint8))
    assert pixels.holding(tmp_path, {"a" * 64}) == []  # somebody may be writing it
    os.utime(orphan, (0, 0))
    assert pixels.holding(tmp_path, {"a" * 64}) == [orphan]
    assert pixels.forget(tmp_path, {"a" * 64}) == 1
    assert not orphan.exists()
    assert RowCache(cache.folder, (1,), np.uint8).get(["b" * 64]).tolist() == [[2]]


def test_processes_may_add_at_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(add, [(tmp_path, f"p{n}") for n in range(4)])
    assert RowCache(tmp_path, (4,), np.float32).missing(["p0", "p1", "p2", "p3", "shared"]) == []


def test_a_full_disk_leaves_no_torn_shard(tmp_path: Path) -> None:
    script = """
import resource, sys
from pathlib import Path
import numpy as np
from xray_pipeline.dataset.pixels import RowCache
from xray_pipeline.base.errors import StorageUnavailable
from xray_pipeline.dataset.pixels import RowCache
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    RowCache(Path(sys.argv[1]), (4000,), np.float32).add(["a"], np.ones((1, 4000), np.float32))
except StorageUnavailable as error:
    print("refused", error)
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"refused the disk of {tmp_path}: File too large")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_a_disk_that_takes_no_shard_is_named(tmp_path: Path, how: str) -> None:
    rows = np.ones((1, 400_000), np.float32)
    with small_disk(tmp_path / "disk", "4m") as disk:
        cache = RowCache(disk / "pixels", (400_000,), np.float32)
        cache.add(["a"], rows)
        spoilt = next(cache.folder.glob("*.npy"))
        spoilt.write_bytes(spoilt.read_bytes()[:-1] + b"x")
        fill(disk) if how == "full" else read_only(disk)
        again = RowCache(cache.folder, (400_000,), np.float32)
        assert again.missing(["a"]) == ["a"]
        fill(disk) if how == "full" else None
        with pytest.raises(StorageUnavailable, match=f"the disk of {disk}"):
            again.add(["a"], rows)
