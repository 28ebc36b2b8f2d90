"""Doors that must stay closed: what a delivery, a parameter, a checkpoint or a stranger on the network may not do.

docs/security.md lists each threat with its test; those that need a running Airflow are in tests/cluster.
"""

from __future__ import annotations

import ast
import hashlib
import io
import os
import pickle
import re
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import samples
import torch
from mlflow_server import running
from ports import free_port
from s3_server import BUCKET, S3Server

import xray_pipeline
from xray_pipeline.base.errors import ConfigError, RegistryError, StorageError, WeightsError, XrayError
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import open_store
from xray_pipeline.base.text import without_passwords
from xray_pipeline.night import intake_steps
from xray_pipeline.night.run import Run
from xray_pipeline.registry.mlflow_registry import Registry
from xray_pipeline.training.checkpoints import Checkpoints

PACKAGE = Path(xray_pipeline.__file__).parent


# Where a delivery address may lead


@pytest.fixture
def stranger() -> Iterator[tuple[int, list[object]]]:
    """A port on loopback that nothing has a reason to talk to, and who talked to it."""
    callers: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        server.settimeout(0.2)
        ended = threading.Event()

        def listen() -> None:
            while not ended.is_set():
                try:
                    connection, caller = server.accept()
                except TimeoutError:
                    continue
                callers.append(caller)
                connection.close()

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield port, callers
        finally:
            ended.set()
            thread.join()


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:{port}/latest/meta-data",
        "https://127.0.0.1:{port}/",
        "ftp://127.0.0.1:{port}/x",
        "gs://127.0.0.1:{port}/x",
        "S3://127.0.0.1:{port}/x",
        "s3://127.0.0.1:{port}/x",
        "s3://user:word@127.0.0.1:{port}/x",
        "s3://hospital@127.0.0.1:{port}/x",
        "s3://arn:aws:s3:eu-west-1:1:accesspoint/x",
        "s3:///x",
    ],
)
def test_a_delivery_address_leads_to_folders_and_our_s3_only(
    settings: Settings, s3: S3Server, stranger: tuple[int, list[object]], address: str
) -> None:
    port, callers = stranger
    asked = settings.model_copy(update={"incoming": address.format(port=port), "s3_endpoint": s3.endpoint})
    with pytest.raises(ConfigError):
        intake_steps.find_deliveries(Run(asked))
    assert callers == []


def test_a_bucket_that_looks_like_a_host_is_asked_for_at_our_s3(
    settings: Settings, s3: S3Server, stranger: tuple[int, list[object]]
) -> None:
    asked = settings.model_copy(update={"incoming": "s3://127.0.0.1/x", "s3_endpoint": s3.endpoint})
    with pytest.raises(StorageError, match="S3 answered"):
        intake_steps.find_deliveries(Run(asked))
    assert stranger[1] == []


def test_the_form_can_not_name_another_s3(settings: Settings) -> None:
    assert Run.of({"s3_endpoint": "http://127.0.0.1:9"}).settings.s3_endpoint == settings.s3_endpoint


@pytest.mark.parametrize("weights", ["http://127.0.0.1:{port}/w.pt#sha256=" + "0" * 64, "/etc/hostname"])
def test_weights_come_from_files_and_s3_with_a_digest_only(stranger: tuple[int, list[object]], weights: str) -> None:
    from xray_pipeline.models import backbones

    with pytest.raises((ConfigError, WeightsError)):
        backbones.load("efficientnet_lite0", weights.format(port=stranger[0]))
    assert stranger[1] == []


def test_a_delivery_named_by_a_path_is_not_read(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "outside" / "NORMAL").mkdir(parents=True)
    (tmp_path / "outside" / "NORMAL" / "a.png").write_bytes(samples.png())
    Path(settings.incoming).mkdir(parents=True)
    with pytest.raises(XrayError, match="no delivery"):
        intake_steps.check_delivery(Run(settings), "../../outside")


