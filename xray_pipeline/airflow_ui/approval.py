"""The request for approval: a person answers it, its time runs out, or it ends by itself once its question is void.

Airflow's own operator parks a request until the first or the second. This one waits with a trigger, in Airflow's
triggerer, which also looks into the ledger: it holds no worker either. The trade-off: the triggerer must be able to
read the store. Where it can't, or none runs, an answer counts all the same, because Airflow's API hands it to the task
itself; but a void request waits until somebody answers it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.providers.standard.triggers.hitl import HITLTrigger
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import TaskAwaitingInput
from airflow.sdk.timezone import utcnow
from airflow.triggers.base import TriggerEvent

from xray_pipeline.airflow_ui import memory
from xray_pipeline.base.errors import ConfigError, XrayError
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.text import REJECT
from xray_pipeline.registry.questions import why_void

if TYPE_CHECKING:
    from airflow.sdk import Context

LOOK_SECONDS = 30.0
"""Between two looks into the ledger."""


class ApprovalTrigger(HITLTrigger):
    """Fires with the answer, with the default once the time is up, or with why `version` over `champion` is void."""

    def __init__(
        self,
        *,
        version: int,
        champion: int | None,
        models: Mapping[str, Sequence[str]] | None = None,
        look_seconds: float = LOOK_SECONDS,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.version, self.champion, self.models, self.look_seconds = version, champion, models, look_seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what another process makes this trigger from."""
        about = {"version": self.version, "champion": self.champion, "models": self.models}
        values = {**super().serialize()[1], **about, "look_seconds": self.look_seconds}
        return f"{__name__}.{type(self).__name__}", values

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait for whichever comes first."""
        answer = asyncio.ensure_future(anext(super().run()))
        void = asyncio.ensure_future(self._until_void())
        try:
            await asyncio.wait((answer, void), return_when=asyncio.FIRST_COMPLETED)
            yield answer.result() if answer.done() else void.result()
        finally:
            answer.cancel()
            void.cancel()

    async def _until_void(self) -> TriggerEvent:
        while True:
            # First: a task that is woken before the scheduler saw it pause is taken for a lost one.
            await asyncio.sleep(self.look_seconds)
            try:
                why = await asyncio.to_thread(_why_void, self.version, self.champion, self.models)
            except XrayError as error:
                self.log.warning("can't tell whether the request about version %d is void: %s", self.version, error)
            else:
                if why:
                    return TriggerEvent({"void": why})  # type: ignore[no-untyped-call]


class ApprovalRequest(HITLOperator):
    """Asks about what `asked` (a promotion request as a dict) is about; returns the answer, or {"void": why}.

    It has no default answer, which Airflow's page would make its one coloured button. Once the time is up it is
    rejected by nobody, which the ledger keeps as not answered.
    """

    template_fields = (*HITLOperator.template_fields, "asked")

    def __init__(self, *, asked: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.asked = asked

    def execute(self, context: Context) -> None:
        """Write the request, notify, and wait in the triggerer."""
        try:
            super().execute(context)
        except TaskAwaitingInput as parked:
            trigger = ApprovalTrigger(
                version=self.asked["version"],
                champion=self.asked["champion"],
                models=self.asked["models"],
                ti_id=context["task_instance"].id,
                options=self.options,
                defaults=[REJECT],
                params=self.serialized_params,
                timeout_datetime=utcnow() + parked.timeout if parked.timeout else None,
            )
            self.defer(trigger=trigger, method_name=parked.method_name)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Return the answer as Airflow's operator does, or why there is none."""
        return event if "void" in event else super().execute_complete(context, event)


def approvers(ids: Sequence[str]) -> list[dict[str, str]] | None:
    """Return who may answer, as Airflow's operator takes it; None for everybody whom Airflow lets.

    Airflow compares ids. Its simple accounts are known by name, those in its database (FAB) by number: a name there
    would lock everybody out. Raises ConfigError for such a name.
    """
    names = [one for one in ids if not one.isdigit()]
    if names and "Fab" in conf.get("core", "auth_manager"):
        raise ConfigError(
            f"XRAY_APPROVERS names {names[0]!r}, but Airflow knows its accounts by number; set the ids that "
            f"`airflow users list` shows, for example '[\"2\"]'"
        )
    return [{"id": one, "name": one} for one in ids] or None


def _why_void(version: int, champion: int | None, models: Mapping[str, Sequence[str]] | None) -> str:
    return why_void(memory.ledger(Settings().store).state(), version, champion, models)
