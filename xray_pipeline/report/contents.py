"""What a page and a card are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from xray_pipeline.evaluation.cases import Floats, named
from xray_pipeline.evaluation.metrics import Evaluation
from xray_pipeline.evaluation.suspected import Suspect
from xray_pipeline.evaluation.watching import Delivery
from xray_pipeline.gate.evidence import Evidence
from xray_pipeline.gate.policy import Decision
from xray_pipeline.report.examples import Example, Images
from xray_pipeline.report.wording import candidate_of

IN_PRODUCTION = "the model in production"


@dataclass(frozen=True)
class Subject:
    """What a report is about: the candidate's digest, the version it became (None: it is not registered) and the
    champion's (None: there is none); the Airflow run that decided ("": the command line) and when (UTC); the address
    of the pages on its deliveries ("": there are none). `rival` names the champion in sentences: a comparison that
    somebody asked for may have another version in its place."""

    model_name: str
    candidate: str
    version: int | None = None
    champion: int | None = None
    night: str = ""
    at: str = ""
    pages: str = ""
    rival: str = IN_PRODUCTION


@dataclass(frozen=True)
class Arrival:
    """One delivery: radiographs accepted, files quarantined by reason code, and what else was noticed.

    `tonight`: this night's; otherwise an earlier one's that the champion has not learnt from.
    """

    name: str
    fit: bool
    accepted: int
    quarantined: Mapping[str, int]
    notes: tuple[str, ...] = ()
    tonight: bool = True


SUSPECTS = 12  # of each kind with a picture


@dataclass(frozen=True, eq=False)
class Suspects:
    """Probable mislabels and outliers among `looked_at` radiographs: counts by kind, and the worst of each kind with
    their pixels uint8 [S, S]."""

    looked_at: int
    counts: Mapping[str, int]
    shown: tuple[tuple[Suspect, Images], ...]


RECORDED = 90  # deliveries of the champion's record that are drawn


@dataclass(frozen=True)
class Record:
    """What the champion said of deliveries before any model learned from them, as it read then: in words, whether an
    alarm stands, the accuracy of when it was held out, and the newest deliveries of `count`, oldest first."""

    words: tuple[str, ...]
    alarm: bool
    promised: float | None
    deliveries: tuple[Delivery, ...]
    count: int


@dataclass(frozen=True, eq=False)
class Report:
    """Everything a page and a card are made from.

    `labels` [N], `candidate` [N, C] and `champion` [N, C] (None without one) are the held-out rows in one order;
    `disagreements` and `errors` come from `examples`; `dataset` counts radiographs by side of the split; `recipe` and
    `lineage` are shown as they are: names to values, no patient data. `record` is the champion's, None where there is
    none, or it is not the one in production.
    """

    subject: Subject
    decision: Decision
    evidence: Evidence
    labels: Sequence[str]
    candidate: Floats
    champion: Floats | None
    disagreements: tuple[Example, ...] = ()
    errors: tuple[Example, ...] = ()
    arrivals: tuple[Arrival, ...] = ()
    dataset: Mapping[str, int] = field(default_factory=dict)
    recipe: Mapping[str, object] = field(default_factory=dict)
    lineage: Mapping[str, str] = field(default_factory=dict)
    suspects: Suspects | None = None
    record: Record | None = None

    def models(self) -> list[tuple[str, Floats, Evaluation]]:
        """Candidate and, if there is one, champion: name, probabilities [N, C], evaluation."""
        models = [("candidate", self.candidate, candidate_of(self.evidence))]
        if self.champion is not None and self.evidence.champion is not None:
            models.append(("champion", self.champion, self.evidence.champion))
        return models

    def differing(self) -> int:
        """How many radiographs the two models name differently; 0 without a champion."""
        said = [named(table, evaluation.threshold) for _, table, evaluation in self.models()]
        return int(np.count_nonzero(said[0] != said[-1]))
