#!/usr/bin/env bash
# Installs the servers that tests and benchmarks talk to: Ceph and nginx from Debian, Swift from PyPI
# in .venv/servers, a virtual environment that nothing else uses. See tests/servers.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/install_packages.sh servers
[ -x .venv/servers/bin/python ] || .venv/bin/python -m venv .venv/servers
.venv/servers/bin/pip install --quiet --requirement tests/servers/requirements.txt
