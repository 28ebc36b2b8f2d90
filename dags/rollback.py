"""
### xray_rollback: an earlier version becomes the champion again

By hand, with a reason. Without a version it goes back to the previous champion. The target's files must be there,
match the digest it was registered with and load, and MLflow's model server booted on it must answer as was judged;
otherwise the champion stays and the run says why. The reason, the person and the moment are kept in the ledger.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import Asset, Param, dag, get_current_context, task

from xray_pipeline.airflow_ui import links as airflow_links
from xray_pipeline.airflow_ui import notices
from xray_pipeline.base.text import SHORTEST_REASON

CHAMPION = Asset("xray-champion")


@dag(
    schedule=None,
    max_active_runs=1,
    allowed_run_types=["manual"],
    params={
        "version": Param(
            None, type=["null", "integer"], minimum=1, title="Version", description="empty: the previous champion"
        ),
        "reason": Param(
            "",
            type="string",
            minLength=SHORTEST_REASON,
            title="Reason",
            description="kept in the ledger with your name; name no patient",
        ),
        "untried": Param(
            False, type="boolean", title="At once", description="without trying the model server on it first"
        ),
    },
    tags=["xray", "ops"],
    doc_md=__doc__,
    default_args={"on_failure_callback": notices.notifiers("failed", notices.FAILED)},
)
def xray_rollback() -> None:
    @task(
        outlets=[CHAMPION],
        on_success_callback=notices.notifiers(
            "rolled back",
            "Version {{ ti.xcom_pull(task_ids='rollback')['version'] }} is the champion again, by "
            "{{ ti.xcom_pull(task_ids='rollback')['who'] }}: {{ ti.xcom_pull(task_ids='rollback')['why'] }} "
            + airflow_links.HISTORY,
        ),
    )
    def rollback() -> dict[str, Any]:
        from xray_pipeline.night import promotion
        from xray_pipeline.night.run import Run

        context = get_current_context()
        who = context["dag_run"].triggering_user_name or "unknown"
        version, reason, untried = (context["params"][name] for name in ("version", "reason", "untried"))
        back = promotion.rollback(Run.of({}, who), version, reason, f"xray_rollback {context['run_id']}", untried)
        context["outlet_events"][CHAMPION].extra = back
        return back

    airflow_links.put(airflow_links.MlflowVersion(), rollback())


xray_rollback()
