"""`make audit`: look up every package of requirements.lock in the OSV database of known vulnerabilities.

pip-audit does the asking, from an environment of its own. It is not trusted to fail: a package it had to skip, or a
database it could not reach, is never "no known vulnerabilities". Exit codes: 0 every package was looked up and none is
known to be vulnerable; 1 some are; 2 the audit could not be made, or not of all packages.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PIP_AUDIT = "pip-audit==2.10.1"
OSV = "https://api.osv.dev/v1/query"


@dataclass(frozen=True)
class Audit:
    """What was found: advisories by package, packages that were not looked up, and how many were."""

    vulnerable: dict[str, list[str]]
    skipped: list[str]
    looked_up: int


class NotAudited(Exception):
    """No answer about any package; the message says why."""


def audit(lock: Path, database: str = OSV) -> Audit:
    """Ask the database about every pinned package of a lock file. Raises NotAudited."""
    with tempfile.TemporaryDirectory(prefix="audit-") as folder:
        report = Path(folder) / "report.json"
        done = subprocess.run(
            [
                *(Path(sys.executable).with_name("uv"), "tool", "run", PIP_AUDIT, "--requirement", lock),
                *("--disable-pip", "--no-deps", "--vulnerability-service", "osv", "--osv-url", database),
                *("--format", "json", "--output", report, "--progress-spinner", "off"),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if not report.exists():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise NotAudited(f"{PIP_AUDIT} could not ask {database}: {last[:400]}")
        found = json.loads(report.read_text())["dependencies"]
    return Audit(
        {f"{d['name']} {d['version']}": _advisories(d["vulns"]) for d in found if d.get("vulns")},
        [f"{d['name']}: {d['skip_reason']}" for d in found if "skip_reason" in d],
        sum("vulns" in d for d in found),
    )


def _advisories(found: list[dict[str, list[str] | str]]) -> list[str]:
    """Return each advisory's id with the versions that mend it."""
    return [f"{v['id']} ({', '.join(v['fix_versions']) or 'no version mends it yet'})" for v in found]


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lock", type=Path, default=ROOT / "requirements.lock")
    parser.add_argument("--database", default=OSV, help="address that answers OSV's queries")
    asked = parser.parse_args()
    try:
        found = audit(asked.lock, asked.database)
    except NotAudited as error:
        print(f"audit: NOT MADE: {error}\naudit: nothing is known about any package", file=sys.stderr)
        return 2
    for package, advisories in found.vulnerable.items():
        print(f"{package}: {'; '.join(advisories)}")
    for skipped in found.skipped:
        print(f"not looked up: {skipped}", file=sys.stderr)
    print(f"audit: {found.looked_up} packages looked up, {len(found.vulnerable)} vulnerable")
    return 1 if found.vulnerable else 2 if found.skipped or not found.looked_up else 0


if __name__ == "__main__":
    sys.exit(main())
