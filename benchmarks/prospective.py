"""Twenty years of nights with one champion: how often is an alarm false, and how soon is a fall seen?

    python benchmarks/prospective.py [--hospitals 400] [--json FILE]

Each night brings patients of whom 82 % have one radiograph and 18 % two to six, which are alike: whether the champion
is right on them is a normal number of the patient's and one of the radiograph's, half of the variance each. They are
also easier: it is wrong on half as many of them. The share of ill patients wanders from night to night between about a
third and nine tenths. Of a normal patient the champion has .85 right on average and of an ill one .97. What it promises
was measured on held-out radiographs of such patients: each hospital has drawn its own, so some promises are too high.
Margin, rate and test are the default policy's and the package's own.

`least`: what no test can do better that is so rarely wrong, by Wald (1945): log(1 / alpha) over what a night tells,
with the fall known beforehand and all stakes on it, one radiograph a patient. It pays nothing for not knowing when the
fall will come.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from xray_pipeline.evaluation import betting
from xray_pipeline.evaluation.betting import Values
from xray_pipeline.gate.policy import load_policy

Floats = npt.NDArray[np.float64]

RECALLS, ILL = np.array([0.85, 0.97]), 0.65
YEARS, NIGHTS_A_YEAR, BLOCK = 20, 365, 730
NUMBERS = next(clause.numbers for clause in load_policy("default").clauses if clause.rule == "watched")
MARGIN, ALPHA = NUMBERS["margin"], NUMBERS["false_alarms"]
SHARED, EASIER, ONE = 0.5, 0.5, 0.82
SIZES = {1: ONE, **dict.fromkeys(range(2, 7), (1 - ONE) / 5)}
MEAN_SIZE = sum(size * share for size, share in SIZES.items())
MIX = np.array([1 - ILL, ILL])


def patients(recall: float) -> tuple[Floats, Floats]:
    """Return the shares of radiographs that a patient may have right, and how likely each is; `recall` is the mean."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    several = 1 - (1 - recall) * EASIER
    one = (recall - (1 - ONE) * several) / ONE
    found: dict[float, float] = {}
    for size, share in SIZES.items():
        mean = special.ndtri(one if size == 1 else several)
        p = special.ndtr((mean + math.sqrt(SHARED) * nodes) / math.sqrt(1 - SHARED))
        for right in range(size + 1):
            ways = special.binom(size, right) * p**right * (1 - p) ** (size - right)
            key = round(right / size, 9)
            found[key] = found.get(key, 0.0) + share * float((weights * ways).sum() / weights.sum())
    shares = np.array(sorted(found))
    likely = np.array([found[share] for share in shares])
    return shares, likely / likely.sum()


SHARES = patients(0.9)[0]


def mixes(rng: np.random.Generator, hospitals: int, nights: int) -> Floats:
    """Draw the share of ill patients of each night [hospitals, nights]: it wanders."""
    noise = rng.normal(0, 0.25, (hospitals, nights))
    walk = np.zeros((hospitals, nights))
    for night in range(1, nights):
        walk[:, night] = 0.97 * walk[:, night - 1] + noise[:, night]
    return np.asarray(special.expit(special.logit(ILL) + 0.5 * walk))


def seen(rng: np.random.Generator, hospitals: int, nights: int, a_night: int, recalls: Floats) -> Floats:
    """Count patients [hospitals, nights, 2 classes, shares] by how much of them the champion has right."""
    ill = rng.binomial(a_night, mixes(rng, hospitals, nights))
    counts = [rng.multinomial(n, patients(r)[1]) for n, r in zip((a_night - ill, ill), recalls, strict=True)]
    return np.stack(counts, axis=2).astype(np.float64)


def promises(rng: np.random.Generator, hospitals: int, images: int) -> tuple[Floats, Floats]:
    """Draw what was right of held-out patients [hospitals, 2 classes], and the lower ends, as `Promise.of` has them."""
    if not images:
        exact = np.tile(RECALLS, (hospitals, 1))
        return exact, exact
    counts = np.round(images / MEAN_SIZE * MIX).astype(int)
    drawn = [
        rng.multinomial(count, patients(r)[1], hospitals) @ SHARES for count, r in zip(counts, RECALLS, strict=True)
    ]
    right = np.stack(drawn, axis=1)
    return right / counts, special.betaincinv(np.maximum(right, 1e-9), counts - right + 1, 0.05 / 2)


