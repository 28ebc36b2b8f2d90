"""How many near copies are found, how many different images are taken for copies, and what a question costs.

    python benchmarks/near_duplicates.py --small FOLDER --data FOLDER [--images 200] [--full 20] [--sizes ...]
                                         [--json FILE]

Recall: copies of real images are made, encoded and read as the intake reads files, then looked for among all originals;
each kind is asked twice, as the copy that arrives later and as the original that arrives later. False alarms: every
pair of different images of the data set. Time: questions against made hashes, each a real image's cosine terms mixed
half and half with noise of the same correlations, so that they crowd together as real ones do; their thumbnails are
real ones in turn. Times are CPU milliseconds, which other load on the machine leaves alone.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from xray_pipeline.base.settings import IntakeRules
from xray_pipeline.dataset import near_copies
from xray_pipeline.dataset.fingerprints import COSINES, Prints, Thumbnails, fingerprint, packed, ranks, terms
from xray_pipeline.dataset.near_copies import nearest
from xray_pipeline.images import radiograph

Grey = NDArray[np.uint8]
Kind = tuple[Callable[[Grey, np.random.Generator, Any], bytes], Any]  # how to make it, and how strongly
LIMITS = radiograph.Limits()


def jpeg(pixels: Grey, quality: int = 90) -> bytes:
    """A JPEG of the pixels."""
    return _saved(Image.fromarray(np.ascontiguousarray(pixels)), "JPEG", quality=quality)


def png(pixels: NDArray[Any]) -> bytes:
    """A PNG of the pixels, 8 or 16 bits."""
    return _saved(Image.fromarray(np.ascontiguousarray(pixels)), "PNG", compress_level=1)


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def dicom(pixels: Grey) -> bytes:
    """A 12-bit MONOCHROME1 DICOM file whose window shows the pixels a little harder than they were."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = "1.2.840.10008.5.1.4.1.1.1", ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["made"])
    image = FileDataset("", {}, b"\0" * 128, meta)
    image.SOPClassUID, image.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    image.Modality, image.PhotometricInterpretation, image.SamplesPerPixel = "CR", "MONOCHROME1", 1
    image.Rows, image.Columns = pixels.shape
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
    image.WindowCenter, image.WindowWidth = 2048, 3600
    image.PixelData = ((255 - pixels.astype(np.uint16)) * 16).tobytes()
    image["PixelData"].VR = "OW"
    out = io.BytesIO()
    image.save_as(out, enforce_file_format=True)
    return out.getvalue()


def resized(pixels: Grey, scale: float) -> Grey:
    """The pixels at another size (bicubic)."""
    height, width = pixels.shape
    size = max(64, round(width * scale)), max(64, round(height * scale))
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BICUBIC))


def corner(pixels: Grey, rng: np.random.Generator, share: float) -> Grey:
    """Without `share` of width and height, taken off at one corner drawn at random."""
    rows, columns = (max(1, round(length * share)) for length in pixels.shape)
    top, left = rng.integers(0, 2, 2)
    pixels = pixels[rows:] if top else pixels[:-rows]
    return pixels[:, columns:] if left else pixels[:, :-columns]


def border(pixels: Grey, share: float) -> Grey:
    """Without `share` of width and height at each of the four sides."""
    rows, columns = (max(1, round(length * share)) for length in pixels.shape)
    return pixels[rows:-rows, columns:-columns]


