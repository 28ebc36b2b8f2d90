"""
### xray_watch: a person has looked into the alarm about the champion

By hand, with a reason, mostly from the page *Champion*. The alarm is acknowledged: the test begins anew with the next
delivery; who said so, when and why stays beside the champion's record. Red: no alarm stands.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from airflow.sdk import Param, dag, get_current_context, task

from xray_pipeline.airflow_ui import notices
from xray_pipeline.base.text import SHORTEST_REASON


@dag(
    schedule=None,
    max_active_runs=1,
    allowed_run_types=["manual"],
    params={
        "reason": Param(
            "",
            type="string",
            minLength=SHORTEST_REASON,
            title="Reason",
            description="what you found; kept with your name beside the champion's record; name no patient",
        ),
    },
    tags=["xray", "ops"],
    doc_md=__doc__,
    default_args={"on_failure_callback": notices.notifiers("failed", notices.FAILED), "retries": 0},
)
def xray_watch() -> None:
    @task
    def acknowledge() -> dict[str, Any]:
        from xray_pipeline.night import watching
        from xray_pipeline.night.run import Run

        context = get_current_context()
        who = context["dag_run"].triggering_user_name or "unknown"
        return asdict(watching.acknowledge(Run.of({}, who), context["params"]["reason"]))

    acknowledge()


xray_watch()
