"""What is read from a store is checked first: a changed bit, field, format, order or end is named, healed or harmless.

One small finished site is made once, by real nights over a real registry; each test damages it and puts it back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import jpeg, picture
from typer.testing import CliRunner

from xray_pipeline.base import records
from xray_pipeline.base.errors import Damaged, DatasetError, LedgerError, RegistryError, XrayError
from xray_pipeline.base.settings import Settings
from xray_pipeline.command import answers
from xray_pipeline.command import main as cli
from xray_pipeline.dataset.commits import Commits
from xray_pipeline.dataset.parquet import from_parquet, to_parquet
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.evaluation import predictions
from xray_pipeline.intake import alarms, verdicts
from xray_pipeline.intake import books as bookkeeping
from xray_pipeline.night import health, identity, intake_steps, judging, lineage, model_steps, review, whole
from xray_pipeline.night.run import Run
from xray_pipeline.registry.ledger import Ledger
from xray_pipeline.registry.mlflow_registry import Registry
from xray_pipeline.registry.registered_model import COMMITTED_TAG, FOLLOWED_TAG
from xray_pipeline.training import candidate as training

SITE = Path(__file__).parents[1] / "site"
QUICK: dict[str, Any] = {"backbone": "shufflenet_v2_x0_5", "weights": "none", "side": 64, "epochs": 2, "views": 1}
FLIPS = 100  # of each seed


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three deliveries, two candidates, of which the first is champion and the second waits or is refused."""
    settings = Settings(
        home=tmp_path_factory.mktemp("home"),
        settle_seconds=0,
        bootstrap=100,
        stress_images=10,
        device="cpu",
        policy=str(SITE / "browser" / "lenient.toml"),
        patient_key="of the tests, not a secret, but long",
    )
    for number, seeds in enumerate((range(30), range(30, 45), range(45, 60))):
        for label, bright in (("NORMAL", 0), ("PNEUMONIA", 120)):
            folder = Path(settings.incoming) / f"day{number}" / label
            folder.mkdir(parents=True)
            for seed in seeds:
                pixels = picture(seed + 1000 * bool(bright), 64, 64).astype(np.int64)
                pixels[20:40, 15:35] += bright
                name = f"patient{seed + 100 * bool(bright):04d}_1.jpeg"
                (folder / name).write_bytes(jpeg(np.clip(pixels, 0, 255).astype(np.uint8)))
        (Path(settings.incoming) / f"day{number}" / "NORMAL" / "notes.txt").write_bytes(b"no image")
        promotes = settings.model_copy(update={"promotion": "auto" if number == 0 else "approve"})
        if number != 1:
            whole.whole(Run(promotes, QUICK))
    return Run(settings, QUICK, "alice")


Kept = dict[Path, bytes]


@pytest.fixture
def kept(site: Run) -> Iterator[Kept]:
    """All small files of the store, which are put back afterwards."""
    files = small_files(site)
    yield files
    put_back(site, files)


def small_files(site: Run) -> Kept:
    return {path: path.read_bytes() for path in Path(site.settings.store).rglob("*") if is_small(path)}


def is_small(path: Path) -> bool:
    return path.is_file() and "radiographs" not in path.parts and "reports" not in path.parts


def put_back(site: Run, files: Kept) -> None:
    for path in Path(site.settings.store).rglob("*"):
        if is_small(path) and path not in files:
            path.unlink()
    for path, data in files.items():
        if not path.exists() or path.read_bytes() != data:
            path.write_bytes(data)


# What a site says, part by part: equal before and after, or the damage is named


def of_dataset(site: Run) -> Any:
    dataset = Dataset(site.settings)
    snapshots = {entry.snapshot for entry in Ledger(site.store()).entries() if entry.snapshot}
    dataset.patient_key()
    rows = [dataset.rows(dataset.open_snapshot(snapshot)).to_json() for snapshot in sorted(snapshots)]
    tables = [dataset.manifest(key).to_json() for key in dataset.manifests()]
    return rows, tables, [dataset.fingerprint(key) for key in dataset.manifests()]


def of_ledger(site: Run) -> Any:
    entries = [entry.to_dict() for entry in Ledger(site.store()).entries()]
    return entries, Registry(site.settings).aliases()


def of_candidates(site: Run) -> Any:
    store, found = site.store(), []
    for digest in store.child("candidates").folders():
        candidate = training.find_candidate(store, digest)
        recipe = lineage.recipe_of(store, digest).model_dump(exclude={"name"})  # for people
        run = records.read(store, f"candidates/{digest}/run.json", dict[str, str])
        found.append((candidate, recipe, lineage.environments(store, digest), run))
    return found


