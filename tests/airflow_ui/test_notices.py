from __future__ import annotations

import asyncio
import email
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from phantoms import deliver
from smtp_server import run_smtp
from webhook import run_webhook

from xray_pipeline.airflow_ui import notices
from xray_pipeline.base.settings import Settings
from xray_pipeline.intake import alarms
from xray_pipeline.intake.drift import Channel, Drift
from xray_pipeline.night import intake_steps
from xray_pipeline.night.run import Run

CONTEXT: Any = {"dag_run": SimpleNamespace(dag_id="xray_promote", run_id="run 1"), "version": 7}
TEXT = "Version {{ version }} is the champion."


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("XRAY_")]:
        monkeypatch.delenv(name)


def test_nobody_is_notified_unless_settings_say_so() -> None:
    assert notices.notifiers("promoted", TEXT) == []
    assert notices.deadlines(TEXT) == []


def test_a_webhook_gets_event_text_and_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with run_webhook() as webhook:
        monkeypatch.setenv("XRAY_NOTIFY_WEBHOOK", webhook.uri)
        [notifier] = notices.notifiers("promoted", TEXT)
        notifier(CONTEXT)
    sent = {"event": "promoted", "text": "Version 7 is the champion.", "dag": "xray_promote", "run": "run 1"}
    assert webhook.received == [sent]


def test_a_failure_says_why_and_where(monkeypatch: pytest.MonkeyPatch) -> None:
    task = SimpleNamespace(dag_id="xray_retrain", task_id="check_delivery", log_url="https://airflow.example/dags/log")
    context: Any = {**CONTEXT, "ti": task, "exception": ValueError("delivery misspelt is rejected: an unknown class")}
    with run_webhook() as webhook:
        monkeypatch.setenv("XRAY_NOTIFY_WEBHOOK", webhook.uri)
        [notifier] = notices.notifiers("failed", notices.FAILED)
        notifier(context)
    [sent] = webhook.received
    assert sent["text"] == (
        "xray_retrain: task check_delivery failed: delivery misspelt is rejected: an unknown class "
        "https://airflow.example/dags/log"
    )


def test_a_refusal_says_how_accurate_both_are_and_leads_to_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    returned = {
        "evaluate": {"figures": "accuracy 0.815 against version 1's 0.828"},
        "decide": {"reasons": ["Not above."]},
    }

    def pulled(task_ids: Any) -> Any:
        return returned.get(task_ids) if isinstance(task_ids, str) else [returned.get(task) for task in task_ids]

    task = SimpleNamespace(dag_id="xray_retrain", run_id="manual+1", xcom_pull=pulled)
    with run_webhook() as webhook:
        monkeypatch.setenv("XRAY_NOTIFY_WEBHOOK", webhook.uri)
        [notifier] = notices.notifiers("refused", notices.REFUSED)
        notifier({**CONTEXT, "ti": task})
    said, _, page = str(webhook.received[0]["text"]).rpartition(" ")
    assert said == "The candidate is refused: accuracy 0.815 against version 1's 0.828. Not above."
    assert page.endswith("/dags/xray_retrain/runs/manual%2B1/plugin/xray-report")


@pytest.mark.parametrize(
    ("ended", "event", "said"),
    [
        (SystemExit("Delivery a+2 is rejected: too few"), "rejected", "Delivery a+2 is rejected: too few "),
        (OSError("the store did not answer"), "failed", "xray_retrain: task check_delivery failed: the store did not"),
    ],
)
def test_a_rejected_delivery_names_itself_and_where_to_look(
    monkeypatch: pytest.MonkeyPatch, ended: BaseException, event: str, said: str
) -> None:
    task = SimpleNamespace(dag_id="xray_retrain", task_id="check_delivery", log_url="https://airflow.example/dags/log")
    checking = SimpleNamespace(op_kwargs={"delivery": "a+2"})
    context: Any = {**CONTEXT, "ti": task, "task": checking, "exception": ended}
    with run_webhook() as webhook:
        monkeypatch.setenv("XRAY_NOTIFY_WEBHOOK", webhook.uri)
        notices.check_failed(context)
    [sent] = webhook.received
    assert sent["event"] == event
    assert sent["text"].startswith(said)
    assert sent["text"].endswith("/plugin/xray-deliveries#a%2B2" if event == "rejected" else "/dags/log")


