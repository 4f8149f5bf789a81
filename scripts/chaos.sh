#!/usr/bin/env bash
#
# Runs a single long test with the release binary: `make chaos`, `make soak` and `make drain-kill` call
# this. It starts its own private servers.

set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
WEBHOOK_NOTIFIER_BINARY=$(realpath -- "$1")
export WEBHOOK_NOTIFIER_BINARY
export LONG_FAULT_SERVICES_DIR=$root/.local/$2
export CLUSTER_SERVICES_DIR=$root/.local/cluster
case $2 in
    chaos) test=chaos::nothing_promised_is_lost_and_every_repeat_has_a_cause_whatever_breaks ;;
    soak) test=chaos::soak::under_steady_load_with_failing_receivers_nothing_grows ;;
    drain-kill) test=chaos::drain::killed_while_a_backlog_drains_nothing_is_lost_and_little_repeated ;;
    *)
        echo "there is no long test named $2, only chaos, soak and drain-kill" >&2
        exit 2
        ;;
esac

directory=$LONG_FAULT_SERVICES_DIR
[[ ${CLUSTER:-no} == no ]] || directory=$CLUSTER_SERVICES_DIR
trap 'WEBHOOK_NOTIFIER_LOCAL_DIR=$directory "$root/scripts/services.sh" down' EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

cd "$root"
cargo test --locked --test integration -- --exact "$test" --include-ignored --nocapture
