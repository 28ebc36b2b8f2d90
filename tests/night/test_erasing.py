"""What is erased is nowhere any more, cannot come back, and leaves the books and the chain whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from erasable import WHY, Erasable

from xray_pipeline.command import answers
from xray_pipeline.night import amend

pytestmark = pytest.mark.slow
Lay = Callable[[str], Erasable]


def test_what_is_erased_is_in_no_file_of_store_cache_and_mlflow(erasable: Lay) -> None:
    site = erasable("site")
    kinds = {place.split(" in ")[0].split(" of ")[0] for place in site.told()}
    assert kinds >= {"the bytes", "the name", "the patient", "the thumbnail", "the phash", "the statistics", "the card"}
    told = amend.amend(site.run, site.asked, WHY)
    assert set(told["removed"]) >= {"MLflow", "cache", "candidates", "dataset", "predictions", "reports", "suspects"}
    assert site.told() == {hit for hit in site.told() if "the patient of" in hit and "dataset/commits/" in hit}
    found = answers.verify(site.settings)
    assert [one["text"] for one in found if not one["holds"]] == []
