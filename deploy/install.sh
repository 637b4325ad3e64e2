#!/bin/sh
# Installs what a node, a router and the command line need into a new virtual environment, exactly
# what requirements.lock says: deploy/install.sh FOLDER [EXTRA...]; extras: node cli by default,
# "router cli" leaves RocksDB and Raft out.
set -eu
[ $# -ge 1 ] || { echo "usage: deploy/install.sh FOLDER [EXTRA...]" >&2; exit 2; }
folder=$1
shift
[ $# -ge 1 ] || set -- node cli
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${PYTHON:-python3}" -m venv "$folder"
pip() { "$folder/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }
"$folder/bin/python" tools/lock_entries.py setuptools wheel > "$work/build.txt"
"$folder/bin/python" tools/lock_entries.py --extras "$@" > "$work/runtime.txt"
pip install --require-hashes --no-deps --only-binary :all: -r "$work/build.txt"
# One dependency is source only: it is built with the locked setuptools.
pip install --require-hashes --no-deps --no-build-isolation -r "$work/runtime.txt"
rm -rf build/lib build/bdist.* # what an older build left would get into the wheel
pip wheel --no-deps --no-build-isolation --wheel-dir "$work" .
pip install --no-deps "$work"/mailraft-*.whl
"$folder/bin/mailraft" version
