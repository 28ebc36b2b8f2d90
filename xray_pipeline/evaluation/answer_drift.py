"""Are a model's answers on a delivery like those on its held-out radiographs? No label is asked, so it can't come late.

This is the intake's test (`intake/drift`: the energy distance, its null measured by draws of whole patients, exact) at
the level of one of its channels, with the probabilities that the model gave in the place of pixels: another scanner,
export or kind of patient shows where it changes what the model says. So does another mix of classes, by nature: a model
that is as good as ever says "ill" more often where more are ill. It is a question for a person, and no verdict on the
model; that takes labels (`watching`). Where the held-out radiographs were collected in another way than deliveries are,
as a split that is given may be, the two differ from the first day.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from xray_pipeline.base.code import code_digest
from xray_pipeline.base.errors import EvaluationError
from xray_pipeline.base.records import canonical, digest_of
from xray_pipeline.base.settings import IntakeRules
from xray_pipeline.base.text import several
from xray_pipeline.evaluation.cases import check_probabilities
from xray_pipeline.intake import drift
from xray_pipeline.intake.drift import Channel


@dataclass(frozen=True)
class AnswerDrift:
    """How unlike the answers on a delivery are: the p value (None: it was not measured), the level up to which it is an
    alarm, whether it is one, and in words what differs or why it was not measured. `compared` is the digest of both
    sides, "" where one is missing: what was measured of the same is the same."""

    p: float | None
    level: float
    alarm: bool
    text: str
    compared: str = ""


@dataclass(frozen=True, eq=False)
class HeldOut:
    """A model's answers on held-out radiographs: a row each of digest, patient and p_ of each of the classes."""

    rows: pd.DataFrame
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        _check(self.rows, self.columns)

    @property
    def columns(self) -> list[str]:
        """Names of the columns of probabilities."""
        return [f"p_{name}" for name in self.classes]

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of what was held out, and of the code that compares."""
        code = code_digest("evaluation/answer_drift.py", "intake/drift.py")
        return digest_of(canonical([_digest(self.rows, self.columns), code]))


def compare(new: pd.DataFrame, held_out: HeldOut, rules: IntakeRules, before: AnswerDrift | None = None) -> AnswerDrift:
    """Compare the answers on a delivery (rows as of `HeldOut`) with the held-out ones; what was measured `before` is
    returned where nothing has changed.

    Raises EvaluationError for anything but probabilities of these classes, as `HeldOut` does.
    """
    _check(new, held_out.columns)
    terms = [drift.level_of(rules), rules.drift_min_patients, rules.drift_min_dataset]
    compared = digest_of(canonical([_digest(new, held_out.columns), held_out.digest, *terms]))
    if before and before.compared == compared:
        return before
    known, p = held_out.rows, None
    if not (text := drift.not_enough(new["patient"].nunique(), known["patient"].nunique(), rules, "the held-out side")):
        text = _means(new, held_out)
        new, known, draws = drift.drawn(new, known, rules)
        p = draws.vectors(*(rows[held_out.columns].to_numpy(np.float32) for rows in (new, known)))
    channel = Channel("answers", p, drift.level_of(rules), text)
    return AnswerDrift(channel.p, channel.level, channel.alarm, channel.text, compared)


def unmeasured(why: str, rules: IntakeRules) -> AnswerDrift:
    """Return that answers were not compared, with the reason."""
    return AnswerDrift(None, drift.level_of(rules), False, f"not measured: {why}")


def in_words(found: Sequence[tuple[str, AnswerDrift]]) -> str:
    """Say what deliveries (name and outcome, in their order) come to; "" of none."""
    measured = [(name, one) for name, one in found if one.p is not None]
    unlike = [(name, one) for name, one in measured if one.alarm]
    if not measured:
        return f"Answers on no delivery were compared with the held-out ones: {found[-1][1].text}." if found else ""
    compared = several(len(measured), "delivery", "deliveries")
    if not unlike:
        return f"Without labels: of {compared} compared, none has answers unlike the held-out ones."
    name, last = unlike[-1]
    return (
        f"Without labels: of {compared} compared, {len(unlike)} had answers unlike the held-out ones, {name} last "
        f"(p = {last.p:.4f}; {last.text}). Another scanner or kind of patient does that, so does another mix of "
        f"classes and, once in {1 / last.level:.0f} deliveries, chance."
    )


def _means(new: pd.DataFrame, held_out: HeldOut) -> str:
    """Say how probable the model finds each class on both sides; of two classes the second, which says it all."""
    shown = list(zip(held_out.classes, held_out.columns, strict=True))[1 if len(held_out.classes) == 2 else 0 :]
    return "mean probability of " + ", of ".join(
        f"{name} {new[column].mean():.2f} here, {held_out.rows[column].mean():.2f} when held out"
        for name, column in shown
    )


def _check(rows: pd.DataFrame, columns: list[str]) -> None:
    if missing := {"digest", "patient", *columns} - set(rows.columns):
        raise EvaluationError(f"answers can't be compared without {', '.join(sorted(missing))}")
    check_probabilities(rows[columns].to_numpy(np.float64), len(rows), len(columns))


def _digest(rows: pd.DataFrame, columns: list[str]) -> str:
    return digest_of(rows[["digest", "patient", *columns]].sort_values("digest").to_csv(index=False).encode())
