"""Accounts of PostgreSQL, Airflow and MLflow, made once; their passwords are what the environment says after each run.

So a secret is changed by changing .env and starting the stack again. Names are fixed: only passwords are secret.
"""

from __future__ import annotations

import os
import sys

OPERATOR = "Operator"


def databases() -> None:
    """Make the roles airflow and mlflow, each with a database that only it may use."""
    import psycopg
    from psycopg.sql import SQL, Identifier, Literal

    address = {"host": "postgres", "user": "postgres", "password": os.environ["POSTGRES_PASSWORD"]}
    with psycopg.connect(**address, dbname="postgres", autocommit=True) as connection:
        for name in ("airflow", "mlflow"):
            password = Literal(os.environ[f"{name.upper()}_DB_PASSWORD"])
            known = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (name,)).fetchone()
            verb = SQL("ALTER" if known else "CREATE")
            connection.execute(SQL("{} ROLE {} LOGIN PASSWORD {}").format(verb, Identifier(name), password))
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone():
                connection.execute(SQL("CREATE DATABASE {0} OWNER {0}").format(Identifier(name)))
            connection.execute(SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(Identifier(name)))


def airflow() -> None:
    """Make the role Operator (what a viewer may, and trigger, clear and approve) and one account of each role."""
    from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder
    from airflow.providers.fab.auth_manager.security_manager.override import FabAirflowSecurityManagerOverride
    from airflow.providers.fab.www.security import permissions as may

    more = [
        (may.ACTION_CAN_EDIT, may.RESOURCE_DAG),  # Airflow asks for it of whoever changes anything below a DAG
        (may.ACTION_CAN_CREATE, may.RESOURCE_DAG_RUN),
        (may.ACTION_CAN_EDIT, may.RESOURCE_DAG_RUN),
        (may.ACTION_CAN_EDIT, may.RESOURCE_TASK_INSTANCE),
        (may.ACTION_CAN_EDIT, may.RESOURCE_HITL_DETAIL),
        (may.ACTION_CAN_ACCESS_MENU, may.RESOURCE_HITL_DETAIL),
    ]
    with get_application_builder() as builder:
        manager = builder.sm
        manager.sync_roles()
        wanted = [*FabAirflowSecurityManagerOverride.VIEWER_PERMISSIONS, *more]
        manager.bulk_sync_roles([{"role": OPERATOR, "perms": wanted}])
        for name, role in (("admin", "Admin"), ("operator", OPERATOR), ("viewer", "Viewer")):
            _airflow_account(manager, name, role, os.environ[f"AIRFLOW_{name.upper()}_PASSWORD"])


def _airflow_account(manager, name: str, role: str, password: str) -> None:
    from werkzeug.security import check_password_hash

    user = manager.find_user(username=name)
    if user is None:
        made = manager.add_user(name, name.title(), "Account", f"{name}@localhost", manager.find_role(role), password)
        if not made:
            raise SystemExit(f"accounts: Airflow made no account {name}; see the log above")
    elif not check_password_hash(user.password, password):
        manager.reset_password(user.id, password)


def mlflow() -> None:
    """Make the accounts admin, pipeline (manages what it makes) and viewer (reads)."""
    from mlflow.server.auth.config import read_auth_config
    from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

    accounts = SqlAlchemyStore()
    accounts.init_db(read_auth_config().database_uri)
    for name in ("admin", "pipeline", "viewer"):
        password = os.environ[f"MLFLOW_{name.upper()}_PASSWORD"]
        if not accounts.has_user(name):
            accounts.create_user(name, password, is_admin=name == "admin")
        elif not accounts.authenticate_user(name, password):
            accounts.update_user(name, password=password)


if __name__ == "__main__":
    {"databases": databases, "airflow": airflow, "mlflow": mlflow}[sys.argv[1]]()
