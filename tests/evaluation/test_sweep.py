"""A sweep says what the models' own predictions say, at every cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, recall_score

from xray_pipeline.base.errors import EvaluationError
from xray_pipeline.evaluation.sweep import CUTS, at_cuts, compare_cuts

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


TRUTH = np.array([False] * 4 + [True] * 4)
GOOD = np.array([0.1, 0.2, 0.3, 0.55, 0.6, 0.7, 0.8, 0.9])  # ranks all right
FAIR = np.array([0.1, 0.2, 0.3, 0.62, 0.6, 0.7, 0.8, 0.9])  # one pair wrong


def test_a_better_ranking_that_loses_by_its_cut_is_told_from_one_that_loses() -> None:
    lost = compare_cuts(GOOD, FAIR, TRUTH, (0.75, 0.5))
    assert (lost.own, lost.half) == ((0.75, 0.875), (0.875, 0.875))
    assert lost.auc[0] > lost.auc[1]
    assert lost.decide
    assert not compare_cuts(GOOD, FAIR, TRUTH, (0.58, 0.5)).decide  # ranks better, names more right
    assert not compare_cuts(GOOD, GOOD, TRUTH, (0.75, 0.58)).decide  # no ranking is better
    assert compare_cuts(FAIR, GOOD, TRUTH, (0.5, 0.75)).decide  # won by its cut alone