def test_a_drift_alarm_of_a_delivery_that_was_taken_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XRAY_HOME", str(tmp_path))
    monkeypatch.setenv("XRAY_SETTLE_SECONDS", "0")
    settings = Settings()
    deliver(settings, "a 2", range(4), side=96)
    intake_steps.check_deliveries(run := Run(settings), ["a 2"])
    intake_steps.commit_deliveries(run, ["a 2"])
    unlike = Drift(20, 200, (Channel("pixels", 0.0001, 0.003, "another scanner"),))
    for key in ("a 2", "rejected", "quiet"):
        alarms.keep(run.store(), key, "f", unlike if key != "quiet" else None)
    committed = {"deliveries": ["rejected", "a 2", "quiet"]}
    with run_webhook() as webhook:
        monkeypatch.setenv("XRAY_NOTIFY_WEBHOOK", webhook.uri)
        for said in (committed, {"deliveries": []}, None):
            notices.drift_found({**CONTEXT, "ti": SimpleNamespace(xcom_pull=lambda task_ids, said=said: said)})
    [sent] = webhook.received
    assert sent["event"] == "drift"
    assert str(sent["text"]).startswith("Drift alarm: a 2 differs from the dataset in pixels; it holds up promotion")
    assert str(sent["text"]).endswith("/plugin/xray-deliveries#a%202")


@pytest.mark.parametrize(
    ("why", "told"),
    [("the night failed in train; see its log", 0), ("not taken, see check_delivery: 2026-03-03", 1)],
)
def test_a_night_that_failed_by_another_task_is_told_once(monkeypatch: pytest.MonkeyPatch, why: str, told: int) -> None:
    task = SimpleNamespace(dag_id="xray_retrain", task_id="conclude", log_url="")
    with run_webhook() as webhook:
        monkeypatch.setenv("XRAY_NOTIFY_WEBHOOK", webhook.uri)
        notices.failed_by_itself({**CONTEXT, "ti": task, "exception": ValueError(why)})
    assert len(webhook.received) == told


def test_a_digest_is_sent_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "quiet: no deliveries; champion 7 since 3 March"
    task = SimpleNamespace(xcom_pull=lambda task_ids, key: words, log_url="https://airflow.example/x")
    with run_webhook() as webhook:
        monkeypatch.setenv("XRAY_NOTIFY_WEBHOOK", webhook.uri)
        assert notices.digest() == []
        monkeypatch.setenv("XRAY_NOTIFY_DIGEST", "true")
        [notifier] = notices.digest()
        notifier({**CONTEXT, "ti": task})
    [sent] = webhook.received
    assert (sent["event"], sent["text"]) == ("night", f"{words} https://airflow.example/x")


def test_slack_gets_what_its_webhooks_take(monkeypatch: pytest.MonkeyPatch) -> None:
    with run_webhook() as webhook:
        monkeypatch.setenv("XRAY_NOTIFY_SLACK", webhook.uri)
        [notifier] = notices.notifiers("promoted", TEXT)
        notifier(CONTEXT)
    assert webhook.received == [{"text": "Version 7 is the champion."}]


def test_an_e_mail_is_sent_through_airflows_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    with run_smtp() as server:
        extra = {"disable_ssl": True, "disable_tls": True, "from_email": "xray@hospital.example"}
        connection = {"conn_type": "smtp", "host": "127.0.0.1", "port": server.port, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_SMTP_DEFAULT", json.dumps(connection))
        monkeypatch.setenv("XRAY_NOTIFY_EMAIL", '["ops@hospital.example"]')
        [notifier] = notices.notifiers("promoted", TEXT)
        notifier(CONTEXT)
    [message] = map(email.message_from_string, server.messages)
    assert (message["To"], message["Subject"]) == ("ops@hospital.example", "chest-xray: promoted")
    [text] = message.get_payload()
    assert text.get_payload(decode=True) == b"<p>Version 7 is the champion.</p>"


def test_a_missed_night_is_told_from_the_triggerer(monkeypatch: pytest.MonkeyPatch) -> None:
    with run_webhook() as webhook:
        monkeypatch.setenv("XRAY_NOTIFY_WEBHOOK", webhook.uri)
        [alert] = notices.deadlines("The night has not ended.")
        assert alert.interval.total_seconds() == 6 * 3600
        context: Any = {"dag_run": {"dag_id": "xray_retrain", "dag_run_id": "run 1"}}  # as the triggerer gives it
        asyncio.run(_await(notices.WebhookNotifier(**alert.callback.kwargs, context=context)))
    [sent] = webhook.received
    assert (sent["event"], sent["dag"], sent["run"]) == ("missed night", "xray_retrain", "run 1")


async def _await(notifier: notices.WebhookNotifier) -> None:
    await notifier


def test_addresses_stay_out_of_what_airflow_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XRAY_NOTIFY_WEBHOOK", "https://hooks.example/secret-part")
    [notifier] = notices.notifiers("promoted", TEXT)
    [alert] = notices.deadlines(TEXT)
    assert "secret-part" not in repr(vars(notifier)) + repr(alert.callback.serialize())


def test_a_webhook_is_an_http_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XRAY_NOTIFY_WEBHOOK", "file:///etc/passwd")
    [notifier] = notices.notifiers("promoted", TEXT)
    with pytest.raises(ValueError, match="XRAY_NOTIFY_WEBHOOK is not an http"):
        notifier(CONTEXT)
