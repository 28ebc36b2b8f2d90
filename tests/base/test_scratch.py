from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest
from candidates import trained
from mlflow_server import MlflowServer
from small_disk import fill, read_only, small_disk
from small_models import logged

from xray_pipeline.base.errors import ModelRefused, RegistryUnavailable, StorageUnavailable, XrayError
from xray_pipeline.base.scratch import on_disk, scratch
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import sweep
from xray_pipeline.registry import decisions as operations
from xray_pipeline.registry.mlflow_registry import Registry
from xray_pipeline.registry.verify import check


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_folder_goes_with_the_block(temporary: Path) -> None:
    with scratch("xray-serve-") as folder:
        (folder / "log").write_text("x")
        assert folder.parent == temporary
    assert list(temporary.iterdir()) == []


def test_what_a_killed_process_left_is_swept_once_it_is_old(temporary: Path) -> None:
    names = ["xray-serve-abcdefgh", "xray-model-12345678", "xray-processes-x", "xray-candidate-abcd_fgh"]
    others = ["xray-serve", "xray-home", "xray-model-x", "reproduce-abcdefgh", "loading-abcdefgh"]
    for name in [*names, *others]:
        (temporary / name).mkdir()
        (temporary / name / "file").write_text("x")
    with scratch("xray-model-"):
        assert all((temporary / name).exists() for name in names)  # young: it may be in use
    for name in [*names, *others]:
        os.utime(temporary / name, (1, 1))
    with scratch("xray-model-"):
        assert sorted(path.name for path in temporary.iterdir() if path.name in names + others) == sorted(others)


def test_in_a_folder_of_ours_only_what_bears_the_name_is_swept(tmp_path: Path) -> None:
    for name in ("loading-dead", "reproduce-dead", "a" * 64):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (1, 1))
    with scratch("loading-", tmp_path):
        assert {path.name for path in tmp_path.iterdir()} > {"reproduce-dead", "a" * 64}
        assert not (tmp_path / "loading-dead").exists()


def test_what_is_in_use_stays_however_old(temporary: Path) -> None:
    with scratch("xray-processes-") as folder:
        os.utime(folder, (1, 1))
        with scratch("xray-model-"):
            assert folder.exists()


def test_a_store_is_swept_of_old_unfinished_writes_and_deliveries_are_not(settings: Settings, tmp_path: Path) -> None:
    store = Path(settings.store)
    incoming = store / "incoming"
    settings = settings.model_copy(update={"incoming": str(incoming)})
    places = [store / "dataset" / "radiographs" / "00", store, incoming / "first" / "NORMAL"]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
        for name in (".xray-tmp-old", ".xray-tmp-young", "kept"):
            (place / name).write_text("x")
            if name != ".xray-tmp-young":
                os.utime(place / name, (1, 1))
    sweep(settings)
    left = [sorted(path.name for path in place.iterdir() if path.is_file()) for place in places]
    assert left == [[".xray-tmp-young", "kept"]] * 2 + [[".xray-tmp-old", ".xray-tmp-young", "kept"]]


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_a_disk_that_takes_nothing_is_named(tmp_path: Path, how: str) -> None:
    with small_disk(tmp_path / "disk") as disk:
        fill(disk) if how == "full" else read_only(disk)
        with pytest.raises(StorageUnavailable, match=f"the disk of {disk}: "), on_disk(disk):
            (disk / "new").write_bytes(b"x" * 10_000)
        with pytest.raises(StorageUnavailable, match=f"the disk of {disk}: "), scratch("xray-model-", disk) as folder:
            (folder / "new").write_bytes(b"x" * 10_000)


def test_a_full_disk_behind_other_errors_is_named_and_others_stay(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(StorageUnavailable, match="No space left"), on_disk(tmp_path):
        raise RegistryUnavailable("MLflow did not answer: [Errno 28] No space left on device")
    with pytest.raises(StorageUnavailable, match="No space left"), on_disk(tmp_path):
        raise ModelRefused("weights") from full
    with pytest.raises(ModelRefused, match="weights"), on_disk(tmp_path):
        raise ModelRefused("weights are missing")


def test_verify_blames_the_disk_not_the_champion(
    settings: Settings, mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    settings = settings.model_copy(update={"tracking_uri": mlflow_server.uri, "model_name": f"disk-{tmp_path.name}"})
    candidate, registry = logged(settings), Registry(settings)
    said = {"who": "a test", "why": "a test", "decision": {"may_promote": True, "automatic": True}}
    operations.register(registry, candidate, champion_before=None, **said)
    operations.promote(registry, 1, expected_champion=None, **said)
    assert all(finding.holds for finding in check(Registry(settings)))
    with small_disk(tmp_path / "disk") as disk:  # half the model has room
        full = settings.model_copy(update={"cache": disk / "cache"})
        with pytest.raises(StorageUnavailable, match=f"the disk of {disk}"):
            check(Registry(full))
        read_only(disk)
        with pytest.raises(StorageUnavailable, match=f"the disk of {disk}"):
            check(Registry(full))


@pytest.mark.parametrize("which", ["cache", "home", "temporary"])
def test_training_on_a_full_disk_names_it(
    grown: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    which: str,
) -> None:
    from mlflow.store.db import utils

    monkeypatch.setattr(utils, "MAX_RETRY_COUNT", 1)
    with small_disk(tmp_path / "disk") as disk:
        fill(disk)
        if which == "cache":
            grown = grown.model_copy(update={"cache": disk})
        elif which == "home":
            grown = grown.model_copy(update={"tracking_uri": f"sqlite:///{disk}/mlflow.db"})
        else:
            monkeypatch.setattr(tempfile, "tempdir", str(disk))
        with pytest.raises(XrayError, match=str(disk)):
            trained(grown, epochs=1)
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert trained(grown.model_copy(update={"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"}), epochs=1)