def of_evidence(site: Run) -> Any:
    decided = [entry for entry in Ledger(site.store()).entries() if entry.kind in ("registered", "refused")]
    return [judging.judged(site, entry.decision["evidence"])[1].to_dict() for entry in decided]


def of_predictions(site: Run) -> Any:
    """Read them again; what is missing is scored again, here from what was read first."""
    store, columns = site.store(), ("p_NORMAL", "p_PNEUMONIA")
    folders = sorted({entry.key.rpartition("/")[0] for top in ("predictions", "stress") for entry in store.list(top)})
    return [sorted(predictions._whole_parts(folder, columns, store).itertuples(name=None)) for folder in folders]


def of_verdicts(site: Run) -> Any:
    store, found = site.store(), []
    for key in Dataset(site.settings).manifests():
        verdict = verdicts.checked(store, key)
        table = verdicts.checked_table(store, verdict).to_json() if verdict else None
        settled = [alarms._measurements(store, key), alarms._given(store, key)]
        found.append((verdict, table, settled))
    return found


def of_suspects(site: Run) -> Any:
    return [review.listed(site.store(), entry.snapshot) for entry in Ledger(site.store()).entries()]


KINDS: dict[str, tuple[str, Callable[[Run], Any]]] = {
    "manifest": ("dataset/manifests/*", of_dataset),
    "commit": ("dataset/commits/*", of_dataset),
    "dataset": ("dataset/dataset.json", of_dataset),
    "snapshot": ("dataset/snapshots/*", of_dataset),
    "ledger": ("ledger/*", of_ledger),
    "candidate": ("candidates/*/candidate.json", of_candidates),
    "recipe": ("candidates/*/[er]*.json", of_candidates),
    "evidence": ("evidence/*/*", of_evidence),
    "predictions": ("predictions/*/*", of_predictions),
    "stress": ("stress/*/*/*", of_predictions),
    "verdict": ("intake/*/checked.json", of_verdicts),
    "table": ("intake/*/table.parquet", of_verdicts),
    "drift": ("intake/*/drift*.json", of_verdicts),
    "suspects": ("suspects/*", of_suspects),
}
REBUILT = {"predictions", "stress", "verdict", "suspects"}
"""Kinds of which a damaged file counts as missing: what it held is found again."""


