"""Programs that must not outlive this process, however it ends: whole sessions of processes, started and ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

import psutil

_WATCHED = 'exec 3<&0; (read line <&3; kill -9 0) >/dev/null 2>&1 & exec "$@" </dev/null 3<&-'
"""A watcher in the program's process group reads what nobody writes: the end of that input is the end of its writer."""


@contextlib.contextmanager
def child(
    command: Sequence[str | os.PathLike[str]], grace: float = 0, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in a session of its own, which is ended when the block ends and when this process does.

    At the end of the block it is asked to end, and killed after `grace` seconds; without grace, as when this process
    dies, it is killed at once. `options` are those of Popen.

    A pipe tells, not PR_SET_PDEATHSIG: that reaches no grandchildren, and fires when the thread ends that began it.
    """
    watched = ["sh", "-c", _WATCHED, "sh", *command]
    process = subprocess.Popen(watched, stdin=subprocess.PIPE, start_new_session=True, **options)
    line, process.stdin = process.stdin, None  # else `communicate` closes it
    assert line is not None
    try:
        yield process
    finally:
        end(process, grace)
        line.close()


def end(process: subprocess.Popen[bytes], grace: float = 0) -> None:
    """End the session that `process` leads and all that it started; kill what is left of them after `grace` seconds."""
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 5), (signal.SIGKILL, 5)):
        # Killed twice: one that was just starting another is met again.
        members = _members(process.pid) if seconds else []
        for member in members:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.send_signal(number)
        psutil.wait_procs(members, timeout=seconds)
    process.wait()


def _members(leader: int) -> list[psutil.Process]:
    """Return the processes of a session, and those that its leader started elsewhere."""
    found = {process for process in psutil.process_iter() if _session(process.pid) == leader}
    with contextlib.suppress(psutil.NoSuchProcess):
        found.update(psutil.Process(leader).children(recursive=True))
    return list(found)


def _session(process: int) -> int:
    try:
        return os.getsid(process)
    except ProcessLookupError:
        return -1
