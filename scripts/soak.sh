#!/usr/bin/env bash
# Installs what the long proofs need and is missing, then runs them; see tests/soak/__main__.py.
set -euo pipefail
scripts/install_packages.sh soak
exec .venv/bin/python -m tests.soak
