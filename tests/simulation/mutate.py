"""Plant faults in copies of the package, one at a time, and say after how many seeds the simulation finds each.

`make mutate`; exit 1 when one is not found. A fault is a text that is replaced; one whose text is not in its file once
stops the whole.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORKS = multiprocessing.get_context("fork")
HEAVY = (
    "great_expectations",
    "matplotlib.pyplot",
    "mlflow",
    "openvino",
    "pandas",
    "sklearn",
    "timm",
    "torch",
)
"""What each copy of the package would else import again."""
PACKAGE = Path(__file__).resolve().parents[2] / "xray_pipeline"


@dataclass(frozen=True)
class Fault:
    """What is planted, in words; in which file of the package; which text becomes which."""

    what: str
    file: str
    old: str
    new: str


FAULTS = (
    Fault(
        "the alias is moved before the ledger's entry", "registry/commit.py",
        "            return registry.ledger.append(decided, state.head)",
        "            alias = {'registered': 'challenger', 'promoted': 'champion'}.get(decided.kind)\n"
        "            if alias:\n"
        "                registry._move(alias, registry.aliases()[alias], decided.version)\n"
        "            return registry.ledger.append(decided, state.head)",
    ),
    Fault(
        "who lost the race for a place appends all the same", "registry/commit.py",
        '            log.info("looking again: %s", lost)', "            return registry.ledger.append(decided)",
    ),
    Fault(
        "a refused conditional write is taken for done", "base/s3_store.py",
        "                return self.read(key) == data", "                return True",
    ),
    Fault(
        "a ledger entry replaces what is there", "registry/ledger.py",
        "            if self.store.write_if_absent(_key(len(known) + 1), data):",
        "            if self.store.write(_key(len(known) + 1), data) is None:",
    ),
    Fault(
        "a commit replaces what is there", "dataset/commits.py",
        "return commit if self.store.write_if_absent(commit.place, canonical(msgspec.to_builtins(commit))) else None",
        "return commit if self.store.write(commit.place, canonical(msgspec.to_builtins(commit))) is None else None",
    ),
    Fault(
        "tidying removes files before it is on record", "night/tidy.py",
        "    tidied.keep(run.store(), removal)\n    _remove(run, registry, removal, one)",
        "    _remove(run, registry, removal, one)\n    tidied.keep(run.store(), removal)",
    ),
    Fault(
        "tidying does not know who is in charge",
        "night/tidy.py",
        "    return named\n\n\ndef _recent",
        "    return set()\n\n\ndef _recent",
    ),
    Fault(
        "tidying takes what somebody works on", "training/in_use.py",
        '    if next((entry.version for entry in _folder(store, candidate).list() if entry.key == USED), "") == seen:',
        "    if True:",
    ),
    Fault(
        "the chain of the ledger is not checked", "registry/entries.py",
        "    if entry.sequence != sequence or entry.previous != previous:", "    if entry.sequence != sequence:",
    ),
    Fault(
        "the chain of the commits is not checked", "dataset/commits.py",
        "        if commit.place != place or commit.previous != before:", "        if commit.place != place:",
    ),
    Fault(
        "seals are not checked", "base/records.py",
        ' or digest_of(canonical(content)) != envelope["sha256"]:', ":",
    ),
    Fault(
        "digests are not checked", "base/records.py",
        "    if (actual := digest_of(data)) != digest:", '    if (actual := digest_of(data)) == "":',
    ),
    Fault(
        "an amendment that lost the race is not made anew",
        "dataset/store.py",
        "        while True:\n            commits = self.finish()\n            history = self.history()\n"
        "            amendment = describe(history)\n",
        "        first = describe(self.history())\n"
        "        while True:\n            commits = self.finish()\n            history = self.history()\n"
        "            amendment = first\n",
    ),
    Fault(
        "an approval counts whatever was decided since", "registry/questions.py",
        '        if entry.kind not in ("approved", "refused", "not-answered"):\n            return None\n', "",
    ),
    Fault(
        "a void question may be answered", "registry/decisions.py",
        "        if void := why_void(state, version, expected_champion):", "        if void := '':",
    ),
    Fault(
        "a promotion does not look for the champion it was decided against", "registry/decisions.py",
        "        _expect_champion(state, expected_champion)\n        how = _leave", "        how = _leave",
    ),
    Fault(
        "registering does not look for the champion it was decided against", "registry/decisions.py",
        "        _expect_champion(state, champion_before)\n        return None", "        return None",
    ),
    Fault(
        "a promotion that is repeated finds neither itself nor its version in charge", "registry/decisions.py",
        '        if earlier := state.asked("promoted", request):\n'
        "            if state.champion != version and state.since:\n"
        "                raise LostRace(state.since)  # another decision came since\n"
        "            return earlier\n"
        '        if state.champion == version and state.since is not None and state.since.kind == "promoted":\n'
        "            return state.since\n", "",
    ),
    Fault(
        "an answer that is repeated does not find itself", "registry/decisions.py",
        "        if earlier := state.asked(kind, request):", "        if earlier := None:",
    ),
    Fault(
        "a refusal that is repeated does not find itself", "registry/decisions.py",
        'return state.asked("refused", request) or Move(', "return Move(",
    ),
    Fault(
        "MLflow is told that it followed before it did", "registry/mlflow_registry.py",
        "            present, behind = aliases_of(model), self.model.followed(model) < state.sequence\n",
        "            present, behind = aliases_of(model), self.model.followed(model) < state.sequence\n"
        "            self.model.has_followed(model, state)\n",
    ),
    Fault(
        "who looks for changes by hand asks MLflow after the ledger, and once", "registry/mlflow_registry.py",
        "            unexplained = self._unexplained()\n        return unexplained\n\n"
        "    def _unexplained(self) -> dict[str, int | None] | None:\n"
        "        model, _ = self.model.read()\n        if model is None:\n            return None\n"
        "        present, explained = aliases_of(model), aliases_since(self.ledger.entries(), "
        "self.model.followed(model))\n",
        "        return unexplained\n\n"
        "    def _unexplained(self) -> dict[str, int | None] | None:\n"
        "        entries = self.ledger.entries()\n"
        "        model, _ = self.model.read()\n        if model is None:\n            return None\n"
        "        present, explained = aliases_of(model), aliases_since(entries, self.model.followed(model))\n",
    ),
    Fault(
        "a draft is deleted before its manifest is made", "dataset/manifests.py",
        "            data = self._bytes(version)\n            made",
        "            data = self._bytes(version)\n            self.store.delete(version.draft)\n            made",
    ),
    Fault(
        "a delivery that lost the race is not judged again", "intake/commit.py",
        "        table = mark_conflicts(intake.table, history, dataset.settings, intake.delivery.name)",
        "        table = intake.table",
    ),
    Fault(
        "copies across the split that the check found are not looked at anew", "intake/conflicts.py",
        "isin([CONFLICT, DUPLICATE, TWO_SIDES, ACROSS])", "isin([CONFLICT, DUPLICATE])",
    ),
    Fault(
        "an erasure leaves the radiographs", "dataset/manifests.py",
        '        gone = erased.digests | (named | self._kept_out()) - self._held() - {""}',
        "        gone = set[str]()",
    ),
    Fault(
        "an erasure is done with at once, whatever others leave later", "night/erasing.py",
        "    if age > kept_rows.AGAIN_SECONDS:", "    if True:",
    ),
    Fault(
        "a dataset that lost what MLflow knows is vouched for", "registry/registered_model.py",
        "            if not lost:  #", "            if False:  #",
    ),
    Fault(
        "a ledger that lost what MLflow followed is not refused", "registry/registered_model.py",
        "        if mark.sequence == 0 or (", "        if mark.sequence <= len(entries) or (",
    ),
    Fault(
        "a snapshot holds what was withdrawn", "dataset/snapshots.py",
        "    return {digest: amended.labels[digest] for digest in settled - withdrawn}, tuple(sorted(withdrawn))",
        "    return {digest: amended.labels[digest] for digest in settled - withdrawn}, ()",
    ),
    Fault(
        "versions that a killed process left stay", "registry/mlflow_registry.py",
        "            self._delete(sorted(double - self.aliased()))", "            pass",
    ),
    Fault(
        "what a hand moved is not told from what a crash left", "registry/manual_changes.py",
        "        found = {**state.aliases, **(moved or {})}",
        "        found = registry.aliases() if moved else state.aliases",
    ),
    Fault(
        "a turn in shadow is given twice", "night/shadow.py",
        "records.write(store, _key(turn.number), asdict(turn), if_absent=True)",
        "records.write(store, _key(turn.number), asdict(turn))",
    ),
    Fault(
        "a version is put forward whoever is champion by now", "registry/decisions.py",
        "        _expect_champion(state, expected_champion)\n        if version not in state.registered",
        "        if version not in state.registered",
    ),
    Fault(
        "a rejected version is put forward", "registry/decisions.py",
        "        if version not in state.registered or version in state.rejected:",
        "        if version not in state.registered:",
    ),
    Fault(
        "a version whose files are gone is put forward", "registry/decisions.py",
        'waits by now")\n        loading.load(registry, version)\n', 'waits by now")\n',
    ),
    Fault(
        "`xray verify` complains of what a hand crowned", "registry/verify.py",
        "    by_hand = {state.champion, *state.previous} - state.registered.keys()", "    by_hand = set[int | None]()",
    ),
    Fault(
        "a turn counts what came before it", "night/shadow.py",
        "if commit.number > self.after]", "if commit.number > 0]",
    ),
    Fault(
        "a withdrawal that ended since the check is not noticed", "intake/commit.py",
        "            _check_withdrawn(intake, history)\n", "",
    ),
    Fault(
        "manifests whose commits are given up stay", "night/promotion.py", "        dataset.put_away(unnamed)\n", "",
    ),
)  # fmt: skip


def faulty(fault: Fault) -> str:
    """Return the fault's file with it. Raises SystemExit when the text that is replaced is not there, once."""
    text = (PACKAGE / fault.file).read_text()
    if text.count(fault.old) != 1:
        raise SystemExit(f"{fault.what}: its text is {text.count(fault.old)} times in {fault.file}")
    return text.replace(fault.old, fault.new)


