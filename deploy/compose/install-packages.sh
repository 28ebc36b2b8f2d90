#!/bin/sh
# Installs requirements.txt, at the versions of requirements.lock, into a new virtual environment: $1.
# uv is quick but doesn't read pip's settings: an own index or certificate of the build machine is handed over.
set -eu
venv=$1

setting() { # all values of one of pip's keys, one a line
    pip config list 2>/dev/null | sed -n "s/^[^=]*\.$1='\(.*\)'\$/\1/p" | sed 's/\\n/ /g' | tr ' ' '\n' | awk 'NF && !seen[$0]++'
}

python -m venv "$venv"
pip install --quiet --disable-pip-version-check --no-cache-dir --constraint requirements.lock uv

links=$(setting find-links | paste -sd ,)
extra=$(setting extra-index-url | paste -sd ' ')
index=$(setting index-url | head -1)
cert=$(setting cert | head -1)
if [ -n "$links" ]; then export UV_FIND_LINKS="$links"; fi
if [ -n "$extra" ]; then export UV_EXTRA_INDEX_URL="$extra" UV_INDEX_STRATEGY=unsafe-best-match; fi
if [ -n "$index" ]; then export UV_DEFAULT_INDEX="$index"; fi
if [ -n "$cert" ]; then export SSL_CERT_FILE="$cert"; fi
unset PYTHONDONTWRITEBYTECODE
uv pip install --python "$venv/bin/python" --compile-bytecode --link-mode copy --quiet \
    --constraint requirements.lock --requirements requirements.txt
