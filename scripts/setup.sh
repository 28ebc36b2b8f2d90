#!/usr/bin/env bash
# Makes .venv from requirements.lock. A second run with nothing changed ends at once.
# Python: $PYTHON if set, else the first of python3, python3.13, python3.12, python3.11 that is 3.11 to 3.13.
set -euo pipefail
cd "$(dirname "$0")/.."
exec 9<.
flock -n 9 || { echo "setup: another one is under way; waiting for it" >&2 && flock 9; }

venv=.venv
stamp=$venv/.set-up
wanted=$({ echo "$PWD"; cat requirements.lock pyproject.toml scripts/setup.sh; } | cksum)
if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && [ -x "$venv/bin/python" ]; then exit 0; fi

supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; }

for python in ${PYTHON:-python3 python3.13 python3.12 python3.11} none; do
    supported "$python" && break
done
if [ "$python" = none ]; then
    echo "setup: Python 3.11, 3.12 or 3.13 is needed; ${PYTHON:-python3} is $("${PYTHON:-python3}" --version 2>&1 || true)." \
        "Install one, or name it: make setup PYTHON=/path/to/python" >&2
    exit 1
fi

# What pip is configured to use (`pip config list`), for uv, which doesn't read it. All values of a key, in one line.
configured() {
    "$venv/bin/python" -m pip config list 2>/dev/null \
        | sed -n "s/^[^=]*\.$1='\(.*\)'\$/\1/p" | sed 's/\\n/ /g' | tr ' ' '\n' | awk 'NF && !seen[$0]++' | paste -sd "$2" -
}

# A .venv that was moved, or whose Python is gone or too old, can't be mended.
if ! supported "$venv/bin/python" || ! grep -qsF "$PWD/$venv" "$venv/bin/activate"; then
    echo "setup: making $venv with $("$python" --version)"
    rm -rf "$venv"
    "$python" -m venv "$venv" || { echo "setup: $python can't make one; Debian: apt install python3-venv" >&2; exit 1; }
fi
rm -f "$stamp"

uv=$(grep '^uv==' requirements.lock)
[ "$("$venv/bin/uv" --version 2>/dev/null | cut -d' ' -f2)" = "${uv#uv==}" ] \
    || "$venv/bin/python" -m pip install -qq --disable-pip-version-check "$uv"

links=$(configured find-links ,)
extra=$(configured extra-index-url ' ')
index=$(configured index-url ' ')
cert=$(configured cert ' ')
if [ -n "$links" ]; then export UV_FIND_LINKS="${UV_FIND_LINKS:-$links}"; fi
if [ -n "$index" ]; then export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-${index%% *}}"; fi
if [ -n "$cert" ]; then export SSL_CERT_FILE="${SSL_CERT_FILE:-${cert%% *}}"; fi
if [ -n "$extra" ]; then # pip takes the best version of all indexes; uv, unless told, what the first one has
    export UV_EXTRA_INDEX_URL="${UV_EXTRA_INDEX_URL:-$extra}" UV_INDEX_STRATEGY="${UV_INDEX_STRATEGY:-unsafe-best-match}"
fi

echo "setup: installing $(grep -c == requirements.lock) packages, 6 GB with torch's CUDA build, and compiling them"
install=("$venv/bin/uv" pip install --python "$venv/bin/python")
if [ ! -t 2 ]; then install+=(--quiet); fi # bars on a terminal, no list of packages in a log
"${install[@]}" --compile-bytecode --requirements requirements.lock
"${install[@]}" --quiet --no-deps --no-build-isolation --editable .
echo "$wanted" >"$stamp"
echo "setup: done in $SECONDS s"
