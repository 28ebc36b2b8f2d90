from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

DAGS = Path(__file__).resolve().parents[2] / "dags"
HEAVY = ("torch", "torchvision", "mlflow", "great_expectations", "pandas", "PIL", "matplotlib", "sklearn", "pyarrow")

PARSE = """
import json, runpy, sys
from airflow.sdk import Param, dag, get_current_context, task, Asset  # Airflow's own import is not what is measured
import airflow.providers.standard.operators.hitl
before = set(sys.modules)
runpy.run_path(sys.argv[1])
print(json.dumps(sorted(set(sys.modules) - before)))
"""


@pytest.mark.parametrize("path", sorted(DAGS.glob("*.py")), ids=lambda path: path.stem)
def test_parsing_is_light(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PARSE, path], capture_output=True, check=True, text=True)
    loaded = {module.partition(".")[0] for module in json.loads(done.stdout)}
    assert not loaded & set(HEAVY)
