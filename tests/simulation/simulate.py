"""Simulate sites by their seeds: `python tests/simulation/simulate.py --seeds 200`; a violation is shrunk and printed.

The last line says how many seeds, steps and violations. Exit 1 when there was one.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace

from actors import adopt, again, night, process
from scheduler import Violation
from world import Plan, World, site

from xray_pipeline.night.run import Run
from xray_pipeline.registry import manual_changes


@dataclass(frozen=True)
class Outcome:
    """What one seed came to: steps, the violation ("" without), the trace and its digest."""

    plan: Plan
    steps: int
    violation: str
    trace: tuple[str, ...]

    @property
    def kind(self) -> str:
        """The violation without what differs from seed to seed."""
        return re.sub(r"[0-9a-f]{8,}|\d+|\(step.*\)", "", self.violation)[:60]

    @property
    def digest(self) -> str:
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()


def simulate(plan: Plan) -> Outcome:
    """Run one plan to its end: with faults, then without any until all is done; then everything is looked at."""
    with site(plan) as (world, processes):
        try:
            world.scheduler.run(processes)
            world.scheduler.chances.faults.clear()
            left = [one for one in processes if one.name in world.given_up]
            world.given_up.clear()
            for waited_for in ("gives-up", "tidies", ""):
                world.scheduler.run([one for one in left if one.name.startswith(waited_for)])
                left = [one for one in left if not one.name.startswith(waited_for)]
            _settle(world)
            violation = ""
        except Violation as found:
            violation = str(found)
        except Exception:
            violation = f"not an error of the package's: {traceback.format_exc()}"
        return Outcome(plan, world.scheduler.steps, violation, tuple(world.scheduler.trace))


def _settle(world: World) -> None:
    """Let one more night look and a person settle what a hand did; look at everything; then do all nights again."""

    def last() -> None:
        night(world, world.nights - 1)
        if manual_changes.reconcile(Run(world.settings).registry()).by_hand:
            adopt(world, undo=False)
            manual_changes.reconcile(Run(world.settings).registry())  # what waited for that is done by the next command

    world.scheduler.run([process(world, "last", last)])
    world.auditor.whole()
    world.scheduler.run([process(world, "again", lambda: again(world))])
    world.auditor.whole()


def shrunk(outcome: Outcome) -> Outcome:
    """Return a smaller plan that is violated in the same way: fewer nights, kinds of processes and of faults."""
    smallest, tried = outcome, True
    while tried:
        tried = False
        for smaller in _smaller(smallest.plan):
            found = simulate(smaller)
            if found.kind == outcome.kind:
                smallest, tried = found, True
                break
    return smallest


def _smaller(plan: Plan) -> Iterator[Plan]:
    if plan.nights > 1:
        yield replace(plan, nights=plan.nights - 1)
    for name in plan.actors:
        yield replace(plan, actors=tuple(one for one in plan.actors if one != name))
    for fault in plan.faults:
        yield replace(plan, faults=tuple(one for one in plan.faults if one != fault))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--steps", type=int, default=0, help="stop after so many steps, whatever --seeds says")
    parser.add_argument("--quick", action="store_true", help="stop at the first violation, and don't shrink it")
    asked = parser.parse_args()
    began, steps, violations, seeds = time.process_time(), 0, 0, 0
    for seed in range(asked.first, asked.first + asked.seeds):
        outcome = simulate(Plan.drawn(seed))
        seeds, steps = seeds + 1, steps + outcome.steps
        if outcome.violation:
            violations += 1
            small = outcome if asked.quick else shrunk(outcome)
            print(f"{small.plan}: {small.violation}", *small.trace[-60:], "", sep="\n", flush=True)
            if asked.quick:
                break
        if asked.steps and steps >= asked.steps:
            break
    minutes = (time.process_time() - began) / 60
    print(f"{steps / minutes:,.0f} steps and {seeds / minutes:,.0f} seeds a minute of one core's time")
    print(f"{seeds} seeds, {steps} steps, {violations} violations")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
