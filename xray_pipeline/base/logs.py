"""What log lines are about (delivery, candidate), as fields of each line.

Airflow writes task logs as JSON lines with its own fields (`dag_id`, `run_id`, `task_id`, `try_number`, `map_index`)
and adds whatever structlog has bound; so naming the subject once per step is all it takes. The trade-off: a subject
stays bound until the next step names another, and threads of a pool do not inherit it.
"""

from __future__ import annotations

import structlog


def about(*, delivery: str = "", candidate: str = "") -> None:
    """Name what the log lines from here on are about; what is not given is not named any more."""
    structlog.contextvars.unbind_contextvars("delivery", "candidate")
    named = {"delivery": delivery, "candidate": candidate}
    structlog.contextvars.bind_contextvars(**{name: value for name, value in named.items() if value})
