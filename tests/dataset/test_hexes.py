from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from xray_pipeline.base.errors import DatasetError
from xray_pipeline.dataset.hexes import Finder, Wanted, distinct, first_of_each, text_of, texts_of, words_of

TEXTS = st.lists(
    st.one_of(
        st.sampled_from(["", f"{1:032x}", f"{2:032x}", f"{1:016x}{2:016x}", f"{1 << 127:032x}"]),  # half of some agree
        st.integers(0, 2**128 - 1).map(lambda number: f"{number:032x}" if number else ""),
    ),
    max_size=12,
)


def words(texts: list[str]) -> NDArray[np.uint64]:
    return words_of(texts, 2, "a patient")


@given(TEXTS, TEXTS)
def test_rows_are_told_apart_as_their_texts_are(texts: list[str], others: list[str]) -> None:
    rows = words(texts)
    assert texts_of(rows).to_pylist() == [text_of(row) for row in rows] == texts
    assert distinct(rows) == len(set(texts))
    assert first_of_each(rows).tolist() == [text not in texts[:at] for at, text in enumerate(texts)]
    wanted = set(others) - {""}
    asked = [*wanted, "", "x", "A" * 32, "a" * 31, "a" * 64]
    assert Wanted(asked, 2).among(rows).tolist() == [text in wanted for text in texts]


@given(TEXTS, st.data())
def test_the_last_of_equal_rows_is_found(texts: list[str], data: st.DataObject) -> None:
    rows, places = words(texts), [at for at in range(len(texts)) if data.draw(st.booleans())]
    finder = Finder(lambda some: rows[some], np.array(places, np.int64))
    for asked in [*texts, f"{3:032x}", "x", "A" * 32, "a" * 16]:
        assert finder.last(asked) == max((at for at in places if asked and texts[at] == asked), default=-1)


@pytest.mark.parametrize("text", ["x" * 32, "A" * 32, "a" * 31, " " * 32])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(DatasetError, match="a patient is not 32 hexadecimal digits"):
        words([text])
