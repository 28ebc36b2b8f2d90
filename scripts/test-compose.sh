#!/usr/bin/env bash
# Runs the smoke test with this machine's container engine; where there is none, with the one that tools beside the
# checkout start (../shared/tools/docker-lab) and stop afterwards. Skips, and says why, where no engine can run.
set -euo pipefail
cd "$(dirname "$0")/.."
lab=../shared/tools/docker-lab/docker-lab

if docker compose version &>/dev/null && docker info &>/dev/null; then
    exec python3 scripts/smoke.py
fi
if [ ! -x "$lab" ]; then
    echo "test-compose: skipped: no Docker engine with Compose answers here"
    exit 0
fi
if [ "$(id -u)" != 0 ]; then
    echo "test-compose: skipped: no Docker engine with Compose answers here, and starting one takes root"
    exit 0
fi
free=$(df --output=avail --block-size=G /var/lib | tail -n 1 | tr -dc 0-9)
if [ "$free" -lt 25 ]; then
    echo "test-compose: skipped: $free GB are free in /var/lib; an engine with the images of this stack takes 20"
    exit 0
fi
[ -S /run/docker-lab/docker.sock ] || trap '"$lab" down' EXIT # one that was up before stays up
if ! settings=$("$lab" up); then
    echo "test-compose: skipped: no Docker engine with Compose answers here, and none could be started (see above)"
    exit 0
fi
eval "$settings"
python3 scripts/smoke.py
docker image prune --force >/dev/null # what an earlier build left without a name
