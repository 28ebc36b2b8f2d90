"""A listener in the scheduler: a night that has ended carries what came of it as the note of its run.

So the list of runs tells a refused candidate or a rejected delivery from a quiet night. A person's own note stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.listeners import hookimpl
from sqlalchemy.orm import object_session

from xray_pipeline.airflow_ui.links import IN_WORDS
from xray_pipeline.base.text import shortened

if TYPE_CHECKING:
    from airflow.models.dagrun import DagRun

LONGEST = 1000  # characters of a note, for Airflow


@hookimpl
def on_dag_run_success(dag_run: DagRun) -> None:
    """Write the note of a night that ended well."""
    _write(dag_run)


@hookimpl
def on_dag_run_failed(dag_run: DagRun) -> None:
    """Write the note of a night that failed."""
    _write(dag_run)


def _write(run: DagRun) -> None:
    from airflow.models.xcom import XComModel

    session = object_session(run)
    if run.dag_id != "xray_retrain" or session is None or (run.dag_run_note and run.dag_run_note.user_id is not None):
        return
    query = XComModel.get_many(run_id=run.run_id, key=IN_WORDS, dag_ids=run.dag_id, task_ids="conclude")
    said = session.scalars(query).first()
    if said is not None:
        run.note = shortened(str(XComModel.deserialize_value(said)), LONGEST)
