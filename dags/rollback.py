"""
### xray_rollback: an earlier version becomes the champion again

By hand, with a reason. Without a version it goes back to the previous champion. The target's files must be there,
match the digest it was registered with and load; otherwise the champion stays and the run says why. The reason, the
person and the moment are kept in the ledger.
"""

from __future__ import annotations

from typing import Any

import pendulum
from airflow.sdk import Param, dag, get_current_context, task

from xray_pipeline import promotion
from xray_pipeline.night import Run


@dag(
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    params={
        "version": Param(
            None, type=["null", "integer"], minimum=1, title="Version", description="empty: the previous champion"
        ),
        "reason": Param("", type="string", minLength=3, title="Reason, kept in the ledger"),
    },
    tags=["xray", "ops"],
    doc_md=__doc__,
)
def xray_rollback() -> None:
    @task
    def rollback() -> dict[str, Any]:
        context = get_current_context()
        who = context["dag_run"].triggering_user_name or "unknown"
        version, reason = context["params"]["version"], context["params"]["reason"]
        return promotion.rollback(Run.of({}, who), version, reason, f"xray_rollback {context['run_id']}")

    rollback()


xray_rollback()
