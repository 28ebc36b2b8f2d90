"""A training says what it does, and neither MLflow nor a warning talks over it or to anybody else."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
from candidates import trained

from xray_pipeline.base import progress
from xray_pipeline.base.settings import Settings

ALONE = """
import warnings
import xray_pipeline.training.train
from mlflow.telemetry.client import get_telemetry_client
assert get_telemetry_client() is None
warnings.warn_explicit("ranges are deprecated", FutureWarning, "utils.py", 211, "mlflow.models.utils")
"""


@pytest.mark.slow
def test_mlflow_has_no_telemetry_and_warns_of_nothing_whatever_is_imported_first() -> None:
    # MLflow itself keeps quiet under pytest and where a workflow runs, and pytest keeps warnings.
    known = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME") if name in os.environ}
    done = subprocess.run([sys.executable, "-c", ALONE], env=known, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")


def test_long_work_is_told_again_and_again(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level("INFO")
    clock = iter([0.0, 3.0, 10.0, 10.0, 12.0, 25.0, 25.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    tell = progress.logged(logging.getLogger("training"))
    for done in (1, 2, 3, 4):
        tell(done, 4, "features")
    assert caplog.messages == ["features: 2 of 4", "features: 4 of 4"]


def test_a_training_is_told_by_its_own_lines_only(
    grown: Settings, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("INFO")
    trained(grown, epochs=1)
    told_by = {record.name.partition(".")[0] for record in caplog.records}
    assert told_by - {"py"} == {"xray_pipeline"}  # the first test looks at warnings; pytest lets all of them through
    assert capfd.readouterr().err == ""
