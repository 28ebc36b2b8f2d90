"""An erasure that is killed between any two effects, and what finishes it."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from erasable import WHY, Erasable
from forks import forked

from xray_pipeline.base.storage import DirectoryStore
from xray_pipeline.dataset import pixels
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.night import amend, before, erasing, repair
from xray_pipeline.night.amend import Named
from xray_pipeline.registry.run_files import RunFiles

pytestmark = pytest.mark.slow
Lay = Callable[[str], Erasable]
EVERY, DRAWN = bool(os.environ.get("XRAY_EVERY_KILL")), 6
EFFECTS = (
    *((DirectoryStore, name) for name in ("write", "write_if_absent", "delete")),
    *((RunFiles, name) for name in ("write", "delete")),
    *((pixels.RowCache, name) for name in ("add",)),
)


def _counting(done: Callable[[str], None]) -> None:
    """Have each effect tell what it was when it is done: its name and what it was on, without digests and numbers."""

    def counted(name: str, effect: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            answer = effect(*args, **kwargs)
            on = next((Path(arg) for arg in args if isinstance(arg, str | Path)), Path())
            of = on.parent.name if on.is_absolute() else on.parts[0] if on.parts else ""
            done(f"{name} {re.sub('[-0-9a-f]{8,}', '', of)} {on.suffix}")
            return answer

        return run

    for owner, name in EFFECTS:
        setattr(owner, name, counted(name, getattr(owner, name)))
    pixels._remove = counted("remove", pixels._remove)


def _erase(site: Erasable, record: Path, last: int) -> None:
    """Erase, and record the effects; be killed right after the one of number `last`."""
    count = 0

    def done(what: str) -> None:
        nonlocal count
        count += 1
        with record.open("a") as file:
            file.write(f"{what}\n")
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)

    _counting(done)
    amend.amend(site.run, site.asked, WHY)


def left(site: Erasable) -> list[str]:
    """All files of store, MLflow and cache, but for what is named at random, or by the one who finished."""
    home = site.settings.home
    paths = (path for name in ("store", "artifacts", "cache") for path in (home / name).rglob("*.*"))
    names = [
        str(path.relative_to(home)) for path in paths if path.suffix != ".npy" and path.parent.parent.name != "cache"
    ]
    return sorted(name for name in names if not name.startswith(("store/erased", "store/dataset/commits")))


def _amend_another(site: Erasable) -> None:
    """Correct another radiograph: that finishes the erasure, too."""
    table = Dataset(site.settings).manifest(site.rows["key"].iloc[0])
    other = table[(table["verdict"] == "accepted") & (table["label"] == "NORMAL")].index[0]
    amend.amend(site.run, [Named("relabel", "file", f"{site.rows['key'].iloc[0]}/{other}", "PNEUMONIA")], "read again")


FINISHERS = (lambda site: before.look(site.run), lambda site: repair.repair(site.run), _amend_another)


def test_killed_after_any_effect_and_finished_by_another(erasable: Lay, tmp_path: Path) -> None:
    """After some, drawn by TEST_SEED of all kinds; after each with XRAY_EVERY_KILL=1 set, which takes minutes."""
    whole = erasable("whole")
    process = forked(_erase, whole, tmp_path / "effects", 0)
    process.start()
    process.join(120)
    effects, wanted = (tmp_path / "effects").read_text().splitlines(), left(whole)
    assert process.exitcode == 0
    verified = erasing.verify(whole.run)
    assert verified[0]
    numbers = range(1, len(effects) + 1)
    kinds = {what: number for number, what in reversed(list(enumerate(effects, 1)))}
    drawn = random.Random(os.environ["TEST_SEED"]).sample(sorted(kinds.values()), DRAWN)
    assert len(kinds) > 20, kinds
    for number in numbers if EVERY else drawn:
        site = erasable(f"killed-{number}")
        process = forked(_erase, site, tmp_path / f"effects-{number}", number)
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
        if not Dataset(site.settings).commits.amendments():  # it was killed before
            amend.amend(site.run, site.asked, WHY)
        FINISHERS[number % 3](site)
        assert erasing.verify(site.run) == verified, effects[number - 1]
        assert left(site) == wanted, effects[number - 1]
        shutil.rmtree(site.settings.home)
