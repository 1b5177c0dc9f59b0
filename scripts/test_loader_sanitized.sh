#!/usr/bin/env bash
# Runs the loader's own tests (no torch, no DALI) against an extension built with ASan and UBSan.
set -euo pipefail
flags='-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g'
target=$PWD/build/asan-site
rm -rf "$target"
CFLAGS="$flags" LDFLAGS="$flags" .venv/bin/pip install --quiet --no-build-isolation --no-deps \
    --target "$target" --config-settings=build-dir=build/asan --config-settings=cmake.build-type=Debug .
# The editable install's import hook would win over PYTHONPATH.
cat > "$target/sitecustomize.py" <<'PY'
import sys

sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != "ScikitBuildRedirectingFinder"]
PY
# Python itself leaks on purpose at exit; leaks of the core are looked for by the C tests.
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
export LD_PRELOAD ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc PYTHONPATH="$target"
.venv/bin/python -c "from tarpon import _core; assert _core.__file__.startswith('$target'), _core"
.venv/bin/python -m pytest tests/loader -q -p no:cacheprovider -m "not slow"
