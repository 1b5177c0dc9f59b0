#!/usr/bin/env bash
# Runs the loader's own tests (no torch, no DALI) against an extension built with ASan and UBSan.
set -euo pipefail
flags='-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g'
target=build/asan-site
rm -rf "$target"
CFLAGS="$flags" LDFLAGS="$flags" .venv/bin/pip install --quiet --no-build-isolation --no-deps \
    --target "$target" --config-settings=build-dir=build/asan --config-settings=cmake.build-type=Debug .
# Python itself leaks on purpose at exit; leaks of the core are looked for by the C tests.
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libstdc++.so.6)" \
    ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc PYTHONPATH="$target" \
    .venv/bin/python -m pytest tests/loader -q -p no:cacheprovider -m "not slow"
