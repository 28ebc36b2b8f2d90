"""The processes of a simulated site, each as its commands and DAG tasks do it, by the package's own functions.

What a person or the network would say is drawn; everything else is the package's. A process that fails by an error of
the package tries again after a while, as Airflow or a person does; one that was told "no" ends.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from mlflow.exceptions import MlflowException
from scheduler import Process, Violation
from universe import print_of

from xray_pipeline.base import records
from xray_pipeline.base.errors import (
    AmendmentError,
    DeliveryError,
    EvaluationError,
    LedgerError,
    ModelRefused,
    ObjectNotFound,
    RegistryError,
    RegistryUnavailable,
    TrainingError,
    XrayError,
)
from xray_pipeline.base.storage import open_store
from xray_pipeline.base.text import APPROVE
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.dataset.table import Row, of_rows
from xray_pipeline.gate.evidence import evidence_key
from xray_pipeline.intake.commit import commit
from xray_pipeline.intake.conflicts import mark_conflicts
from xray_pipeline.intake.deliveries import Delivery
from xray_pipeline.intake.verdicts import Intake
from xray_pipeline.night import amend, contender, erasing, identity, judging, promotion, tidy, unanswered
from xray_pipeline.night import pair as comparing
from xray_pipeline.night.amend import Named
from xray_pipeline.night.promotion import Request
from xray_pipeline.night.run import Run
from xray_pipeline.registry import decisions, manual_changes, verify
from xray_pipeline.registry.ledger import Ledger
from xray_pipeline.registry.loading import Champions
from xray_pipeline.report.places import report_key
from xray_pipeline.training import train as training
from xray_pipeline.training.candidate import BATCH, find_candidate
from xray_pipeline.training.recipe import load_recipe

if TYPE_CHECKING:
    from auditor import Copy
    from world import World

TRIES = 6
WHY = "because the simulation says so"
RECIPE = load_recipe("head")


def process(world: World, name: str, work: Callable[[], None], no: tuple[type[Exception], ...] = ()) -> Process:
    """Return a process that does some work, again where that fails; an error of kind `no` is its answer."""

    def live() -> None:
        for attempt in range(TRIES):
            try:
                world.begins()
                work()
                return
            except no:
                return
            except (XrayError, MlflowException) as error:
                last = error
                world.scheduler.sleep(60.0 * (attempt + 1))
        world.given_up.append(name)
        if world.scheduler.chances.faults == {}:
            raise Violation(f"{name} does not end though nothing fails any more: {type(last).__name__}: {last}")

    return Process(name, live, skew=world.random.uniform(-100, 100))


COMMITS, COMMITTED = "put new store/dataset/commits/", "put new store/dataset/manifests/"
REGISTERS, DECIDES, CROWNS = "create version! ", "put new store/ledger/", "set alias! "
KEEPS = "put store/candidates/"
"""What somebody may be about to do when another begins."""


def pause(world: World, name: str, seconds: tuple[float, ...], *near: str) -> None:
    """Sleep as long as is drawn once or, half the time, until somebody is about to do one of these, and may be killed
    before that."""
    drawn = world.once(f"{name} pause", lambda: world.random.choice(seconds))
    call = world.once(f"{name} near", lambda: world.random.choice((*near, *[""] * len(near), "")))
    world.scheduler.sleep(drawn, lambda: bool(call and world.scheduler.about_to(call)))
    if call and world.scheduler.chances.faults.get("kill") and world.random.random() < 0.5:
        world.scheduler.stop(world.scheduler.about_to(call))


# The night


def ingest(world: World, run: Run, key: str) -> None:
    """Check a delivery against the dataset of this moment, and commit it some time later."""
    identity.compare(run)
    dataset = Dataset(run.settings)
    dataset.finish()
    rows = [
        Row(
            f"{label}/{place}.png", len(one.data), "v", source_digest=one.digest, format="PNG", bits=8,
            width=400, height=400, mode="L", patient=one.patient, label=label, side=one.side, verdict="accepted",
            digest=one.digest, suffix=".png", phash=print_of(one.chest).phash, thumbnail=print_of(one.chest).thumbnail,
        )
        for place, (one, label) in enumerate(world.deliveries[key])
    ]  # fmt: skip
    table = of_rows(sorted(rows, key=lambda row: row.file))
    history = dataset.history()
    table = mark_conflicts(table, history, run.settings)
    delivery = Delivery(key, f"{run.settings.incoming}/{key}", 1, len(rows), 1, "f" * 64, True)
    with contextlib.suppress(DeliveryError):  # amendments were made since: it is judged anew by the next night
        commit(dataset, Intake(delivery, table, True, (), {}, "", amended=history.amended.digest()))


def night(world: World, number: int, who: str = "schedule") -> None:
    """One night: commit, train, judge, register and, where the policy says so, promote."""
    world.begins()
    run = Run(world.settings, who=who, name=f"night-{number}")
    dataset = Dataset(run.settings)
    identity.compare(run)
    erasing.finish(run)
    dataset.finish()
    there = dataset.manifests()
    waiting = list(world.deliveries)[: number + 1]
    for key in waiting if who == "schedule" else reversed(waiting):
        if key not in there:
            ingest(world, run, key)
    identity.vouch(run)
    snapshot = dataset.snapshot()
    registry = run.registry()
    manual_changes.reconcile(registry)
    if snapshot is None:
        return
    with contextlib.suppress(XrayError):  # as the look ahead does: the next night gives the turn
        contender.in_turn(run, registry.ledger)
    recipe = RECIPE.model_copy(update={"seed": number})
    try:
        candidate = training.train(dataset, snapshot, recipe, run.settings, Champions(registry))
    except TrainingError as error:
        if "no radiograph of class" in str(error):
            return  # amendments took them all
        raise
    if not judging.concluded(run, candidate.digest):
        _judge(run, candidate.digest)
    contender.to_ask(run)


def _judge(run: Run, digest: str) -> None:
    registry, store = run.registry(), run.store()
    state = manual_changes.reconcile(registry)
    champion, models = state.champion, state.models(state.champion)
    candidate = find_candidate(store, digest)
    comparing._take_up(run, candidate)
    key = _evidence(run, state, digest)
    _, decision = judging.judged(run, key)
    judging.expect_same(registry, models)
    comparing._take_up(run, candidate)
    store.write(report_key(digest, champion), _page(run, digest))
    said = {"who": run.who, "why": " ".join(decision.reasons), "champion_before": champion}
    recorded = {**decision.to_dict(), "evidence": key, "compared_patients": 0}
    if decision.verdict == "refused":
        decisions.refuse(registry, candidate, **said, decision=recorded)
        return
    entry = decisions.register(registry, candidate, **said, decision=recorded)
    if decision.automatic:
        assert entry.version is not None
        request = judging.automatic(entry.version, champion)
        told = {"who": run.who, "why": "the policy", "expected_champion": champion, "request": request}
        decisions.promote(registry, entry.version, **told, decision=recorded)


def _page(run: Run, digest: str) -> bytes:
    """Return a report with a card of each radiograph that is on a picture beside the candidate."""
    try:
        shown = run.store().read(f"candidates/{digest}/{BATCH}").decode().split()
    except ObjectNotFound:  # it was erased
        shown = []
    return "".join(f"<!--radiograph {one[:12]}-->{one}<!--/radiograph-->\n" for one in shown).encode()


def _evidence(run: Run, state: Any, digest: str) -> str:
    """Keep what the policy is asked about: this candidate against the champion of now."""
    entry = state.registered.get(state.champion or 0)
    data = records.canonical({"candidate": digest, "champion": entry.candidate if entry else ""})
    key = evidence_key(digest, records.digest_of(data))
    run.store().write(key, data)
    return key


def nights(world: World) -> list[Process]:
    """One night after the other, as the schedule starts them."""

    def all_of_them() -> None:
        for number in range(world.nights):
            world.once(f"night {number}", lambda number=number: night(world, number))
            world.scheduler.sleep(world.random.choice((60.0, 7200.0, 200_000.0)))

    return [process(world, "nights", all_of_them)]


def again(world: World) -> None:
    """Do the last night again, and once more: the second time nothing may be left to do."""
    night(world, world.nights - 1)
    before = world.auditor.decided.digests[:], world.auditor.commit_digests[:]
    night(world, world.nights - 1)
    if before != (world.auditor.decided.digests, world.auditor.commit_digests):
        raise Violation("I5: a night that is done again ends in another state")
    dataset = Dataset(world.settings)
    snapshot = dataset.snapshot()
    rows = dataset.rows(snapshot) if snapshot else None
    there = {} if rows is None else {row.digest: (row.label, row.side) for row in rows.itertuples()}
    if there != world.auditor.kept.snapshot():
        raise Violation("I9: the newest snapshot does not hold what the rules say")
    findings = verify.check(Run(world.settings).registry())
    wrong = [f"{finding.invariant} {finding.text}" for finding in findings if not finding.holds]
    nothing_left, left = erasing.verify(Run(world.settings))
    wrong += [] if nothing_left else [f"I9 {left}"]
    if wrong:
        raise Violation(f"`xray verify` finds: {'; '.join(wrong)}")


def backfill(world: World) -> list[Process]:
    """A person who starts nights beside the schedule, the last one first."""

    def beside(number: int) -> None:
        """Do a night at once or, half the time, while the schedule does the same one."""
        if number and world.once(f"beside {number}", lambda: world.random.random() < 0.5):
            world.scheduler.sleep(300_000.0, lambda: f"night {number - 1}" in world.remembered)
        night(world, number, "bob")

    return [process(world, f"backfill-{n}", lambda n=n: beside(n)) for n in (world.nights - 1, 0)]


# People


def _ask(world: World, run: Run) -> Request | None:
    """Phrase a question as `promotion.request` does, without figures."""
    registry = run.registry()
    state = manual_changes.reconcile(registry)
    version = state.challenger
    waiting = [number for number in state.registered if number != state.champion]
    if version is None and waiting and world.random.random() < 0.5:
        version = world.random.choice(waiting)
    if version is None:
        unanswered.to_ask_again(run)
        return None
    if promotion._not_to_ask(state, version, "") or registry.removed(version):
        return None
    candidate = state.registered[version].candidate
    comparing._take_up(run, find_candidate(run.store(), candidate))
    key = _evidence(run, state, candidate)
    _, decision = judging.judged(run, key)
    if not decision.may_promote:
        return None
    models = state.models(version, state.champion)
    return Request(version, state.champion, key, "", "", candidate, decision.automatic, models)


def approvers(world: World) -> list[Process]:
    """DAG runs of xray_promote by two people, side by side: asked, answered soon, late or never."""

    def asking(name: str, person: str) -> None:
        for number in range(3):
            _one_question(world, f"{name}-{number}", person)
            world.scheduler.sleep(3000.0)

    people = (("asks-1", "alice"), ("asks-2", "bob"))
    return [process(world, name, lambda name=name, person=person: asking(name, person)) for name, person in people]


def _one_question(world: World, name: str, person: str) -> None:
    run = Run(world.settings, who=person, name=name)
    with told_no(world):  # a hand may have pointed at what was never registered
        world.once(name, lambda: _ask(world, run))
    asked = world.remembered.get(name)
    pause(world, name, (1.0, 100.0, 5000.0), DECIDES)
    if asked is None:
        return
    options = [[APPROVE]] * 5 + [["reject"], []]
    chosen = world.once(f"{name} chosen", lambda: world.random.choice(options))
    user = {"id": person, "name": person} if chosen else None
    answer = {"chosen_options": chosen, "params_input": {"reason": WHY}, "responded_by_user": user}
    with told_no(world, name):
        said = world.once(f"{name} said", lambda: promotion.record_answer(run, asked, answer, name))
        if said["outcome"] == "approved":
            promotion.promote(run, asked, said["who"], said["why"], name)


@contextlib.contextmanager
def told_no(world: World, request: str = "") -> Iterator[None]:
    """For the block: what a command does anew, and what it may be answered with "no", unless its request was granted
    and nothing was decided since: it was killed then, and begins again."""
    world.begins()
    try:
        yield
    except (LedgerError, AmendmentError, ModelRefused, RegistryError) as error:
        granted = [e for e in world.auditor.decided.entries[-1:] if e["request"] == request and e["kind"] != "approved"]
        whole = not (world.older or world.auditor.copied() is None)
        if request and granted and whole and isinstance(error, LedgerError):
            raise Violation(f"I5: {request}, which was granted, is told no: {error}") from error
        if not (isinstance(error, (LedgerError, AmendmentError)) or _is_lost(world, error)):
            raise


def _is_lost(world: World, error: Exception) -> bool:
    """Whether an error says that a version is not there any more, or that something older was put back."""
    return "removed by tidy" in str(error) or (world.older and not isinstance(error, RegistryUnavailable))


def rollback(world: World) -> list[Process]:
    """Somebody who goes back to the champion before, and a hasty colleague who does so at once."""

    def back(name: str) -> None:
        run = Run(world.settings, who="carol")
        for number in range(2):
            named = f"{name}-{number}"
            pause(world, named, (9000.0, 9000.0, 90_000.0), REGISTERS, DECIDES, CROWNS)
            with told_no(world, named):
                promotion.rollback(run, None, WHY, named, untried=name == "back-1")

    return [process(world, name, lambda name=name: back(name)) for name in ("back-1", "back-2")]


def reopen(world: World) -> list[Process]:
    """Somebody who lets a rejected version wait again."""

    def again() -> None:
        run = Run(world.settings, who="carol")
        for number in range(2):
            pause(world, f"reopen-{number}", (6000.0,), DECIDES)
            state = Ledger(run.store()).state()
            if state.rejected:
                with told_no(world, f"reopen-{number}"):
                    promotion.reopen(run, max(state.rejected), WHY, f"reopen-{number}")

    return [process(world, "reopens", again)]


def hand(world: World) -> list[Process]:
    """Somebody who moves and removes aliases in MLflow, and somebody who adopts or undoes that."""
    name = world.settings.model_name

    def moves() -> None:
        pause(world, "hand", (100.0, 10_000.0), DECIDES, CROWNS)
        model = world.mlflow.models.get(name)
        there = [number for number in model.versions if _is_there(world, number)] if model else []
        alias = world.once("hand alias", lambda: world.random.choice(("champion", "champion", "challenger")))
        if there:
            version = world.random.choice(there)
            world.auditor.by_hand(alias)
            if world.random.random() < 0.3:
                world.mlflow.delete_registered_model_alias(name, alias)
            else:
                world.mlflow.set_registered_model_alias(name, alias, str(version))

    def adopts() -> None:
        world.scheduler.sleep(20_000.0)
        adopt(world, undo=world.once("undo", lambda: world.random.random() < 0.5))

    return [process(world, "hand", moves), process(world, "adopts", adopts, no=(LedgerError,))]


def adopt(world: World, undo: bool) -> None:
    """Accept or undo what a hand did; where one of the two would crown what does not load any more, the other."""
    run = Run(world.settings, who="dora")
    try:
        promotion.adopt(run, undo, WHY)
    except (ModelRefused, RegistryError) as error:
        if not _is_lost(world, error):
            raise
        promotion.adopt(run, not undo, WHY)


def amends(world: World) -> list[Process]:
    """People who correct labels, withdraw radiographs and patients, and undo that."""
    known = sorted({one.digest for files in world.deliveries.values() for one, _ in files})

    def drawn() -> Named:
        digest = _about_to_come(world) or world.random.choice(known)
        kind = world.random.choice(("relabel", "withdraw", "patient", "delivery", "undo", "undo"))
        if kind == "undo":
            made = sorted(world.auditor.kept.amendments)
            return Named("undo", "amendment", str(world.random.choice(made) if made else 1))
        if kind == "delivery":
            return Named("withdraw", "delivery", world.random.choice(sorted(world.deliveries)))
        if kind == "relabel":
            return Named("relabel", "radiograph", digest, world.random.choice(world.settings.classes))
        return Named("withdraw", "radiograph" if kind == "withdraw" else "patient-of", digest)

    def amending(name: str) -> None:
        run = Run(world.settings, who=name)
        for number in range(3):
            pause(world, f"{name} {number}", (50.0, 5000.0, 9000.0), COMMITS)
            named = world.once(f"{name} named {number}", drawn)
            with told_no(world):
                amend.amend(run, [named], WHY)

    return [process(world, name, lambda name=name: amending(name)) for name in ("amends-1", "amends-2")]


def _about_to_come(world: World) -> str:
    """Return, half the time, a radiograph that is there of a chest of which another is yet to come; "" without one."""
    held = {row.one for row in world.auditor.kept.rows}
    coming = [
        one.chest for name, files in world.deliveries.items() if name not in world.auditor.manifests for one, _ in files
    ]
    there = sorted(one.digest for one in held if one.chest in coming)
    return world.random.choice(there) if there and world.random.random() < 0.5 else ""


def erases(world: World) -> list[Process]:
    """Somebody who has radiographs, a patient or a delivery erased, and repeats that where it fails."""
    known = sorted({one.digest for files in world.deliveries.values() for one, _ in files})

    def drawn() -> Named:
        by = world.random.choice(("radiograph", "patient-of", "patient-of", "delivery"))
        name = world.random.choice(list(world.deliveries)[-3:] if by == "delivery" else known)
        return Named("withdraw", by, name, erase=True)

    def asks() -> None:
        run = Run(world.settings, who="erases")
        for number in range(2):
            pause(world, f"erase {number}", (4000.0, 90_000.0), COMMITS, KEEPS)
            named = world.once(f"to erase {number}", drawn)
            with told_no(world):
                amend.amend(run, [named], WHY)

    return [process(world, "erases", asks)]


# Machines


def tidies(world: World) -> list[Process]:
    """Old candidates go: at once, as somebody may ask for, and when the days are over."""

    def tidying(name: str) -> None:
        run = Run(world.settings, who=name)
        world.scheduler.sleep(world.once(name, lambda: world.random.choice((3000.0, 100_000.0))))
        world.tidying = True
        tidy.tidy(run, now=open_store(world.settings.store, world.settings).clock() + 200_000)
        world.tidying = False

    return [process(world, name, lambda name=name: tidying(name)) for name in ("tidies-1", "tidies-2")]


ROTS = {
    "store/ledger/": b'"why": "',
    "store/dataset/commits/": b'"previous": "',
    "store/dataset/manifests/": b"",
    "store/candidates/": b'"snapshot": "',
}
"""Where a bit may flip, and after what in the file: anywhere for "". JSON stays JSON."""


def rot(world: World) -> list[Process]:
    """A disk that changes one byte of a file, and somebody who notices later and puts the backup back."""

    def rots() -> None:
        for number in range(2):
            pause(world, f"rot {number}", (1000.0, 4000.0, 9000.0), REGISTERS, DECIDES)
            world.once(f"rot {number}", lambda: _rot(world))
            world.scheduler.sleep(8000.0)
            world.once(f"restored {number}", lambda number=number: _restore(world, *world.remembered[f"rot {number}"]))

    return [process(world, "rot", rots)]


def _rot(world: World) -> tuple[str, bytes]:
    """Change a byte of a file, not of the newest commit or entry: of these only MLflow could tell. Half the time it is
    a candidate about which nothing is decided yet, where there is one: nobody reads the others again."""
    objects, kind = world.auditor.objects, world.random.choice((*ROTS, "store/ledger/"))
    trained = sorted(key for key in objects if key.startswith("store/candidates/") and key.endswith("candidate.json"))
    decided = {entry["candidate"] for entry in world.auditor.decided.entries}
    open_to = [key for key in trained if key.split("/")[2] not in decided]
    if open_to and world.random.random() < 0.5:
        kind, keys = "store/candidates/", open_to
    elif kind == "store/candidates/":
        keys = trained
    else:
        keys = sorted(key for key in objects if key.startswith(kind))
        keys = keys if kind == "store/dataset/manifests/" else keys[1:-1]
    if not keys:
        return "", b""
    key = world.random.choice(keys)
    data = objects[key].data
    at = data.find(ROTS[kind]) + len(ROTS[kind]) if ROTS[kind] else world.random.randrange(4, len(data))
    other = b"a" if data[at : at + 1] != b"a" else b"b"
    world.auditor.rots(key, data[:at] + other + data[at + 1 :])
    return key, data


def _restore(world: World, key: str, data: bytes) -> None:
    if key:
        world.auditor.restored(key, data)


def backups(world: World) -> list[Process]:
    """Disks that fail: an older copy of the store or of MLflow is put back while others work. Somebody notices later,
    stops all, and puts the newest copy back or goes on from what is there."""

    def fails() -> None:
        once, chance = world.once, world.random
        first, more = once("moments", lambda: (chance.randint(2, 14), chance.randint(1, 4)))
        world.scheduler.sleep(300_000.0, lambda: world.auditor.made() >= first)
        older = once("copy", lambda: _copied(world))
        near = once("near", lambda: chance.choice(((), (COMMITTED,), (DECIDES, CROWNS))))

        def due() -> bool:
            return world.auditor.made() >= first + more and (not near or bool(world.scheduler.about_to(*near)))

        world.scheduler.sleep(100_000.0, due)
        of_store = once("disk", lambda: chance.random() < 0.5)
        newest = once("newest", lambda: _put_back(world, older, of_store))
        if newest is not None:
            world.scheduler.sleep(4000.0)
            world.scheduler.stop(world.scheduler.about_to(""))
            world.scheduler.sleep(1.0)
            (_store_again if of_store else _mlflow_again)(world, older, newest)

    return [process(world, "gives-up", fails)]


def _copied(world: World) -> tuple[Copy | None, dict[str, Any]]:
    return world.auditor.copied(), world.mlflow.copied()


def _put_back(world: World, older: Any, of_store: bool) -> Any:
    """Put an older copy back; return what was there, None where nobody could tell that it is older."""
    newest, auditor = _copied(world), world.auditor
    if older[0] is None or newest[0] is None:
        return None
    world.older = True
    if not of_store:
        auditor.by_hand("champion")
        auditor.by_hand("challenger")
        auditor.older_mlflow = world.scheduler.clock
        world.mlflow.put_back(older[1])
        return newest
    model = world.mlflow.models.get(world.settings.model_name)
    marks = model.tags if model else {}
    known = {"xray.followed": older[0][1]["decided"].digests, "xray.committed": older[0][1]["commit_digests"]}
    if not any(tag in marks and json.loads(marks[tag])["sequence"] > len(there) for tag, there in known.items()):
        return None
    auditor.put_back(older[0][0])
    return newest


def _store_again(world: World, older: Any, newest: Any) -> None:
    """Put the newest copy of the store back or, where nothing was decided since, give up what only that has: no
    candidates that were tidied, as their files in MLflow stay gone."""
    decided, auditor = older[0][1]["decided"], world.auditor
    can_go_on = decided.beginning != "" and (decided.champion is None or _is_there(world, decided.champion))
    can_go_on &= not any(key.startswith("store/tidied/") for key in newest[0][0].keys() - older[0][0].keys())
    given_up = can_go_on and not auditor.strays and world.random.random() < 0.5
    if world.once("given up", lambda: (auditor.go_on(newest[0], older[0] if given_up else None), given_up))[1]:
        world.begins()
        for undo in (world.random.random() < 0.5, True):
            try:
                promotion.adopt(Run(world.settings, who="gives-up"), undo, WHY, lost=True)
                return
            except LedgerError as error:
                if "nothing to give up" in str(error):  # it was killed after it had
                    return
                if "no candidate in" not in str(error):
                    raise


def _mlflow_again(world: World, older: Any, newest: Any) -> None:
    """Where the champion is lost with MLflow's disk, go back to one that is there, or put the newest copy back."""
    decided = world.auditor.decided
    if decided.candidates and not _is_there(world, decided.champion or max(decided.candidates)):
        back = [version for version in decided.crowned if version != decided.champion and _is_there(world, version)]
        if back and decided.champion:
            world.begins()
            promotion.rollback(Run(world.settings, who="gives-up"), back[-1], WHY, "from lost", untried=True)
        else:
            world.auditor.older_mlflow = world.scheduler.clock
            world.mlflow.put_back(newest[1])


