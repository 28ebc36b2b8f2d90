from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from samples import dicom, jpeg, picture, png

from xray_pipeline.base.errors import DatasetError
from xray_pipeline.dataset import near_copies
from xray_pipeline.dataset.fingerprints import SIDE, Given, Prints, fingerprint, hashes
from xray_pipeline.dataset.likeness import ALIKE, likeness
from xray_pipeline.dataset.near_copies import nearest
from xray_pipeline.images import radiograph

Grey = NDArray[np.uint8]


def real(shared: Path, count: int, start: int = 0) -> list[Grey]:
    files = sorted((shared / "data" / "chest_xray" / "train" / "NORMAL").glob("*.jpeg"))[start : start + count]
    return [np.asarray(Image.open(file).convert("L")) for file in files]


def prints(images: list[Any], side: str = "train") -> Prints:
    rows = [(f"{n:064x}", side, *fingerprint(pixels)) for n, pixels in enumerate(images)]
    return Prints.of(pd.DataFrame(rows, columns=["digest", "side", "phash", "thumbnail"]), range(len(rows)))


def apart(first: Any, second: Any) -> int:
    both = [np.frombuffer(bytes.fromhex(fingerprint(pixels).phash), "<u8") for pixels in (first, second)]
    return int(np.bitwise_count(both[0] ^ both[1]).sum())


def resized(pixels: Grey, scale: float) -> Grey:
    height, width = pixels.shape
    image = Image.fromarray(pixels).resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    return np.asarray(image)


def again(data: bytes) -> Any:
    return radiograph.normalise(data, radiograph.Limits()).pixels


COPIES: dict[str, Callable[[Grey], Any]] = {
    "the same": lambda x: x,
    "JPEG of quality 40": lambda x: again(jpeg(x, quality=40)),
    "PNG": lambda x: again(png(x)),
    "DICOM": lambda x: again(dicom(x)),
    "16 bits": lambda x: x.astype(np.uint16) * 257,
    "half the size": lambda x: resized(x, 0.5),
    "half again as large": lambda x: resized(x, 1.5),
    "cropped all round": lambda x: x[4:-4, 4:-4],
    "cropped at a corner": lambda x: x[6:, 6:],
    "brighter": lambda x: np.minimum(x.astype(np.int16) + 25, 255).astype(np.uint8),
    "darker": lambda x: np.rint(x * 0.7).astype(np.uint8),
    "gamma": lambda x: np.rint(255 * (x / 255) ** 0.7).astype(np.uint8),
    "all at once": lambda x: again(jpeg(np.rint(resized(x[3:, :-4], 0.8) * 0.9).astype(np.uint8), quality=60)),
}


@pytest.mark.parametrize("kind", COPIES)
def test_copies_of_real_images_are_found_from_either_side(shared: Path, kind: str) -> None:
    originals = real(shared, 24)
    copies = prints([COPIES[kind](pixels) for pixels in originals])
    assert nearest(copies, prints(originals)).tolist() == list(range(24))
    assert nearest(prints(originals), copies).tolist() == list(range(24))


def test_different_real_images_are_no_copies(shared: Path) -> None:
    images = prints(real(shared, 400))
    assert (nearest(images, images, itself=True) == -1).all()


def test_a_copy_in_a_crowd_is_found(shared: Path) -> None:
    images = real(shared, 100)
    crowd = prints([*images, COPIES["cropped all round"](images[70])])
    found = nearest(crowd, crowd, itself=True)
    assert {int(n): int(found[n]) for n in np.flatnonzero(found >= 0)} == {70: 100, 100: 70}


def test_the_number_of_threads_changes_nothing(shared: Path) -> None:
    images = prints(real(shared, 60))
    copies = prints([COPIES["brighter"](pixels) for pixels in real(shared, 60, 30)])
    assert (nearest(copies, images, 1) == nearest(copies, images, 5)).all()


