"""Who may see a page and who may start what from it: Airflow's own login and rights, nothing beside them."""

from __future__ import annotations

from collections.abc import Collection

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.core_api.security import requires_access_dag

RETRAIN, PROMOTE, ROLLBACK = "xray_retrain", "xray_promote", "xray_rollback"
COMPARE, DELIVERY, AMEND, WATCH = "xray_compare", "xray_delivery", "xray_amend", "xray_watch"

CAN_READ_RUN = requires_access_dag("GET", DagAccessEntity.XCOM)  # the DAG of the address
CAN_READ_NIGHT = requires_access_dag("GET", DagAccessEntity.XCOM, param_dag_id=RETRAIN)
CAN_REVIEW = requires_access_dag("GET", DagAccessEntity.XCOM, param_dag_id=AMEND)
"""For what shows radiographs in full."""
CAN_READ_PROMOTIONS = requires_access_dag("GET", DagAccessEntity.XCOM, param_dag_id=PROMOTE)


def may_answer(user: BaseUser, assigned: Collection[str]) -> bool:
    """Whether Airflow lets this person answer a request of xray_promote; `assigned`: ids, empty for everybody."""
    manager, of = get_auth_manager(), DagDetails(id=PROMOTE)
    lets = manager.is_authorized_dag(method="PUT", access_entity=DagAccessEntity.HITL_DETAIL, details=of, user=user)
    return lets and (not assigned or manager.is_authorized_hitl_task(assigned_users=set(assigned), user=user))


def may_start(user: BaseUser, dag_id: str) -> bool:
    """Whether Airflow lets this person start a run; it is asked again when the run is started."""
    return get_auth_manager().is_authorized_dag(
        method="POST", access_entity=DagAccessEntity.RUN, details=DagDetails(id=dag_id), user=user
    )
