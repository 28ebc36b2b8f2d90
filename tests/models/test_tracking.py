"""MLflow as training meets it: a login that nobody is shown, and answers that stay away."""

from __future__ import annotations

import itertools
import logging
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from candidates import trained
from fault_proxy import FaultProxy, run_proxy
from mlflow_server import MlflowServer

from xray_pipeline.base.errors import RegistryError, RegistryUnavailable
from xray_pipeline.base.settings import Settings
from xray_pipeline.models import mlflow_client as tracking
from xray_pipeline.registry.mlflow_registry import Registry

SECRET = "hunter2@/:x"
LOGIN = "ops:hunter2%40%2F%3Ax@"


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")


@pytest.fixture
def proxy(mlflow_server: MlflowServer) -> Iterator[FaultProxy]:
    with run_proxy(mlflow_server.uri) as running:
        yield running


def with_login(settings: Settings, proxy: FaultProxy) -> Settings:
    return settings.model_copy(
        update={"tracking_uri": proxy.uri.replace("//", f"//{LOGIN}"), "model_name": "asked-by-login"}
    )


def kind(method: str, path: str) -> tuple[str, str]:
    """A call without what differs from run to run, nor what file it is about."""
    words = [word for word in path.partition("?")[0].split("/") if not any(map(str.isdigit, word)) or word == "2.0"]
    return method, "/".join(words[:6])


def test_the_login_is_sent_and_nowhere_shown(proxy: FaultProxy, settings: Settings) -> None:
    seen = []
    ask = proxy.RequestHandlerClass._ask  # type: ignore[attr-defined]

    def noted(handler: object, body: bytes) -> object:
        seen.append(handler.headers.get("Authorization"))  # type: ignore[attr-defined]
        return ask(handler, body)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proxy.RequestHandlerClass, "_ask", noted)
        Registry(with_login(settings, proxy)).aliases()
    assert set(seen) == {"Basic b3BzOmh1bnRlcjJALzp4"}  # ops:hunter2@/:x
    assert SECRET not in tracking.mlflow.get_tracking_uri()
    assert with_login(settings, proxy).mlflow_page == proxy.uri


@pytest.mark.timeout(1800)
def test_any_call_of_a_training_that_is_not_answered_is_one_of_our_errors(
    grown: Settings,
    proxy: FaultProxy,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """From each kind of call on that a training makes nothing is answered any more."""
    caplog.set_level(logging.DEBUG)
    numbers = itertools.count()

    def attempt(decide: Callable[[str, str], str]) -> str:
        store = tmp_path / f"store-{next(numbers)}"
        shutil.copytree(Path(grown.store) / "dataset", store / "dataset")
        proxy.decide = decide
        proxy.requests.clear()
        try:
            trained(with_login(grown.model_copy(update={"store": str(store)}), proxy), epochs=1)
        except RegistryError as error:
            said = "".join(traceback.format_exception(error))
            assert "MlflowException" not in said
            return said
        return ""

    attempt(lambda method, path: "")
    assert attempt(lambda method, path: "") == ""
    calls = list(dict.fromkeys(kind(*request) for request in proxy.requests))
    assert len(calls) > 10
    said = ""
    for number, call in enumerate(calls):
        silent, fault = False, ("drop", "503")[number % 2]

        def decide(method: str, path: str, call: tuple[str, str] = call, fault: str = fault) -> str:
            nonlocal silent
            silent = silent or kind(method, path) == call
            return fault if silent else ""

        told = attempt(decide)
        assert f"MLflow at {proxy.uri.replace('//', '//ops:***@')} did not answer" in told, call
        said += told
    out, err = capfd.readouterr()
    for text in (said, out, err, caplog.text):
        assert "hunter2" not in text


def test_a_server_that_asks_for_hours_is_not_waited_for(
    proxy: FaultProxy, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    handler = proxy.RequestHandlerClass

    def patient(self: object) -> None:
        self.send_response(503)  # type: ignore[attr-defined]
        self.send_header("Retry-After", "7200")  # type: ignore[attr-defined]
        self.send_header("Content-Length", "0")  # type: ignore[attr-defined]
        self.end_headers()  # type: ignore[attr-defined]

    monkeypatch.setattr(handler, "do_GET", patient)
    with pytest.raises(RegistryUnavailable, match="did not answer"):
        Registry(settings.model_copy(update={"tracking_uri": proxy.uri})).aliases()


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:////proc/none/mlflow.db", "nothing://x:hunter2@y/z"])
def test_no_address_ends_in_another_error(uri: str, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.store.db import utils

    monkeypatch.setattr(utils, "MAX_RETRY_COUNT", 1)
    with pytest.raises(RegistryError) as raised:
        Registry(settings.model_copy(update={"tracking_uri": uri})).aliases()
    assert "hunter2" not in "".join(traceback.format_exception(raised.value))
