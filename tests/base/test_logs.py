from __future__ import annotations

import structlog

from xray_pipeline.base import logs


def test_lines_are_about_what_was_named_last() -> None:
    with structlog.contextvars.bound_contextvars(run_id="kept"):
        logs.about(delivery="ward-1")
        logs.about(candidate="abc")
        assert structlog.contextvars.get_contextvars() == {"run_id": "kept", "candidate": "abc"}
        logs.about()
        assert structlog.contextvars.get_contextvars() == {"run_id": "kept"}
