from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from samples import jpeg, png

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


def add(folder: Path, name: str) -> None:
    RowCache(folder, (4,), np.float32).add([name, "shared"], np.ones((2, 4), np.float32))


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
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    RowCache(Path(sys.argv[1]), (4000,), np.float32).add(["a"], np.ones((1, 4000), np.float32))
except OSError as error:
    print("refused", error.errno)
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("refused")
    assert list(tmp_path.iterdir()) == []
