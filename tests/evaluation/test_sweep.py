"""A sweep says what the models' own predictions say, at every cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, recall_score

from xray_pipeline.base.errors import EvaluationError
from xray_pipeline.evaluation.sweep import CUTS, Cuts, at_cuts

shares = st.floats(0, 1, width=16)


@given(st.lists(st.tuples(shares, st.booleans()), min_size=2, max_size=30), shares)
def test_each_cut_scores_what_calling_from_it_scores(rows: list[tuple[float, bool]], cut: float) -> None:
    scores, truth = np.array([p for p, _ in rows]), np.array([ill for _, ill in rows])
    if truth.all() or not truth.any():
        with pytest.raises(EvaluationError, match="both classes"):
            at_cuts(scores, truth, cut)
        return
    found, called = at_cuts(scores, truth, cut), scores >= cut
    assert found.accuracy == pytest.approx([accuracy_score(truth, called)])
    assert found.sensitivity == pytest.approx([recall_score(truth, called)])
    assert found.specificity == pytest.approx([recall_score(~truth, ~called)])


def test_a_sweep_goes_from_calling_all_to_calling_none_but_the_certain() -> None:
    found = at_cuts([0.2, 0.4, 0.6, 1.0], [False, True, False, True])
    assert (found.cuts == CUTS).all()
    assert (found.sensitivity[0], found.specificity[0], found.sensitivity[-1], found.specificity[-1]) == (1, 0, 0.5, 1)
    assert (np.diff(found.sensitivity) <= 0).all()
    assert (np.diff(found.specificity) >= 0).all()


def test_scores_and_truths_that_are_not_as_many_are_refused() -> None:
    with pytest.raises(EvaluationError, match="takes scores"):
        at_cuts([0.1, 0.2, 0.3], [True, False])


def test_a_better_ranking_that_loses_by_its_cut_is_told_from_one_that_loses() -> None:
    half, better = (0.875, 0.875), (1.0, 0.9375)
    assert Cuts((0.75, 0.875), half, better).decide
    assert not Cuts((1.0, 0.875), half, better).decide  # ranks better, names more right
    assert not Cuts((0.75, 0.875), half, (1.0, 1.0)).decide  # no ranking is better
    assert Cuts((0.875, 0.75), half, (0.9375, 1.0)).decide  # won by its cut alone
    assert not Cuts((0.75, 0.875), (0.8, 0.875), better).decide  # behind at .5, too
