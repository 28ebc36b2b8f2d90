"""What a model said of deliveries, in a store: written once, believed only whole, forgotten by radiograph."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from xray_pipeline.base.storage import Store
from xray_pipeline.evaluation import prospective
from xray_pipeline.evaluation.prospective import Acknowledgement, Said

CANDIDATE = "c" * 64
DIGESTS = [f"{number:064x}" for number in range(3)]
SAID = Said(
    CANDIDATE,
    "a" * 64,
    "mon",
    "5" * 64,
    "2026-03-03T02:00:00+00:00",
    0.25,
    ("NORMAL", "PNEUMONIA"),
    DIGESTS,
    np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]]),
)
NOTHING = replace(SAID, delivery="tue", digests=[], probabilities=np.zeros((0, 2)))


def test_what_was_said_is_read_as_it_was_kept(store: Store) -> None:
    for one in (SAID, SAID, NOTHING):
        prospective.keep(store, one)
    (said, nothing), damaged = prospective.read(store, CANDIDATE)
    assert not damaged
    assert (said.delivery, said.threshold, said.classes, said.at) == ("mon", 0.25, SAID.classes, SAID.at)
    assert (said.digests, said.probabilities.tolist()) == (DIGESTS, SAID.probabilities.tolist())
    assert (nothing.delivery, len(nothing.digests)) == ("tue", 0)
    answered = prospective.answered([said, nothing, replace(said, delivery="wed")])
    assert answered["named"].tolist() == [0, 1, 1]
    assert answered["delivery"].tolist() == ["mon"] * 3  # another delivery of the same radiographs adds nothing
    assert prospective.read(store, "d" * 64) == ([], [])


def _removed(store: Store, digests: list[str]) -> int:
    """Remove all traces of radiographs; return from how many files."""
    found = list(prospective.traces(store, set(digests)))
    for trace in found:
        trace.remove(store)
    return len(found)


def test_erased_radiographs_leave_all_records_and_their_deliveries_stay_asked_about(store: Store) -> None:
    prospective.keep(store, SAID)
    prospective.keep(store, replace(SAID, candidate="d" * 64))
    assert _removed(store, DIGESTS[:1]) == 2
    assert _removed(store, DIGESTS[:1]) == 0
    for candidate in (CANDIDATE, "d" * 64):
        (said,), damaged = prospective.read(store, candidate)
        assert not damaged
        assert (said.digests, said.delivery) == (DIGESTS[1:], "mon")
    assert DIGESTS[0].encode() not in b"".join(store.read(entry.key) for entry in store.list("prospective"))
    assert _removed(store, DIGESTS) == 2
    assert prospective.whole(store, CANDIDATE) == {"mon"}


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-5], lambda data: b"PAR1", lambda data: data[:50] + b"x" + data[51:]]
)
def test_a_file_that_is_not_what_its_name_says_is_not_believed(store: Store, damage: object) -> None:
    prospective.keep(store, SAID)
    (key,) = prospective.recorded(store, CANDIDATE).values()
    store.write(key, damage(store.read(key)))  # type: ignore[operator]
    said, damaged = prospective.read(store, CANDIDATE)
    assert said == []
    assert "restore it from a backup" in damaged[0]
    assert _removed(store, DIGESTS) == 1  # nobody knows what it tells of
    assert prospective.whole(store, CANDIDATE) == set()
    assert prospective.recorded(store, CANDIDATE) == {}


def test_a_file_of_another_model_or_delivery_is_not_believed(store: Store) -> None:
    prospective.keep(store, SAID)
    (key,) = prospective.recorded(store, CANDIDATE).values()
    store.write(key.replace("/mon/", "/tue/"), store.read(key))
    said, (damaged,) = prospective.read(store, CANDIDATE)
    assert [one.delivery for one in said] == ["mon"]
    assert "another model or delivery" in damaged


def test_acknowledgements_are_kept_one_after_another(store: Store) -> None:
    given = Acknowledgement("mon", "an alarm", "Ada", "2026-03-03T09:00:00+00:00", "looked into it")
    for one in (given, replace(given, delivery="tue")):
        prospective.acknowledge(store, CANDIDATE, one)
    found, damaged = prospective.acknowledgements(store, CANDIDATE)
    assert [one.delivery for one in found] == ["mon", "tue"]
    assert not damaged
    assert prospective.acknowledgements(store, "d" * 64) == ([], [])
