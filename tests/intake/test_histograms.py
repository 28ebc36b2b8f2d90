"""A delivery beside the dataset, drawn: what the bars say, and that nothing else is on the page."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from references import reference
from samples import jpeg, lay_files

from xray_pipeline.base.settings import Settings
from xray_pipeline.dataset.history import EMPTY
from xray_pipeline.dataset.table import of_rows
from xray_pipeline.images import appearance
from xray_pipeline.intake import deliveries
from xray_pipeline.intake.check import check
from xray_pipeline.intake.histograms import Histogram, histograms

NOTHING = of_rows([])


def rows(count: int, seed: int = 0, age: float = float("nan"), label: str = "NORMAL") -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (count, 80, 96), dtype=np.uint8)
    return pd.DataFrame(
        {
            "digest": [f"{seed}{n:063x}" for n in range(count)],
            "patient": [f"{seed}{n:031x}" for n in range(count)],
            "label": label,
            "statistics": [appearance.to_text(appearance.measure(one)) for one in pictures],
            "age_years": age,
        }
    )


def by_title(found: list[Histogram]) -> dict[str, Histogram]:
    return {one.title.split()[0]: one for one in found}


def test_the_shares_of_each_side_add_up_to_all_of_it() -> None:
    found = histograms(rows(20, age=30.0), reference(pd.concat([rows(30, 1), rows(10, 2, 70.0, "PNEUMONIA")])))
    assert list(by_title(found)) == ["Brightness", "Contrast", "Shorter", "Classes", "Ages"]
    for histogram in found:
        assert sum(bar.here for bar in histogram.bars) == pytest.approx(1)
        assert sum(bar.dataset for bar in histogram.bars) == pytest.approx(1)
        assert 0 < histogram.top <= 1


def test_groups_are_named_and_summed_up() -> None:
    found = by_title(
        histograms(rows(20, age=30.0), reference(pd.concat([rows(30, 1), rows(10, 2, 70.0, "PNEUMONIA")])))
    )
    assert found["Classes"].said == "NORMAL 100% (dataset 75%), PNEUMONIA 0% (dataset 25%)"
    assert [bar.label for bar in found["Ages"].bars if bar.dataset] == ["65 and over", "unknown"]
    assert found["Shorter"].said == "median 80, in the dataset 80"


def test_ages_are_left_out_where_none_is_known() -> None:
    assert "Ages" not in by_title(histograms(rows(5), reference(rows(5, 1, 40.0))))


def test_the_first_delivery_stands_alone() -> None:
    found = histograms(rows(5), reference(NOTHING))
    assert all(bar.dataset == 0 for histogram in found for bar in histogram.bars)
    assert "dataset" not in by_title(found)["Brightness"].said


def test_nothing_is_drawn_of_a_delivery_without_radiographs() -> None:
    assert histograms(NOTHING, reference(rows(5))) == []


def test_the_page_draws_them_and_shows_what_was_quarantined_where_it_decodes(settings: Settings) -> None:
    """The thumbnail of a copy is on the page, of a broken file none; neither its name nor an address is."""
    files = {f"NORMAL/patient{n}_1.jpg": jpeg(seed=n) for n in range(5)}
    files |= {"NORMAL/secret_name.jpg": jpeg(seed=0), "NORMAL/broken.jpg": jpeg(seed=9)[:-200]}
    folder = lay_files(settings.home / "day", files)
    told = settings.model_copy(update={"settle_seconds": 0})
    page = check(deliveries.at(str(folder), told, EMPTY, 4e9), told, EMPTY, b"k" * 32).page
    assert page.count("<svg") == 4
    assert "which is empty yet" in page
    pictures = re.findall(r'<img src="([^"]*)"', page)
    assert len(pictures) == 1
    assert pictures[0].startswith("data:image/png;base64,")
    assert "nothing: the image is there already" in page
    assert "secret_name" not in page
