"""Twenty years of nights: how often is a model promoted that is not better, and how long does a better one wait?

    python benchmarks/gate_simulation.py [--runs 10] [--json FILE]

Each night brings one candidate. A model is right on a radiograph when

    a + sqrt(rho) * u + sqrt(1 - rho) * e > 0

with u the radiograph's difficulty, the same for every model, and e the accident of one training, new for each; both
are normal and partly shared by the radiographs of a patient. `a` gives the accuracy (.93), `rho` the share of
radiographs on which two equally good models differ (5 %). 18 % of the patients have several radiographs.

Four rules see the same candidates, each with its own champion: `naive` (higher held-out accuracy), `fixed` (p <= .05
in the paired, patient-clustered test), `held-out` (clause 4.2 of the default policy by the held-out patients alone) and
`policy` (all of clause 4.2: a candidate of higher held-out accuracy that is not promoted may take its turn in shadow,
on 50 patients a night that nothing has learned from), with the gate's own functions. With equally good candidates every
promotion is a false one. With better ones, every candidate from the first night on has a true accuracy that much
higher, and the held-out set has been used before; one in 30 of these nights began a turn.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from xray_pipeline.evaluation.betting import Values, log_wealth_at_once
from xray_pipeline.evaluation.bootstrap import sign_flip_p
from xray_pipeline.evaluation.shadow import VARIANCE
from xray_pipeline.gate.confidence import effective_uses, level_after, level_of_turn
from xray_pipeline.gate.policy import load_policy

NIGHTS_A_YEAR, YEARS = 365, 20
ACCURACY, DISAGREEMENT, SHARED_BY_PATIENT = 0.93, 0.05, 0.5
RULES = ("naive", "fixed", "held-out", "policy")
ARRIVE = 50  # new patients a night
NUMBERS = next(clause.numbers for clause in load_policy("default").clauses if clause.rule == "confidence")

Bools = npt.NDArray[np.bool_]
Reals = npt.NDArray[np.float32]


@dataclass(frozen=True)
class World:
    """The held-out radiographs of some independent hospitals [runs, images], `owner[i]` the patient of column i."""

    difficulty: Reals
    owner: npt.NDArray[np.int64]
    rho: float

    def models(self, rng: np.random.Generator, accuracy: float, columns: slice) -> Bools:
        """Train one model per hospital; return where it is right [runs, columns]."""
        # The latent sum is standard normal, so its shift alone gives the accuracy.
        accident = _shared(rng, len(self.difficulty), self.owner[columns])
        shift = np.float32(special.ndtri(accuracy))
        latent = math.sqrt(self.rho) * self.difficulty[:, columns] + math.sqrt(1 - self.rho) * accident
        right: Bools = shift + latent > 0
        return right


class Shadows:
    """The turns in shadow of some independent hospitals: one that waits beside each champion."""

    kinds: npt.NDArray[np.float64] = np.unique([right / of for of in range(1, 7) for right in range(-of, of + 1)])

    def __init__(self, runs: int, images: int, turns: int, rho: float) -> None:
        self.rho = rho
        self.turn = np.full(runs, turns)
        self.deliveries = np.full(runs, math.inf)  # nobody's turn
        self.versions = np.zeros((runs, images), bool)
        self.gains = np.zeros(runs)
        self._counts = np.zeros((runs, len(self.kinds)))

    def night(self, rng: np.random.Generator, gain: float, better: Bools) -> Bools:
        """Ask those whose turn it is about new patients; return who has shown to be better [runs]. `better` [runs]:
        whose champion is as good as the candidates already."""
        sizes = _sizes(rng, ARRIVE)
        owner = np.repeat(np.arange(ARRIVE), sizes)
        in_turn = np.flatnonzero(np.isfinite(self.deliveries))
        shown = np.zeros(len(self.turn), dtype=bool)
        if not len(in_turn):
            return shown
        world = World(_shared(rng, len(in_turn), owner), owner, self.rho)
        ours, plain, good = (world.models(rng, ACCURACY + add, slice(None)) for add in (gain, 0.0, gain))
        theirs = np.where(better[in_turn, None], good, plain)
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        means = np.add.reduceat(ours.astype(np.float64) - theirs, starts, axis=1) / sizes
        kind = np.searchsorted(self.kinds, means - 1e-9)
        np.add.at(self._counts, (np.repeat(in_turn, ARRIVE), kind.ravel()), 1)
        self.gains[in_turn] += means.sum(axis=1)
        self.deliveries[in_turn] += 1
        seen = Values(-self.kinds, self._counts[in_turn, None, :], -1, 1)
        wealth = log_wealth_at_once(seen, np.zeros(len(in_turn)), np.full(len(in_turn), VARIANCE))[:, -1]
        levels = np.array([level_of_turn(int(turn), NUMBERS) for turn in self.turn[in_turn]])
        shown[in_turn] = (wealth >= -np.log(levels)) & (self.gains[in_turn] > 0)
        return shown

    def take(self, who: Bools, candidates: Bools) -> Bools:
        """Give the next turn to the candidates of hospitals where it is nobody's and that have one who may [runs];
        return where one took it [runs]."""
        who = who & ~(self.deliveries < NUMBERS["record_deliveries"])
        self.turn[who] += 1
        self.versions[who, : candidates.shape[1]] = candidates[who]
        self.deliveries[who], self.gains[who], self._counts[who] = 0, 0, 0
        return who

    def end(self, who: Bools) -> None:
        """End the turns of hospitals whose champion is another now [runs]."""
        self.deliveries[who] = math.inf


@dataclass(frozen=True)
class Nights:
    """One simulated stretch of nights: promotions of each rule, and the night of each run's first (-1: none)."""

    images: int
    images_at_the_end: int
    gain: float
    earlier_uses: int
    nights: int
    runs: int
    promotions_a_year: dict[str, float]
    promotions_first_year: dict[str, float]
    first: dict[str, list[int]]


