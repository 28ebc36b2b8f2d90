"""
### xray_retrain: the night

Checks each new delivery of chest X-rays, adds the good files to the dataset, retrains on the GPU worker, scores the
candidate and the model in production on the same held-out patients, and registers the candidate in MLflow when its
accuracy is higher. Every decision is written to the ledger with its reasons.

| task | what it does | safe to repeat |
| --- | --- | --- |
| find_deliveries | looks at settings, recipe, policy, device and key; lists settled deliveries that are not in the \
dataset yet | reads only |
| check_delivery | judges each file, then the delivery; red when it is rejected: the night goes on without | yes |
| commit_deliveries | stores the radiographs and the manifest of each fit delivery, names the snapshot | yes |
| look_ahead | the champion's, and a waiting challenger's, answers on what is new, before anything learns from it; red \
when it fails, and the night goes on | yes |
| train | trains the candidate (queue and pool `gpu`); resumes from its last checkpoint | yes |
| evaluate | candidate and champion on the same held-out radiographs; skipped when nothing is new | yes |
| decide | the policy's verdict; a refusal is recorded | yes |
| register | one version per candidate, alias `challenger` | yes |
| promote | alias `champion`, only with promotion `auto` and the policy's consent | yes |
| conclude | says what the night did and keeps its record, also when a task failed | yes |
| ask_again | starts `xray_promote` for the version in shadow, shown to be better by new patients, or for one that \
nobody answered about; skipped without either | yes |

**It begins** by the clock, or when a delivery has settled or a label table has grown, or both (`XRAY_SCHEDULE`).

**Triggering by hand:** each field of the form shows what is configured or, empty, leaves it to the recipe. A night
without deliveries and without a new recipe ends green and changes nothing. A rejected delivery shows red in
`check_delivery` each night until it is mended or taken away.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pendulum
from airflow.sdk import (
    Asset,
    AssetOrTimeSchedule,
    AssetWatcher,
    CronTriggerTimetable,
    Param,
    dag,
    get_current_context,
    task,
)
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from xray_pipeline.airflow_ui import links as airflow_links
from xray_pipeline.airflow_ui import notices, tries
from xray_pipeline.airflow_ui.arrival import Arrival
from xray_pipeline.base import schedule
from xray_pipeline.base.settings import Settings
from xray_pipeline.training import overrides

if TYPE_CHECKING:
    from xray_pipeline.night.run import Run

SETTINGS = Settings()
BEGIN = schedule.begin(SETTINGS)
schedule.due(SETTINGS, pendulum.now("UTC"))  # a schedule that never comes would start no task that could tell
# Celery goes by the queue, Kubernetes by the pod's template; each leaves the other's word alone.
POD = {"executor_config": {"pod_template_file": SETTINGS.gpu_pod_template}} if SETTINGS.gpu_pod_template else {}
GPU: dict[str, Any] = {"queue": "gpu", "pool": "gpu", **POD}
REGISTERED, CHAMPION = Asset("xray-registered"), Asset("xray-champion")
ARRIVED = Asset("xray-arrived", watchers=[AssetWatcher(name="xray-incoming", trigger=Arrival())])
SCHEDULE: Any = BEGIN.cron or None
if BEGIN.arrival:
    SCHEDULE = [ARRIVED]
    if BEGIN.cron:
        SCHEDULE = AssetOrTimeSchedule(timetable=CronTriggerTimetable(BEGIN.cron, timezone="UTC"), assets=[ARRIVED])

OWN = f"Empty: what the recipe says ({SETTINGS.recipe}, unless another is named above)."
PARAMS = {
    "incoming": Param(
        SETTINGS.incoming,
        type=["null", "string"],
        title="Incoming folder",
        description="Folder or s3:// prefix whose sub-folders are deliveries.",
    ),
    "recipe": Param(
        SETTINGS.recipe,
        type=["null", "string"],
        title="Recipe",
        description="How to train: one of the list, or a TOML file's path.",
        examples=list(dict.fromkeys([SETTINGS.recipe, *overrides.recipe_names()])),
    ),
    "backbone": Param(
        None, type=["null", "string"], title="Backbone", description=OWN, examples=overrides.backbone_names()
    ),
    # A number field of the form turns -3 into its minimum without a word; text is refused. Without examples a field of
    # several types is a box for JSON.
    "epochs": Param(
        None,
        type=["null", "string", "integer"],
        pattern="^([1-9][0-9]{0,2}|1000)$",
        minimum=1,
        maximum=1000,
        examples=["5", "20", "50"],
        title="Epochs",
        description=f"1 to 1000. {OWN}",
    ),
    "seed": Param(
        None,
        type=["null", "string", "integer"],
        pattern="^[0-9]{1,9}$",
        minimum=0,
        examples=["0", "1", "2"],
        title="Seed",
        description=f"A whole number, 0 or more. {OWN}",
    ),
    "overrides": Param(
        None,
        type=["null", "string"],
        format="multiline",
        title="Other values of the recipe",
        description="KEY=VALUE a line (lr=0.01, augmentation.flip=0.5), or a JSON object. Empty: none.",
    ),
    "promotion": Param(
        SETTINGS.promotion,
        type="string",
        enum=["approve", "auto"],
        values_display={"approve": "approve: a person decides", "auto": "auto: at once, what the policy allows"},
        title="Promotion",
        description="Who makes a better candidate the champion.",
    ),
}


def _run() -> Run:
    from xray_pipeline.night.run import Run

    context = get_current_context()
    values = airflow_links.as_numbers(context["params"], "epochs", "seed")
    who = context["dag_run"].triggering_user_name or "schedule"
    return Run.of(values, who, context["run_id"], airflow_links.PAGES)


@task
def find_deliveries() -> list[str]:
    from xray_pipeline.night import before, intake_steps

    run = _run()
    if run.settings.device not in ("auto", "cpu"):  # whether it is there takes torch to say
        from xray_pipeline.training.device import pick_device

        pick_device(run.settings.device)
    before.look(run)
    return intake_steps.find_deliveries(run)


LONGEST = 500  # characters of a reason in a notification
DELIVERY = airflow_links.DeliveryPage()


@task(map_index_template="{{ delivery }}", on_failure_callback=notices.check_failed)
def check_delivery(delivery: str) -> None:
    from xray_pipeline.base.text import shortened, without_names
    from xray_pipeline.night import intake_steps

    DELIVERY.keep(get_current_context())
    checked = intake_steps.check_delivery(_run(), delivery)
    if not checked.fit:
        labels = f" Labels: {checked.labelled}." if checked.labelled else ""
        why = f"{without_names(checked.why)}{labels}"
        sys.exit(shortened(f"Delivery {delivery} is rejected: {why}", LONGEST))  # see `tries`


@task(trigger_rule="all_done")
def commit_deliveries(deliveries: list[str] | None) -> dict[str, Any]:
    from xray_pipeline.night import intake_steps

    if deliveries is None:
        raise AirflowFailException("find_deliveries failed; see its log")
    return intake_steps.commit_deliveries(_run(), deliveries).to_dict()


# Its pool is scoring's: the slots of `gpu` are the GPU workers. A slot of another pool would promise a worker that
# may be training, and Airflow fails what no worker takes for half an hour, while what has no slot just waits. It
# never stops a night: it ends within an hour, twice at most, and `train` goes on whatever became of it.
@task(**GPU, execution_timeout=timedelta(hours=1), retries=1, on_success_callback=notices.alarm_raised)
def look_ahead(committed: dict[str, Any]) -> dict[str, Any]:
    from xray_pipeline.night import look_ahead as looking

    if not committed["snapshot"]:
        raise AirflowSkipException("nothing to look at: no delivery was ever accepted")
    return looking.look_ahead(_run(), committed["snapshot"]).to_dict()


# Whatever became of the look ahead, but not without a commit.
@task(**GPU, execution_timeout=timedelta(hours=8), trigger_rule="all_done_min_one_success")
def train(committed: dict[str, Any]) -> dict[str, Any]:
    from xray_pipeline.night import model_steps

    if not committed["snapshot"]:
        raise AirflowSkipException("nothing to train on: no delivery was ever accepted")
    return model_steps.train(_run(), committed["snapshot"]).to_dict()


@task(**GPU)
def evaluate(trained: dict[str, Any]) -> dict[str, Any]:
    from xray_pipeline.night import model_steps
    from xray_pipeline.night.run import Trained

    if trained["concluded"]:
        raise AirflowSkipException(trained["concluded"])
    return model_steps.evaluate(_run(), Trained.from_dict(trained)).to_dict()


@task
def decide(evaluated: dict[str, Any]) -> dict[str, Any]:
    from xray_pipeline.night import decision_steps
    from xray_pipeline.night.run import Evaluated

    return decision_steps.decide(_run(), Evaluated.from_dict(evaluated)).to_dict()


@task(
    outlets=[REGISTERED],
    on_skipped_callback=notices.notifiers("refused", notices.REFUSED),
)
def register(decided: dict[str, Any]) -> dict[str, Any]:
    from xray_pipeline.night import decision_steps
    from xray_pipeline.night.run import Decided

    if decided["verdict"] == "refused":
        raise AirflowSkipException(f"refused: {' '.join(decided['reasons'])}")
    registered = decision_steps.register(_run(), Decided.from_dict(decided)).to_dict()
    about = {name: registered[name] for name in ("version", "candidate", "champion")}
    get_current_context()["outlet_events"][REGISTERED].extra = {**about, "promotes": not registered["waits"]}
    return registered


@task(
    outlets=[CHAMPION],
    on_success_callback=notices.notifiers(
        "promoted",
        f"Version {{{{ ti.xcom_pull(task_ids='promote')['version'] }}}} is the champion; nobody was asked: "
        f"{notices.FIGURES}. {airflow_links.HISTORY}",
    ),
)
def promote(registered: dict[str, Any]) -> dict[str, Any]:
    from xray_pipeline.night import decision_steps
    from xray_pipeline.night.run import Registered

    if registered["waits"]:
        raise AirflowSkipException(registered["waits"])
    promoted = decision_steps.promote(_run(), Registered.from_dict(registered)).to_dict()
    get_current_context()["outlet_events"][CHAMPION].extra = {**promoted, "who": _run().who}
    return promoted


@task(
    trigger_rule="all_done",
    on_success_callback=[notices.drift_found, *notices.digest()],
    on_failure_callback=[notices.failed_by_itself, notices.drift_found, *notices.digest()],
)
def conclude(
    deliveries: list[str] | None,
    committed: dict[str, Any] | None,
    looked: dict[str, Any] | None,
    trained: dict[str, Any] | None,
    evaluated: dict[str, Any] | None,
    decided: dict[str, Any] | None,
    registered: dict[str, Any] | None,
    promoted: dict[str, Any] | None,
) -> dict[str, Any]:
    from xray_pipeline.airflow_ui import measurements
    from xray_pipeline.night import newest, summary

    steps = summary.Steps(deliveries or (), committed, looked, trained, evaluated, decided, registered, promoted)
    context = get_current_context()
    course = airflow_links.course(context)
    said = summary.conclude(run := _run(), steps, course)
    if not course.failed and not newest.are_newest(run):
        from xray_pipeline.night import versions

        versions.refresh(run)
    measurements.send(said, course.minutes)
    context["ti"].xcom_push(airflow_links.IN_WORDS, said["in_words"])
    if course.failed:
        raise AirflowFailException(f"{airflow_links.FAILED_ELSEWHERE} in {', '.join(course.failed)}; see its log")
    if said["unchecked"]:
        raise AirflowFailException(
            f"not taken, see check_delivery and commit_deliveries: {', '.join(said['unchecked'])}; "
            f"the next night tries again, or clear check_delivery"
        )
    return said


@task(outlets=[REGISTERED])
def ask_again(concluded: dict[str, Any]) -> dict[str, Any]:
    from xray_pipeline.night import contender, unanswered

    asked = contender.to_ask(_run()) or unanswered.to_ask_again(_run())
    if not asked:
        raise AirflowSkipException("no request went unanswered, and no version was put forward")
    get_current_context()["outlet_events"][REGISTERED].extra = {**asked, "promotes": False}
    return asked


@dag(
    schedule=SCHEDULE,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    allowed_run_types=["scheduled", "manual", "asset_triggered"],
    params=PARAMS,
    tags=["xray", "nightly"],
    doc_md=__doc__,
    deadline=notices.deadlines("A night of xray_retrain has not ended in time.") or None,
    default_args={"on_failure_callback": notices.notifiers("failed", notices.FAILED), **tries.AGAIN},
)
def xray_retrain() -> None:
    deliveries = find_deliveries()
    committed = commit_deliveries(deliveries)
    checked = check_delivery.expand(delivery=deliveries)
    checked >> committed
    looked = look_ahead(committed)
    trained = train(committed)
    looked >> trained
    evaluated = evaluate(trained)
    decided = decide(evaluated)
    registered = register(decided)
    promoted = promote(registered)
    concluded = conclude(deliveries, committed, looked, trained, evaluated, decided, registered, promoted)
    ask_again(concluded)
    airflow_links.put(DELIVERY, checked)
    airflow_links.put(airflow_links.MlflowRun(), trained, evaluated, decided)
    airflow_links.put(airflow_links.MlflowVersion(), registered, promoted)


dag_object = xray_retrain()
