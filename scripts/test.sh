#!/usr/bin/env bash
#
# All tests. `make test` calls this with AMQP_URL and DATABASE_URL set.
#
# BESIDE is a command to run while the tests do, with what they leave of the processors: they mostly
# wait. Both have to succeed.
#
# The tests that kill servers get private ones of their own, so that the others, which run at the same
# time, keep theirs; also where the first pair is yours. They take turns with one pair, which speaks TLS,
# too; those that take minutes have another; and those that only need RabbitMQ's own tool share one.

set -euo pipefail

# What the tests need beside the servers, as PACKAGE:COMMAND.
readonly TOOLS=(prometheus:promtool chromium:chromium systemd:systemd-analyze pgbouncer:/usr/sbin/pgbouncer)

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
export FAULT_SERVICES_DIR=$root/.local/faults
export LONG_FAULT_SERVICES_DIR=$root/.local/long-faults
export SHARED_FAULT_SERVICES_DIR=$root/.local/shared-faults
beside=''
# shellcheck disable=SC2317  # called by the trap
clean_up() {
    # Still there only if we were told to end.
    [[ -z $beside ]] || kill "$beside" 2>/dev/null || true
    local directory
    for directory in "$FAULT_SERVICES_DIR" "$LONG_FAULT_SERVICES_DIR" "$SHARED_FAULT_SERVICES_DIR"; do
        WEBHOOK_NOTIFIER_LOCAL_DIR=$directory "$root/scripts/services.sh" down
    done
}
trap clean_up EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

# Installed while the servers start and the tests are compiled.
install_log=$root/.local/log/install-tools.log
mkdir -p -- "${install_log%/*}"
"$root/scripts/install-tools.sh" "${TOOLS[@]}" >"$install_log" 2>&1 &
installation=$!

WEBHOOK_NOTIFIER_LOCAL_DIR=$FAULT_SERVICES_DIR "$root/scripts/services.sh" up --tls

cd "$root"
cargo test --locked --no-run "$@"
if ! wait "$installation"; then
    cat -- "$install_log" >&2
    exit 1
fi
beside_log=$root/.local/log/beside-tests.log
if [[ -n ${BESIDE:-} ]]; then
    # In a directory of its own: cargo lets nobody else build in one while it builds there.
    CARGO_TARGET_DIR=target/beside chrt --idle 0 bash -c "$BESIDE" >"$beside_log" 2>&1 &
    beside=$!
fi
code=0
# Most tests wait for a receiver's clock most of the time: more of them than cores run at once.
cargo test --locked "$@" -- --test-threads="${TEST_THREADS:-20}" || code=$?
if [[ -n $beside ]]; then
    wait "$beside" || code=$?
    beside=''
    cat -- "$beside_log" >&2
fi
exit "$code"
