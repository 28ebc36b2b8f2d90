"""
### xray_tidy: old candidates go, but for their records

Once a week (`XRAY_TIDY_SCHEDULE`), or by hand. It keeps champion, challenger, every version that was ever champion or
has an alias in MLflow, the newest candidates (`XRAY_KEEP_CANDIDATES`) and what was worked on lately (`XRAY_KEEP_DAYS`).
Of all others it removes pictures, checkpoints, logged models, predictions and reports, in the store and in MLflow; a
version of these can't be promoted any more. Ledger, evidence and decisions stay, and a record says what was removed.
`xray tidy --dry-run` says beforehand what would go. It may run beside a night, be killed anywhere and be repeated.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pendulum
from airflow.sdk import dag, get_current_context, task

from xray_pipeline.airflow_ui import notices, tries
from xray_pipeline.base.settings import Settings

SCHEDULE = Settings().tidy_schedule


@dag(
    schedule=None if SCHEDULE == "none" else SCHEDULE,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    allowed_run_types=["scheduled", "manual"],
    tags=["xray", "ops"],
    doc_md=__doc__,
    default_args={"on_failure_callback": notices.notifiers("failed", notices.FAILED), **tries.AGAIN},
)
def xray_tidy() -> None:
    @task(execution_timeout=timedelta(hours=6))
    def tidy() -> dict[str, Any]:
        from xray_pipeline.night import tidy as tidying
        from xray_pipeline.night.run import Run

        run = get_current_context()["dag_run"]
        done = tidying.tidy(Run.of({}, run.triggering_user_name or "schedule", run.run_id))
        return {"candidates": len(done.removals), "bytes": done.bytes(), "kept": done.kept}

    tidy()


xray_tidy()
