"""What the form of a delivery does: acknowledge, or judge anew; each with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from samples import jpeg, lay_files

from xray_pipeline.base.errors import ConfigError, DeliveryError
from xray_pipeline.base.settings import Settings
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.night import delivery_actions as actions
from xray_pipeline.night.run import Run

GOOD = {
    f"{c}/patient{n}{c}_1.jpg": jpeg(seed=n + 50 * (c == "NORMAL")) for n in range(4) for c in ("NORMAL", "PNEUMONIA")
}


@pytest.fixture
def run(settings: Settings) -> Run:
    """A site with one delivery that waits, fit but for a folder of an unknown class."""
    lay_files(Path(settings.incoming, "a"), GOOD | {"PNEUMONA/patient9_1.jpg": jpeg(seed=9)})
    return Run(settings, who="alice")


def test_one_that_waits_is_committed_once_it_is_mended(run: Run) -> None:
    judged = actions.act(run, "rejudge", "a", "only looking")
    assert (judged["fit"], Dataset(run.settings).manifests()) == (False, [])
    Path(run.settings.incoming, "a", "PNEUMONA").rename(Path(run.settings.incoming, "a", "PNEUMONIA", "more"))
    judged = actions.act(run, "rejudge", "a", "the folder is named right now")
    assert (judged["fit"], judged["accepted"]) == (True, 9)
    assert Dataset(run.settings).manifests() == ["a"]


def test_of_a_committed_one_the_quarantined_files_are_judged_anew(run: Run) -> None:
    broken = Path(run.settings.incoming, "a", "PNEUMONA", "patient9_1.jpg")
    broken.rename(Path(run.settings.incoming, "a", "PNEUMONIA", "patient9_1.jpg")).write_bytes(b"cut")
    broken.parent.rmdir()
    assert actions.act(run, "rejudge", "a", "first")["fit"]
    Path(run.settings.incoming, "a", "PNEUMONIA", "patient9_1.jpg").write_bytes(jpeg(seed=9))
    assert actions.act(run, "rejudge", "a", "the file was sent again")["delivery"] == "a"


def test_a_later_part_that_waits_is_judged_itself(run: Run) -> None:
    odd = Path(run.settings.incoming, "a", "PNEUMONA")
    aside = odd.rename(Path(run.settings.incoming).parent / "aside")
    assert actions.act(run, "rejudge", "a", "first")["fit"]
    aside.rename(odd)
    judged = actions.act(run, "rejudge", "a+2", "only looking")
    assert (judged["delivery"], judged["fit"]) == ("a+2", False)
    assert Dataset(run.settings).manifests() == ["a"]


def test_an_alarm_that_does_not_stand_is_not_acknowledged(run: Run) -> None:
    with pytest.raises(DeliveryError, match="no drift alarm of delivery a stands"):
        actions.act(run, "acknowledge", "a", "looked at it")


@pytest.mark.parametrize(("action", "why"), [("delete", "because"), ("rejudge", " "), ("acknowledge", "")])
def test_an_unknown_action_and_no_reason_are_refused(run: Run, action: str, why: str) -> None:
    with pytest.raises(ConfigError, match="give one of acknowledge, rejudge and a reason"):
        actions.act(run, action, "a", why)
