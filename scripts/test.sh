#!/usr/bin/env bash
#
# The tests. `make test` and `make test-fast` call this with AMQP_URL and DATABASE_URL set.
#
# ONLY='NAME...' runs the tests with one of these in their name, such as backlogs::pauses, and no others.
#
# FAST=yes runs the unit tests and the modules FAST_MODULES of the others, without a second pair of servers.
#
# WITHOUT_ALONE=yes leaves out the unit tests and what takes the machine for itself: chaos, and the tests that
# hold the product against the clock.
#
# BESIDE is a command to run while the tests do, with what they leave of the processors: they mostly
# wait. Both have to succeed. (Not with any of the above.)
#
# The tests that kill servers get their own private ones, so that the others, which run at the same
# time, keep theirs, even if the first pair is yours. They take turns with one pair, which also
# speaks TLS; those that take minutes have another pair; and those that only need an administrator's
# permissions share one.

set -euo pipefail

# What `make test-fast` runs beside the unit tests: modules whose tests wait for nothing long, break no server
# and need none of the TOOLS. They take about a minute with the unit tests, their servers' start included.
readonly FAST_MODULES=(
    configuration database dependencies given_secrets headers input layout malformed migrations no_retry outcomes
    settings signatures terminal webhook_list
)

# What the tests need beside the servers, as PACKAGE:COMMAND.
readonly TOOLS=(
    prometheus:promtool chromium:chromium systemd:systemd-analyze pgbouncer:/usr/sbin/pgbouncer
    zsh:zsh fish:fish groff-base:groff
)

# While this one causes faults, no other test runs; then it waits for minutes, and others may run.
readonly CHAOS=chaos::nothing_promised_is_lost_and_every_repeat_has_a_cause_whatever_breaks
readonly QUIET='chaos: all faults have struck'

# The tests that measure time: one after another, before all others.
readonly ALONE=(
    admin::attacks::a_flood_of_requests_does_not_block_metrics
    admin::attacks::clients_that_never_read_their_answer_do_not_block_metrics
    admin::attacks::clients_that_send_a_byte_a_second_do_not_block_metrics
    admin::attacks::huge_requests_are_refused_and_do_not_block_metrics
    admin::attacks::idle_connections_are_closed_when_open_files_run_out
    admin::attacks::ten_thousand_idle_connections_do_not_block_metrics
    backlogs::a_burst_for_a_new_receiver_is_not_parked_and_delays_no_neighbour
    backlogs::a_receiver_gets_what_it_missed_once_and_in_order_within_seconds_of_its_return
    directory::every_kind_of_committed_change_is_honoured
    directory::deliveries_honour_a_committed_change_within_a_tenth_of_a_second
    receivers::failing::a_breaker_opens_after_a_second_of_failures_probes_closes_and_the_requests_ramp_up
    receivers::failing::an_overloaded_receiver_gets_half_as_many_requests
    receivers::an_event_for_many_hanging_receivers_reaches_a_healthy_one_at_once_and_so_does_the_next
    receivers::with_the_default_settings_receivers_that_never_answer_delay_nobody
    retries::a_failing_receiver_is_retried_on_schedule_and_its_neighbour_is_asked_once
    shutdown::an_idle_notifier_ends_within_a_second_of_sigint
    shutdown::an_idle_notifier_ends_within_a_second_of_sigterm
)

# The modules whose tests wait for minutes. They run beside the others, in a process of their own: among those they
# would have all places at once, and leave the processors idle.
readonly WAITING=(backlogs refusals)
readonly WAITING_THREADS=6
# The others wait for a shorter time, for some clock or server: many more of them than cores run at once.
readonly THREADS=${TEST_THREADS:-10}

