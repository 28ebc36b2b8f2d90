"""
### xray_delivery: what a person does about one delivery

By hand, with a reason, mostly from the page *Deliveries*.

- **acknowledge**: a person has looked at a delivery that raised a drift alarm, and it may stay; the reason is kept
  beside its intake and in each decision that rests on it.
- **rejudge**: after a rule changed, labels were corrected or a wrong copy was deleted. Of a committed delivery the
  quarantined files are judged anew; one that waits is judged as a whole, and committed if it is fit. Red: rejected.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import Param, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException

from xray_pipeline.airflow_ui import notices
from xray_pipeline.base.text import ACTIONS, SHORTEST_REASON


@dag(
    schedule=None,
    max_active_runs=1,
    allowed_run_types=["manual"],
    params={
        "delivery": Param(
            "",
            type="string",
            minLength=1,
            title="Delivery",
            description="its name, as the page Deliveries has it; of a part: its key",
        ),
        "action": Param(
            "rejudge",
            type="string",
            enum=list(ACTIONS),
            values_display=ACTIONS,
            title="What",
            description="to acknowledge, an alarm must stand",
        ),
        "reason": Param(
            "",
            type="string",
            minLength=SHORTEST_REASON,
            title="Reason",
            description="kept with your name: of an alarm with the delivery, else with this run; name no patient",
        ),
    },
    tags=["xray", "ops"],
    doc_md=__doc__,
    default_args={"on_failure_callback": notices.notifiers("failed", notices.FAILED), "retries": 0},
)
def xray_delivery() -> None:
    @task(execution_timeout=timedelta(hours=6))
    def act() -> dict[str, Any]:
        from xray_pipeline.night import delivery_actions
        from xray_pipeline.night.run import Run

        context = get_current_context()
        who = context["dag_run"].triggering_user_name or "unknown"
        action, key, reason = (context["params"][name] for name in ("action", "delivery", "reason"))
        done = delivery_actions.act(Run.of({}, who), action, key, reason)
        if not done.get("fit", True):
            raise AirflowFailException(f"delivery {key} is rejected; its page says why")
        return done

    act()


xray_delivery()
