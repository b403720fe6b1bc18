#!/usr/bin/env bash
# The demo of the wheel, in an empty environment outside the checkout, ends with the figures of the checkout, to the last
# digit. `BIN` is a folder with the python that has the checkout and its dev extra.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
bin=$(cd "${BIN:-$root/.venv/bin}" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

"$bin/python" -m build --wheel --outdir dist "$root"
"$bin/python" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check -c "$root/constraints.txt" \
    "$(ls "$work"/dist/*.whl)[slides,report]"

# The environment of the caller may lead to the checkout; the wheel sees none of it.
HISTOFLOW_CACHE="$work/cache-wheel" env -u PYTHONPATH venv/bin/histoflow demo --out wheel
env -u PYTHONPATH venv/bin/python -c "import histoflow, sys; sys.exit(not histoflow.__file__.startswith('$work'))"
HISTOFLOW_CACHE="$work/cache-checkout" PYTHONPATH="$root/src" \
    "$bin/python" -c "from histoflow.cli import main; main()" demo --out checkout

"$bin/python" "$root/.ci/same_figures.py" wheel checkout
