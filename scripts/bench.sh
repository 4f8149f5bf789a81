#!/usr/bin/env bash
#
# Measures a binary: scripts/bench.sh BINARY [SCENARIO...]. `make bench` calls this. It starts its
# own private servers, and stops everything that it has started.

set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
WEBHOOK_NOTIFIER_BINARY=$(realpath -- "$1")
export WEBHOOK_NOTIFIER_BINARY
export WEBHOOK_NOTIFIER_LOCAL_DIR=$root/.local/bench
shift

cd "$root"
# Some scenarios' receivers have over five hundred connections, each with two file descriptors.
[[ $(ulimit -n) == unlimited ]] || (($(ulimit -n) >= 8192)) || ulimit -S -n 8192 || true
# Compile before anything is measured.
cargo bench --locked --no-run --bench bench

benchmark=''
# shellcheck disable=SC2317  # called by the trap
stop() {
    # The notifier and the loops are in the benchmark's process group.
    [[ -z $benchmark ]] || kill -TERM -- "-$benchmark" 2>/dev/null || true
    scripts/services.sh down
}
trap stop EXIT
trap 'exit 143' TERM
trap 'exit 130' INT
scripts/services.sh up
# Into a variable first: `eval "$(…)"` would hide a failure.
urls=$(scripts/services.sh env)
set -a
eval "$urls"
set +a
# In its own process group.
set -m
cargo bench --locked --quiet --bench bench -- "$@" &
benchmark=$!
set +m
code=0
wait "$benchmark" || code=$?
benchmark=''
exit "$code"
