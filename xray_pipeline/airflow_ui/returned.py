"""What the tasks of a run returned, read from Airflow's database by the pages."""

from __future__ import annotations

from typing import Any

from airflow.models.xcom import XComModel
from sqlalchemy.orm import Session


def returned(session: Session, dag_id: str, run_id: str, *tasks: str) -> dict[str, dict[str, Any]]:
    """Return what tasks of a run returned, by task, of those that returned an object."""
    query = XComModel.get_many(run_id=run_id, key="return_value", dag_ids=dag_id, task_ids=tasks)
    rows: list[Any] = list(session.scalars(query))
    values = {row.task_id: XComModel.deserialize_value(row) for row in rows}
    return {task: value for task, value in values.items() if isinstance(value, dict)}
