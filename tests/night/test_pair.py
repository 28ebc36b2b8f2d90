"""A pair's models are loaded once, by the step that scores them; the later steps take what it left."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from candidates import promoted, trained

from xray_pipeline.base.settings import Settings
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.evaluation.stress import PERTURBATIONS
from xray_pipeline.models.classifier import Classifier
from xray_pipeline.night import decision_steps, intake_steps, model_steps, review
from xray_pipeline.night.pair import pair
from xray_pipeline.night.run import Run, Trained
from xray_pipeline.report.examples import packed, unpacked

pytestmark = pytest.mark.slow


def refuse(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("a model was loaded")


def last(caplog: pytest.LogCaptureFixture) -> str:
    """The sentence that a step ended with."""
    said = [record.getMessage() for record in caplog.records if record.name == "xray_pipeline.night.run"][-1]
    assert len(said) <= 120
    return said


def test_deciding_loads_no_model_and_a_lost_file_is_made_anew(
    grown: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "xray_pipeline.night")
    champion = promoted(grown, trained(grown), None)
    candidate, run = trained(grown, seed=1, epochs=2), Run(grown)
    shutil.rmtree(grown.cache)
    seen: list[tuple[str, int]] = []
    evaluated = model_steps.evaluate(
        run, Trained(candidate.digest, ""), lambda done, total, what: seen.append((what, total))
    )
    snapshot = Dataset(grown).open_snapshot(candidate.snapshot)
    sides = Dataset(grown).rows(snapshot)["side"].value_counts()
    learned, held_out = sides["train"] + sides["validation"], sides["held-out"]
    suspects = len(review.listed(run.store(), snapshot.digest) or ())
    # Both models score what is held out, then the suspects, which the network's features had found.
    assert [total for what, total in seen if what == "scoring"] == [held_out, held_out, suspects, suspects]
    others = {("decoding", learned), ("features", learned), ("stress", len(PERTURBATIONS))}
    assert {told for told in seen if told[0] != "scoring"} == others
    gap = r"[+-]\d\.\d{3} \([+-]\d\.\d{3} to [+-]\d\.\d{3}\)"
    compared = (
        rf"accuracy \d\.\d{{3}} against version {champion}'s \d\.\d{{3}}: {gap} on \d+ held-out radiographs of \d+"
    )
    assert re.match(compared, last(caplog))
    reports = Path(grown.store) / "reports" / candidate.digest / f"against-{champion}"
    drawn = (reports / "examples.npz").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(Classifier, "load", refuse)
        decided = decision_steps.decide(run, evaluated)
    assert (decided.candidate, decided.champion) == (candidate.digest, champion)
    assert last(caplog).startswith("Refused. " if decided.verdict == "refused" else "Registered. ")
    shutil.rmtree(Path(grown.incoming) / "first")
    assert intake_steps.find_deliveries(run) == []
    assert last(caplog).startswith("no new deliveries in ")
    page = (reports / "report.html").read_bytes()

    for part in (Path(grown.store) / "predictions" / candidate.model_digest).iterdir():
        part.unlink()
    (reports / "examples.npz").write_bytes(drawn[:-40])
    both = pair(run, run.registry(), candidate.digest, champion)
    assert [table.shape for table in both.tables] == [(len(both.rows), 2)] * 2
    decision_steps.decide(run, evaluated)
    assert len((reports / "report.html").read_bytes()) == pytest.approx(len(page), rel=0.01)
    about = (both.snapshot.digest, *both.model_digests())
    before, after = (unpacked(data, about) for data in (drawn, (reports / "examples.npz").read_bytes()))
    assert before
    assert after
    for one, other in zip([*before[0], *before[1]], [*after[0], *after[1]], strict=True):
        assert (one.digest, one.candidate, one.champion_says) == (other.digest, other.candidate, other.champion_says)
        np.testing.assert_array_equal(one.pixels, other.pixels)


def test_examples_of_another_pair_or_a_damaged_file_are_not_shown() -> None:
    about, nothing = ["snapshot", "new", "old"], [(), ()]
    data = packed(nothing, about)
    assert unpacked(data, about) == nothing
    assert unpacked(data, ["snapshot", "new", "older"]) is None
    for at in (0, len(data) // 2, len(data) - 30):
        assert unpacked(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :], about) is None
