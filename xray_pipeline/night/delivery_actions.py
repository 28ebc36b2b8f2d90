"""What a person does about one delivery, from a form: settle its drift alarms, or have it judged anew."""

from __future__ import annotations

import logging
from typing import Any

from xray_pipeline.base.errors import ConfigError, DeliveryError
from xray_pipeline.base.text import ACTIONS, SHORTEST_REASON
from xray_pipeline.dataset.revisions import part_of
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.intake import alarms
from xray_pipeline.night import intake_steps
from xray_pipeline.night.identity import compare
from xray_pipeline.night.run import Run

log = logging.getLogger(__name__)


def act(run: Run, action: str, key: str, why: str) -> dict[str, Any]:
    """Do what a person asks for: `acknowledge` as `alarms.acknowledge`, `rejudge` as `judge_again`.

    Raises ConfigError for another action or no reason, and what they raise.
    """
    if action not in ACTIONS or len(why.strip()) < SHORTEST_REASON:
        raise ConfigError(
            f"{action!r} of delivery {key}, reason {why!r}: give one of {', '.join(ACTIONS)} and a reason"
        )
    log.info("%s of delivery %s, by %s: %s", action, key, run.who, why)
    if action == "rejudge":
        return judge_again(run, key)
    compare(run)
    return alarms.acknowledge(run.store(), key, run.who, why)


def judge_again(run: Run, key: str) -> dict[str, Any]:
    """Judge what is quarantined of a committed delivery anew, or one that waits as a whole, and commit it if it is fit.

    Returns delivery, fit, accepted (files, of this judgement) and why. Raises DeliveryError and DatasetError.
    """
    if key in Dataset(run.settings).manifests():
        name, _ = part_of(key)
        outcome = intake_steps.rejudge(run, name)
        return {"delivery": name, **{field: outcome[field] for field in ("fit", "accepted", "why")}}
    [verdict] = intake_steps.check_deliveries(run, [key], named=True)
    if verdict.fit and key in intake_steps.commit_deliveries(run, [key]).changed:
        raise DeliveryError(f"delivery {key} changed between its check and its commit; judge it anew")
    return {"delivery": key, "fit": verdict.fit, "accepted": verdict.accepted, "why": verdict.why}