def _is_there(world: World, version: int) -> bool:
    """Whether MLflow has a version and its files."""
    model = world.mlflow.models.get(world.settings.model_name)
    row = model.versions.get(version) if model else None
    logged = world.mlflow.logged.get(row.source.removeprefix("models:/")) if row and not row.deleted else None
    return bool(logged and logged.files and not logged.deleted)


def compares(world: World) -> list[Process]:
    """Somebody who compares any two versions, old ones too: what is worked on must not be taken away meanwhile."""

    def works_on_two() -> None:
        run = Run(world.settings, who="erin")
        known = manual_changes.reconcile(run.registry()).registered
        for version in world.random.sample(sorted(known), min(2, len(known))):
            with contextlib.suppress(EvaluationError, TrainingError):  # it is gone, or on its way
                comparing._take_up(run, find_candidate(run.store(), known[version].candidate))

    def comparisons() -> None:
        for number in range(4):
            pause = world.once(f"compare {number}", lambda: world.random.choice((900.0, 3000.0, 90_000.0)))
            world.scheduler.sleep(pause, lambda: world.tidying)
            with told_no(world):
                works_on_two()

    return [process(world, "compares", comparisons)]


def looks(world: World) -> list[Process]:
    """Somebody who runs `xray verify` in between; what it finds may be half done, but it changes nothing."""

    def looking() -> None:
        run = Run(world.settings)
        for _ in range(2):
            world.scheduler.sleep(4000.0)
            try:
                verify.check(run.registry())
            except XrayError:
                continue
            Dataset(run.settings).altered()

    return [process(world, "looks", looking)]


ACTORS: dict[str, Callable[[World], list[Process]]] = {
    "nights": nights,
    "backfill": backfill,
    "approvers": approvers,
    "rollback": rollback,
    "reopen": reopen,
    "hand": hand,
    "amends": amends,
    "erases": erases,
    "tidies": tidies,
    "compares": compares,
    "looks": looks,
    "rot": rot,
    "backups": backups,
}
"""All kinds of processes, by name."""
