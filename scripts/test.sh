#!/usr/bin/env bash
#
# All tests. `make test` calls this with AMQP_URL and DATABASE_URL set.
#
# The tests that kill servers get a second pair of private ones, so that the others, which run at
# the same time, keep theirs; also where the first pair is yours. This second pair speaks TLS, too.

set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
export FAULT_SERVICES_DIR=$root/.local/faults
trap 'WEBHOOK_NOTIFIER_LOCAL_DIR=$FAULT_SERVICES_DIR "$root/scripts/services.sh" down' EXIT
trap 'exit 143' TERM
trap 'exit 130' INT
WEBHOOK_NOTIFIER_LOCAL_DIR=$FAULT_SERVICES_DIR "$root/scripts/services.sh" up --tls

# Also where nothing is to be installed as a service, the tests look at the units.
command -v systemd-analyze >/dev/null || "$root/scripts/services.sh" install systemd

cd "$root"
# Most tests wait for a receiver's clock most of the time: more of them than cores run at once.
cargo test --locked "$@" -- --test-threads="${TEST_THREADS:-16}"