# No test has the machine crash, and a busy disk has had servers wait for half a minute.
export SERVICES_SYNC=no
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
local_dir=${WEBHOOK_NOTIFIER_LOCAL_DIR:-$root/.local}
[[ $local_dir == /* ]] || local_dir=$PWD/$local_dir
export FAULT_SERVICES_DIR=$local_dir/faults
export LONG_FAULT_SERVICES_DIR=$local_dir/long-faults
export SHARED_FAULT_SERVICES_DIR=$local_dir/shared-faults
logs=$local_dir/log
mkdir -p -- "$logs"
rm -f -- "$logs"/*-tests.log
cd "$root"

code=0
# By name, the process groups in the background: still there at the end only if we were told to end.
declare -A groups=()

# shellcheck disable=SC2317  # called by the trap
clean_up() {
    local directory group
    for group in "${groups[@]}"; do kill -- "-$group" 2>/dev/null || true; done
    for directory in "$FAULT_SERVICES_DIR" "$LONG_FAULT_SERVICES_DIR" "$SHARED_FAULT_SERVICES_DIR"; do
        [[ ! -d $directory ]] || WEBHOOK_NOTIFIER_LOCAL_DIR=$directory scripts/services.sh down
    done
}
trap clean_up EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

# amiquip and what it is made of are no longer maintained: say so where a newer compiler refuses them.
compile() {
    local version
    cargo test --locked --no-run "$@" && return
    version=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    cargo build --locked --quiet --package amiquip >"$logs/amiquip.log" 2>&1 || cat >&2 <<TEXT

amiquip, or a crate that it needs, does not compile with $(rustc --version).
At once: build with a toolchain that compiles it, by \`rustup override set $version\`.
For good: nobody maintains these crates, so copy the one that the errors name to a directory, repair it there, and
have Cargo.toml name it in [patch.crates-io]. Most likely it is nom 4.2.3, of which
\`cargo report future-incompatibilities\` tells; src/broker.rs says what the notifier needs of amiquip.
The errors: $logs/amiquip.log
TEXT
    exit 1
}

# What the tests need beside the servers is installed while they are compiled.
install_tools() {
    scripts/install-tools.sh "${TOOLS[@]}" >"$logs/install-tools.log" 2>&1 &
    installation=$!
}

# run NAME ARGUMENTS...: the tests that cargo is told of.
run() {
    local log=$logs/$1-tests.log
    shift
    cargo test --locked "$@" 2>&1 | tee -- "$log" || code=$?
}

# begin NAME COMMAND...: in the background.
begin() {
    local log=$logs/$1.log
    : >"$log"
    set -m
    { "${@:2}" && exit "$code"; } >"$log" 2>&1 &
    groups[$1]=$!
    set +m
}

# What was begun under that name, if it was, has to succeed.
await() {
    [[ -n ${groups[$1]:-} ]] || return 0
    wait "${groups[$1]}" || code=$?
    unset "groups[$1]"
    cat -- "$logs/$1.log"
}

# Once more what failed, where whoever reads the last page finds it.
finish() {
    awk 'FNR == 1 { shown = 0 } /^failures:$/ { shown = 1 } /^test result:/ { shown = 0 } shown' \
        "$logs"/*-tests.log >&2
    exit "$code"
}

run_only() {
    install_tools
    compile --lib --test integration
    # What they are for is perhaps none of these tests; else the test says what it misses.
    wait "$installation" || cat -- "$logs/install-tools.log" >&2
    # shellcheck disable=SC2086  # one word per name
    run only --no-fail-fast --lib --test integration -- --test-threads="$THREADS" $ONLY
    if ((code == 0)) && ! grep -qE '^running [1-9]' "$logs/only-tests.log"; then
        echo "no test has this in its name: $ONLY" >&2
        code=1
    fi
}

run_fast() {
    compile --lib --test integration
    begin unit run unit --lib
    run fast --test integration -- --test-threads="$THREADS" "${FAST_MODULES[@]/%/::}"
    await unit
}

run_all() {
    local fault_log=$logs/fault-services.log fault_servers
    install_tools
    WEBHOOK_NOTIFIER_LOCAL_DIR=$FAULT_SERVICES_DIR scripts/services.sh up --tls >"$fault_log" 2>&1 &
    fault_servers=$!
    compile
    wait "$installation" || { cat -- "$logs/install-tools.log" >&2 && exit 1; }
    wait "$fault_servers" || { cat -- "$fault_log" >&2 && exit 1; }
    if [[ ${WITHOUT_ALONE:-} != yes ]]; then
        begin beside run_beside
        begin chaos run chaos --test integration -- --nocapture --exact "$CHAOS"
        while kill -0 "${groups[chaos]}" 2>/dev/null && ! grep -qF -- "$QUIET" "$logs/chaos.log"; do sleep 1; done
        run alone --test integration -- --test-threads=1 --exact "${ALONE[@]}"
    fi
    local done_with=("--skip=$CHAOS" "${ALONE[@]/#/--skip=}") waiting=("${WAITING[@]/%/::}")
    export TESTS_ALONE_ARE_DONE=1
    begin waiting run waiting --test integration -- --test-threads="$WAITING_THREADS" "${done_with[@]}" "${waiting[@]}"
    run other --test integration -- --test-threads="$THREADS" "${done_with[@]}" "${waiting[@]/#/--skip=}"
    await waiting
    await chaos
    await beside
}

# The unit tests, which need no servers, and BESIDE: with what the others leave of the processors.
# shellcheck disable=SC2317  # called by begin
run_beside() {
    chrt --idle --pid 0 "$BASHPID"
    run unit --no-fail-fast --lib --bins
    run doc --doc
    # In a directory of its own: cargo lets nobody else build in one while it builds there.
    [[ -z ${BESIDE:-} ]] || CARGO_TARGET_DIR=target/beside bash -c "$BESIDE" || code=$?
}

if [[ -n ${ONLY:-} ]]; then
    run_only
elif [[ ${FAST:-} == yes ]]; then
    run_fast
else
    run_all
fi
finish
