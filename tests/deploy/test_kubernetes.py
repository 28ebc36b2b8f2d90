"""deploy/kubernetes: no secret in a file, each secret where the compose stack has it, pods that Kubernetes understands.

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

from xray_pipeline.base.settings import Settings
from xray_pipeline.night.health import GPU_POOL

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
UV = str(Path(sys.executable).with_name("uv"))

DOCKERFILE = (FOLDER / "Dockerfile").read_text()
DOCUMENTED = (ROOT / "docs" / "kubernetes.md").read_text().replace("\\\n", "")
PINS = dict(re.findall(r"([a-z][a-z-]+)==([0-9.]+)", DOCKERFILE))
SETTINGS = dict(line.split("=", 1) for line in (FOLDER / "settings.env").read_text().splitlines() if line[0] != "#")
PODS = ("light-pod.yaml", "gpu-pod.yaml")

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


def container(pod: str) -> dict[str, Any]:
    (only,) = loaded(pod)["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def told(pod: str) -> dict[str, str]:
    return {item["name"]: item["value"] for item in container(pod)["env"]}


def compose_worker() -> dict[str, str]:
    stack = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())
    environment: dict[str, str] = stack["services"]["worker"]["environment"]
    return environment


def references(value: Any) -> set[str]:
    """Names of the Secrets and ConfigMaps that a part of a file refers to."""
    if isinstance(value, list):
        return {name for inner in value for name in references(inner)}
    if not isinstance(value, dict):
        return set()
    objects = ("configMap", "configMapRef", "secretRef", "secretKeyRef")
    named = {inner["name"] for key, inner in value.items() if key in objects}
    named |= {inner for key, inner in value.items() if key.endswith("SecretName")}
    return named | {name for inner in value.values() for name in references(inner)}


def created(kind: str) -> dict[str, list[str]]:
    """Name and keys of each ConfigMap or Secret that the page creates."""
    found = re.findall(rf"create {kind} (\S+)(.*)", DOCUMENTED)
    return {name: re.findall(r"--from-(?:literal|file|env-file)=([^=\s]+)", rest) for name, rest in found}


# The image


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


# Airflow's settings


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


def test_the_project_knows_every_setting() -> None:
    unknown = {name for name in SETTINGS if name.startswith("XRAY_") and name[5:].lower() not in Settings.model_fields}
    assert unknown == set()


# Secrets


@pytest.mark.parametrize("pod", PODS)
def test_a_task_is_told_what_all_are_and_holds_one_secret(pod: str) -> None:
    assert container(pod)["envFrom"] == [
        {"configMapRef": {"name": "xray-settings"}},
        {"secretRef": {"name": "xray-tasks"}},
    ]
    assert all("value" in item for item in container(pod)["env"])
    assert not any("secret" in volume for volume in loaded(pod)["spec"]["volumes"])
    assert loaded(pod)["spec"]["automountServiceAccountToken"] is False


@pytest.mark.parametrize("pod", PODS)
def test_a_tasks_database_leads_nowhere_as_in_the_compose_stack(pod: str) -> None:
    variable = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"
    assert told(pod)[variable] == compose_worker()[variable]


def test_the_tasks_secret_holds_what_a_worker_of_the_compose_stack_does() -> None:
    of_accounts = {"AWS_ACCESS_KEY_ID", "MLFLOW_TRACKING_USERNAME"}
    secret = {name for name, value in compose_worker().items() if ":?" in value and "CELERY" not in name}
    assert set(created("secret generic")["xray-tasks"]) == secret | of_accounts


def test_airflows_own_parts_do_not_hold_the_tasks_secret() -> None:
    assert "xray-tasks" not in yaml.safe_dump(VALUES)


def test_the_store_is_read_with_an_account_of_its_own_by_the_parts_that_show_it() -> None:
    parts = {name: part for name, part in VALUES.items() if isinstance(part, dict)}
    held = {name: references(part["env"]) for name, part in parts.items() if "env" in part}
    assert held == {"apiServer": {"xray-reading"}, "triggerer": {"xray-triggerer"}}


def test_the_page_creates_every_secret_and_config_map_that_is_named() -> None:
    named = references([VALUES, yaml.safe_load(VALUES["extraEnvFrom"]), *map(loaded, PODS)])
    made = created("secret generic").keys() | created("configmap").keys()
    assert named == made | {"xray-config"}  # the chart makes that one


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

    hits = [hit for content in (VALUES, SETTINGS, *map(loaded, PODS)) for hit in plain(content)]
    assert [hit for hit in hits if not hit.endswith("automountServiceAccountToken")] == []


# Pods


@pytest.mark.parametrize("pod", PODS)
def test_kubernetes_understands_every_field_of_a_pod(pod: str) -> None:
    client = f"kubernetes=={PINS['kubernetes']}"
    command = [UV, "run", "--no-project", "--isolated", "--with", client, "--with", "pyyaml", "python", "-c"]
    probe = subprocess.run([*command, "import kubernetes"], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"{client} can't be installed: {probe.stderr.strip()[-200:]}")
    done = subprocess.run([*command, READ_AND_WRITE, str(FOLDER / pod)], capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert said["understood"] == said["given"]


@pytest.mark.parametrize("pod", PODS)
def test_a_pod_is_the_executors_and_the_charts(pod: str) -> None:
    assert container(pod)["name"] == "base"
    labels = loaded(pod)["metadata"]["labels"]
    assert labels.items() >= {"tier": "airflow", "component": "worker", "release": "xray"}.items()


def test_the_gpu_pod_has_one_gpu() -> None:
    assert container("gpu-pod.yaml")["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in container("light-pod.yaml")["resources"]["limits"]


def test_the_pods_lie_where_the_executor_and_the_dag_look_for_them() -> None:
    (volume,) = VALUES["scheduler"]["extraVolumes"]
    (mount,) = VALUES["scheduler"]["extraVolumeMounts"]
    files = [Path(file).name for file in created("configmap")[volume["configMap"]["name"]]]
    lying = {f"{mount['mountPath']}/{file}" for file in files}
    asked = {VALUES["config"]["kubernetes_executor"]["pod_template_file"], SETTINGS["XRAY_GPU_POD_TEMPLATE"]}
    assert asked == lying


def test_every_pod_runs_the_image_of_airflows_parts() -> None:
    image, executor = VALUES["images"]["airflow"], VALUES["config"]["kubernetes_executor"]
    assert (executor["worker_container_repository"], executor["worker_container_tag"]) == (
        image["repository"],
        image["tag"],
    )


def test_what_needs_the_network_asks_for_the_pod_and_waits_for_its_pool(tmp_path: Path) -> None:
    script = (
        "import runpy, json; dag = runpy.run_path('dags/retrain.py')['dag_object'];"
        "print(json.dumps({t.task_id: [t.queue, t.pool, t.executor_config] for t in dag.tasks}))"
    )
    template = SETTINGS["XRAY_GPU_POD_TEMPLATE"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "XRAY_GPU_POD_TEMPLATE": template}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
    )
    tasks = json.loads(done.stdout.splitlines()[-1])
    asked = {task for task, (*_, config) in tasks.items() if config == {"pod_template_file": template}}
    assert asked == {task for task, (queue, *_) in tasks.items() if queue == "gpu"}
    assert asked == {task for task, (_, pool, _) in tasks.items() if pool == GPU_POOL}
    assert asked == {"look_ahead", "train", "evaluate"}