@pytest.mark.parametrize("name", ["../escape.jpg", "a/../../escape.jpg", "/etc/hostname"])
def test_s3_keys_that_climb_are_not_read(settings: Settings, s3: S3Server, name: str) -> None:
    store = open_store(f"s3://{BUCKET}/climb", settings.model_copy(update={"s3_endpoint": s3.endpoint}))
    with pytest.raises(StorageError, match="is not a key"):
        store.read(name)


# What reads images

FOREIGN = """
import io, sys
from PIL import Image
Image.init()
def trip(*a, **k): raise SystemExit(f"a parser other than JPEG and PNG was called: {a[:1]}")
for name in list(Image.OPEN):
    if name not in ("JPEG", "PNG"):
        Image.OPEN[name] = (trip, trip)
Image.open = trip
import numpy as np
from xray_pipeline.images import radiograph
from xray_pipeline.base.errors import RadiographError
picture = Image.fromarray(np.arange(96 * 80, dtype=np.uint8).reshape(96, 80))
reasons = {}
for name in sorted(Image.SAVE):
    for mode in ("L", "RGB", "1", "P"):
        out = io.BytesIO()
        try:
            picture.convert(mode).save(out, name)
            break
        except (OSError, ValueError, KeyError, AttributeError, RuntimeError):
            out = None
    if out is None or name in ("JPEG", "PNG", "MPO", "SPIDER", "JPEG2000") and not out.getvalue():
        continue
    try:
        radiograph.normalise(out.getvalue(), radiograph.Limits())
        reasons[name] = "accepted"
    except RadiographError as error:
        reasons[name] = error.reason
assert len(reasons) > 10, reasons
assert {name for name, reason in reasons.items() if reason == "accepted"} <= {"JPEG", "PNG", "MPO"}, reasons
print(reasons)
"""


def test_images_are_parsed_as_jpeg_png_and_dicom_only() -> None:
    done = subprocess.run([sys.executable, "-c", FOREIGN], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nowhere_is_a_format_left_for_pillow_to_guess() -> None:
    for path in PACKAGE.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "Image.open":
                assert "formats" in {keyword.arg for keyword in call.keywords}, f"{path.name}:{call.lineno}"


# What is loaded


class _Dropper:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_planted_checkpoint_runs_no_code(tmp_path: Path) -> None:
    checkpoints = Checkpoints(open_store(tmp_path / "store"))
    checkpoints.save(1, {"step": 1})
    out = io.BytesIO()
    torch.save({"format": 1, "step": 2, "planted": _Dropper(tmp_path / "ran")}, out)
    planted = out.getvalue()
    checkpoints.store.write(f"{2:09d}-{hashlib.sha256(planted).hexdigest()}.pt", planted)
    assert checkpoints.load() == {"step": 1}
    assert not (tmp_path / "ran").exists()


def test_nothing_in_the_package_unpickles() -> None:
    loaders = {"pickle.load", "pickle.loads", "joblib.load", "pd.read_pickle", "dill.load", "yaml.load", "eval", "exec"}
    for path in PACKAGE.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call):
                name = ast.unparse(call.func)
                safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in call.keywords)
                assert name not in loaders, f"{path.name}:{call.lineno}"
                assert name != "torch.load" or safe, f"{path.name}:{call.lineno}"


# Secrets in messages


def test_a_password_in_an_address_is_not_repeated() -> None:
    text = "asking: MLflow at http://ops:hunter2@mlflow:5000 did not answer: postgresql://x:hunter2@db/mlflow"
    assert without_passwords(text) == (
        "asking: MLflow at http://ops:***@mlflow:5000 did not answer: postgresql://x:***@db/mlflow"
    )


