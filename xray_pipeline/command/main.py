"""The `xray` command: the night's steps, and the questions ops ask, without Airflow.

Exit codes: 0 done; 1 an error, one line that says what and what to do; 2 wrong usage; 3 done, but the answer is no
(delivery rejected, candidate refused, file not a radiograph).
"""

from __future__ import annotations

import logging
import signal
import sys

from xray_pipeline.base.errors import XrayError
from xray_pipeline.command import amendments, deliveries, models, operations, review  # noqa: F401  (the verbs, in this order)
from xray_pipeline.command.app import app


def main() -> None:
    """Entry point of the `xray` command."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what was started is ended
    try:
        app()
    except XrayError as error:
        print(f"xray: {error}", file=sys.stderr)
        sys.exit(1)
