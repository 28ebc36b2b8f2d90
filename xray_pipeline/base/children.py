"""Programs that must not outlive this process, however it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

_WATCHED = 'exec 3<&0; (read line <&3; kill -9 0) >/dev/null 2>&1 & exec "$@" </dev/null 3<&-'
"""A watcher in the program's process group reads what nobody writes: the end of that input is the end of its writer."""


@contextlib.contextmanager
def child(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in a process group of its own, which is killed when the block ends and when this process does.

    A pipe tells, not PR_SET_PDEATHSIG: that reaches no grandchildren, and fires when the thread ends that began it.
    """
    watched = ["sh", "-c", _WATCHED, "sh", *command]
    process = subprocess.Popen(watched, stdin=subprocess.PIPE, start_new_session=True, **options)
    line, process.stdin = process.stdin, None  # else `communicate` closes it
    assert line is not None
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):  # all of it has ended by itself
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        line.close()
