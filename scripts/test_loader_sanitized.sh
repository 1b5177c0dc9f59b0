#!/usr/bin/env bash
# Runs the loader's own tests (no torch, no DALI) against an extension built with sanitizers.  Those of
# S3 are left out: the same C reads from nginx in test_https.py and test_faults.py.
#
#   scripts/test_loader_sanitized.sh [address|thread]     without: both
set -euo pipefail

# Builds the extension with -fsanitize=$2 for itself in build/$1-site, and makes Python find it.
build() {
    local flags="-fsanitize=$2 -fno-sanitize-recover=all -fno-omit-frame-pointer -g"
    target=$PWD/build/$1-site
    rm -rf "$target" "build/$1-report"*
    CFLAGS="$flags" LDFLAGS="$flags" .venv/bin/pip install --quiet --no-build-isolation --no-deps \
        --target "$target" --config-settings=build-dir="build/$1" \
        --config-settings=cmake.build-type=Debug .
    # The editable install's import hook would win over PYTHONPATH.
    cat > "$target/sitecustomize.py" <<'PY'
import sys

sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != "ScikitBuildRedirectingFinder"]
PY
}

# Runs the tests in folder build/$1-site with the environment $2...; shows the first report.
try() {
    local python=(env PYTHONPATH="$target" "${@:2}" .venv/bin/python) report
    "${python[@]}" -c "from tarpon import _core; assert _core.__file__.startswith('$target'), _core"
    "${python[@]}" -m pytest tests/loader -q -n 2 --dist worksteal -p no:cacheprovider \
        -m "not slow or sanitized" \
        --ignore-glob='*/test_torch*.py' --ignore-glob='*/test_dali*.py' \
        --ignore-glob='*/test_lightning.py' --ignore-glob='*/test_coming_from.py' \
        --ignore-glob='*/test_s3*.py' || failed=$?
    for report in build/"$1"-report*; do # pytest has the standard streams, so reports go to files
        [ -f "$report" ] || continue
        cat "$report" >&2
        failed=1
    done
    [ "${failed:-0}" -eq 0 ] || exit "$failed"
}

under_address() {
    build asan address,undefined
    # Python itself leaks on purpose at exit; leaks of the core are looked for by the C tests.
    try asan LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" \
        ASAN_OPTIONS="detect_leaks=0:log_path=$PWD/build/asan-report" PYTHONMALLOC=malloc \
        UBSAN_OPTIONS="log_path=$PWD/build/asan-report:print_stacktrace=1"
}

# CPython and NumPy are not instrumented, but their locks are seen, the GIL too, and that is all
# the order between threads that they make.  Not seen is how glibc's loader hands thread-local
# storage from a thread that ended to the next one: reports from inside it are left out.
# Its own look at that storage is off: where a block of it happens to start 16 bytes into a page,
# TSan takes the bytes before it for a size, and dies asking for 500 TB.
under_thread() {
    build tsan thread
    echo 'race:ld-linux' > build/tsan.supp
    try tsan LD_PRELOAD="$(gcc -print-file-name=libtsan.so)" \
        TSAN_OPTIONS="halt_on_error=1:exitcode=66:intercept_tls_get_addr=0:log_path=$PWD/build/tsan-report:suppressions=$PWD/build/tsan.supp"
}

case "${1:-both}" in
address) under_address ;;
thread) under_thread ;;
both)
    under_address
    under_thread
    ;;
*)
    echo "test_loader_sanitized: sanitizer '$1', expected address or thread" >&2
    exit 2
    ;;
esac
