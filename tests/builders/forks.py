"""Processes that start at once: forked from one that has imported what each of them needs."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from typing import Any

FORKS = multiprocessing.get_context("forkserver")
STEPS = ("promotion", "model_steps", "decision_steps", "reproduce", "amend")
HEAVY = [f"xray_pipeline.night.{steps}" for steps in STEPS]
FORKS.set_forkserver_preload(["great_expectations", "xray_pipeline.command.main", *HEAVY])


def forked(work: Callable[..., object], *arguments: Any, environment: Mapping[str, str] | None = None) -> BaseProcess:
    """Return a process that does this work, in an environment that is ours now unless another is given."""
    given = dict(os.environ if environment is None else environment)
    return FORKS.Process(target=_work, args=(given, work, arguments))


def _work(environment: Mapping[str, str], work: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    work(*arguments)