def wealth(counts: Floats, held_out: Floats, lows: Floats) -> Floats:
    """Return the logarithm of the wealth [hospitals, nights], as `watching.watch` has it."""
    least = np.clip(np.minimum(held_out - MARGIN, lows), 0, 1)
    values = SHARES - least[:, :, None]  # [hospitals, classes, shares]
    both = Values(
        values.reshape(len(values), -1), counts.reshape(*counts.shape[:2], -1), -least.max(1), 1 - least.min(1)
    )
    ill = Values(values[:, 1], counts[:, :, 1], -least[:, 1], 1 - least[:, 1])
    logs = [
        betting.log_wealth(part, np.zeros(len(values)), promised * (1 - promised))
        for part, promised in ((both, least @ MIX), (ill, least[:, 1]))
    ]
    return betting.averaged(np.array(logs), [0.5, 0.5])


def false_alarms(hospitals: int, a_night: int, images: int, fall: float, seed: int) -> float:
    """Return the share of hospitals that ever raise an alarm in twenty years; the true shares are `fall` lower."""
    rng = np.random.default_rng(seed)
    raised, size = 0, 50
    for start in range(0, hospitals, size):
        some = min(size, hospitals - start)
        counts = seen(rng, some, YEARS * NIGHTS_A_YEAR, a_night, RECALLS - fall)
        raised += int((wealth(counts, *promises(rng, some, images)) >= -math.log(ALPHA)).any(axis=1).sum())
    return raised / hospitals


def nights_until(hospitals: int, a_night: int, images: int, fall: float, good: int, seed: int) -> tuple[float, float]:
    """Return the median and the 90th percentile of nights from a fall, after `good` nights, to the alarm."""
    rng = np.random.default_rng(seed)
    counts = [seen(rng, hospitals, good, a_night, RECALLS), seen(rng, hospitals, BLOCK, a_night, RECALLS - fall)]
    logs = wealth(np.concatenate(counts, axis=1), *promises(rng, hospitals, images))[:, good:]
    rich = logs >= -math.log(ALPHA)
    waits = np.where(rich.any(axis=1), rich.argmax(axis=1) + 1, np.inf)
    return float(np.median(waits)), float(np.quantile(waits, 0.9, method="higher"))


def least_nights(a_night: int, images: int, fall: float) -> float:
    """Return the nights below which no test of the promise can stay on average, the module says why."""
    _, lows = promises(np.random.default_rng(0), 200, images)
    accuracy = float(RECALLS @ MIX)
    least = float((np.minimum(RECALLS - MARGIN, lows) @ MIX).mean())
    true = accuracy - fall
    if true >= least:
        return math.inf
    tells = true * math.log(true / least) + (1 - true) * math.log((1 - true) / (1 - least))
    return -math.log(ALPHA) / (a_night * tells)


def shown(nights: float) -> str:
    """Say a number of nights."""
    return f"{nights:.0f}" if nights <= BLOCK else f"over {BLOCK}"


def main() -> None:
    """Run all scenarios and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hospitals", type=int, default=400)
    parser.add_argument("--json", type=Path, help="also write the results here")
    arguments = parser.parse_args()
    start, hospitals = time.perf_counter(), arguments.hospitals
    rows: list[dict[str, Any]] = []

    print(f"False alarms: share of {hospitals} hospitals that ever raise one in {YEARS} years; stated: {ALPHA:g}")
    print(
        f"{'patients a night':>17} {'as promised':>12} {'held out 600':>13} {'held out 3000':>14} {'margin lower':>13}"
    )
    for a_night in (20, 50, 200):
        cases = ((0, 0.0), (600, 0.0), (3000, 0.0), (0, MARGIN))
        found = [false_alarms(hospitals, a_night, images, fall, a_night) for images, fall in cases]
        rows.append({"patients": a_night, "false_alarms": found})
        print(f"{a_night:17} {found[0]:12.3f} {found[1]:13.3f} {found[2]:14.3f} {found[3]:13.3f}", flush=True)

    print("\nNights from a fall to the alarm: median (90th percentile), and the least that theory allows")
    print(f"{'held out':>9} {'patients':>9} {'fall':>5} {'at once':>16} {'after a year':>18} {'least':>7}")
    for images in (0, 3000, 600):
        for a_night in (20, 50, 200):
            for fall in (0.03, 0.05, 0.10):
                waits = [nights_until(hospitals, a_night, images, fall, good, a_night) for good in (0, NIGHTS_A_YEAR)]
                least = least_nights(a_night, images, fall)
                rows.append({"images": images, "patients": a_night, "fall": fall, "nights": waits, "least": least})
                at_once, later = (f"{shown(median)} ({shown(most)})" for median, most in waits)
                print(
                    f"{images or 'exact':>9} {a_night:9} {fall:5.2f} {at_once:>16} {later:>18} {least:7.1f}", flush=True
                )
    print(f"\n{time.perf_counter() - start:.0f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
