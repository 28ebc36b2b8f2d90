"""What a small machine runs each night, and who looks at what came of it, does not wait for torch to be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "torchvision", "timm", "openvino", "sklearn", "matplotlib", "great_expectations")


@pytest.mark.slow
@pytest.mark.parametrize("module", ["before", "intake_steps", "summary", "newest", "unanswered", "watching", "review"])
def test_a_light_step_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, xray_pipeline.night.{module}; print(sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["history", "nights"])
def test_a_verb_that_only_reads_small_records_imports_no_table_and_no_mlflow(verb: str, tmp_path: Path) -> None:
    code = f"""
import sys
from xray_pipeline.command.main import app
app([{verb!r}], standalone_mode=False)
print(sorted(set({(*HEAVY, "mlflow", "pandas", "numpy", "boto3")}) & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "XRAY_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"
