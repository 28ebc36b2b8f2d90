"""Ways to find the hashes that are near a question: what each costs, or how many hashes it would have to look at.

    python benchmarks/near_search.py --small FOLDER [--images 1000000] [--questions 32] [--json FILE]

Hashes are made so that they crowd together as real ones do (near_duplicates.py). Compared are the search as it is, each
form with each hash, faiss where it is installed, and two ways to look at fewer: tables of parts of the
hash (multi-index hashing: of m parts one is within 10/m bits), and groups of hashes that agree in many bits, which are
ruled out together. Times are CPU milliseconds a question on one thread, the least of three.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from near_duplicates import Made, crowd, grey, prints
from numpy.typing import NDArray

from xray_pipeline.dataset import near_copies
from xray_pipeline.dataset.fingerprints import Prints

Words = NDArray[np.uint64]
NEAR = near_copies._COARSE


def milliseconds(work: Callable[[], object], questions: int) -> float:
    """CPU milliseconds that some work takes for each question, the least of three."""
    took = []
    for _ in range(3):
        start = time.process_time()
        work()
        took.append(time.process_time() - start)
    return 1000 * min(took) / questions


def plainly(forms: Words, hashes: Words) -> int:
    """Compare each form (forms, 4) with each hash (n, 4); return how many hashes are near."""
    near = np.zeros(len(hashes), np.bool_)
    for form in forms:
        apart = np.bitwise_count(hashes ^ form)
        near |= (apart[:, 0] <= NEAR) & (apart.sum(axis=1, dtype=np.uint8) <= near_copies._APART)
    return int(near.sum())


def looked_at(forms: Words, coarse: Words, tables: int) -> float:
    """Return the share of hashes that have one of so many parts of 64 bits near enough to a form's."""
    found = np.zeros(len(coarse), np.bool_)
    for bits in np.array_split(np.arange(64), tables):
        part = np.uint64(sum(1 << int(bit) for bit in bits))
        for form in forms:
            found |= np.bitwise_count((coarse ^ form) & part) <= NEAR // tables
    return float(found.mean())


def groups(coarse: Words, places: NDArray[np.int64], most: int) -> Iterator[NDArray[np.int64]]:
    """Yield groups of at most so many hashes, halved again and again by the bit that halves them best."""
    bits = np.unpackbits(coarse[places].view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
    share = bits.mean(axis=0)
    best = int(np.abs(share - 0.5).argmin())
    if len(places) <= most or share[best] in (0, 1):
        yield places
    else:
        for value in (0, 1):
            yield from groups(coarse, places[bits[:, best] == value], most)


def not_ruled_out(questions: Words, coarse: Words, most: int) -> float:
    """Return the share of hashes in groups whose common bits alone put no form (questions, forms) too far away."""
    of = list(groups(coarse, np.arange(len(coarse)), most))
    ones = np.array([np.bitwise_and.reduce(coarse[some]) for some in of])
    zeros = np.array([np.bitwise_and.reduce(~coarse[some]) for some in of])
    sizes = np.array([len(some) for some in of])
    apart = (np.bitwise_count((ones ^ forms[:, None]) & (ones | zeros)).min(axis=0) for forms in questions)
    return float(np.mean([sizes[near <= NEAR].sum() / sizes.sum() for near in apart]))


def with_faiss(faiss: Any, questions: Words, hashes: Words, words: int) -> float:
    """CPU milliseconds of faiss's flat index over so many words of eight bytes."""
    faiss.omp_set_num_threads(1)
    index = faiss.IndexBinaryFlat(64 * words)
    index.add(np.ascontiguousarray(hashes[:, :words]).view(np.uint8))
    asked = np.ascontiguousarray(questions[:, :, :words]).reshape(-1, words).view(np.uint8)
    radius = 1 + (NEAR if words == 1 else near_copies._APART)
    return milliseconds(lambda: index.range_search(asked, radius), len(questions))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=Path, required=True, help="radiographs of 224 pixels by class, JPEG")
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with ThreadPoolExecutor() as pool:
        among = prints(list(pool.map(grey, sorted(asked.small.rglob("*.jpeg")))))
    rng = np.random.default_rng(0)
    chosen = among.take(rng.choice(len(among), asked.questions, replace=False))
    questions, hashes = near_copies._forms(chosen.thumbnails(range(len(chosen)))), crowd(among, asked.images, rng)
    count, coarse = len(hashes), np.ascontiguousarray(hashes[:, 0])
    known = Prints.made(Made(hashes, among), np.arange(count), np.zeros(count, np.int8), np.ones(count, np.bool_))
    found: dict[str, float] = {"images": count, "questions": len(questions)}
    with ThreadPoolExecutor(1) as pool:
        found["ms, the search"] = milliseconds(
            lambda: near_copies._candidates(chosen, known, False, pool), len(questions)
        )
    found["ms, each form with each hash"] = milliseconds(lambda: plainly(questions[0], hashes), 1)
    for words in (1, 4):
        if importlib.util.find_spec("faiss"):
            faiss = importlib.import_module("faiss")
            found[f"ms, faiss, {64 * words} bits"] = with_faiss(faiss, questions, hashes, words)
    for tables in (2, 3, 4, 6):
        shares = [looked_at(forms[:, 0], coarse, tables) for forms in questions[:8]]
        found[f"looked at, {tables} tables"] = float(np.mean(shares))
    for most in (32, 256):
        found[f"looked at, groups of {most}"] = not_ruled_out(questions[:, :, 0], coarse, most)
    for name, value in found.items():
        print(f"{name:>32} {value:12,.3f}")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
