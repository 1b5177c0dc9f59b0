#!/usr/bin/env bash
# Installs the Debian packages that setup needs and that are missing, and says so.
# With the argument "soak": those that the long proofs need; "servers": the servers of tests/servers.
set -euo pipefail

missing=()
need() { # need PROBE PACKAGE...: the packages, unless the probe succeeds
    if ! bash -c "$1" >/dev/null 2>&1; then missing+=("${@:2}"); fi
}
if [ "${1:-}" = soak ]; then
    need 'command -v valgrind' valgrind
    need 'echo "int LLVMFuzzerTestOneInput(const char *d, long n) { return !d && n; }" |
        clang -fsanitize=fuzzer,address,undefined -x c -o /dev/null -' clang libclang-rt-14-dev
elif [ "${1:-}" = servers ]; then
    need 'command -v radosgw && command -v radosgw-admin' radosgw
    need 'command -v ceph-mon' ceph-mon
    need 'command -v ceph-osd' ceph-osd
    need 'command -v ceph && command -v ceph-authtool' ceph-common
    need 'PATH=$PATH:/usr/sbin command -v nginx' nginx-light
else
    need 'command -v gcc && command -v make' build-essential
    need 'python3 -c "import ensurepip, venv"' python3-venv
    need 'python3 -c "import sysconfig, os; assert os.path.exists(sysconfig.get_path(\"include\") + \"/Python.h\")"' python3-dev
    need 'echo "#include <stdio.h>
#include <jpeglib.h>" | gcc -E -' libjpeg62-turbo-dev
    need 'echo "#include <curl/curl.h>" | gcc -E -' libcurl4-openssl-dev
    need 'command -v git' git
    need 'command -v kubectl' kubernetes-client
fi

if [ ${#missing[@]} -eq 0 ]; then exit 0; fi
echo "installing Debian packages: ${missing[*]}"
if ! command -v apt-get >/dev/null; then
    echo "setup: no apt-get here; install the like of these packages by hand: ${missing[*]}" >&2
    exit 1
fi
root=()
if [ "$(id -u)" -ne 0 ]; then root=(sudo); fi
export DEBIAN_FRONTEND=noninteractive
"${root[@]}" apt-get update -qq
"${root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
# Tests start nginx themselves; it has no business on port 80 of this machine.
if [[ " ${missing[*]} " == *" nginx-light "* ]] && [ -d /run/systemd/system ]; then
    "${root[@]}" systemctl disable --quiet --now nginx
fi
