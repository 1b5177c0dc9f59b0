#!/usr/bin/env bash
# Builds the wheel and repairs it, so that it carries libjpeg-turbo; then tries it alone.
set -euo pipefail
rm -rf build/wheel dist
.venv/bin/python -m build --wheel --no-isolation --outdir build/wheel . >/dev/null
PATH="$PWD/.venv/bin:$PATH" .venv/bin/auditwheel repair --wheel-dir dist build/wheel/*.whl
# In an environment of its own, the wheel must import and show its commands.
rm -rf build/wheel-check
python3 -m venv build/wheel-check
build/wheel-check/bin/pip install --quiet --constraint constraints.txt dist/*.whl
(cd build && wheel-check/bin/tarpon --version)
ls -l dist
