"""The night as a whole: all steps in one call."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from xray_pipeline.base.errors import XrayError
from xray_pipeline.base.progress import Progress
from xray_pipeline.night import (
    decision_steps,
    health,
    intake_steps,
    look_ahead,
    model_steps,
    newest,
    nights,
    promotion,
    versions,
)
from xray_pipeline.night.run import Run, Trained
from xray_pipeline.night.summary import Course, Steps, conclude

log = logging.getLogger(__name__)


def whole(run: Run, progress: Progress | None = None) -> dict[str, Any]:
    """Run the whole night and return what `conclude` says. Raises what its steps raise, after it recorded the night."""
    course, returned = Course(nights.moment()), dict[str, Any]()
    try:
        _run_steps(run, progress, course, returned)
    except XrayError:
        try:
            conclude(run, Steps(**returned), course)
        except XrayError as error:  # the night's own error says more
            log.warning("the night is not recorded: %s", error)
        raise
    said = conclude(run, Steps(**returned), course)
    if not newest.are_newest(run):
        versions.refresh(run)
    promotion.promote_put_forward(run)
    return said


def _run_steps(run: Run, progress: Progress | None, course: Course, returned: dict[str, Any]) -> None:
    """Run one step after the other; put what each returned into `returned`, by field of `Steps`."""
    with _timed(course, "find_deliveries"):
        health.before_night(run)
        returned["deliveries"] = intake_steps.find_deliveries(run)
    with _timed(course, "check_delivery"):
        intake_steps.check_deliveries(run, returned["deliveries"], progress)
    with _timed(course, "commit_deliveries"):
        committed = intake_steps.commit_deliveries(run, returned["deliveries"], progress)
    returned["committed"] = committed.to_dict()
    if not committed.snapshot:
        return
    try:
        with _timed(course, "look_ahead"):
            returned["looked"] = look_ahead.look_ahead(run, committed.snapshot, progress).to_dict()
    except XrayError as error:  # the night goes on without
        course.unwatched = course.failed.pop("look_ahead")
        log.warning("the champion was not watched: %s", error)
    with _timed(course, "train"):
        trained = model_steps.train(run, committed.snapshot, progress)
    returned["trained"] = trained.to_dict()
    if not trained.concluded:
        _judge_candidate(run, trained, progress, course, returned)


def _judge_candidate(
    run: Run, trained: Trained, progress: Progress | None, course: Course, returned: dict[str, Any]
) -> None:
    with _timed(course, "evaluate"):
        evaluated = model_steps.evaluate(run, trained, progress)
    returned["evaluated"] = evaluated.to_dict()
    with _timed(course, "decide"):
        decided = decision_steps.decide(run, evaluated)
    returned["decided"] = decided.to_dict()
    if decided.verdict != "registered":
        return
    with _timed(course, "register"):
        registered = decision_steps.register(run, decided)
    returned["registered"] = registered.to_dict()
    if not registered.waits:
        with _timed(course, "promote"):
            returned["promoted"] = decision_steps.promote(run, registered).to_dict()


@contextmanager
def _timed(course: Course, task: str) -> Iterator[None]:
    began = time.monotonic()
    try:
        yield
    except XrayError as error:
        course.failed[task] = str(error)
        raise
    finally:
        course.minutes[task] = round((time.monotonic() - began) / 60, 3)
