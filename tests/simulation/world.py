"""One simulated site: its deliveries, its people and its machines, as one seed draws them."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from actors import ACTORS
from auditor import Auditor
from memory_mlflow import MemoryMlflow
from memory_s3 import MemoryS3, Object
from scheduler import FAULTS, Chances, Process, Scheduler
from stand_ins import installed
from universe import Radiograph, chests, settings_of

from xray_pipeline.base.settings import Settings


@dataclass(frozen=True)
class Plan:
    """What is simulated: a seed, the kinds of processes (`ACTORS`) and of faults that may come, and how many nights."""

    seed: int
    actors: tuple[str, ...] = tuple(ACTORS)
    faults: tuple[str, ...] = FAULTS
    nights: int = 4

    @classmethod
    def drawn(cls, seed: int) -> Plan:
        """Return the plan of a seed: nights, and about half of all other kinds of processes and of faults, so that what
        hides one thing behind another is often missing (Groce et al., Swarm testing, ISSTA 2012)."""
        chance = random.Random(f"plan {seed}")
        actors = tuple(name for name in ACTORS if name == "nights" or chance.random() < 0.5)
        return cls(seed, actors, tuple(fault for fault in FAULTS if chance.random() < 0.5))

    def __str__(self) -> str:
        return f"seed {self.seed}, {self.nights} nights, actors {' '.join(self.actors)}, faults {' '.join(self.faults)}"


@dataclass
class World:
    """All that processes share: settings, the deliveries by name, MLflow, chance, and what Airflow remembers."""

    settings: Settings
    scheduler: Scheduler
    random: random.Random
    deliveries: dict[str, tuple[tuple[Radiograph, str], ...]]
    mlflow: MemoryMlflow
    auditor: Auditor
    nights: int
    remembered: dict[str, Any] = field(default_factory=dict)
    given_up: list[str] = field(default_factory=list)
    older: bool = False
    """Whether an older copy of store or MLflow was ever put back."""
    tidying: bool = False
    """Whether somebody tidies, which is when old versions are compared, too."""

    def begins(self) -> None:
        """The process that runs begins something: what it needs of the store it reads from here on."""
        process = self.scheduler.running
        assert process is not None
        self.auditor.begins(process.name)

    def once(self, name: str, step: Callable[[], Any]) -> Any:
        """Do a step of a DAG run unless it was done before: what it returned is remembered, as Airflow does."""
        if name not in self.remembered:
            self.remembered[name] = step()
        return self.remembered[name]


@cache
def _settings(promotion: str) -> Settings:
    return settings_of("/nowhere/simulated", promotion)  # nothing is written there, the cache aside, which is moved


@cache
def _chests() -> list[Radiograph]:
    return chests(_settings("approve"))


@contextmanager
def site(plan: Plan) -> Iterator[tuple[World, list[Process]]]:
    """Yield a site as the seed draws it, and its processes; the stand-ins are in place meanwhile."""
    chance = random.Random(plan.seed)
    rates = chance.choice((0.0, 0.002, 0.01, 0.03))
    faults = {fault: rates * (0.3 if fault == "kill" else 1.0) * (fault in plan.faults) for fault in FAULTS}
    faults["stands"] = (0.1, 0.3)[plan.seed % 2] * ("stands" in plan.faults)
    objects: dict[str, Object] = {}
    auditor = Auditor(objects)
    scheduler = Scheduler(plan.seed, Chances(faults, chance.choice((0.0, 0.5, 0.9, 0.98))), auditor.look)
    mlflow = MemoryMlflow(
        scheduler.turn, scheduler.now, auditor.mlflow_changed, lambda: f"{chance.getrandbits(128):032x}"
    )
    s3 = MemoryS3(objects, scheduler.turn, lambda: scheduler.clock, auditor.store_changed)
    promotion = chance.choice(("approve", "approve", "auto"))
    deliveries = _drawn(chance, plan.nights)
    for name, files in deliveries.items():
        for place, (radiograph, label) in enumerate(files):
            objects[f"incoming/{name}/{label}/{place}.png"] = Object(radiograph.data, scheduler.clock)
    with tempfile.TemporaryDirectory(prefix="simulated-") as cache, installed(scheduler, mlflow, s3):
        settings = _settings(promotion).model_copy(update={"cache": Path(cache)})
        world = World(settings, scheduler, chance, deliveries, mlflow, auditor, plan.nights)
        auditor.begin(mlflow, scheduler, settings, deliveries)
        yield world, [process for name in plan.actors for process in ACTORS[name](world)]


def _drawn(chance: random.Random, nights: int) -> dict[str, tuple[tuple[Radiograph, str], ...]]:
    """Return deliveries: the first brings two chests of each class and side, later ones a few of any, some mislabelled.

    So few come later that copies of what is there, and of each other, are among them.
    """
    known = [one for one in _chests() if one.chest % 8 < 5]
    first = [one for one in known if one.variant == 0 and one.chest % 8 < 4]
    drawn = {"d0": tuple((one, one.label) for one in first)}
    for night in range(1, nights):
        some = chance.sample(known, chance.randint(1, 3))
        drawn[f"d{night}"] = tuple((one, _label(chance, one)) for one in some)
    return drawn


def _label(chance: random.Random, one: Radiograph) -> str:
    other = "NORMAL" if one.label == "PNEUMONIA" else "PNEUMONIA"
    return other if chance.random() < 0.25 else one.label
