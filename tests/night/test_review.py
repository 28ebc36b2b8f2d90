"""What a night leaves for a person to review, and what the person says of it."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from two_nights import SETTINGS

from xray_pipeline.base import records
from xray_pipeline.base.errors import AmendmentError
from xray_pipeline.base.settings import Settings
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.evaluation.suspected import Suspect
from xray_pipeline.night import amend, review
from xray_pipeline.night.run import Run
from xray_pipeline.registry.ledger import Ledger


@pytest.fixture
def run(two_nights: Callable[[Path], None], tmp_path: Path) -> Run:
    """A run by a reader, on an installation after two nights."""
    two_nights(tmp_path)
    return Run(Settings(home=tmp_path, **SETTINGS), who="reader")


def test_a_night_draws_what_its_models_disagree_on(run: Run) -> None:
    drawn = review.material(run.store())
    assert drawn is not None
    last = Ledger(run.store()).entries()[-1]
    assert (drawn.candidate, drawn.champion, drawn.snapshot) == (last.candidate, 1, last.snapshot)
    assert drawn.disagreements  # the first night's model is a weak one
    held = review.overview(Dataset(run.settings)).radiographs
    for digest in drawn.disagreements[:12]:
        one = drawn.explained[digest]
        assert one.champion is not None
        assert one.candidate.label != one.champion.label
        assert sum(one.candidate.probabilities) == pytest.approx(1, abs=1e-4)
        assert len(base64.b64decode(one.candidate.map)) == review.MAP_SIDE**2
        assert held.loc[digest, "side"] == "held-out"
        assert len(one.alike) == 4
        assert set(held.loc[list(one.alike), "side"]) <= {"train", "validation"}


def test_a_damaged_drawing_is_drawn_anew(run: Run) -> None:
    run.store().write(review.NEWEST, b"torn")
    assert review.material(run.store()) is None


def suspected(run: Run) -> tuple[str, list[Suspect]]:
    """List three radiographs as suspects of the newest snapshot."""
    drawn = review.material(run.store())
    assert drawn is not None
    rows = review.overview(Dataset(run.settings)).radiographs
    normal = rows[(rows["label"] == "NORMAL") & (rows["side"] == "train")].index[:3]
    found = [Suspect(digest, "mislabel", "NORMAL", "PNEUMONIA", 0.9, 0.8) for digest in normal]
    records.write(run.store(), f"suspects/{drawn.snapshot}.json", [vars(one) for one in found])
    return drawn.snapshot, found


def open_digests(run: Run, snapshot: str) -> list[str]:
    labels = review.overview(Dataset(run.settings)).labels()
    return [one.digest for one in review.open_suspects(run.store(), snapshot, labels) or []]


def test_what_a_person_decided_does_not_come_up_again(run: Run) -> None:
    snapshot, (first, second, third) = suspected(run)
    before = Dataset(run.settings).snapshot()
    said = review.act(run, "agree", first.digest[:10], "as it is", "seen with a colleague")
    assert (said["radiograph"], said["label"], said["who"]) == (first.digest, "NORMAL", "reader")
    assert open_digests(run, snapshot) == [second.digest, third.digest]
    assert Dataset(run.settings).snapshot() == before  # to agree changes nothing that is trained on
    review.act(run, "relabel", second.digest, "PNEUMONIA", "an infiltrate")
    review.act(run, "withdraw", third.digest, "", "no chest")
    assert open_digests(run, snapshot) == []
    amend.amend(run, [amend.Named("undo", "amendment", "3")], "it was right")
    assert open_digests(run, snapshot) == [second.digest]


def test_an_agreement_ends_with_the_label_it_was_about(run: Run) -> None:
    snapshot, (first, *_) = suspected(run)
    review.agree(run, first.digest, "seen")
    said = review.readings(run.store(), [first.digest])[first.digest]
    review.say(run, first.digest, "PNEUMONIA", "of another label")
    assert first.digest in open_digests(run, snapshot)
    assert said.label == "NORMAL"
    row = review.overview(Dataset(run.settings)).radiographs.loc[first.digest]
    assert review.agree(run, f"{row['delivery']}/{row['row']}", "seen")["radiograph"] == first.digest
    with pytest.raises(AmendmentError, match="0 radiographs of this digest"):
        review.agree(run, "0" * 64, "seen")
    with pytest.raises(AmendmentError, match="say why"):
        review.agree(replace(run, who="b"), first.digest, " ")
