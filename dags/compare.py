"""
### xray_compare: two versions beside each other

By hand, mostly from the page *Champion*: how two registered versions do on the newest held-out radiographs, whichever
they were registered with, and what the policy would say of the first in place of the second. The tab *Report* of the
run shows it as a night's report does. It decides nothing, and the ledger keeps nothing of it.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import Param, dag, get_current_context, task

from xray_pipeline.airflow_ui import links as airflow_links
from xray_pipeline.airflow_ui import tries


@dag(
    schedule=None,
    max_active_runs=1,
    allowed_run_types=["manual"],
    params={
        "version": Param(
            None, type=["null", "integer"], minimum=1, title="Version", description="empty: the challenger"
        ),
        "against": Param(
            None, type=["null", "integer"], minimum=1, title="Against version", description="empty: the champion"
        ),
    },
    tags=["xray", "ops"],
    doc_md=__doc__,
    default_args=tries.AGAIN,
)
def xray_compare() -> None:
    @task
    def compare() -> dict[str, Any]:
        from xray_pipeline.night import versions
        from xray_pipeline.night.run import Run

        context = get_current_context()
        who = context["dag_run"].triggering_user_name or "unknown"
        version, against = (context["params"][name] for name in ("version", "against"))
        scores = versions.compare(Run.of({}, who, context["run_id"], airflow_links.PAGES), version, against).scores
        version, against = scores.versions
        about = {"candidate": scores.models[str(version)][0], "champion": against}
        return {**about, "snapshot": scores.evaluations[0].snapshot}

    compare()


xray_compare()
