"""All that a decision rests on."""

from __future__ import annotations

from dataclasses import dataclass

from xray_pipeline.base.records import Plain
from xray_pipeline.evaluation.metrics import Comparison, Evaluation
from xray_pipeline.evaluation.shadow import Shadow
from xray_pipeline.evaluation.slices import Slice
from xray_pipeline.evaluation.watching import Promise, Standing

FORMAT = 1


def evidence_key(candidate: str, digest: str) -> str:
    """Return the store's key of evidence on a candidate; `digest` is the SHA-256 of its bytes."""
    return f"evidence/{candidate}/{digest}.json"


@dataclass(frozen=True)
class Evidence(Plain):
    """All that a decision rests on.

    `champion_known`: the ledger names a champion, whether or not it could be measured. `snapshot` is the digest that
    both evaluations must name. `promotion` is the setting: "auto" or "approve". `earlier_uses` counts earlier
    comparisons on these held-out patients (see `effective_uses`). `slices` and `stress` compare both models on parts of
    the held-out set and under perturbations. `alarms` names the drift alarms of the data behind the candidate that
    stand; `acknowledged` says of what is new against the champion's data who settled which alarms and why; `changed`
    names what it has otherwise than the champion (of `rules.PARTS`); `withdrawn` counts the radiographs that the
    candidate learned from and that are withdrawn by now; `watch` is the alarm about the champion, if one stands;
    `promise` is what the candidate is watched against once it is promoted; `shadow` is its turn in shadow, None without
    one. None means not measured, which fails each clause that asks for it.
    """

    candidate: Evaluation | None
    champion: Evaluation | None
    champion_known: bool
    comparison: Comparison | None
    snapshot: str
    promotion: str
    earlier_uses: float | None = None
    slices: tuple[Slice, ...] | None = None
    stress: tuple[Slice, ...] | None = None
    alarms: tuple[str, ...] | None = None
    changed: tuple[str, ...] | None = None
    acknowledged: tuple[str, ...] = ()
    withdrawn: int | None = None
    watch: Standing | None = None
    promise: Promise | None = None
    shadow: Shadow | None = None
