#!/usr/bin/env bash
# Fuzzes each target for $1 seconds with clang's libFuzzer, starting from the committed corpus.
# "build" in their place only builds the targets.
set -euo pipefail
if ! command -v clang >/dev/null; then
    echo "fuzz: clang is missing; install it with: apt-get install clang libclang-rt-14-dev" >&2
    exit 1
fi
CC=clang .venv/bin/cmake -S loader -B build/fuzz -G Ninja -DCMAKE_MAKE_PROGRAM="$PWD/.venv/bin/ninja" \
    -DTARPON_TESTS=ON -DTARPON_SANITIZE=address,undefined -DTARPON_FUZZER=fuzzer >/dev/null
.venv/bin/cmake --build build/fuzz
if [ "$1" = build ]; then exit 0; fi
for target in build/fuzz/fuzz_*; do
    [ -x "$target" ] && [ -f "$target" ] || continue
    name=$(basename "$target")
    mkdir -p "build/corpus/${name#fuzz_}"
    "$target" -max_total_time="$1" -print_final_stats=1 "build/corpus/${name#fuzz_}" \
        "loader/core/fuzz/corpus/${name#fuzz_}"
done
