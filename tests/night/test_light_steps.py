"""What a small machine runs each night, checking deliveries and concluding, does not wait for torch to be imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "torchvision", "timm", "openvino", "captum", "sklearn", "matplotlib", "great_expectations")


@pytest.mark.slow
@pytest.mark.parametrize("module", ["before", "intake_steps", "summary", "newest", "unanswered", "watching", "review"])
def test_a_light_step_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, xray_pipeline.night.{module}; print(sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == "[]\n"
