#!/usr/bin/env bash
# Builds the wheel and repairs it; checks that what is left to the system is glibc alone.
set -euo pipefail
rm -rf build/wheel dist
.venv/bin/python -m build --wheel --no-isolation --outdir build/wheel . >/dev/null
PATH="$PWD/.venv/bin:$PATH" .venv/bin/auditwheel repair --wheel-dir dist build/wheel/*.whl
.venv/bin/auditwheel show dist/*.whl | head -6
ls -l dist
