"""What one run of the night works with, and what passes between its tasks."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from xray_pipeline.base import records
from xray_pipeline.base.records import Plain
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import Store, open_store
from xray_pipeline.base.text import shortened
from xray_pipeline.gate import evidence
from xray_pipeline.gate.evidence import Evidence
from xray_pipeline.registry.ledger import Ledger
from xray_pipeline.registry.mlflow_registry import Registry
from xray_pipeline.training.overrides import parse_text
from xray_pipeline.training.recipe import Recipe, load_recipe

log = logging.getLogger(__name__)

LINE = 120  # columns that a log shows without folding a line


@dataclass(frozen=True)
class Run:
    """What one run of the night works with: the settings, what overrides the recipe, who asked for it, its name where
    it was started (the Airflow run; "" from the command line) and the address of the pages on it there."""

    settings: Settings
    overrides: Mapping[str, object] = field(default_factory=dict)
    who: str = "schedule"
    name: str = ""
    pages: str = ""

    @classmethod
    def of(cls, params: Mapping[str, Any], who: str = "schedule", name: str = "", pages: str = "") -> Run:
        """Combine the configured settings with a form's values; None and "" mean the configured value.

        The policy is no value of a form: who may start a night may not choose what it is judged by.
        """
        given = {name: value for name, value in params.items() if value not in (None, "")}
        given |= parse_text(given.pop("overrides", ""))
        settings = {name: given.pop(name) for name in ("incoming", "recipe", "promotion") if name in given}
        return cls(Settings(**settings), given, who, name, pages)

    def recipe(self) -> Recipe:
        """Return the recipe with its overrides. Raises ConfigError."""
        return load_recipe(self.settings.recipe, self.overrides)

    def registry(self) -> Registry:
        """Open the registry and the ledger it follows. Raises ConfigError."""
        return Registry(self.settings)

    @cached_property
    def compared(self) -> Ledger:
        """The ledger that `compare` looks at: what it read once it does not read again."""
        return Ledger(self.store())

    def evidence(self, key: str) -> Evidence:
        """Read evidence kept by `evaluate`. Raises EvaluationError, and as `kept_evidence`."""
        return replace(Evidence.from_dict(kept_evidence(self.store(), key)), promotion=self.settings.promotion)

    def store(self) -> Store:
        """Open the store. Raises ConfigError."""
        return open_store(self.settings.store, self.settings)


@dataclass(frozen=True)
class Committed(Plain):
    """The dataset after the night's deliveries; `snapshot` is "" while it is empty.

    `changed` are those of the deliveries that changed between check and commit and so were left out.
    """

    snapshot: str
    images: int
    patients: int
    held_out_images: int
    held_out_patients: int
    deliveries: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Looked(Plain):
    """What the look ahead found: the champion that was asked (None without one), about how many radiographs that are
    new to it, the alarm about it ("" while none stands), and whether people are still to be told of that."""

    champion: int | None
    radiographs: int
    alarm: str
    raised: bool


@dataclass(frozen=True)
class Trained(Plain):
    """The candidate; `concluded` says what was decided of it when nothing is left to decide, "" when something is."""

    candidate: str
    concluded: str


@dataclass(frozen=True)
class _OnEvidence(Plain):
    """A candidate, the key of the evidence on it, and the champion that this was gathered against.

    `models` is what the numbers of versions mean (`State.models`).
    """

    candidate: str
    evidence: str
    champion: int | None
    models: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Evaluated(_OnEvidence):
    """That the evidence lies in the store; `figures` says in short what was found."""

    figures: str


@dataclass(frozen=True)
class Decided(_OnEvidence):
    """The policy's verdict on the candidate: "registered" or "refused", with its reasons."""

    verdict: str
    automatic: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Registered(_OnEvidence):
    """The candidate's version; `waits` says why it is not promoted at once."""

    version: int
    waits: str


@dataclass(frozen=True)
class Promoted(Plain):
    """The new champion's version, the ledger entry that made it so, and the digests that the entry names."""

    version: int
    entry: int
    candidate: str = ""
    artifact: str = ""


def kept_evidence(store: Store, key: str) -> dict[str, Any]:
    """Read the evidence that `evaluate` kept, named by its digest, as JSON-able values. Raises DatasetError for
    another content or format, ObjectNotFound."""
    data = records.exactly(store, key, key.rpartition("/")[2].removesuffix(".json"), "its name")
    content = records.parsed(data, dict[str, Any], evidence.FORMAT, key)
    del content["format"]
    return content


def end(text: str) -> None:
    """Log the sentence that a step ends with, for whoever reads the last line of a task's log and no more."""
    log.info("%s", shortened(text, LINE))
