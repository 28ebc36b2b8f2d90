"""deploy/kubernetes: the files are YAML, hold no secret, fit the DAG, and the pod is one that Kubernetes understands.

The chart itself is not rendered here: see docs/kubernetes.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "deploy" / "kubernetes"
CLIENT = "kubernetes==37.0.2"

READ_AND_WRITE = """
import json, sys, yaml
from kubernetes.client import ApiClient
from kubernetes.client.models import V1Pod
content = yaml.safe_load(open(sys.argv[1]))
client = ApiClient()
pod = client._ApiClient__deserialize_model(content, V1Pod)  # as the executor does
print(json.dumps({"given": content, "understood": client.sanitize_for_serialization(pod)}))
"""


def loaded(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text())
    return content


def test_kubernetes_understands_every_field_of_the_gpu_pod() -> None:
    uv = Path(sys.executable).with_name("uv")
    command = [uv, "run", "--no-project", "--isolated", "--with", CLIENT, "--with", "pyyaml", "python", "-c"]
    probe = subprocess.run([*command, "import kubernetes"], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"{CLIENT} can't be installed: {probe.stderr.strip()[-200:]}")
    done = subprocess.run(
        [*command, READ_AND_WRITE, FOLDER / "gpu-pod.yaml"], capture_output=True, text=True, check=True
    )
    said = json.loads(done.stdout)
    assert said["understood"] == said["given"]


def test_the_pod_has_one_gpu_and_the_executors_container() -> None:
    (container,) = loaded("gpu-pod.yaml")["spec"]["containers"]
    assert container["name"] == "base"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_light_tasks_and_training_are_told_the_same() -> None:
    light = {item["name"]: item["value"] for item in loaded("values.yaml")["env"]}
    (container,) = loaded("gpu-pod.yaml")["spec"]["containers"]
    training = {item["name"]: item["value"] for item in container["env"]}
    assert {name: training.get(name) for name in light if name != "XRAY_GPU_POD_TEMPLATE"} == {
        name: value for name, value in light.items() if name != "XRAY_GPU_POD_TEMPLATE"
    }


def test_the_template_lies_where_the_dag_looks_for_it() -> None:
    values = loaded("values.yaml")
    asked = next(item["value"] for item in values["env"] if item["name"] == "XRAY_GPU_POD_TEMPLATE")
    (mount,) = values["scheduler"]["extraVolumeMounts"]
    assert asked == f"{mount['mountPath']}/gpu-pod.yaml"


def test_no_secret_stands_in_a_file() -> None:
    words = ("password", "secret", "token", "_key")

    def plain(value: Any, path: str = "") -> list[str]:
        if isinstance(value, dict):
            if "name" in value and "value" in value:
                return [f"{path}.{value['name']}"] if any(w in str(value["name"]).lower() for w in words) else []
            return [hit for key, inner in value.items() for hit in plain(inner, f"{path}.{key}")]
        if isinstance(value, list):
            return [hit for inner in value for hit in plain(inner, path)]
        named = path.rpartition(".")[2].lower()
        return [path] if any(word in named for word in words) and not named.endswith("secretname") else []

    hits = [hit for name in ("values.yaml", "gpu-pod.yaml") for hit in plain(loaded(name))]
    assert [hit for hit in hits if not hit.endswith("automountServiceAccountToken")] == []


def test_training_and_evaluation_ask_for_the_pod(tmp_path: Path) -> None:
    script = (
        "import runpy, json; dag = runpy.run_path('dags/retrain.py')['dag_object'];"
        "print(json.dumps({t.task_id: [t.queue, t.executor_config] for t in dag.tasks}))"
    )
    template = "/opt/xray/kubernetes/gpu-pod.yaml"
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "XRAY_GPU_POD_TEMPLATE": template}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
    )
    tasks = json.loads(done.stdout.splitlines()[-1])
    asked = {task for task, (_, config) in tasks.items() if config == {"pod_template_file": template}}
    assert asked == {task for task, (queue, _) in tasks.items() if queue == "gpu"} == {"train", "evaluate"}
