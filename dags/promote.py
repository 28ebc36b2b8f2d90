"""
### xray_promote: a version becomes the champion

Starts when `xray_retrain` registers a version, or by hand with a version. It looks at the evidence again, against the
champion of this moment, boots the model server on the version, and asks a person unless policy and settings say `auto`.
The request waits without holding a worker and never blocks the next night; one that nobody answered within the time
limit is asked again by the next night. When a newer version is registered or the champion changes, the request ends by
itself. A version that was rejected is asked about again when the form gives its number and a reason to reopen it.

| task | what it does |
| --- | --- |
| prepare | reopens the version, if asked to; its evidence against the present champion; skipped without a question |
| try_server | boots MLflow's model server on the version and compares its answers with the stored predictions |
| ask | goes on to `approve`, or to `promote` when nobody is to be asked |
| approve | asks in *Required Actions*: approve or reject, with a reason |
| record | records the answer in the ledger, or why the request is void: another champion, a newer challenger |
| promote | alias `champion`, for exactly what was asked about |
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset, Param, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from xray_pipeline.airflow_ui import links as airflow_links
from xray_pipeline.airflow_ui import notices, tries
from xray_pipeline.airflow_ui.approval import ApprovalRequest, approvers
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.text import APPROVE, REJECT, SHORTEST_REASON

if TYPE_CHECKING:
    from xray_pipeline.night.run import Run

REGISTERED, CHAMPION = Asset("xray-registered"), Asset("xray-champion")
SETTINGS = Settings()
WHO_MAY = (
    f"**Only {', '.join(SETTINGS.approvers)} may answer** (XRAY_APPROVERS): an answer of anybody else is refused."
    if SETTINGS.approvers
    else "Everybody whom Airflow lets may answer."
)


def _run() -> Run:
    from xray_pipeline.night.run import Run

    context = get_current_context()
    who = context["dag_run"].triggering_user_name or "xray_promote"
    return Run.of({}, who, context["run_id"], airflow_links.PAGES)


def _name() -> str:
    return f"xray_promote {get_current_context()['run_id']}"


@task
def prepare() -> dict[str, Any]:
    from xray_pipeline.night import promotion

    context = get_current_context()
    version, candidate, skip = airflow_links.asked_version(context, REGISTERED)
    if skip:
        raise AirflowSkipException(skip)
    if reason := context["params"].get("reopen"):
        if version is None:
            raise AirflowFailException("which version is to be reopened? Trigger again with its number")
        promotion.reopen(_run(), version, reason, _name())
    request = promotion.request(_run(), version, candidate)
    if request.void:
        raise AirflowSkipException(request.void)
    return request.to_dict()


@task(retries=1, execution_timeout=timedelta(minutes=10))
def try_server(request: dict[str, Any]) -> float:
    from xray_pipeline.night import trial

    return trial.try_version(_run(), request["candidate"], request["version"])


@task.branch
def ask(request: dict[str, Any]) -> str:
    return "promote" if request["automatic"] else "approve"


@task
def record(request: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    from xray_pipeline.night import promotion
    from xray_pipeline.night.promotion import Request

    return promotion.record_answer(_run(), Request.from_dict(request), answer, _name())


@task(
    trigger_rule="none_failed",
    outlets=[CHAMPION],
    on_success_callback=notices.notifiers(
        "promoted",
        "Version {{ ti.xcom_pull(task_ids='promote')['version'] }} is the champion, by "
        f"{{{{ (ti.xcom_pull(task_ids='record') or {{}}).get('who', 'the policy') }}}}: {notices.FIGURES}. "
        + airflow_links.HISTORY,
    ),
)
def promote(request: dict[str, Any] | None, answered: dict[str, Any] | None) -> dict[str, Any]:
    from xray_pipeline.night import promotion
    from xray_pipeline.night.promotion import Request

    if request is None:
        raise AirflowSkipException("nothing to decide, see prepare")
    if not request["automatic"] and (answered is None or answered["outcome"] != "approved"):
        raise AirflowSkipException(f"not promoted: {answered['outcome'] if answered else 'no answer'}, see record")
    who, why = (answered["who"], answered["why"]) if answered else (_run().who, "the policy allows it; nobody is asked")
    promoted = promotion.promote(_run(), Request.from_dict(request), who, why, _name()).to_dict()
    get_current_context()["outlet_events"][CHAMPION].extra = {**promoted, "who": who, "why": why}
    return promoted


@dag(
    schedule=REGISTERED,
    allowed_run_types=["asset_triggered", "manual"],
    params={
        "version": Param(
            None, type=["null", "integer"], minimum=1, title="Version", description="empty: the challenger"
        ),
        "reopen": Param(
            None,
            type=["null", "string"],
            minLength=SHORTEST_REASON,
            title="Reason to reopen",
            description="only for a version that was rejected; kept in the ledger with your name",
        ),
    },
    tags=["xray", "ops"],
    doc_md=__doc__,
    default_args={"on_failure_callback": notices.notifiers("failed", notices.FAILED), **tries.AGAIN},
)
def xray_promote() -> None:
    request = prepare()
    tried = try_server(request)
    branch = ask(request)
    approve = ApprovalRequest(
        task_id="approve",
        asked=request,
        subject="Promote version {{ ti.xcom_pull(task_ids='prepare')['version'] }} to production?",
        body=f"{WHO_MAY} [Report]({airflow_links.REPORT_OF_REQUEST}) | [Champion and history]({airflow_links.HISTORY})"
        "\n\n{{ ti.xcom_pull(task_ids='prepare')['text'] }}",
        options=[APPROVE, REJECT],
        response_timeout=timedelta(hours=SETTINGS.approval_hours),
        assigned_users=approvers(SETTINGS.approvers),
        # Required by the form because it is an empty string; `record` asks for a real reason.
        params={"reason": Param("", type="string", title="Reason, kept in the ledger")},
        notifiers=notices.notifiers(
            "approval wanted",
            "Version {{ ti.xcom_pull(task_ids='prepare')['version'] }} waits for approval: "
            f"{notices.FIGURES}. {airflow_links.REQUEST}",
        ),
        retries=1,  # asks anew where Airflow lost the task, whose answer is lost, too
    )
    tried >> branch >> approve
    answered = record(request, approve.output)
    promoted = promote(request, answered)
    branch >> promoted
    airflow_links.put(airflow_links.MlflowRun(), request)
    airflow_links.put(airflow_links.MlflowVersion(), request, answered, promoted)


xray_promote()