def planted(fault: Fault, folder: Path) -> None:
    """Copy the package into a folder, with the fault."""
    copy = shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / fault.file).write_text(faulty(fault))


def found_after(fault: Fault, first: int, seeds: int) -> tuple[int, int, str]:
    """Return after how many seeds and steps a planted fault is found, 0 seeds when it is not, and by what."""
    ours, theirs = FORKS.Pipe()
    with tempfile.TemporaryDirectory() as temporary:
        planted(fault, Path(temporary))
        process = FORKS.Process(target=_hunt, args=(theirs, temporary, first, seeds))
        process.start()
        theirs.close()
        try:
            found: tuple[int, int, str] = ours.recv()
        except EOFError:
            raise SystemExit(f"{fault.what}: the simulation does not run") from None
        finally:
            process.join()
    return found


def _hunt(pipe: Any, folder: str, first: int, seeds: int) -> None:
    """Simulate with the package in a folder, seed after seed, until something is violated."""
    sys.path.insert(0, folder)
    from simulate import simulate
    from world import Plan

    import xray_pipeline

    assert str(xray_pipeline.__file__).startswith(folder)
    steps = 0
    for count in range(1, seeds + 1):
        outcome = simulate(Plan.drawn(first + count - 1))
        steps += outcome.steps
        if outcome.violation:
            pipe.send((count, steps, outcome.violation.strip().splitlines()[-1]))
            return
    pipe.send((0, steps, ""))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="after so many a fault counts as not found")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--only", default="", help="only faults of whose words this is a part")
    parser.add_argument(
        "--skip", type=int, default=0, help="leave out so many of the first: to go on where one stopped"
    )
    asked = parser.parse_args()
    for fault in FAULTS:
        faulty(fault)  # one that fits no more stops the whole before the hours of hunting
    chosen = [fault for fault in FAULTS[asked.skip :] if asked.only in fault.what]
    for name in HEAVY:
        importlib.import_module(name)
    began, missed = time.monotonic(), 0
    for fault in chosen:
        count, steps, violation = found_after(fault, asked.first, asked.seeds)
        missed += not count
        how = f"seed {count}, step {steps:,}: {violation[:100]}" if count else "NOT FOUND"
        print(f"{fault.what}: {how}", flush=True)
    print(f"{len(chosen)} faults planted, {missed} not found, {(time.monotonic() - began) / 60:.0f} minutes")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
