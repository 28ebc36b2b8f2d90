"""Health checks of the containers: quick, because each runs every few seconds beside the real work.

`airflow jobs check` and `celery inspect` answer the same questions and load all of Airflow for it, seconds of CPU each.
"""

from __future__ import annotations

import os
import socket
import sys
import urllib.request


def http(url: str) -> bool:
    """Whether a server of this container answers 200; the scheduler's says in its answer how it is."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.status == 200 and b'"unhealthy"' not in answer.read()


def job(kind: str) -> bool:
    """Whether this container's Airflow job of a kind told the database lately that it lives."""
    import psycopg

    address = os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].replace("+psycopg2", "")
    with psycopg.connect(address, connect_timeout=5) as connection:
        found = connection.execute(
            "SELECT 1 FROM job WHERE job_type = %s AND hostname = %s AND state = 'running'"
            " AND latest_heartbeat > now() - interval '60 seconds'",
            (kind, socket.gethostname()),
        ).fetchone()
    return found is not None


def worker() -> bool:
    """Whether this container's Celery worker answers a ping through the queue."""
    from celery import Celery

    app = Celery(broker=os.environ["AIRFLOW__CELERY__BROKER_URL"], set_as_current=False)
    return bool(app.control.ping(destination=[f"celery@{socket.gethostname()}"], timeout=8))


if __name__ == "__main__":
    sys.exit(0 if {"http": http, "job": job, "worker": worker}[sys.argv[1]](*sys.argv[2:]) else 1)
