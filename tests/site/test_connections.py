"""Nothing phones home: a night and its model server where no route leads out, and where trying to leave is counted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from samples import jpeg, picture

# The name server is no machine's (RFC 5737), so that looking a name up counts as well.
ALONE = """
set -e
ip link set lo up
echo "nameserver 192.0.2.53" >"$RESOLVER"
mount --bind "$RESOLVER" /etc/resolv.conf
code=0
"$@" || code=$?
cat /proc/net/snmp /proc/net/snmp6 >"$COUNTS"
exit $code
"""


def attempts(tmp_path: Path, *command: str, **environment: str) -> tuple[int, str]:
    """Run a command without any route; return how many packets found no way out, and what it printed."""
    counts = tmp_path / "counts"
    given = {"RESOLVER": str(tmp_path / "resolv.conf"), "COUNTS": str(counts)}
    done = subprocess.run(
        ["unshare", "--map-root-user", "--net", "--mount", "bash", "-c", ALONE, "alone", *command],
        capture_output=True,
        text=True,
        env=environment | given,
        cwd=tmp_path,
        check=False,
    )
    if not counts.exists():
        pytest.skip(f"no network of its own can be made here: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stderr[-2000:]
    names, values = [line.split() for line in counts.read_text().splitlines() if line.startswith("Ip:")]
    six = dict(line.split() for line in counts.read_text().splitlines() if line.startswith("Ip6"))
    return int(dict(zip(names, values, strict=True))["OutNoRoutes"]) + int(six.get("Ip6OutNoRoutes", 0)), done.stdout


@pytest.fixture
def bare() -> dict[str, str]:
    """An environment that asks no package to be quiet."""
    if not (shutil.which("unshare") and shutil.which("ip")):
        pytest.skip("needs unshare and ip")
    asking = ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK", "GX_ANALYTICS_ENABLED")
    return {name: value for name, value in os.environ.items() if name not in asking and not name.startswith("XRAY_")}


@pytest.mark.slow
def test_who_tries_to_leave_is_counted(bare: dict[str, str], tmp_path: Path) -> None:
    for attempt in ("socket.create_connection(('198.51.100.1', 443))", "socket.getaddrinfo('example.org', 443)"):
        code = f"import contextlib, socket\nwith contextlib.suppress(OSError): {attempt}"
        assert attempts(tmp_path, sys.executable, "-c", code, **bare)[0] > 0


@pytest.mark.slow
def test_a_night_and_its_model_server_connect_to_nobody(bare: dict[str, str], tmp_path: Path) -> None:
    """Check, training, evaluation, the trial's server and registering, with the engine that computes features."""
    for label, bright in (("NORMAL", 0), ("PNEUMONIA", 120)):
        folder = tmp_path / "home" / "incoming" / "first" / label
        folder.mkdir(parents=True)
        for seed in range(40):
            pixels = picture(seed + 1000 * bool(bright)).astype(np.int64)
            pixels[30:60, 20:50] += bright
            name = f"patient{seed + 100 * bool(bright):04d}_1.jpeg"
            (folder / name).write_bytes(jpeg(np.clip(pixels, 0, 255).astype(np.uint8)))
    policy = str(Path(__file__).with_name("browser") / "lenient.toml")
    settings = {"HOME": "home", "POLICY": policy, "PATIENT_KEY": "of the tests, and no secret", "DEVICE": "cpu"}
    settings |= {"SETTLE_SECONDS": "0", "BOOTSTRAP": "100", "STRESS_IMAGES": "10", "SPLIT_HELD_OUT": "0.25"}
    environment = bare | {f"XRAY_{name}": value for name, value in settings.items()} | {"HOME": str(tmp_path)}
    xray = str(Path(sys.executable).with_name("xray"))
    count, said = attempts(tmp_path, xray, "retrain", "--set", "side=64", "--set", "views=1", "--json", **environment)
    assert json.loads(said)["version"] == 1
    assert count == 0
    assert not (tmp_path / "intel").exists()  # what OpenVINO's telemetry remembers a user by