def make_world(rng: np.random.Generator, runs: int, images: int) -> World:
    """Draw difficulties and patients: one radiograph for 82 % of patients, two to six for the others."""
    owner = np.repeat(np.arange(images), _sizes(rng, images))[:images]
    return World(_shared(rng, runs, owner), owner, _rho(ACCURACY, DISAGREEMENT))


def _sizes(rng: np.random.Generator, patients: int) -> npt.NDArray[np.int64]:
    return np.where(rng.random(patients) < 0.82, 1, rng.integers(2, 7, size=patients))


def simulate(
    runs: int, images: int, nights: int, gain: float = 0.0, grow: int = 0, used: int = 0, seed: int = 0
) -> Nights:
    """Play `nights` nights in `runs` hospitals; each night `grow` radiographs join the held-out set."""
    rng = np.random.default_rng(seed)
    world = make_world(rng, runs, images + grow * nights)
    start = world.models(rng, ACCURACY, slice(None))
    champions = {rule: start.copy() for rule in RULES}
    counts = {rule: np.zeros((nights, runs), dtype=bool) for rule in RULES}
    earlier = [int(world.owner[images - 1]) + 1] * used
    shadows = Shadows(runs, images + grow * nights, int(used // NUMBERS["record_deliveries"]), world.rho)
    better = np.zeros(runs, dtype=bool)

    def promote(rule: str, who: Bools, models: Bools, night: int) -> None:
        now = models.shape[1]
        champions[rule][who, :now] = models[who]
        if who.any() and grow:  # how it will do on radiographs that are not here yet
            champions[rule][who, now:] = world.models(rng, ACCURACY + gain, slice(now, None))[who]
        counts[rule][night] |= who

    for night in range(nights):
        now = images + grow * night
        owner = world.owner[:now]
        patients = int(owner[-1]) + 1
        candidate = world.models(rng, ACCURACY + gain, slice(now))
        level = level_after(effective_uses(earlier, patients), NUMBERS)
        shown = shadows.night(rng, gain, better)
        promote("policy", shown, shadows.versions[:, :now], night)
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        for rule in RULES:
            gained = candidate.astype(np.int8) - champions[rule][:, :now]
            above = gained.sum(axis=1, dtype=np.int64) > 0
            most = {"naive": 1.0, "fixed": 0.05}.get(rule, level)
            wins = above.copy()
            if most < 1:
                wins &= _significant(np.add.reduceat(gained, starts, axis=1, dtype=np.int64), wins, most)
            promote(rule, wins, candidate, night)
            if rule == "policy":
                better |= wins | shown
                shadows.end(wins | shown)
                took = shadows.take(above & ~wins & ~shown, candidate)
                if took.any() and grow:
                    shadows.versions[took, now:] = world.models(rng, ACCURACY + gain, slice(now, None))[took]
        earlier.append(patients)
    return Nights(
        images=images,
        images_at_the_end=images + grow * (nights - 1),
        gain=gain,
        earlier_uses=used,
        nights=nights,
        runs=runs,
        promotions_a_year={rule: float(found.mean() * NIGHTS_A_YEAR) for rule, found in counts.items()},
        promotions_first_year={rule: float(found[:NIGHTS_A_YEAR].sum(0).mean()) for rule, found in counts.items()},
        first={rule: [int(i) for i in np.where(f.any(0), f.argmax(0), -1)] for rule, f in counts.items()},
    )


def _significant(balance: npt.NDArray[np.int64], among: Bools, level: float) -> Bools:
    """Where the exact test reaches the level; a normal score far too small is spared the exact test."""
    z = balance.sum(axis=1) / np.sqrt(np.maximum((balance**2).sum(axis=1), 1))
    likely = among & (z > float(special.ndtri(1 - level)) - 0.7)
    found = np.zeros(len(balance), dtype=bool)
    for run in np.flatnonzero(likely):
        found[run] = sign_flip_p(balance[run]) <= level
    return found


def _shared(rng: np.random.Generator, runs: int, owner: npt.NDArray[np.int64]) -> Reals:
    """Standard normal values [runs, images], correlated within a patient."""
    own = rng.standard_normal((runs, len(owner)), dtype=np.float32)
    first, last = (int(owner[0]), int(owner[-1])) if len(owner) else (0, -1)
    patient = rng.standard_normal((runs, last - first + 1), dtype=np.float32)[:, owner - first]
    mixed: Reals = math.sqrt(SHARED_BY_PATIENT) * patient + math.sqrt(1 - SHARED_BY_PATIENT) * own
    return mixed


def _rho(accuracy: float, disagreement: float) -> float:
    """The share of the latent variance that all models have in common, from how often two of them differ."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    shift = special.ndtri(accuracy)

    def excess(rho: float) -> float:
        p = special.ndtr((shift + math.sqrt(rho) * nodes) / math.sqrt(1 - rho))
        return float((weights * 2 * p * (1 - p)).sum() / weights.sum()) - disagreement

    return float(optimize.brentq(excess, 0.01, 0.99))


def power(found: Nights, rule: str) -> dict[str, Any]:
    """Share of runs that promoted within a week, a month, a quarter and a year, and the median delay in nights."""
    first = np.array(found.first[rule])
    delay = np.where(first < 0, np.inf, first)
    within = {f"within_{nights}": float((delay < nights).mean()) for nights in (7, 30, 90, 365)}
    median = float(np.median(delay))
    return {**within, "median_delay": median if math.isfinite(median) else None}


def main() -> None:
    """Run all scenarios and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10, help="hospitals simulated for 20 years")
    parser.add_argument("--json", type=Path, help="also write the results here")
    arguments = parser.parse_args()
    start = time.perf_counter()
    rows: list[dict[str, Any]] = []

    print(f"Equally good candidates, {YEARS} years, {arguments.runs} hospitals: false promotions")
    print(f"{'held-out images':>22} {'rule':>8} {'first year':>11} {'a year':>8} {'in 20 years':>12}")
    for images, grow in ((600, 0), (600, 2), (3000, 0)):
        null = simulate(arguments.runs, images, NIGHTS_A_YEAR * YEARS, grow=grow, seed=images + grow)
        rows.append(asdict(null))
        shown = f"{images}" if not grow else f"{images} to {null.images_at_the_end}"
        for rule in RULES:
            yearly = null.promotions_a_year[rule]
            print(
                f"{shown:>22} {rule:>8} {null.promotions_first_year[rule]:11.2f} {yearly:8.3f} {yearly * YEARS:12.2f}"
            )

    print("\nBetter candidates: share of 100 hospitals that promoted one under the policy, by nights waited")
    print(
        f"{'images':>7} {'uses before':>12} {'gain':>6} {'7':>6} {'30':>6} {'90':>6} {'365':>6} {'median delay':>13}"
        f" {'30, held-out alone':>19}"
    )
    for images in (600, 3000):
        for used in (0, 365, 3650):
            for gain in (0.01, 0.02, 0.03):
                found = simulate(100, images, 365, gain=gain, used=used, seed=images + used)
                rows.append({**asdict(found), "power": {rule: power(found, rule) for rule in RULES}})
                p = power(found, "policy")
                shares = " ".join(f"{p[f'within_{n}']:6.2f}" for n in (7, 30, 90, 365))
                wait = "over a year" if p["median_delay"] is None else f"{p['median_delay']:.0f} nights"
                alone = power(found, "held-out")["within_30"]
                print(f"{images:7} {used:12} {gain:6.2f} {shares} {wait:>13} {alone:19.2f}")
    print(f"\n{time.perf_counter() - start:.0f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
