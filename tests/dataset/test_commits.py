"""The chain of commits by itself, in a directory and on S3: one place for one commit, read as it was made."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from xray_pipeline.base.errors import Damaged, DatasetError
from xray_pipeline.base.records import canonical
from xray_pipeline.base.storage import Store
from xray_pipeline.dataset.commits import IDENTITY, IDENTITY_FORMAT, Commits, Identity

OURS = canonical(msgspec.to_builtins(Identity(IDENTITY_FORMAT, ["NORMAL"], "patient", 0.15, 0.2, "0" * 16)))


@pytest.fixture
def commits(store: Store) -> Commits:
    """Twelve commits, so many that S3 is asked for several at once."""
    store.write(IDENTITY, OURS)
    made = Commits(store)
    for number in range(12):
        assert made.add(f"day{number}", f"{number:064x}", number)
    return made


def test_commits_are_read_in_their_order(store: Store, commits: Commits) -> None:
    found = Commits(store).read()
    assert [(one.number, one.manifest) for one in found] == [(n + 1, f"day{n}") for n in range(12)]
    assert Commits(store).versions("day7")[-1].digest == f"{7:064x}"
    with pytest.raises(DatasetError, match="names manifest day99"):
        commits.versions("day99")


def test_threads_share_one_chain(store: Store, commits: Commits) -> None:
    for _ in range(5):
        cold = Commits(store)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _, chain=cold: [one.number for one in chain.read()], range(16)))
        assert found == [list(range(1, 13))] * 16


def test_a_place_is_taken_once(store: Store, commits: Commits) -> None:
    assert Commits(store).add("ours", "a" * 64, 12)
    assert commits.add("theirs", "b" * 64, 12) is None
    assert [one.manifest for one in commits.read()][12:] == ["ours"]  # those already read are kept, new ones are seen


def test_commits_that_go_away_are_missed_by_who_has_read_them(store: Store, commits: Commits) -> None:
    assert len(commits.read()) == 12
    store.delete("commits/00000012.json")
    assert len(Commits(store).read()) == 11  # by itself a shorter chain is whole: the registry knows better
    with pytest.raises(Damaged, match=r"commits/00000012\.json is missing"):
        commits.read()


@pytest.mark.parametrize(
    "key", ["commits/13.json", "commits/00000000.json", "commits/00000013.txt", "commits/a/b.json"]
)
def test_what_is_no_commit_is_named(store: Store, commits: Commits, key: str) -> None:
    store.write(key, b"{}")
    with pytest.raises(Damaged, match=f"{key} in .* is no commit; move it away"):
        Commits(store).read()
    store.delete(key)
