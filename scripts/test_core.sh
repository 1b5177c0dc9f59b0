#!/usr/bin/env bash
# Builds the C tests and corpus replayers in folder $1 under the sanitizers $2, and runs them.
set -euo pipefail
cmake=.venv/bin/cmake
"$cmake" -S loader -B "$1" -G Ninja -DCMAKE_MAKE_PROGRAM="$PWD/.venv/bin/ninja" \
    -DTARPON_TESTS=ON -DTARPON_SANITIZE="$2" >/dev/null
"$cmake" --build "$1"
.venv/bin/ctest --test-dir "$1" --output-on-failure --timeout 300
