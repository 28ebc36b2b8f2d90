"""
### xray_promote: a version becomes the champion

Starts when `xray_retrain` registers a version, or by hand with a version. It looks at the evidence again, against the
champion of this moment, and asks a person unless the policy and the run say `auto`. The request waits without holding
a worker and never blocks the next night; no answer within the time limit means no.

| task | what it does |
| --- | --- |
| prepare | the version's evidence against the present champion, as a table; skipped when there is nothing to decide |
| approve | asks in *Required Actions*: approve or reject, with a reason |
| settle | records the answer in the ledger; promotes exactly what was asked about, or says why the request is void |
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pendulum
from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import Asset, Param, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowSkipException

from xray_pipeline import promotion
from xray_pipeline.night import Run
from xray_pipeline.promotion import Request


def _run() -> Run:
    context = get_current_context()
    return Run.of({}, context["dag_run"].triggering_user_name or "xray_retrain")


@dag(
    schedule=Asset("xray-registered"),
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    params={
        "version": Param(
            None, type=["null", "integer"], minimum=1, title="Version", description="empty: the challenger"
        )
    },
    tags=["xray", "ops"],
    doc_md=__doc__,
    default_args={"retries": 3, "retry_delay": timedelta(seconds=20), "retry_exponential_backoff": True},
)
def xray_promote() -> None:
    @task
    def prepare() -> dict[str, Any]:
        request = promotion.request(_run(), get_current_context()["params"]["version"])
        if request.void:
            raise AirflowSkipException(request.void)
        return request.to_dict()

    approve = HITLOperator(
        task_id="approve",
        subject="Promote version {{ ti.xcom_pull(task_ids='prepare')['version'] }} to production?",
        body="{{ ti.xcom_pull(task_ids='prepare')['text'] }}",
        options=["Approve", "Reject"],
        defaults=["Reject"],
        response_timeout=timedelta(hours=72),
        params={"reason": Param("", type="string", minLength=3, title="Reason, kept in the ledger")},
        retries=0,
    )

    @task
    def settle(request: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
        run_id = get_current_context()["run_id"]
        return promotion.settle(_run(), Request.from_dict(request), answer, f"xray_promote {run_id}")

    request = prepare()
    request >> approve
    settle(request, approve.output)


xray_promote()
