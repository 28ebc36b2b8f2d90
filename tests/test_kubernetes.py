"""deploy/kubernetes: the files are YAML, hold no secret, fit the DAG, and the pod is one that Kubernetes understands.

The chart itself is not rendered here: see docs/kubernetes.md.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "deploy" / "kubernetes"
UV = str(Path(sys.executable).with_name("uv"))

DOCKERFILE = (FOLDER / "Dockerfile").read_text()
PINS = dict(re.findall(r"([a-z][a-z-]+)==([0-9.]+)", DOCKERFILE))

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


VALUES = loaded("values.yaml")


def test_the_images_packages_fit_the_lock() -> None:
    wanted = "\n".join(f"{name}=={version}" for name, version in PINS.items())
    command = [UV, "pip", "compile", "--quiet", "--python-version", "3.11", "--constraint", "requirements.lock", "-"]
    done = subprocess.run(command, input=wanted, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode and "No solution found" not in done.stderr:
        pytest.skip(f"the package index can't be asked: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr


def test_the_image_has_what_writes_task_logs_to_s3() -> None:
    logging = VALUES["config"]["logging"]
    assert (logging["remote_logging"], logging["remote_base_log_folder"][:5]) == ("True", "s3://")
    assert "apache-airflow-providers-amazon" in PINS


def test_the_entrypoint_of_the_charts_probes_runs_what_it_is_given(tmp_path: Path) -> None:
    (line,) = re.findall(r"^RUN (.+/entrypoint.*)$", DOCKERFILE, re.MULTILINE)
    entrypoint = tmp_path / "entrypoint"
    subprocess.run(["sh", "-c", line.replace("/entrypoint", str(entrypoint))], check=True)
    done = subprocess.run([entrypoint, "echo", "a  job"], capture_output=True, text=True, check=True)
    assert done.stdout == "a  job\n"


@pytest.mark.parametrize("part", ["scheduler", "dagProcessor", "triggerer"])
def test_no_log_groomer_looks_for_a_script_the_image_lacks(part: str) -> None:
    assert VALUES[part]["logGroomerSidecar"]["enabled"] is False


@pytest.mark.parametrize(
    ("section", "option"),
    [
        ("core", "dags_are_paused_at_creation"),
        ("scheduler", "task_instance_heartbeat_timeout_detection_interval"),
        ("dag_processor", "min_file_process_interval"),
    ],
)
def test_airflow_is_set_as_in_the_compose_stack(section: str, option: str) -> None:
    compose = configparser.ConfigParser()
    compose.read(ROOT / "deploy" / "compose" / "airflow.cfg")
    assert VALUES["config"][section][option] == compose[section][option]


def test_airflow_knows_every_option() -> None:
    spec = find_spec("airflow")
    assert spec is not None
    assert spec.submodule_search_locations
    known = yaml.safe_load(Path(spec.submodule_search_locations[0], "config_templates", "config.yml").read_text())
    sections = {name: options for name, options in VALUES["config"].items() if name != "kubernetes_executor"}
    unknown = [
        f"{name}.{option}"
        for name, options in sections.items()
        for option in options
        if option not in known.get(name, {}).get("options", {})
    ]
    assert unknown == []


def test_kubernetes_understands_every_field_of_the_gpu_pod() -> None:
    client = f"kubernetes=={PINS['kubernetes']}"
    command = [UV, "run", "--no-project", "--isolated", "--with", client, "--with", "pyyaml", "python", "-c"]
    probe = subprocess.run([*command, "import kubernetes"], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"{client} can't be installed: {probe.stderr.strip()[-200:]}")
    done = subprocess.run(
        [*command, READ_AND_WRITE, str(FOLDER / "gpu-pod.yaml")], capture_output=True, text=True, check=True
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