def without(kind: str, before: Any, after: Any) -> bool:
    """Whether `after` is `before` less what is found again."""
    if kind in ("predictions", "stress"):
        return all(set(now) <= set(then) for then, now in zip(before, after, strict=False)) or len(after) < len(before)
    if kind == "verdict":
        return all(now[0] is None or now == then for then, now in zip(before, after, strict=True))
    return all(now is None or now == then for then, now in zip(before, after, strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_one_flipped_bit_is_named_healed_or_harmless(site: Run, kept: Kept, seed: int) -> None:
    rng, root = np.random.default_rng(seed), Path(site.settings.store)
    before = {look: look(site) for _, look in KINDS.values()}
    outcomes: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for number in range(FLIPS):
        kind = list(KINDS)[number % len(KINDS)]
        pattern, look = KINDS[kind]
        path = rng.choice(np.array(sorted(root.glob(pattern)), dtype=object))
        bit = int(rng.integers(8 * len(kept[path])))
        data = bytearray(kept[path])
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        where = f"seed {seed}, flip {number}: bit {bit} of {path.relative_to(root)}"
        after, said = looked(look, site)
        put_back(site, kept)
        if said:
            assert names(said, path), f"{where}: {said}"
            outcomes[kind].append("named")
        else:
            same = after == before[look]
            assert same or (kind in REBUILT and without(kind, before[look], after)), where
            outcomes[kind].append("harmless" if same else "found again")
    print({kind: {name: found.count(name) for name in set(found)} for kind, found in outcomes.items()})
    for kind in ("manifest", "commit", "dataset", "snapshot", "ledger", "candidate", "evidence", "table", "drift"):
        assert set(outcomes[kind]) == {"named"}, kind


def looked(look: Callable[[Run], Any], site: Run) -> tuple[Any, str]:
    """What is found, or what an error says: any but ours fails the test."""
    try:
        return look(site), ""
    except XrayError as error:
        return None, str(error)


def names(text: str, path: Path) -> bool:
    """Whether a message names a file, or its neighbour in the chain that says what it should be."""
    number = int(path.stem) if path.stem.isdigit() else -1
    if path.parent.name == "ledger":
        return any(f"entry {n}" in text for n in (number, number + 1)) or "ledger" in text
    if path.parent.name == "commits":
        return any(f"{n:08d}.json" in text for n in (number, number + 1)) or f"commit {number} " in text
    return path.name in text or f"{path.parent.name[:12]}" in text


# The commits are a chain, to its end


def lose_the_last(root: Path) -> None:
    """As a store that was restored from an older copy."""
    sorted((root / "commits").iterdir())[-1].unlink()


def lose_the_last_with_its_manifest(root: Path) -> None:
    place = sorted((root / "commits").iterdir())[-1]
    (root / "manifests" / f"{json.loads(place.read_bytes())['manifest']}.parquet").unlink()
    place.unlink()


def lose_one_between(root: Path) -> None:
    sorted((root / "commits").iterdir())[1].unlink()


def exchange_two(root: Path) -> None:
    one, two = sorted((root / "commits").iterdir())[1:3]
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)


def make_the_last_anew(root: Path) -> None:
    """As somebody who exchanges the labels of a delivery and tidies up behind."""
    place = sorted((root / "commits").iterdir())[-1]
    content = json.loads(place.read_bytes())
    path = root / "manifests" / f"{content['manifest']}.parquet"
    data = exchanged(path, "label")
    path.write_bytes(data)
    place.write_bytes(records.canonical({**content, "digest": records.digest_of(data)}))


def exchanged(path: Path, column: str) -> bytes:
    """A manifest with the values of two rows exchanged, well made otherwise."""
    table = from_parquet(path.read_bytes(), "it")
    one, two = (table.index[table[column] == value][0] for value in sorted(set(table[column]) - {""})[:2])
    table.loc[[one, two], column] = table.loc[[two, one], column].tolist()
    return to_parquet(table, {"delivery": path.stem, "fingerprint": ""})


@pytest.mark.parametrize(
    "change",
    [lose_the_last, lose_the_last_with_its_manifest, lose_one_between, exchange_two, make_the_last_anew],
    ids=lambda change: change.__name__,
)
def test_commits_that_are_not_what_they_were_stop_the_night_and_are_told(
    site: Run, kept: Kept, change: Callable[[Path], None]
) -> None:
    change(Path(site.settings.store) / "dataset")
    with pytest.raises((DatasetError, RegistryError), match="commit"):
        intake_steps.commit_deliveries(site, [])
    told = [finding["text"] for finding in answers.verify(site.settings) if not finding["holds"]]
    ill = [part.text for part in health.check(site.settings) if not part.well]
    assert any("commit" in text for text in told), told
    assert any("commit" in text for text in ill), ill


@pytest.mark.parametrize("tag", [FOLLOWED_TAG, COMMITTED_TAG])
@pytest.mark.parametrize("value", ['{"sequence": 1', '{"sequence": "many"}', '{"sequence": 1, "more": 1}', "[]"])
def test_a_mark_that_can_not_be_read_is_named(site: Run, tag: str, value: str) -> None:
    registry = site.registry()
    client, name = registry._client, site.settings.model_name
    before = client.get_registered_model(name).tags[tag]
    client.set_registered_model_tag(name, tag, value)
    try:
        with pytest.raises(RegistryError, match=f"tag {tag} of the registered model"):
            registry.aliases()
    finally:
        client.set_registered_model_tag(name, tag, before)


def test_the_registry_knows_the_newest_commit_and_takes_later_ones(site: Run) -> None:
    tags = site.registry()._client.get_registered_model(site.settings.model_name).tags
    commits = Commits(site.store().child("dataset"))
    assert json.loads(tags[COMMITTED_TAG]) == {"sequence": 3, "head": commits.digest(3)}


def test_an_older_dataset_that_is_put_back_under_a_night_is_not_taken_for_the_newest(site: Run, kept: Kept) -> None:
    """The night compared before; what it vouches for at its end is less than the registry knows."""
    lose_the_last_with_its_manifest(Path(site.settings.store) / "dataset")
    with pytest.raises(RegistryError, match=r"knows commit 3 .* restore the newest copy of the dataset"):
        identity.vouch(site)
    tags = site.registry()._client.get_registered_model(site.settings.model_name).tags
    assert json.loads(tags[COMMITTED_TAG])["sequence"] == 3


# What is stored is not used unless it is what was committed


@pytest.mark.parametrize("column", ["label", "side"])
def test_a_manifest_that_says_otherwise_is_used_by_nothing(site: Run, kept: Kept, column: str) -> None:
    path = Path(site.settings.store, "dataset", "manifests", "day0.parquet")
    path.write_bytes(exchanged(path, column))
    newest = Ledger(site.store()).entries()[-1].snapshot
    uses: list[Callable[[Dataset], object]] = [
        lambda dataset: dataset.history(),
        lambda dataset: dataset.manifest("day0"),
        lambda dataset: dataset.snapshot(),
        lambda dataset: dataset.open_snapshot(newest),
        lambda dataset: dataset.fingerprint("day0"),
        lambda dataset: intake_steps.find_deliveries(site),
        lambda dataset: model_steps.train(site, newest),
        lambda dataset: bookkeeping.quarantine(site.settings),
        lambda dataset: intake_steps.rejudge(site, "day0"),
    ]
    for use in uses:
        with pytest.raises(Damaged, match=r"manifests/day0.parquet in .* commits/00000001.json names"):
            use(Dataset(site.settings))


def test_dataset_json_is_put_back_from_the_settings_it_was_made_with(site: Run, kept: Kept) -> None:
    path = Path(site.settings.store, "dataset", "dataset.json")
    for damage in (b"", b"\xff", kept[path].replace(b"NORMAL", b"NORMAN"), None):
        path.write_bytes(damage) if damage is not None else path.unlink()
        with pytest.raises(Damaged, match=r"dataset\.json"):
            Dataset(site.settings).manifests()
        intake_steps.find_deliveries(site)
        assert path.read_bytes() == kept[path]
    path.unlink()
    with pytest.raises(Damaged, match=r"dataset\.json .* is missing or not what"):
        intake_steps.find_deliveries(Run(site.settings.model_copy(update={"split_held_out": 0.31})))
    assert not path.exists()


def test_a_damaged_snapshot_is_named_anew_by_the_night(site: Run, kept: Kept) -> None:
    snapshot = Dataset(site.settings).snapshot()
    assert snapshot
    path = Path(site.settings.store, "dataset", "snapshots", f"{snapshot.digest}.json")
    path.write_bytes(kept[path].replace(b"day", b"dax"))
    with pytest.raises(Damaged, match=snapshot.digest):
        Dataset(site.settings).open_snapshot(snapshot.digest)
    assert Dataset(site.settings).snapshot() == snapshot
    assert path.read_bytes() == kept[path]


def test_the_evidence_of_a_decision_is_the_one_the_ledger_names(site: Run, kept: Kept) -> None:
    entry = next(entry for entry in Ledger(site.store()).entries() if entry.kind == "registered")
    path = Path(site.settings.store, entry.decision["evidence"])
    path.write_bytes(kept[path].replace(b'"p_value": ', b'"p_value": 0') + b" ")
    with pytest.raises(Damaged, match=path.stem):
        site.evidence(entry.decision["evidence"])


def test_a_candidate_in_another_ones_place_is_refused(site: Run, kept: Kept) -> None:
    one, two = sorted(Path(site.settings.store).glob("candidates/*/candidate.json"))
    one.write_bytes(kept[two])
    with pytest.raises(Damaged, match="is that of candidate"):
        training.find_candidate(site.store(), one.parent.name)
    recipe = one.with_name("recipe.json")
    one.write_bytes(kept[one])
    recipe.write_bytes(kept[recipe].replace(b'"epochs":2', b'"epochs":3').replace(b'"epochs": 2', b'"epochs": 3'))
    with pytest.raises(XrayError, match=r"recipe.json has digest"):
        lineage.recipe_of(site.store(), one.parent.name)


def test_a_damaged_candidate_is_put_back_from_mlflow(site: Run, kept: Kept) -> None:
    entry = next(entry for entry in Ledger(site.store()).entries() if entry.kind == "registered")
    folder = Path(site.settings.store, "candidates", entry.candidate)
    for name in ("candidate.json", "recipe.json"):
        (folder / name).write_bytes(kept[folder / name].replace(b"0", b"1"))
    model_steps.train(site, entry.snapshot)
    assert {name: (folder / name).read_bytes() for name in ("candidate.json", "recipe.json")} == {
        name: kept[folder / name] for name in ("candidate.json", "recipe.json")
    }
    (folder / "run.json").unlink()
    (folder / "candidate.json").write_bytes(b"{")
    with pytest.raises(XrayError, match=r"candidate\.json|run\.json"):
        model_steps.train(site, entry.snapshot)


@pytest.mark.parametrize("name", ["checked.json", "table.parquet"])
def test_a_damaged_verdict_is_made_anew(settings: Settings, name: str) -> None:
    folder = Path(settings.incoming, "day", "NORMAL")
    folder.mkdir(parents=True)
    for seed in range(4):
        (folder / f"patient{seed}_1.jpeg").write_bytes(jpeg(seed=seed))
    run = Run(settings)
    intake_steps.check_delivery(run, "day")
    path = Path(settings.store, "intake", "day", name)
    whole = path.read_bytes()
    path.write_bytes(whole[:50] + b"x" + whole[51:])
    assert intake_steps.commit_deliveries(run, ["day"]).snapshot == ""
    assert intake_steps.find_deliveries(run) == ["day"]
    assert intake_steps.check_delivery(run, "day").fit
    assert path.read_bytes() == whole
    assert intake_steps.commit_deliveries(run, ["day"]).images == 4


# Other formats, other fields, no JSON: every command says which file


JSON_FILES = {
    "dataset/dataset.json": "dataset.json",
    "dataset/commits/00000002.json": "00000002.json",
    "ledger/00000001.json": "entry 1",
    "candidates/*/candidate.json": "candidate.json",
    "candidates/*/environment.json": "environment.json",
    "evidence/*/*": "evidence/",
    "intake/day1/drift.json": "drift.json",
    "intake/day1/drift-features.json": "drift-features.json",
}


@pytest.mark.parametrize("pattern", JSON_FILES)
@pytest.mark.parametrize("change", [{"format": 99}, {"more": 1}, None], ids=["format", "field", "no JSON"])
def test_other_formats_and_fields_are_named(site: Run, kept: Kept, pattern: str, change: dict[str, int] | None) -> None:
    for path in Path(site.settings.store).glob(pattern):
        content = json.loads(kept[path])
        path.write_bytes(json.dumps({**content, **change}).encode() if change else b"\x80{")
    look = {"dataset": of_dataset, "ledger": of_ledger, "candidates": of_candidates, "evidence": of_evidence}.get(
        pattern.partition("/")[0], of_verdicts
    )
    said = "has format 99; this version reads" if change == {"format": 99} else ""
    with pytest.raises((DatasetError, LedgerError)) as caught:
        look(site)
    text = str(caught.value)
    assert JSON_FILES[pattern] in text
    assert said in text or pattern.startswith("evidence")  # of which the name says that it is another


def test_a_snapshot_of_another_format_is_refused_by_name(site: Run, kept: Kept) -> None:
    snapshot = Dataset(site.settings).snapshot()
    assert snapshot
    folder = Path(site.settings.store, "dataset", "snapshots")
    data = records.canonical({**json.loads(kept[folder / f"{snapshot.digest}.json"]), "format": 99})
    digest = records.digest_of(data)
    (folder / f"{digest}.json").write_bytes(data)
    with pytest.raises(DatasetError, match="has format 99; this version reads 1"):
        Dataset(site.settings).open_snapshot(digest)


@pytest.mark.parametrize("pattern", ["dataset/dataset.json", "dataset/commits/00000002.json", "ledger/00000001.json"])
@pytest.mark.parametrize("change", [{"format": 99}, {"more": 1}, None], ids=["format", "field", "no JSON"])
def test_every_command_refuses_with_one_line(
    site: Run, kept: Kept, monkeypatch: pytest.MonkeyPatch, pattern: str, change: dict[str, int] | None
) -> None:
    path = Path(site.settings.store, pattern)
    path.write_bytes(json.dumps({**json.loads(kept[path]), **change}).encode() if change else b"\x80{")
    for name in ("home", "policy", "patient_key", "device"):
        value = getattr(site.settings, name)
        monkeypatch.setenv(f"XRAY_{name.upper()}", value.get_secret_value() if name == "patient_key" else str(value))
    day = str(Path(site.settings.incoming) / "day1")
    commands = [("verify",), ("health",), ("ingest",), ("retrain", "--set", "epochs=2")]
    commands += [("quarantine",), ("check", day)] if pattern.startswith("dataset") else [("history",)]
    for command in commands:
        if pattern == "dataset/dataset.json" and change != {"format": 99} and command[0] in ("ingest", "retrain"):
            continue  # they put it back
        result = CliRunner().invoke(cli.app, command)
        assert result.exception is not None, command
        assert isinstance(result.exception, XrayError | SystemExit), (command, result.exception)
        assert JSON_FILES[pattern] in f"{result.output} {result.exception}", (command, result.output)
