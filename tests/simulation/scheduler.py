"""One seed decides all: who runs next, what fails, who is killed, what the clocks say.

Processes are greenlets: exactly one runs, until it calls the store or MLflow, or sleeps. There the scheduler takes
over, has what is stored looked at, and lets another go on. Killing one raises `Killed` where it waits, which no
`except Exception` catches; what a `finally` calls then fails at once, as a killed process calls nothing any more.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from greenlet import greenlet

BEGINNING: Final = 1_790_000_000.0  # of the clock, in Unix seconds

FAULTS: Final = ("refused", "lost", "again", "busy", "conflict", "slow", "kill", "stands")
COMMITS: Final = "put new store/dataset/commits/"
MOMENTS: Final = {
    COMMITS: COMMITS,
    "put new store/ledger/": "put new store/ledger/",
    "create version! ": "create version! ",
    "put new store/prospective/turns/": "put new store/prospective/turns/",
    "put store/prospective/turns/": "put store/prospective/turns/",
    "put store/candidates/": COMMITS,
    "put store/reports/": COMMITS,
}
"""Calls before which a process may stand still (`stands`), for a while or until another has done what matters to it,
and after which it may be killed. Not before it moves an alias: MLflow has no condition for that."""
LONGEST: Final = 9000.0
"""For how many seconds it stands still when no other does that."""
RISK: Final = 0.1
"""How likely a process is killed right after it stood still, where any is killed."""


class Killed(BaseException):
    """This process was killed."""


class Violation(AssertionError):
    """What must always hold does not."""


@dataclass(frozen=True)
class Chances:
    """How often, per call: each fault of `FAULTS`, and going on with the same process rather than another."""

    faults: dict[str, float]
    stay: float


@dataclass
class Process:
    """One process: what it does, from the beginning again when it was killed; it ends when that returns.

    `skew` is how far its clock is ahead, `wake` when it goes on after a sleep, or as soon as `until` holds, `listed` at
    which step it listed what last, `stood` whether it stood still before the call it makes.
    """

    name: str
    live: Callable[[], None]
    skew: float = 0.0
    wake: float = 0.0
    until: Callable[[], bool] = lambda: False
    waits_for: tuple[str, str] = ("start", "")
    listed: dict[str, int] = field(default_factory=dict)
    stood: bool = False
    thread: greenlet | None = field(default=None, repr=False)


class Scheduler:
    """Runs processes until all have ended; `trace` is what happened, a line each step."""

    def __init__(self, seed: int, chances: Chances, look: Callable[[], None]) -> None:
        self.random = random.Random(seed)
        self.chances, self._look = chances, look
        self.clock, self.steps = BEGINNING, 0
        self.running: Process | None = None
        self._alive: list[Process] = []
        self.trace: list[str] = []
        self._hub: greenlet | None = None
        self._dying = False
        self._stopped: list[Process] = []
        self._done: Counter[str] = Counter()

    def now(self) -> float:
        """The time by the clock of whoever asks."""
        return self.clock + (self.running.skew if self.running else 0.0)

    def turn(self, what: str, about: str) -> str:
        """Let others go first; return how the call that follows fails, "" when it does not."""
        process = self.running
        if process is None:
            return ""  # somebody who only looks
        if self._dying:
            raise Killed
        process.waits_for = (what, about)
        moment = next((begun for begun in MOMENTS if f"{what} {about}".startswith(begun)), "")
        stands = bool(moment) and self._stands(process, MOMENTS[moment])
        assert self._hub is not None
        self._hub.switch()
        process.stood = stands
        self._done[moment] += 1
        if what == "list":
            process.listed[about] = self.steps
        fault = self._drawn(what)
        self.trace.append(f"{process.name}: {what} {about}{f' [{fault}]' if fault else ''}")
        if fault == "slow":
            self.clock += self.random.choice((5.0, 60.0, 900.0))
            return ""
        return fault

    def sleep(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Let others go on for so long, or until something holds."""
        process = self.running
        assert process is not None
        if self._dying:
            raise Killed
        process.wake, process.until, process.waits_for = self.clock + seconds, until, ("sleep", "")
        assert self._hub is not None
        self._hub.switch()
        process.wake = self.clock
        self.trace.append(f"{process.name}: slept {seconds:.2g} s")

    def about_to(self, *calls: str) -> list[Process]:
        """Return who waits for its turn to do such a call, by the beginning of its words."""
        begun = (process for process in self._alive if process.thread is not None)
        return [process for process in begun if " ".join(process.waits_for).startswith(calls)]

    def stop(self, processes: list[Process]) -> None:
        """Kill others, to be started again, as soon as whoever runs waits."""
        self._stopped = processes

    def run(self, processes: list[Process]) -> None:
        """Run these processes side by side to their ends."""
        self._hub = greenlet.getcurrent()
        alive = self._alive = list(processes)
        while alive:
            process = self._next(alive)
            self._step(process)
            if process.thread is not None and process.thread.dead:
                process.thread = None
                alive.remove(process)
            stopped, self._stopped = self._stopped, []
            for other in stopped:
                if other is not process:
                    self._kill(other)

    def _next(self, alive: list[Process]) -> Process:
        for process in alive:
            if process.wake > self.clock and process.until():
                return process  # at once: what it waited for may be over in a moment
        if self.running in alive and self.running.wake <= self.clock and self.random.random() < self.chances.stay:
            return self.running
        awake = [process for process in alive if process.wake <= self.clock]
        if not awake:
            self.clock = min(process.wake for process in alive)
            return self._next(alive)
        return awake[int(self.random.random() * len(awake))]

    def _step(self, process: Process) -> None:
        self.running, kills = process, self.chances.faults.get("kill", 0.0)
        self.steps += 1
        self.clock += self.random.random() * 0.2
        if process.thread is None:
            process.thread = greenlet(process.live)
        elif self.random.random() < (RISK if process.stood and kills else kills):
            self._kill(process)
            return
        process.thread.switch()
        self._look()

    def _kill(self, process: Process) -> None:
        what, about = process.waits_for
        self.trace.append(f"{process.name}: KILLED before {what} {about}")
        assert process.thread is not None
        self._dying = True
        try:
            process.thread.throw(Killed)
        except Killed:
            pass
        finally:
            self._dying = False
        process.wake, process.until = self.clock + self.random.random() * 30, lambda: False
        process.thread, process.stood = None, False

    def _stands(self, process: Process, what: str) -> bool:
        """Have a process stand still by chance; return whether it does."""
        rate = self.chances.faults.get("stands", 0.0)
        if not rate or self.random.random() >= rate:
            return False
        done = self._done[what]
        if self.random.random() < 0.5:
            process.wake, process.until = self.clock + LONGEST, lambda: self._done[what] > done
        else:
            process.wake, process.until = self.clock + self.random.choice((5.0, 60.0, 900.0)), lambda: False
        return True

    def _drawn(self, what: str) -> str:
        rates = self.chances.faults
        draw, below = self.random.random(), 0.0
        for fault in _possible(what):
            below += rates.get(fault, 0.0)
            if draw < below:
                return fault
        return ""


def _possible(what: str) -> Iterator[str]:
    """Yield the faults that a call may meet: what only asks can't be done and its answer be lost."""
    yield "refused"
    yield "slow"
    if what in ("put", "put new", "delete"):
        yield from ("lost", "again")
        if what == "put new":
            yield "conflict"
    elif what.endswith("!"):
        yield from ("lost", "again", "busy")
    elif what not in ("get", "head", "list", "clock"):
        yield "busy"
