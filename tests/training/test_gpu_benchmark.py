"""benchmarks/gpu.py on the CPU: what it checks on a GPU holds here, too, and a part that breaks stops no other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def ran(folder: Path, *arguments: str, before: str = "") -> tuple[subprocess.CompletedProcess[str], dict[str, object]]:
    """Run it, small, after some statements; return what it said and what it left."""
    report = folder / "report.json"
    program = f"import sys, runpy\n{before}\nsys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", program, str(BENCHMARK), *arguments, "--tiny", "--json", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    return done, json.loads(report.read_text())


NOTHING_ELSE = """
import atexit
def look():
    ours = ('airflow', 'mlflow', 'pandas', 'sklearn', 'scipy', 'structlog', 'pyarrow', 'great_expectations', 'msgspec')
    loaded = [name for name in ours if name in sys.modules]
    print('beside what it needs:', loaded)
atexit.register(look)
"""


def test_it_runs_on_a_cpu_with_torch_and_the_networks_alone(tmp_path: Path) -> None:
    done, report = ran(tmp_path, before=NOTHING_ELSE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "beside what it needs: []" in done.stdout
    assert report["failed"] == []
    assert {"features", "loss", "checkpoint", "memory", "plain", "speed"} <= report.keys()
    assert "| resnet18 |" in done.stdout


def test_a_part_that_breaks_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    before = "import torchvision.datasets\ntorchvision.datasets.ImageFolder = None"
    done, report = ran(tmp_path, "plain", "features", before=before)
    assert done.returncode == 1
    assert report["failed"] == ["plain"]
    assert "failed: plain" in done.stderr
    assert "relative_difference" in json.dumps(report["features"])


OTHER_EACH_TIME = """
import itertools
from xray_pipeline.models.backbones import Network
right, calls = Network.features, itertools.count()
Network.features = lambda self, pixels: right(self, pixels) + next(calls)
"""


def test_numbers_that_are_not_the_cpus_fail(tmp_path: Path) -> None:
    done, report = ran(tmp_path, "features", before=OTHER_EACH_TIME)
    assert done.returncode == 1
    assert report["failed"] == ["features"]
    assert "above 1e-4" in done.stdout
