from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from pydicom.uid import JPEG2000Lossless, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless
from samples import compressed, dicom, jpeg, picture

from xray_pipeline.base.errors import DecoderUnavailable, RadiographError
from xray_pipeline.base.settings import Settings
from xray_pipeline.dataset.history import EMPTY
from xray_pipeline.images import dicom_pixels
from xray_pipeline.images.decoder_process import NotStarted, Workers
from xray_pipeline.images.radiograph import Limits, normalise
from xray_pipeline.intake import check as intake
from xray_pipeline.intake import deliveries
from xray_pipeline.intake.rules import QUARANTINED

SYNTAXES = (JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless)


def workers(monkeypatch: pytest.MonkeyPatch, body: str, seconds: float = 60.0) -> Workers:
    """Decoders that run `body` for each frame (`frame`, `decoded`) instead of decoding it."""
    program = f"""
import os, sys, time
from xray_pipeline.images import decoder_process as frame_decoder
decoded = frame_decoder.decoded
def decode(syntax, plugin, frame, options):
    {body}
    return decoded(syntax, plugin, frame, options)
frame_decoder.decoded = decode
frame_decoder.serve()
"""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    made = Workers([sys.executable, "-c", program], seconds)
    monkeypatch.setattr(dicom_pixels, "workers", made)
    return made


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    before = {child.pid for child in psutil.Process().children()}
    yield
    dicom_pixels.workers.close()
    assert {child.pid for child in psutil.Process().children()} <= before


def test_a_worker_that_hangs_while_it_starts_is_ended() -> None:
    stuck = Workers([sys.executable, "-c", "import time; time.sleep(600)"], seconds=1.0)
    with pytest.raises(NotStarted):
        stuck.decode(JPEG2000Lossless, "pylibjpeg", b"", {})


def reason(data: bytes) -> str:
    with pytest.raises(RadiographError) as caught:
        normalise(data, Limits())
    return caught.value.reason


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_pixels_come_back_as_they_were(syntax: str) -> None:
    pixels = picture(1).astype(np.uint16) * 257
    assert (normalise(compressed(dicom(pixels), syntax), Limits()).pixels == pixels).all()


def test_a_decoder_that_dies_quarantines_its_file_alone(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadly = compressed(dicom(seed=1), JPEGLSLossless)
    sound = compressed(dicom(seed=2, pixels=picture(2, 128, 128)), JPEGLSLossless)
    made = workers(monkeypatch, f"if len(frame) < {(len(deadly) + len(sound)) // 2 - 800}: os.kill(os.getpid(), 11)")
    for name, data in {"a.dcm": deadly, "b.dcm": sound, "c.jpg": jpeg(seed=3)}.items():
        (tmp_path / "in" / "NORMAL").mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / "NORMAL" / name).write_bytes(data)
    delivery = deliveries.at(str(tmp_path / "in"), settings, EMPTY, time.time() + 10)
    table = intake.check(delivery, settings, EMPTY, b"key").table
    assert table["reason"].tolist() == ["undecodable", "", ""]
    assert table["detail"][0] == "the decoder crashed"
    made.close()


def test_a_worker_that_was_killed_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "died"
    made = workers(
        monkeypatch, f"if not os.path.exists({str(mark)!r}): open({str(mark)!r}, 'w'); os.kill(os.getpid(), 9)"
    )
    data = compressed(dicom(seed=1), JPEGLossless)
    assert (normalise(data, Limits()).pixels == picture(1)).all()
    made.close()


def test_a_decoder_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    made = workers(monkeypatch, "time.sleep(600)", seconds=2.0)
    with pytest.raises(RadiographError, match="undecodable: the decoder did not finish"):
        normalise(compressed(dicom(), JPEGLossless), Limits())
    made.close()


@pytest.mark.parametrize(("raised", "expected"), [("ValueError('DOE^JANE')", "corrupt"), ("MemoryError()", "bomb")])
def test_what_a_decoder_raises_is_told_by_its_type(monkeypatch: pytest.MonkeyPatch, raised: str, expected: str) -> None:
    made = workers(monkeypatch, f"raise {raised}")
    with pytest.raises(RadiographError) as caught:
        normalise(compressed(dicom(), JPEGLSLossless), Limits())
    assert caught.value.reason == expected
    assert "JANE" not in str(caught.value)
    made.close()


def test_what_decoders_print_does_not_disturb(monkeypatch: pytest.MonkeyPatch) -> None:
    made = workers(monkeypatch, "print('noise', flush=True); os.write(1, b'noise')")
    assert (normalise(compressed(dicom(seed=4), JPEGLSLossless), Limits()).pixels == picture(4)).all()
    made.close()


def test_half_an_answer_is_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import sys; sys.stdout.write('+'); sys.stdout.flush(); sys.stdin.read(8); sys.stdout.write('{}')"
    monkeypatch.setattr(dicom_pixels, "workers", made := Workers([sys.executable, "-c", program]))
    assert reason(compressed(dicom(), JPEGLSLossless)) == "undecodable"
    made.close()


def test_no_process_to_decode_in_is_not_the_files_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    for command in (["/nowhere/python"], [sys.executable, "-c", "raise SystemExit(7)"]):
        monkeypatch.setattr(dicom_pixels, "workers", Workers(command))
        with pytest.raises(DecoderUnavailable, match="can't be started"):
            normalise(compressed(dicom(), JPEGLSLossless), Limits())


def test_many_threads_share_workers() -> None:
    files = [compressed(dicom(seed=n), SYNTAXES[n % 4]) for n in range(12)]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda data: normalise(data, Limits()).pixels, files))
    assert all((pixels == picture(n)).all() for n, pixels in enumerate(found))
    assert len(dicom_pixels.workers._idle) <= 3


def test_a_forked_process_starts_workers_of_its_own() -> None:
    data: Any = compressed(dicom(seed=1), JPEGLSLossless)
    normalise(data, Limits())
    child = os.fork()
    if child == 0:
        right = bool((normalise(data, Limits()).pixels == picture(1)).all())
        dicom_pixels.workers.close()
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (normalise(data, Limits()).pixels == picture(1)).all()


def test_workers_end_with_the_process_that_started_them() -> None:
    import subprocess

    program = (
        "import sys; sys.path.insert(0, 'tests/builders'); from samples import *; "
        "from xray_pipeline.images import dicom_pixels; "
        "from xray_pipeline.images.radiograph import *; normalise(compressed(dicom(), JPEGLSLossless), Limits()); "
        "print(dicom_pixels.workers._idle[0].pid, flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    worker = psutil.Process(int(process.stdout.readline()))
    process.kill()
    process.communicate()
    worker.wait(20)


def test_every_compressed_syntax_with_a_native_decoder_is_guarded() -> None:
    assert set(SYNTAXES) <= dicom_pixels.GUARDED
    assert "undecodable" in QUARANTINED
