"""What there is to review at this moment, as the page *Review* and its pictures ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Literal

from fastapi import Path

from xray_pipeline.airflow_ui import memory
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import open_store

if TYPE_CHECKING:
    from xray_pipeline.evaluation.suspected import Suspect
    from xray_pipeline.night.review import Explained, Material, Overview, Reading, Unlabelled

Tab = Literal["suspects", "disagreements", "to-label", "quarantine", "amendments"]
Digest = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]
Key = Annotated[str, Path(max_length=250)]
Row = Annotated[int, Path(ge=0, le=99_999_999)]


class Shelf:
    """What there is to review at this moment."""

    def __init__(self, settings: Settings) -> None:
        self.store, self.dataset = open_store(settings.store, settings), memory.dataset(settings)
        self.overview: Overview = memory.overview(settings)

    @cached_property
    def material(self) -> Material | None:
        """What the newest night drew; None before the first. A picture without a map needs none of it."""
        from xray_pipeline.night import review

        return review.material(self.store)

    @property
    def kept_out(self) -> dict[str, dict[str, int]]:
        """Of each delivery, by key, how many files are out for which reason; those that wait come first."""
        from xray_pipeline.intake.layout import LITTER
        from xray_pipeline.night import review

        committed = dict(reversed(list(self.overview.quarantined.items())))
        counts = {**review.waiting(self.store, self.overview.quarantined), **committed}
        without = {key: {code: n for code, n in of.items() if code != LITTER} for key, of in counts.items()}
        return {key: of for key, of in without.items() if of}

    def suspects(self) -> list[Suspect]:
        """The suspects about which nobody has decided, worst first, mislabels before outliers."""
        from xray_pipeline.night import review

        if self.material is None:
            return []
        return review.open_suspects(self.store, self.material.snapshot, self.overview.labels()) or []

    def suspicions(self, digest: str) -> list[Suspect]:
        """Why a radiograph is on the list of suspects, settled or not."""
        from xray_pipeline.night import review

        found = review.listed(self.store, self.material.snapshot) if self.material else ()
        return [one for one in found or () if one.digest == digest]

    def order(self, tab: Tab) -> list[str]:
        """The digests of what a tab lists."""
        if tab == "suspects":
            return list(dict.fromkeys(one.digest for one in self.suspects()))
        if tab == "disagreements" and self.material:
            return [digest for digest in self.material.disagreements if digest in self.overview.radiographs.index]
        return []

    def explained(self, digest: str) -> Explained | None:
        """What the newest night drew of a radiograph."""
        return self.material.explained.get(digest) if self.material else None

    def to_label(self) -> dict[tuple[str, int], Unlabelled]:
        """The unlabelled files that are still out, by delivery and row, those first that would teach most."""
        from xray_pipeline.night import review

        ranked = review.still_to_label(self.store, self.dataset.amended())
        files = [one for one in ranked if one.digest not in self.overview.radiographs.index]
        return {(one.delivery, one.row): one for one in files}

    def readings(self, digests: Sequence[str]) -> dict[str, Reading]:
        """What people said of radiographs, by digest, of those of which somebody said something."""
        from xray_pipeline.night import review

        return review.readings(self.store, digests)
