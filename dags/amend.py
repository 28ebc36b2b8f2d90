"""
### xray_amend: a person corrects the dataset

By hand, with a reason, for people without a shell; the same as `xray amend`. An amendment counts from the next snapshot
on: the next night trains anew. Who triggered it is recorded.

- **relabel**: the radiograph, and all copies of it, get another label. A label conflict between them is settled.
- **withdraw**: the radiograph and its copies, all of its patient, or all that a delivery brought, leave the dataset;
  delivered again they are quarantined.
- **erase**: what is withdrawn is erased as well, for data protection, wherever it is: nothing brings it back.
- **undo**: an amendment counts as never made.
- **agree**: the label is right. This changes nothing but the list of suspects, which the radiograph leaves.

Airflow keeps what a form is given. So a patient is named by one of the radiographs here, never by name.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import Param, dag, get_current_context, task

from xray_pipeline.airflow_ui import notices
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.text import SHORTEST_REASON

ACTIONS = {
    "agree": "agree with a radiograph's label",
    "relabel": "relabel a radiograph",
    "withdraw": "withdraw a radiograph",
    "withdraw-patient": "withdraw the patient of a radiograph",
    "withdraw-delivery": "withdraw a delivery",
    "erase": "withdraw and erase a radiograph",
    "erase-patient": "withdraw and erase the patient of a radiograph",
    "erase-delivery": "withdraw and erase a delivery",
    "undo": "undo an amendment, but no erasure",
}
NO_LABEL = "as it is"
FROM_WHEN = "it counts from the next night on; what is erased can't be brought back"


@dag(
    schedule=None,
    max_active_runs=1,
    allowed_run_types=["manual"],
    params={
        "action": Param(
            "relabel", type="string", enum=list(ACTIONS), values_display=ACTIONS, title="What", description=FROM_WHEN
        ),
        "subject": Param(
            "",
            type="string",
            minLength=1,
            title="Which",
            description="a radiograph by its digest or DELIVERY/ROW, a delivery's name, an amendment's number",
        ),
        "label": Param(
            NO_LABEL,
            type="string",
            enum=[NO_LABEL, *Settings().classes],
            title="Label",
            description="the right one, to relabel; else leave it",
        ),
        "reason": Param(
            "",
            type="string",
            minLength=SHORTEST_REASON,
            title="Reason",
            description="kept with your name in the dataset for ever; name no patient",
        ),
    },
    tags=["xray", "ops"],
    doc_md=__doc__,
    default_args={"on_failure_callback": notices.notifiers("failed", notices.FAILED), "retries": 0},
)
def xray_amend() -> None:
    @task(execution_timeout=timedelta(hours=1))
    def act() -> dict[str, Any]:
        from xray_pipeline.night import review
        from xray_pipeline.night.run import Run

        context = get_current_context()
        who = context["dag_run"].triggering_user_name or "unknown"
        action, name, label, why = (context["params"][field] for field in ("action", "subject", "label", "reason"))
        return review.act(Run.of({}, who), action, name, label, why)

    act()


dag_object = xray_amend()
