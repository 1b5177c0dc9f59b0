#!/usr/bin/env bash
# Passes the demo's output through and fails unless the model it ends with is a good one.
#
#   make demo | scripts/check_demo.sh [BAR]
set -euo pipefail

bar=${1:-0.85} # the demo's eight classes are easy: chance is 0.13, a trained model above 0.95
found=
while IFS= read -r line; do
    printf '%s\n' "$line"
    if [[ $line == "test accuracy "* ]]; then found=${line#test accuracy }; fi
done

if [[ ! $found =~ ^(0\.[0-9]+|1\.0+)$ ]]; then
    echo "demo: found no line 'test accuracy <share>', expected one; look at the output above" >&2
    exit 1
fi
if ! awk -v found="$found" -v bar="$bar" 'BEGIN { exit !(found > bar) }'; then
    echo "demo: test accuracy $found, expected above $bar; the model or its data is broken" >&2
    exit 1
fi
echo "demo: test accuracy $found is above $bar"
