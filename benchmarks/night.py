"""Where a night's seconds go: by task, and within each what is start, imports, models, model server and work.

    python benchmarks/night.py --data FOLDER [--images 5000] [--new 200] [--asked 624] [--before CHECKOUT] [--json FILE]

A first night with that many radiographs of FOLDER/<CLASS>/*, then one with `--new` more, each task in a process of its
own, then `xray evaluate` of the champion on `--asked` radiographs. Seconds are by the clock / of CPU, which other load
on the machine disturbs less. With a checkout of another commit its nights run, too, in turn, by the same environment,
and the ratios to it are printed: of all, and without `start`, which is Airflow's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from one_task import PHASES
from tasks import ROOT, Site, Spent, by_task, deliver


def measured(
    sites: Mapping[str, Site], source: Path, images: int, new: int, asked: int
) -> dict[str, dict[str, list[Spent]]]:
    """Run both nights and the command at each site, in turn; return what their processes took, by night and site."""
    found: dict[str, dict[str, list[Spent]]] = {}
    for night, first, count in (("first", 0, images), ("new", images, new)):
        found[night] = {}
        for name, site in sites.items():
            deliver(site.incoming, night, source, first, count)
            found[night][name] = site.night()
            print("\n".join(table(f"{night} night, {count} radiographs, {name}", found[night][name])), flush=True)
    for name, site in sites.items():
        deliver(site.home, "asked", source, 0, asked)
        took = site.xray("evaluate", "models:/chest-xray@champion", "--data", str(site.home / "asked"), "--json")
        found.setdefault("evaluate", {})[name] = [took]
        print(f"xray evaluate, {asked} radiographs, {name}: {took.seconds:.1f} / {took.cpu_seconds:.1f}", flush=True)
    return found


def table(title: str, spent: Sequence[Spent]) -> list[str]:
    """Return a night as lines of Markdown."""
    tasks = by_task(spent).values()
    lines = ["", f"| {title} | whole | {' | '.join(PHASES)} |", f"| --- {'| --- ' * (1 + len(PHASES))}|"]
    for task in tasks:
        lines.append(_line(task.task, (task.seconds, task.cpu_seconds), task.phases))
    phases = {phase: [sum(task.phases[phase][n] for task in tasks) for n in (0, 1)] for phase in PHASES}
    return [*lines, _line("all", _whole(spent), phases)]


def _line(name: str, whole: Sequence[float], phases: Mapping[str, Sequence[float]]) -> str:
    cells = [f"{clock:.1f} / {cpu:.1f}" for clock, cpu in (whole, *(phases[phase] for phase in PHASES))]
    return f"| {' | '.join([name, *cells])} |"


def _whole(spent: Sequence[Spent]) -> tuple[float, float]:
    return sum(task.seconds for task in spent), sum(task.cpu_seconds for task in spent)


def ratios(found: Mapping[str, Mapping[str, Sequence[Spent]]]) -> dict[str, dict[str, float]]:
    """Return this checkout's seconds over the other's, of each night."""
    said = {}
    for night, sites in found.items():
        now, before = _whole(sites["now"]), _whole(sites["before"])
        own, theirs = (sum(sum(s[1] for p, s in t.phases.items() if p != "start") for t in sites[w]) for w in sites)
        said[night] = {
            "by_clock": now[0] / before[0],
            "by_cpu": now[1] / before[1],
            "by_cpu_without_start": own / theirs,
        }
    return said


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="radiographs of 224 pixels by class")
    parser.add_argument("--images", type=int, default=5000, help="of the first night")
    parser.add_argument("--new", type=int, default=200, help="of the second")
    parser.add_argument("--asked", type=int, default=624, help="of `xray evaluate`")
    parser.add_argument("--before", type=Path, help="a checkout to compare with")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="xray-night-") as name:
        checkouts = {"now": ROOT, **({"before": asked.before.resolve()} if asked.before else {})}
        sites = {which: Site(Path(name, which), checkout) for which, checkout in checkouts.items()}
        found = measured(sites, asked.data, asked.images, asked.new, asked.asked)
    result: dict[str, Any] = {
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "images": asked.images,
        "new": asked.new,
        "nights": {
            night: {site: [asdict(t) for t in spent] for site, spent in of.items()} for night, of in found.items()
        },
    }
    if asked.before:
        result["ratios"] = ratios(found)
        for night, ratio in result["ratios"].items():
            print(f"{night}: {', '.join(f'{value:.2f} {how}' for how, value in ratio.items())}")
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
