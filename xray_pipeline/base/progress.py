"""How long work tells how far it is."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with how much is done, how much there is, and of what."""

EVERY = 10.0
"""Seconds between two lines of a log about the same work."""


def logged(log: logging.Logger) -> Progress:
    """Return a progress that tells a log how far work is, every `EVERY` seconds: nothing of work that takes less."""
    said = time.monotonic()

    def tell(done: int, total: int, what: str) -> None:
        nonlocal said
        if time.monotonic() - said >= EVERY:
            said = time.monotonic()
            log.info("%s: %d of %d", what, done, total)

    return tell
