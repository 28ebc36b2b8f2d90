"""Ports for the servers of tests.

Each pytest worker has a range of its own, below those that the kernel hands out: a server takes many seconds from the
choice of its port to its use, and nobody else may take it meanwhile.
"""

from __future__ import annotations

import itertools
import os
import socket

_WIDTH = 2_500
_FIRST = 12_000 + _WIDTH * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4)
_ports = itertools.cycle(range(_FIRST, _FIRST + _WIDTH))


def free_port(*neighbours: int) -> int:
    """Return a port that nobody listens on at this moment, nor on those at these distances from it."""
    return next(port for port in _ports if all(_is_free(port + distance) for distance in (0, *neighbours)))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
