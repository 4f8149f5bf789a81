#!/usr/bin/env bash
#
# All tests. `make test` calls this with AMQP_URL and DATABASE_URL set.
#
# The tests that kill servers get a second pair of private ones, so that the others, which run at
# the same time, keep theirs; also where the first pair is yours. This second pair speaks TLS, too.

set -euo pipefail

# What the tests need beside the servers, as PACKAGE:COMMAND.
readonly TOOLS=(prometheus:promtool)

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
export FAULT_SERVICES_DIR=$root/.local/faults
trap 'WEBHOOK_NOTIFIER_LOCAL_DIR=$FAULT_SERVICES_DIR "$root/scripts/services.sh" down' EXIT
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
# Most tests wait for a receiver's clock most of the time: more of them than cores run at once.
cargo test --locked "$@" -- --test-threads="${TEST_THREADS:-16}"