def test_nothing_is_near_to_nothing() -> None:
    one = prints([picture(1)])
    assert nearest(one, Prints.joined([])).tolist() == [-1]
    assert nearest(Prints.joined([]), one).tolist() == []
    assert nearest(one, one, itself=True).tolist() == [-1]


def test_a_delivery_of_nothing_but_copies_is_searched() -> None:
    many = prints([picture(1)] * 300)
    assert (nearest(many, many, itself=True) >= 0).all()


@pytest.mark.parametrize("pixels", [np.zeros((80, 80), np.uint8), np.eye(80, dtype=np.uint8)])
def test_images_without_structure_are_no_copies_of_radiographs(pixels: Grey) -> None:
    assert nearest(prints([pixels]), prints([picture(n) for n in range(20)])).tolist() == [-1]


seeds = st.integers(0, 2**32 - 1)


@given(seeds, st.floats(0.6, 1.6), st.floats(0.6, 1.0), st.integers(0, 40))
@hypothesis_settings(max_examples=60, deadline=None)
def test_the_hash_does_not_see_brightness(seed: int, gamma: float, contrast: float, offset: int) -> None:
    pixels = picture(seed, 160, 160)
    changed = np.rint(offset + (255 - offset) * contrast * (pixels / 255) ** gamma).astype(np.uint8)
    assert apart(pixels, changed) <= 52


@given(seeds, seeds)
@hypothesis_settings(max_examples=60, deadline=None)
def test_unlike_pictures_have_unlike_hashes(one: int, other: int) -> None:
    if one != other:
        assert apart(picture(one), picture(other)) > 52


@given(seeds, st.integers(64, 300), st.integers(64, 300))
@hypothesis_settings(max_examples=60, deadline=None)
def test_a_fingerprint_is_text_of_one_length_and_repeats(seed: int, height: int, width: int) -> None:
    pixels = picture(seed, height, width)
    found = fingerprint(pixels)
    assert (len(found.phash), len(found.thumbnail)) == (64, 2136)
    assert found == fingerprint(np.asfortranarray(pixels))
    assert found.phash == hashes(prints([pixels]).thumbnails([0]))[0].tobytes().hex()


@given(st.lists(seeds, min_size=2, max_size=8, unique=True))
@hypothesis_settings(max_examples=30, deadline=None)
def test_likeness_is_a_correlation_that_knows_itself(drawn: list[int]) -> None:
    thumbnails = prints([picture(seed) for seed in drawn]).thumbnails(list(range(len(drawn))))
    assert likeness(thumbnails, thumbnails) == pytest.approx(np.ones(len(drawn)))
    others = likeness(thumbnails, np.roll(thumbnails, 1, axis=0))
    assert (np.abs(others) <= 1 + 1e-9).all()


def test_likeness_of_images_without_structure_is_none() -> None:
    flat = np.full((2, SIDE, SIDE), 7, np.uint8)
    assert likeness(flat, flat).tolist() == [0.0, 0.0]


def test_radiographs_without_a_hash_are_not_skipped() -> None:
    rows = pd.DataFrame({"digest": ["a" * 64], "side": ["train"], "phash": [""], "thumbnail": [""]})
    with pytest.raises(DatasetError, match="without a perceptual hash"):
        Prints.of(rows, [0])


def test_thumbnails_of_another_size_are_not_skipped() -> None:
    row = (f"{1:064x}", "train", fingerprint(picture(1)).phash, "AAAA")
    known = Prints.of(pd.DataFrame([row], columns=["digest", "side", "phash", "thumbnail"]), [0])
    with pytest.raises(DatasetError, match="another size"):
        nearest(prints([picture(1)]), known)


