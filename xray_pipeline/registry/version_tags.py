"""The tags of a version in MLflow, few and short: what a person reads, and two with digests.

    xray.status, xray.decided, xray.recipe, xray.night   what became of it, the entry that says so, what made it
    xray.candidate                                       the digest by which a version is found, once
    xray.digests                                         all others

Versions that were registered earlier have a tag for each digest; those are read as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

DIGESTS = "xray.digests"
OUTDATED = ("xray.ledger-entry", "xray.decision", "xray.since", "xray.by", "xray.why")
"""Tags that earlier versions have and that nobody renews: the description says all of it."""


def digests(artifact: str, **others: str) -> str:
    """Return the tag that names digests: of the files in full, because it is read back, of all others the beginning."""
    return ", ".join([f"artifact {artifact}", *(f"{what} {digest[:12]}" for what, digest in others.items())])


def artifact_of(tags: Mapping[str, str]) -> str:
    """Return the digest over all files of a version or a logged model, "" where its tags name none."""
    found = re.search(r"\bartifact ([0-9a-f]{64})\b", tags.get(DIGESTS, ""))
    return found.group(1) if found else tags.get("xray.artifact", "")
