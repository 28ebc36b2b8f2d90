"""Notifications: Airflow notifiers for what the settings name, and none where they name nothing.

A notifier's text is a Jinja template over the task's context, so a message is made where the task ran, from what it
returned. A message that can't be delivered is logged by Airflow and never fails a task: the ledger is the record.

Airflow's Apprise provider was tried in place of the webhooks: it brings five packages, its JSON has no event and no
run, and it drops what Apprise answers when nobody takes a message.
"""

from __future__ import annotations

import asyncio
import json
import logging
import urllib.request
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseNotifier
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference

from xray_pipeline.airflow_ui.links import DELIVERIES, FAILED_ELSEWHERE, HISTORY, IN_WORDS, REPORT_OF_RUN, delivery_page
from xray_pipeline.base.settings import Settings

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)

SECONDS = 10.0
PAGE = "{{ ti.log_url }}"
FIGURES = "{{ (ti.xcom_pull(task_ids=['evaluate', 'prepare']) | select | first | default({})).get('figures', '') }}"
"""The accuracy of both models and their difference, from whichever task of the run has measured them."""
_OF_DECIDE = "ti.xcom_pull(task_ids='decide')"
REFUSED = (
    f"The candidate is refused: {FIGURES}. {{{{ {_OF_DECIDE}['reasons'] | join(' ') if {_OF_DECIDE} else '' }}}} "
    f"{REPORT_OF_RUN}"
)
REJECTED = f"{{{{ exception }}}} {DELIVERIES}#{{{{ task.op_kwargs['delivery'] | urlencode }}}}"
ALARM = f"{{{{ ti.xcom_pull(task_ids='look_ahead')['alarm'] }}}} {HISTORY}"
DRIFT = "{{ drift }} {{ page }}"
FAILED = "{{ ti.dag_id }}: task {{ ti.task_id }} failed: {{ exception }} " + PAGE


class WebhookNotifier(BaseNotifier):
    """POSTs {"event", "text", "dag", "run"} as JSON; for Slack only "text", which is what its incoming webhooks take.

    `setting` names the setting that holds the address: addresses are secrets and stay out of the serialized DAG.
    """

    template_fields: Sequence[str] = ("text",)

    def __init__(self, event: str, text: str, setting: str = "notify_webhook", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.event, self.text, self.setting = event, text, setting

    def notify(self, context: Context) -> None:
        """Send the message. Raises OSError when nobody takes it."""
        url = getattr(Settings(), self.setting).get_secret_value()
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"XRAY_{self.setting.upper()} is not an http(s) address")
        content = {"text": self.text}
        if self.setting != "notify_slack":
            dag, run = _run_of(context)
            content |= {"event": self.event, "dag": dag, "run": run}
        request = urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=SECONDS):
            log.info("told the %s of: %s", self.setting.removeprefix("notify_"), self.event)

    async def async_notify(self, context: Context) -> None:
        """Send the message without holding up the triggerer."""
        await asyncio.to_thread(self.notify, context)


def _run_of(context: Context) -> tuple[str, str]:
    """Return the ids of DAG and run; a deadline's context holds the run as the REST API gives it."""
    run: Any = context.get("dag_run")
    if isinstance(run, dict):
        return str(run.get("dag_id", "")), str(run.get("dag_run_id", ""))
    return (run.dag_id, run.run_id) if run else ("", "")


def notifiers(event: str, text: str) -> list[BaseNotifier]:
    """Return a notifier for each way that the settings name; `text` is a Jinja template over the task's context."""
    return [notifier(**arguments) for notifier, arguments in _wanted(event, text)]


def digest() -> list[BaseNotifier]:
    """Return notifiers of what each night did, in one line; none unless XRAY_NOTIFY_DIGEST asks for it."""
    text = f"{{{{ ti.xcom_pull(task_ids='conclude', key='{IN_WORDS}') or 'the night was not recorded' }}}} {PAGE}"
    return notifiers("night", text) if Settings().notify_digest else []


def failed_by_itself(context: Context) -> None:
    """Tell that `conclude` failed, unless that is because another task did, which told so itself."""
    if not str(context.get("exception", "")).startswith(FAILED_ELSEWHERE):
        _tell("failed", FAILED, context)


def alarm_raised(context: Context) -> None:
    """Tell of an alarm about the champion, once: it may stand for many nights. Where a night could not, the
    next one does."""
    from xray_pipeline.night import watching
    from xray_pipeline.night.run import Run

    looked = context["ti"].xcom_pull(task_ids=context["ti"].task_id) or {}
    if looked.get("raised"):
        _tell("alarm", ALARM, context)
        watching.told(Run(Settings()))


def drift_found(context: Context) -> None:
    """Tell of each drift alarm that stands of a delivery that this night took; a rejected one tells so itself."""
    from xray_pipeline.base.storage import open_store
    from xray_pipeline.dataset.store import Dataset
    from xray_pipeline.intake import alarms
    from xray_pipeline.night import judging

    keys = (context["ti"].xcom_pull(task_ids="commit_deliveries") or {}).get("deliveries")
    if not keys:
        return
    settings = Settings()
    store, taken = open_store(settings.store, settings), set(Dataset(settings).manifests())
    for key in filter(taken.__contains__, keys):
        for line in alarms.lines(store, [key], judging.alarms_hold_up(settings)):
            found: Any = {**context, "drift": line, "page": delivery_page(key)}
            _tell("drift", DRIFT, found)


def check_failed(context: Context) -> None:
    """Tell that a delivery is rejected and why, which is how its check ends then, or that its check failed."""
    rejected = isinstance(context.get("exception"), SystemExit)
    _tell(*(("rejected", REJECTED) if rejected else ("failed", FAILED)), context)


def _tell(event: str, text: str, context: Context) -> None:
    for notifier in notifiers(event, text):
        notifier(context)


def _wanted(event: str, text: str) -> list[tuple[type[BaseNotifier], dict[str, Any]]]:
    settings = Settings()
    ways: list[tuple[type[BaseNotifier], dict[str, Any]]] = [
        (WebhookNotifier, {"event": event, "text": text, "setting": setting})
        for setting in ("notify_webhook", "notify_slack")
        if getattr(settings, setting).get_secret_value()
    ]
    if settings.notify_email:
        from airflow.providers.smtp.notifications.smtp import SmtpNotifier

        subject, body = f"{settings.model_name}: {event}", f"{{% autoescape true %}}<p>{text}</p>{{% endautoescape %}}"
        ways.append((SmtpNotifier, {"to": list(settings.notify_email), "subject": subject, "html_content": body}))
    return ways


def deadlines(text: str) -> list[DeadlineAlert]:
    """Return alerts for a run that has not ended `night_hours` after it was queued; none where nobody is notified.

    The triggerer sends them, so a night that hangs, or waits for a dead worker, is noticed; a dead scheduler is not.
    """
    return [
        DeadlineAlert(
            reference=DeadlineReference.DAGRUN_QUEUED_AT,
            interval=timedelta(hours=Settings().night_hours),
            callback=AsyncCallback(notifier, kwargs=arguments),
            name="missed night",
        )
        for notifier, arguments in _wanted("missed night", text)
    ]