def plainly(forms: NDArray[np.uint64], known: NDArray[np.uint64], own: int) -> list[int]:
    """Compare each hash with each form, bit by bit: the places of the near ones, the nearest first, then the first."""
    near = []
    for place, one in enumerate(known):
        apart = []
        for form in forms:
            differ = [bin(int(a) ^ int(b)).count("1") for a, b in zip(one, form, strict=True)]
            if differ[0] <= 10 and sum(differ) <= 52:
                apart.append(sum(differ))
        if apart and place != own:
            near.append((min(apart), place))
    return [place for _, place in sorted(near)][:64]


def searched(questions: NDArray[np.uint64], known: NDArray[np.uint64], own: int) -> list[list[int]]:
    """Return the places of the hashes that are near each question, as the search finds them, without its own."""
    zeros, rows = np.zeros(len(known), np.int8), np.arange(len(known))
    among = Prints.made(Given(known, known, []), rows, zeros, np.ones(len(known), np.bool_))
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(near_copies, "_forms", lambda thumbnails: questions)
        asked = prints([picture(1)] * len(questions))
        if own < 0:
            return [near.tolist() for near in near_copies._candidates(asked, among, False, pool)]
        (near,) = near_copies._candidates(asked, among, True, pool)
        return [near.tolist()]


@given(
    seeds,
    st.integers(1, 3),
    st.sampled_from([0, 1, 30, 300]),
    st.integers(0, 20),
    st.sampled_from([7, 64, 1 << 15]),
    st.sampled_from([10, 1 << 20]),
)
@hypothesis_settings(max_examples=80, deadline=None)
def test_the_search_finds_what_a_plain_reading_finds(
    seed: int, asked: int, size: int, flips: int, block: int, stretch: int
) -> None:
    """Hashes of up to so many bits flipped in the first 64 and four times as many in the rest, so that some lie on
    either side of each limit; and at the limits themselves."""
    rng = np.random.default_rng(seed)
    questions = near_copies._forms(prints([picture(seed % 1000 + n) for n in range(asked)]).thumbnails(range(asked)))
    known = questions[rng.integers(0, asked, size), rng.integers(0, questions.shape[1], size)]
    for one in known:
        for words, most in ((one[:1], flips), (one[1:], 4 * flips)):
            for bit in rng.choice(64 * len(words), int(rng.integers(0, most + 1)), replace=False).tolist():
                words[bit // 64] ^= np.uint64(1 << bit % 64)
    if size:
        known[0] = questions[0, -1] ^ np.array([2**10 - 1, 2**42 - 1, 0, 0], np.uint64)  # 10 and 52 apart: near
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_copies, "_BLOCK", block)
        patch.setattr(near_copies, "_STRETCH", stretch)
        assert searched(questions, known, -1) == [plainly(forms, known, -1) for forms in questions]
        assert searched(questions[:1], known, 0) == [plainly(questions[0], known, 0)]


def test_every_hash_within_the_distance_is_looked_at() -> None:
    rng = np.random.default_rng(0)
    known = rng.integers(0, 2**63, (140_000, 4), dtype=np.uint64)  # more than two blocks
    known[[0, 40_000, 139_999]] = known[123]
    known[40_000, 3] ^= np.uint64(1)
    assert searched(known[[[123]]], known, -1) == [[0, 123, 139_999, 40_000]]
    assert searched(known[[[123]]], known, 0) == [[123, 139_999, 40_000]]


def test_the_threshold_lies_between_copies_and_others(shared: Path) -> None:
    images = real(shared, 80)
    own = prints(images).thumbnails(range(80))
    cropped = prints([COPIES["all at once"](pixels) for pixels in images]).thumbnails(range(80))
    assert likeness(own, cropped).min() > ALIKE
    assert likeness(own, np.roll(own, 1, axis=0)).max() < ALIKE - 0.2


def test_orientation_is_applied_before_the_fingerprint() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    out = io.BytesIO()
    Image.fromarray(picture(3)[::-1, ::-1]).save(out, "JPEG", quality=95, exif=exif)
    turned = prints([again(out.getvalue())])
    assert nearest(turned, prints([picture(3)])).tolist() == [0]
