"""Drift alarms of deliveries: kept beside their intake, standing until a person acknowledges them.

    intake/<key>/drift.json              what the check found: pixels, labels
    intake/<key>/drift-features.json     what the training machine found: frozen features
    intake/<key>/acknowledged-<n>.json   who acknowledged which alarms of exactly these files, when and why; write-once

An acknowledgement is for the alarms that stood when it was given: one that comes later stands again. The trade-off: a
delivery that changes before it is committed loses its acknowledgements, because they were for other files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from xray_pipeline.base import records
from xray_pipeline.base.errors import Damaged, DeliveryError
from xray_pipeline.base.storage import Store
from xray_pipeline.intake.places import VERDICT, intake_key

if TYPE_CHECKING:
    from xray_pipeline.intake.drift import Drift

CHECKED, FEATURES = "drift.json", "drift-features.json"


@dataclass(frozen=True)
class Terms:
    """What a drift alarm of a delivery means: a person has acknowledged those of the channels `acknowledged`, and with
    `holds_up` the policy in force promotes nothing that was trained on a delivery while another one of it stands."""

    acknowledged: Collection[str] = ()
    holds_up: bool = False


NONE_ACKNOWLEDGED: Final = Terms()


def keep(store: Store, key: str, fingerprint: str, drift: Drift | None, name: str = CHECKED) -> None:
    """Keep what was measured of a delivery with that listing, of its features what was measured first.

    Features are compared once: with which deliveries depends on the snapshot that the one who is first looks at. Raises
    StorageUnavailable.
    """
    if drift is not None:
        content = {"fingerprint": fingerprint, **drift.to_dict()}
        records.write(store, intake_key(key, name), content, if_absent=name == FEATURES)


def acknowledged(store: Store, key: str, fingerprint: str) -> tuple[str, ...]:
    """Return the channels whose alarms a person has acknowledged for exactly these files, sorted."""
    given = [given for given in _given(store, key) if fingerprint in given["fingerprints"]]
    return tuple(sorted({name for one in given for name in one["alarms"]}))


def features_compared(store: Store, key: str) -> bool:
    """Whether a delivery's features were compared with the dataset's."""
    return store.exists(intake_key(key, FEATURES))


def standing(store: Store, keys: Iterable[str]) -> tuple[str, ...] | None:
    """Return the alarms of committed deliveries that nobody has acknowledged, each as "delivery: channels".

    None when the features of one of them were never compared: what is not known is not "no alarm".
    """
    said = []
    for key in keys:
        if not features_compared(store, key):
            return None
        if names := of_delivery(store, key):
            said.append(f"{key}: {' and '.join(names)}")
    return tuple(said)


def lines(store: Store, keys: Iterable[str], holds_up: bool) -> tuple[str, ...]:
    """Say the alarms of deliveries that stand, a line each, which starts with "Drift alarm:".

    `holds_up` is as in `Terms`. Raises StorageUnavailable, DatasetError.
    """
    until = "it holds up promotion until acknowledged" if holds_up else "nobody has acknowledged it"
    standing = {key: of_delivery(store, key) for key in keys}
    return tuple(
        f"Drift alarm: {key} differs from the dataset in {' and '.join(names)}; {until}."
        for key, names in standing.items()
        if names
    )


def acknowledgements(store: Store, keys: Iterable[str]) -> tuple[str, ...]:
    """Return who acknowledged which alarms of these deliveries and why, a sentence each without its full stop."""
    said = []
    for key in keys:
        fingerprints = {drift["fingerprint"] for drift in _measurements(store, key)}
        for given in _given(store, key):
            if fingerprints.intersection(given["fingerprints"]):
                by = f"acknowledged by {given['who']} on {given['at'][:10]}"
                said.append(f"{key}: {' and '.join(given['alarms'])}, {by}: {given['why'].rstrip('. ')}")
    return tuple(said)


def of_delivery(store: Store, key: str) -> tuple[str, ...]:
    """Return the channels of one delivery whose alarms nobody has acknowledged, sorted."""
    raised: set[str] = set()
    for drift in _measurements(store, key):
        raised |= set(drift["alarms"]) - set(acknowledged(store, key, drift["fingerprint"]))
    return tuple(sorted(raised))


def raised(store: Store, seen: dict[tuple[str, str], bool]) -> list[str]:
    """Return the keys of all deliveries, committed or not, that ever raised an alarm, sorted; settled ones too.

    `seen` remembers, between calls, whether an object of that name and version holds one. Raises DatasetError,
    StorageUnavailable.
    """
    files = {(entry.key, entry.version) for entry in store.list("intake") if entry.key.endswith((CHECKED, FEATURES))}
    new = sorted(files - seen.keys())
    for one, data in zip(new, records.read_all(store, [key for key, _ in new]), strict=True):
        seen[one] = bool(records.opened(data, dict[str, Any], f"{one[0]} in {store.uri}")["alarms"])
    return sorted({key.split("/")[1] for key, version in files if seen[key, version]})


def p_values(store: Store, key: str) -> dict[str, float]:
    """Return the p value of each channel of a delivery that was measured. Raises DatasetError, StorageUnavailable."""
    channels = [channel for result in _measurements(store, key) for channel in result["channels"]]
    return {channel["name"]: channel["p"] for channel in channels if channel["p"] is not None}


def acknowledge(store: Store, key: str, who: str, why: str) -> dict[str, Any]:
    """Acknowledge the alarms of a delivery that stand now; return delivery, alarms, who, why and at.

    A rejected delivery is judged anew by the next check. Raises DeliveryError when no alarm stands or `why` is empty.
    """
    if not why.strip():
        raise DeliveryError(f"acknowledging drift alarms of delivery {key} takes a reason")
    names = of_delivery(store, key)
    if not names:
        raise DeliveryError(f"no drift alarm of delivery {key} stands; there is nothing to acknowledge")
    fingerprints = sorted({drift["fingerprint"] for drift in _measurements(store, key) if drift["alarms"]})
    number = len(_given(store, key)) + 1
    given = {"alarms": list(names), "who": who, "why": why, "at": records.moment()}
    content, name = {"fingerprints": fingerprints, **given}, intake_key(key, f"acknowledged-{number}.json")
    if not records.write(store, name, content, if_absent=True):
        raise DeliveryError(f"somebody else acknowledged alarms of delivery {key} at this moment; look again")
    # A rejection was made with the alarms standing; a fit delivery's verdict is needed for its commit.
    verdict = intake_key(key, VERDICT)
    with contextlib.suppress(Damaged):  # it is judged anew anyway
        if store.exists(verdict) and not records.read(store, verdict, dict[str, Any])["fit"]:
            store.delete(verdict)
    return {"delivery": key, **given}


def _measurements(store: Store, key: str) -> list[dict[str, Any]]:
    names = (intake_key(key, name) for name in (CHECKED, FEATURES))
    return [records.read(store, name, dict[str, Any]) for name in names if store.exists(name)]


def _given(store: Store, key: str) -> list[dict[str, Any]]:
    """Return the acknowledgements of a delivery, those of its earlier files too."""
    names = sorted(e.key for e in store.list(f"intake/{key}") if e.key.startswith(intake_key(key, "acknowledged-")))
    return [records.read(store, name, dict[str, Any]) for name in names]