def levels(pixels: Grey, change: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Grey:
    """Other grey levels: `change` of 0 to 1, clipped."""
    return np.rint(255 * np.clip(change(np.arange(256) / 255), 0, 1)).astype(np.uint8)[pixels]


def everything(pixels: Grey, rng: np.random.Generator) -> bytes:
    """Cropped by 3 % at a corner, 70 % of the size, brighter, JPEG of quality 50."""
    return jpeg(levels(resized(corner(pixels, rng, 0.03), 0.7), lambda x: x + 0.08), 50)


KINDS: dict[str, Kind] = {
    **{f"JPEG quality {q}": (lambda p, r, q: jpeg(p, q), q) for q in (30, 50, 70, 90)},
    **{f"resized to {s} %": (lambda p, r, s: jpeg(resized(p, s / 100)), s) for s in (50, 75, 125, 150)},
    **{f"{s} % off a corner": (lambda p, r, s: jpeg(corner(p, r, s / 100)), s) for s in (1, 2, 3)},
    **{f"{s} % off each side": (lambda p, r, s: jpeg(border(p, s / 100)), s) for s in (1, 2, 3)},
    **{f"brightness {b:+d}": (lambda p, r, b: jpeg(levels(p, lambda x: x + b / 255)), b) for b in (-30, 30)},
    **{f"contrast {c}": (lambda p, r, c: jpeg(levels(p, lambda x: (x - 0.5) * c + 0.5)), c) for c in (0.7, 1.4)},
    **{f"gamma {g}": (lambda p, r, g: jpeg(levels(p, lambda x: x**g)), g) for g in (0.6, 1.6)},
    "PNG, 8 bits": (lambda p, r, _: png(p), 0),
    "PNG, 16 bits": (lambda p, r, _: png(p.astype(np.uint16) * 257), 0),
    "DICOM, windowed": (lambda p, r, _: dicom(p), 0),
    "crop, size, light, JPEG": (lambda p, r, _: everything(p, r), 0),
}


def prints(images: list[Any]) -> Prints:
    """Fingerprints of pixels, all on one side."""
    rows = [(f"{n:064x}", "train", *fingerprint(pixels)) for n, pixels in enumerate(images)]
    return Prints.of(pd.DataFrame(rows, columns=["digest", "side", "phash", "thumbnail"]), range(len(rows)))


def grey(path: Path) -> Grey:
    """The pixels of a file as the intake sees them."""
    pixels = radiograph.normalise(path.read_bytes(), LIMITS).pixels
    assert pixels.dtype == np.uint8
    return pixels


def recall(originals: list[Grey], among: Prints, places: list[int], same: list[int]) -> dict[str, dict[str, float]]:
    """Return by kind the share of copies found when the copy comes later and when the original does.

    `places` are the originals' places in `among`; `same` gives for each place the first with the same pixels.
    """
    found = {}
    own = among.take(places)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, (make, strength) in KINDS.items():
            rng = np.random.default_rng(0)
            files = [make(pixels, rng, strength) for pixels in originals]
            copies = prints(list(pool.map(lambda data: radiograph.normalise(data, LIMITS).pixels, files)))
            later = nearest(copies, among)
            right = [at >= 0 and same[at] == same[place] for at, place in zip(later, places, strict=True)]
            earlier = nearest(own, copies)
            back = [at >= 0 and same[places[at]] == same[place] for at, place in zip(earlier, places, strict=True)]
            found[name] = {"copy_later": float(np.mean(right)), "original_later": float(np.mean(back))}
            print(f"{name:>26} {found[name]['copy_later']:10.1%} {found[name]['original_later']:16.1%}", flush=True)
    return found


def alarms(among: Prints, paths: list[Path], same: list[int]) -> dict[str, Any]:
    """Return what is taken for near copies within the data set, all pairs of different pixels, by patient."""
    pattern = re.compile(IntakeRules().patient_pattern)
    patients = [f"{path.parent.name} {found[1]}" if (found := pattern.search(path.name)) else "" for path in paths]
    first = sorted(set(same))  # one of each group of identical pixels
    alone = among.take(first)
    near = nearest(alone, alone, itself=True)
    pairs = {tuple(sorted((first[n], first[at]))) for n, at in enumerate(near) if at >= 0}
    counts = pd.Series([patients[at] for at in first]).value_counts()
    of_one = int((counts * (counts - 1) // 2).sum())
    return {
        "images": len(first),
        "pairs": len(first) * (len(first) - 1) // 2,
        "pairs_of_one_patient": of_one,
        "alarms": len(pairs),
        "alarms_of_one_patient": sum(patients[a] == patients[b] for a, b in pairs),
        "which": [f"{paths[a].name} {paths[b].name}" for a, b in sorted(pairs)],
    }


class Made(NamedTuple):
    """Made fingerprints, which show real radiographs in turn."""

    hashes: NDArray[np.uint64]
    shown: Prints

    def words(self, column: str, places: NDArray[np.int64]) -> NDArray[np.uint64]:
        """As `Source`."""
        return self.hashes[places]

    def pictures(self, places: NDArray[np.int64]) -> Thumbnails:
        """As `Source`."""
        return self.shown.thumbnails(places % len(self.shown))


def crowd(among: Prints, size: int, rng: np.random.Generator) -> NDArray[np.uint64]:
    """Return made hashes (size, 4) that crowd together as real ones do."""
    frequencies = terms(ranks(among.thumbnails(range(len(among)))), COSINES, COSINES)
    spread = np.linalg.cholesky(np.cov(frequencies.T) + np.eye(frequencies.shape[1]))
    hashes = np.empty((size, 4), np.uint64)
    for start in range(0, size, 20_000):
        some = hashes[start : start + 20_000]
        noise = rng.standard_normal((len(some), frequencies.shape[1])) @ spread.T
        some[:] = packed(frequencies[rng.integers(0, len(frequencies), len(some))] + noise)
    return hashes


def scale(among: Prints, sizes: list[int], questions: int) -> list[dict[str, float]]:
    """Return for made collections of each size what a question costs."""
    rng, found = np.random.default_rng(0), []
    asked = among.take(rng.choice(len(among), questions, replace=False).tolist())

    for size in sizes:
        hashes = crowd(among, size, rng)
        source = Made(hashes, among)
        known = Prints.made(source, np.arange(size), np.zeros(size, np.int8), np.ones(size, np.bool_))
        with ThreadPoolExecutor(1) as pool:
            start = time.process_time()
            candidates = near_copies._candidates(asked, known, False, pool)
            scan = time.process_time() - start
        start = time.process_time()
        nearest(asked, known, 1)
        whole = time.process_time() - start
        found.append(
            {
                "images": size,
                "scan_cpu_ms_a_question": 1000 * scan / questions,
                "cpu_ms_a_question": 1000 * whole / questions,
                "candidates_a_question": float(np.mean([len(near) for near in candidates])),
            }
        )
        f = found[-1]
        print(
            f"{size:>9,} {f['scan_cpu_ms_a_question']:9.2f} {f['cpu_ms_a_question']:9.2f} "
            f"{f['candidates_a_question']:10.2f}",
            flush=True,
        )
    return found


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=Path, required=True, help="radiographs of 224 pixels by class, JPEG")
    parser.add_argument("--data", type=Path, required=True, help="full-resolution radiographs by class, JPEG")
    parser.add_argument("--images", type=int, default=200, help="224-pixel originals to make copies of")
    parser.add_argument("--full", type=int, default=20, help="full-resolution originals to make copies of")
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 100_000, 1_000_000, 10_000_000])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    result: dict[str, Any] = {"cores": os.cpu_count()}

    paths, full = (sorted(folder.rglob("*.jpeg")) for folder in (asked.small, asked.data))
    if not paths or not full:
        parser.error(f"no *.jpeg below {asked.data if paths else asked.small}")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        small = list(pool.map(grey, paths))
        large = list(pool.map(grey, full))
    everyone, seen = [*small, *large], dict[bytes, int]()
    same = [
        seen.setdefault(pixels.shape[0].to_bytes(4, "big") + pixels.tobytes(), n) for n, pixels in enumerate(everyone)
    ]
    rng = np.random.default_rng(1)
    for name, start, images, count in (
        ("recall_224", 0, small, asked.images),
        ("recall_full", len(small), large, asked.full),
    ):
        chosen = sorted(rng.choice(len(images), min(count, len(images)), replace=False).tolist())
        print(f"\nRecall, {len(chosen)} originals among {len(images):,}: {'copy later':>12} {'original later':>16}")
        among = prints(images)
        result[name] = recall(
            [images[n] for n in chosen], among, chosen, [same[start + n] - start for n in range(len(images))]
        )
    among = prints(small)
    result["false_alarms"] = found = alarms(among, paths, same[: len(small)])
    print(
        f"\nFalse alarms: {found['alarms']} of {found['pairs']:,} pairs of different images, "
        f"{found['alarms_of_one_patient']} of {found['pairs_of_one_patient']:,} of one patient: {found['which']}"
    )
    print(f"\n{'images':>9} {'scan':>9} {'all':>9} {'candidates':>10}   CPU ms a question")
    result["scale"] = scale(among, asked.sizes, 50)
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
