#!/usr/bin/env bash
# Cross-builds the C tests and corpus replayers for arm64 in folder $1 and runs them under qemu.
# `--install` as $1 installs the Debian packages that takes, arm64 libraries among them.
set -euo pipefail

packages=(qemu-user-static gcc-aarch64-linux-gnu libc6-dev-arm64-cross libjpeg62-turbo-dev:arm64)
if [ "$1" = --install ]; then
    root=()
    if [ "$(id -u)" -ne 0 ]; then root=(sudo); fi
    "${root[@]}" dpkg --add-architecture arm64
    "${root[@]}" apt-get update -qq
    "${root[@]}" apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
    exit
fi
if ! command -v qemu-aarch64-static >/dev/null || ! command -v aarch64-linux-gnu-gcc >/dev/null ||
    [ ! -e /usr/lib/aarch64-linux-gnu/libjpeg.so ]; then
    echo "arm64: a cross compiler, qemu or an arm64 libjpeg is missing; install them with:" \
        "scripts/test_core_arm64.sh --install" >&2
    exit 1
fi
cmake=.venv/bin/cmake
"$cmake" -S loader -B "$1" -G Ninja -DCMAKE_MAKE_PROGRAM="$PWD/.venv/bin/ninja" \
    -DTARPON_TESTS=ON -DTARPON_SANITIZE= \
    -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
    -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_LIBRARY_ARCHITECTURE=aarch64-linux-gnu \
    -DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64-static >/dev/null
"$cmake" --build "$1"
.venv/bin/ctest --test-dir "$1" --output-on-failure --timeout 600 -j 2