def test_a_registry_that_is_away_is_named_without_its_password(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = settings.model_copy(update={"tracking_uri": "http://ops:hunter2@127.0.0.1:9"})
    with pytest.raises(RegistryError) as raised:
        Registry(away).aliases()
    assert "hunter2" not in str(raised.value)


def test_settings_do_not_show_secrets() -> None:
    settings = Settings(patient_key="hunter2" * 4, airflow_password="hunter2")
    assert "hunter2" not in repr(settings) + str(settings) + settings.model_dump_json()


# Strangers on the network


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An MLflow server with a login: user admin, and a user who may read."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder / 'auth.db'}\nadmin_username = admin\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--host", "127.0.0.1"),
        *("--port", str(port), "--workers", "1", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_AUTH_CONFIG_PATH", str(folder / "auth.ini"))
        patch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "admin-secret-word")
        patch.setenv("MLFLOW_FLASK_SERVER_SECRET_KEY", "a test's key")
        with running(command, f"{uri}/health", folder / "mlflow.log"):
            admin = httpx.Client(base_url=uri, auth=("admin", "admin-secret-word"), timeout=30)

            def made(path: str, **body: str) -> Any:
                answer = admin.post(f"/api/2.0/mlflow/{path}/create", json=body)
                assert answer.is_success, answer.text
                return answer.json()

            made("users", username="reader", password="reader-secret-word")
            made("registered-models", name="chest-xray")
            run = made("runs", experiment_id="0")["run"]["info"]
            made("model-versions", name="chest-xray", source=f"{run['artifact_uri']}/model", run_id=run["run_id"])
            yield uri


DOORS = [
    ("POST", "/api/2.0/mlflow/experiments/search"),
    ("GET", "/api/2.0/mlflow/registered-models/get?name=chest-xray"),
    ("POST", "/api/2.0/mlflow/registered-models/alias"),
    ("POST", "/ajax-api/2.0/mlflow/runs/search"),
    ("GET", "/api/2.0/mlflow-artifacts/artifacts?path="),
    ("PUT", "/api/2.0/mlflow-artifacts/artifacts/planted.pkl"),
    ("GET", "/get-artifact?path=MLmodel&run_uuid=1"),
    ("POST", "/graphql"),
]


@pytest.mark.parametrize(("method", "path"), DOORS)
def test_mlflow_answers_nobody_without_a_login(guarded: str, method: str, path: str) -> None:
    answer = httpx.request(method, f"{guarded}{path}", json={}, timeout=30)
    assert answer.status_code == 401, answer.text


def test_an_mlflow_reader_may_not_move_the_champion(guarded: str) -> None:
    body = {"name": "chest-xray", "alias": "champion", "version": "1"}
    for login, status in ((("reader", "reader-secret-word"), 403), (("admin", "admin-secret-word"), 200)):
        answer = httpx.post(f"{guarded}/api/2.0/mlflow/registered-models/alias", json=body, auth=login, timeout=30)
        assert answer.status_code == status, answer.text


def test_mlflow_does_not_serve_another_host_name(guarded: str) -> None:
    answer = httpx.get(f"{guarded}/api/2.0/mlflow/experiments/search", headers={"Host": "evil.example"}, timeout=30)
    assert answer.status_code == 403, answer.text


def test_the_pipeline_logs_in_to_mlflow(guarded: str, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = settings.model_copy(update={"tracking_uri": guarded, "model_name": "another"})
    with pytest.raises(RegistryError):
        Registry(asked).aliases()
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "admin-secret-word")
    assert Registry(asked).aliases() == {"champion": None, "challenger": None}


@pytest.mark.parametrize("path", ["", f"/{BUCKET}", f"/{BUCKET}?list-type=2", f"/{BUCKET}/store/ledger/00000000.json"])
def test_s3_answers_nobody_without_a_key(s3: S3Server, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{s3.endpoint}{path}", timeout=10)
    assert refused.value.code == 403


def test_test_pickles_are_dangerous(tmp_path: Path) -> None:
    """The planted object does what the tests above say it could not do."""
    pickle.loads(pickle.dumps(_Dropper(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


# The document


def test_the_document_names_tests_that_exist() -> None:
    tests = Path(__file__).parents[1]
    named = set(re.findall(r"`(test_\w+)`", (tests.parent / "docs" / "security.md").read_text()))
    written = set(re.findall(r"^def (test_\w+)", "\n".join(p.read_text() for p in tests.rglob("test_*.py")), re.M))
    assert len(named) > 30
    assert named - written == set()
