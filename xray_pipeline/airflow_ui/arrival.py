"""What starts a night when something arrives: a trigger that the triggerer runs, for an asset that the night waits for.

Each minute it looks whether something waits (`night/arrivals`). It fires for what it has not told of yet, and never
while a night is queued or running: that one takes what is there, and what comes too late for it is told of once it has
ended. A trigger that died with its triggerer has told of nothing that is lost: what waits still waits.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from xray_pipeline.base.errors import XrayError
from xray_pipeline.base.settings import Settings

if TYPE_CHECKING:
    from xray_pipeline.night.arrivals import Arrivals

log = logging.getLogger(__name__)

EVERY: Final = 60.0
"""Seconds between two looks: one listing a minute."""
AGAIN: Final = 3600.0
"""Seconds after which what still waits, as its night failed, is told of again."""
FIRST: Final = 15.0
"""Seconds before the first look: a run that was asked for just before the last trigger died must be there by then."""


class Arrival(BaseEventTrigger):
    """Fires when a delivery has settled, or a label table has grown so that a night would take something."""

    def __init__(self, dag_id: str = "xray_retrain") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dag_id = dag_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return where the class lies and what it takes."""
        return f"{type(self).__module__}.{type(self).__qualname__}", {"dag_id": self.dag_id}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield an event each time that a night has something to take."""
        arrivals, told = await asyncio.to_thread(_arrivals), dict[str, float]()
        await asyncio.sleep(FIRST)
        while True:
            began = time.monotonic()
            waiting = await asyncio.to_thread(_look, arrivals)
            told = {one: at for one, at in told.items() if one in waiting and began - at < AGAIN}
            if waiting - told.keys() and not await self._night_is_on():
                told = dict.fromkeys(waiting, began)
                yield TriggerEvent({"deliveries": len(waiting)})  # type: ignore[no-untyped-call]
            await asyncio.sleep(max(1.0, EVERY - (time.monotonic() - began)))

    async def _night_is_on(self) -> bool:
        """Whether a night is queued or running."""
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

        count = RuntimeTaskInstance.get_dr_count
        return bool(await asyncio.to_thread(count, dag_id=self.dag_id, states=["queued", "running"]))


def _arrivals() -> Arrivals:
    from xray_pipeline.night.arrivals import Arrivals

    return Arrivals(Settings())


def _look(arrivals: Arrivals) -> frozenset[str]:
    """Return what waits; nothing while that can't be told, which is logged: a trigger that fails would look no more."""
    try:
        return arrivals.look()
    except (XrayError, OSError) as error:
        log.warning("whether something has arrived is not known: %s", error)
        return frozenset()
