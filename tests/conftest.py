"""Shared fixtures: real data when it lies beside the repository, and settings in a folder of the test's own."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many workers as processors: more threads would wait for each other

from candidates import grown  # noqa: F401  (a fixture)
from commands import xray  # noqa: F401  (a fixture)
from erasable import erasable  # noqa: F401  (a fixture)
from grown_old import old_site  # noqa: F401  (a fixture)
from mlflow_server import empty_mlflow, mlflow_server  # noqa: F401  (fixtures)
from once import once  # noqa: F401  (a fixture)
from s3_server import S3Server, run_s3, s3_credentials
from small_models import model, no_pause  # noqa: F401  (fixtures)
from stores import store  # noqa: F401  (a fixture)
from two_nights import two_nights  # noqa: F401  (a fixture)

from xray_pipeline.base.settings import Settings

ROOT = Path(__file__).resolve().parent.parent

hypothesis.settings.register_profile("shared machine", deadline=None)  # one stall is no fault
hypothesis.settings.load_profile("shared machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    """--screenshots: the browser tests save the pictures of the documentation."""
    parser.addoption("--screenshots", action="store_true", help="save the pictures in docs/")


SERVERS = {"airflow_db", "grown", "guarded", "mlflow_server", "models", "s3", "two_nights", "xray"}
SLOW_ROOMS = {"command", "faults", "site"}
LONGEST = ("site", "faults", "registry", "training", "night", "models")
"""Rooms whose files take minutes: they go first, so that no worker is left with one at the end."""


def pytest_configure() -> None:
    """Draw the seed of what happens at random in tests; the workers inherit it."""
    os.environ.setdefault("TEST_SEED", str(secrets.randbelow(2**32)))
    # MLflow looks for it with each of its calls, and pytest makes a search that finds nothing take 10 ms.
    sys.modules.setdefault("dbruntime", None)


def pytest_report_header() -> str:
    return f"random kills: TEST_SEED={os.environ['TEST_SEED']} brings the same ones again"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts a server, MLflow's database or a command as slow, and put the longest rooms first."""
    for item in items:
        if room_of(item) in SLOW_ROOMS or SERVERS & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
            if sys.version_info < (3, 12):  # where measuring costs half as much again
                item.add_marker("no_cover")
    order = {room: place for place, room in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(room_of(item), len(order)))


def room_of(item: pytest.Item) -> str:
    return item.path.relative_to(ROOT / "tests").parts[0]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real X-rays: $XRAY_SHARED, or `shared` beside the repository."""
    folder = Path(os.environ.get("XRAY_SHARED", ROOT.parent / "shared"))
    if not (folder / "data" / "chest_xray").is_dir():
        pytest.skip(f"no real X-rays: {folder}/data/chest_xray is missing; set XRAY_SHARED")
    return folder


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings whose every folder lies in the test's own; nothing from the environment."""
    for name in [name for name in os.environ if name.startswith("XRAY_")]:
        monkeypatch.delenv(name)
    return Settings(home=tmp_path / "home", settle_seconds=0, bootstrap=200, device="cpu")


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server with the bucket `hospital`; its credentials are in the environment meanwhile."""
    with s3_credentials(), run_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_env() -> Iterator[None]:
    """Credentials for S3 without a server."""
    with s3_credentials():
        yield
