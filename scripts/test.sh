#!/usr/bin/env bash
#
# All tests. `make test` calls this with AMQP_URL and DATABASE_URL set.
#
# WITHOUT_ALONE=yes skips what needs the machine for itself: chaos, and the tests that measure time.
#
# BESIDE is a command to run during the tests, with the CPU time that they leave: they mostly wait.
# Both have to succeed.
#
# The tests that kill servers get their own private ones, so that the others, which run at the same
# time, keep theirs, even if the first pair is yours. They take turns with one pair, which also
# speaks TLS; those that take minutes have another pair; and those that only need an administrator's
# permissions share one.

set -euo pipefail

# What the tests need besides the servers, as PACKAGE:COMMAND.
readonly TOOLS=(
    prometheus:promtool chromium:chromium systemd:systemd-analyze pgbouncer:/usr/sbin/pgbouncer
    zsh:zsh fish:fish groff-base:groff
)

# While this one causes faults, no other test runs; then it waits for minutes, and others may run.
readonly CHAOS=chaos::nothing_promised_is_lost_and_no_repeat_lacks_a_cause_whatever_breaks
readonly QUIET='chaos: all faults have struck'

# The tests that measure time: one after another, before all others.
readonly ALONE=(
    admin::a_flood_of_requests_keeps_metrics_from_nobody
    admin::clients_that_never_read_their_answer_keep_metrics_from_nobody
    admin::clients_that_send_a_byte_a_second_keep_metrics_from_nobody
    admin::huge_requests_are_refused_and_keep_metrics_from_nobody
    admin::idle_connections_give_way_when_files_run_out
    admin::ten_thousand_idle_connections_keep_metrics_from_nobody
    backlogs::a_burst_for_a_receiver_at_its_first_contact_is_neither_parked_nor_in_the_way_of_a_neighbour
    backlogs::what_a_receiver_has_missed_comes_once_and_in_order_within_seconds_of_its_return
    directory::every_kind_of_committed_change_is_honoured
    directory::from_a_commit_to_the_first_delivery_that_honours_it_is_no_tenth_of_a_second
    receivers::a_breaker_opens_after_a_second_of_failures_probes_closes_and_the_requests_ramp_up
    receivers::a_receiver_that_says_it_has_too_many_requests_gets_half_as_many
    receivers::an_event_that_many_hanging_receivers_want_reaches_a_healthy_one_at_once_and_so_does_the_next
    receivers::with_the_default_settings_receivers_that_never_answer_delay_nobody
    retries::a_failing_receiver_is_asked_again_on_schedule_and_its_neighbour_only_once
    shutdown::an_idle_notifier_ends_within_a_second_of_sigint
    shutdown::an_idle_notifier_ends_within_a_second_of_sigterm
)

# No test crashes the machine, and on a busy disk servers would wait for half a minute.
export SERVICES_SYNC=no
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
local_dir=${WEBHOOK_NOTIFIER_LOCAL_DIR:-$root/.local}
[[ $local_dir == /* ]] || local_dir=$PWD/$local_dir
export FAULT_SERVICES_DIR=$local_dir/faults
export LONG_FAULT_SERVICES_DIR=$local_dir/long-faults
export SHARED_FAULT_SERVICES_DIR=$local_dir/shared-faults
beside='' chaos=''
# shellcheck disable=SC2317  # called by the trap
clean_up() {
    # It still runs only if we were told to end.
    [[ -z $beside ]] || kill "$beside" 2>/dev/null || true
    [[ -z $chaos ]] || pkill -P "$chaos" || true
    local directory
    for directory in "$FAULT_SERVICES_DIR" "$LONG_FAULT_SERVICES_DIR" "$SHARED_FAULT_SERVICES_DIR"; do
        WEBHOOK_NOTIFIER_LOCAL_DIR=$directory "$root/scripts/services.sh" down
    done
}
trap clean_up EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

# Installed while the servers start and the tests are compiled.
install_log=$local_dir/log/install-tools.log
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
beside_log=$local_dir/log/beside-tests.log
if [[ -n ${BESIDE:-} ]]; then
    # In its own directory, since cargo locks the directory that it builds in.
    CARGO_TARGET_DIR=target/beside chrt --idle 0 bash -c "$BESIDE" >"$beside_log" 2>&1 &
    beside=$!
fi
code=0
chaos_log=$local_dir/log/chaos.log
alone_log=$local_dir/log/alone-tests.log
other_log=$local_dir/log/other-tests.log
: >"$chaos_log" >"$alone_log"
if [[ ${WITHOUT_ALONE:-} != yes ]]; then
    cargo test --locked "$@" --test integration -- --nocapture --exact "$CHAOS" >"$chaos_log" 2>&1 &
    chaos=$!
    while kill -0 "$chaos" 2>/dev/null && ! grep -qF -- "$QUIET" "$chaos_log"; do sleep 1; done
    cargo test --locked "$@" --test integration -- --test-threads=1 --exact "${ALONE[@]}" 2>&1 |
        tee -- "$alone_log" || code=$?
fi
# The others mostly wait for some clock: many more of them than there are cores run at once.
TESTS_ALONE_ARE_DONE=1 cargo test --locked "$@" -- --test-threads="${TEST_THREADS:-12}" --exact \
    "--skip=$CHAOS" "${ALONE[@]/#/--skip=}" 2>&1 | tee -- "$other_log" || code=$?
if [[ -n $chaos ]]; then
    wait "$chaos" || code=$?
    chaos=''
    cat -- "$chaos_log"
fi
if [[ -n $beside ]]; then
    wait "$beside" || code=$?
    beside=''
    cat -- "$beside_log" >&2
fi
# The failures once more, at the end, where they are easy to find.
awk 'FNR == 1 { shown = 0 } /^failures:$/ { shown = 1 } /^test result:/ { shown = 0 } shown' \
    "$alone_log" "$chaos_log" "$other_log" >&2
exit "$code"
