"""Compressed DICOM frames, decoded in processes of their own: a decoder that crashes takes only itself down.

The libraries behind JPEG lossless and of 12 bits (GDCM), JPEG-LS (CharLS) and JPEG 2000 (OpenJPEG) are C++ and C, and
parse what anyone may have sent. Each call borrows a worker, an interpreter that runs this file and waits on its
standard input; workers are started when needed and kept, so that there are never more than threads that decode. When a
worker dies, the frame is tried once more in a new one (the old may have been killed for memory), then the file is
undecodable; a worker that does not answer in time is killed. Workers end with the process that started them, however
that ends, because their input does.

Trade-off: frame and pixels pass through a pipe, some milliseconds for a full-size radiograph, beside a decode of many
times that. Answers are JSON and raw numbers: nothing that comes back from a worker is executed or unpickled. libjpeg,
which decodes JPEG files in this process too, and pydicom's RLE in Python stay in the process.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

if TYPE_CHECKING:
    from numpy.typing import NDArray

_READY = b"+"
_SECONDS = 120.0  # for one frame; the largest allowed takes a few
_ALARM = 150  # seconds after which a worker ends itself in a frame
_KINDS = ("uint8", "int8", "uint16", "int16", "uint32", "int32")
_COMMAND: Final = (sys.executable, "-P", os.path.abspath(__file__))


class Died(Exception):
    """The worker ended without an answer; `late` when it was killed because it took too long."""

    def __init__(self, late: bool) -> None:
        super().__init__("late" if late else "died")
        self.late = late


class Refused(Exception):
    """The decoder raised; the message is the exception's type and nothing else."""


class NotStarted(Exception):
    """No worker could be started; the message says why."""


class Workers:
    """Decoders in other processes; used by many threads at once. `command` starts one (it must run `serve`)."""

    def __init__(self, command: Sequence[str] = _COMMAND, seconds: float = _SECONDS) -> None:
        self._command, self._seconds = list(command), seconds
        self._idle: list[subprocess.Popen[bytes]] = []
        self._owner = os.getpid()
        self._lock = threading.Lock()
        atexit.register(self.close)

    def decode(self, syntax: str, plugin: str, frame: bytes, options: Mapping[str, Any]) -> NDArray[Any]:
        """Return the frame's values as pydicom's decoder `plugin` gives them. Raises Died, Refused, NotStarted."""
        request = json.dumps({"syntax": syntax, "plugin": plugin, "options": dict(options)}).encode()
        try:
            return self._asked(request, frame)
        except Died as died:
            if died.late:
                raise
        return self._asked(request, frame)

    def close(self) -> None:
        """End the workers that wait. Those of a process that this one was forked from are not ours."""
        with self._lock:
            ours, self._idle = self._idle if self._owner == os.getpid() else [], []
        for worker in ours:
            _end(worker)

    def _asked(self, request: bytes, frame: bytes) -> NDArray[Any]:
        worker = self._borrowed()
        late = threading.Event()

        def expire() -> None:
            late.set()
            worker.kill()

        timer = threading.Timer(self._seconds, expire)
        timer.daemon = True
        timer.start()
        try:
            answer = _exchange(worker, request, frame)
        except (OSError, ValueError, struct.error, KeyError):  # a broken pipe, or half an answer
            worker.kill()
            _end(worker)
            raise Died(late.is_set()) from None
        finally:
            timer.cancel()
        with self._lock:
            self._idle.append(worker)
        if isinstance(answer, str):
            raise Refused(answer)
        return answer

    def _borrowed(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._owner != os.getpid():  # forked: the pipes lead to our parent's workers
                self._owner, self._idle = os.getpid(), []
            while self._idle:
                worker = self._idle.pop()
                if worker.poll() is None:
                    return worker
                _end(worker)
        try:
            worker = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            raise NotStarted(str(error)) from error
        answers = wait([_pipe(worker.stdout).fileno()], self._seconds)
        if not answers or _pipe(worker.stdout).read(1) != _READY:
            worker.kill()
            _end(worker)
            raise NotStarted(f"{' '.join(self._command)} ended with {worker.returncode}")
        return worker


def _exchange(worker: subprocess.Popen[bytes], request: bytes, frame: bytes) -> NDArray[Any] | str:
    """Return the pixels, or the name of what the decoder raised. Raises OSError, ValueError, KeyError, struct.error."""
    out, back = _pipe(worker.stdin), _pipe(worker.stdout)
    out.write(struct.pack("<II", len(request), len(frame)) + request + frame)
    out.flush()
    (size,) = struct.unpack("<I", back.read(4))
    answer = json.loads(back.read(size))
    if "error" in answer:
        return str(answer["error"])
    if answer["kind"] not in _KINDS:
        raise ValueError("no kind of pixels")
    values = np.empty([int(length) for length in answer["shape"]], answer["kind"])
    if back.readinto(values.data.cast("B")) != values.nbytes:  # type: ignore[attr-defined]
        raise ValueError("half an image")
    return values


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None  # both were asked for
    return pipe


def _end(worker: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):  # what could not be sent is of no use any more
        _pipe(worker.stdin).close()
    _pipe(worker.stdout).close()
    try:
        worker.wait(5)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


def decoded(syntax: str, plugin: str, frame: bytes, options: Mapping[str, Any]) -> NDArray[Any]:
    """Decode one frame in this process, by pydicom's decoder `plugin`. Raises what the decoder likes."""
    # Not padded to an even length: a JPEG 2000 codestream may say that it goes on to the end.
    buffer = struct.pack("<IIII", 0xE000FFFE, 0, 0xE000FFFE, len(frame)) + frame + struct.pack("<II", 0xE0DDFFFE, 0)
    values, _ = get_decoder(UID(syntax)).as_array(buffer, raw=True, decoding_plugin=plugin, **options)
    return values


def serve() -> None:
    """Answer requests from standard input until it ends."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold a patient's image

    asked = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries print where they like
    answers.write(_READY)
    answers.flush()
    while head := asked.read(8):
        size, length = struct.unpack("<II", head)
        request, frame = json.loads(asked.read(size)), asked.read(length)
        signal.alarm(_ALARM)  # whoever would kill it for being late may be dead
        try:
            values = np.ascontiguousarray(decoded(request["syntax"], request["plugin"], frame, request["options"]))
            answer, body = {"kind": str(values.dtype), "shape": values.shape}, values.data.cast("B")
        # Anything may be raised over hostile bytes; its words may quote them, so only the type goes back.
        except Exception as error:
            answer, body = {"error": type(error).__name__}, memoryview(b"")
        signal.alarm(0)
        text = json.dumps(answer).encode()
        answers.write(struct.pack("<I", len(text)) + text)
        answers.write(body)
        answers.flush()


if __name__ == "__main__":
    serve()
