#!/usr/bin/env bash
#
# Runs the tests. `make test` and `make test-fast` call this with AMQP_URL and DATABASE_URL set.
#
# ONLY='NAME...' runs only the tests with one of these in their name, such as backlogs::pauses.
#
# FAST=yes runs the unit tests and the modules in FAST_MODULES, without a second pair of servers.
#
# WITHOUT_ALONE=yes leaves out the unit tests, and those that need the machine for themselves: chaos, and the
# tests that measure time (ALONE).
#
# BESIDE is a command that runs beside the tests at idle priority, since they mostly wait. Both must succeed.
# (Ignored with any of the above.)
#
# The tests that kill servers have private servers of their own, so that the others can run at the same
# time, even if the first pair is yours. They take turns with one pair, which also accepts TLS. Those that
# take minutes have another pair, and those that only need an administrator's permissions share a third.

set -euo pipefail

# What `make test-fast` runs beside the unit tests: modules whose tests have no long waits, break no server and
# need none of the TOOLS. Together they take about a minute, including the start of the servers.
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
    shutdown::an_idle_notifier_ends_within_a_second_of_sigint
    shutdown::an_idle_notifier_ends_within_a_second_of_sigterm
)

# This one measures time too, but sends a request only every few seconds: it runs beside those.
readonly BESIDE_ALONE=retries::a_failing_receiver_is_retried_on_schedule_and_its_neighbour_is_asked_once

# The modules whose tests wait for minutes, or for their turn with the servers that they kill. They run in a process
# of their own: in the same one as the others, they would occupy all threads at once and leave the CPUs idle.
readonly WAITING=(backlogs faults refusals restored)
readonly WAITING_THREADS=8
# The others mostly wait, too, for timers and servers, but not as long: many more of them than cores run at once.
readonly THREADS=${TEST_THREADS:-10}

# No test crashes the machine, so servers needn't sync; with a busy disk, that took up to half a minute.
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
# The process groups in the background, by name. At the end some are left only if we were interrupted.
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

# amiquip and some of its dependencies are unmaintained: if a newer compiler refuses them, say what to do.
compile() {
    local version
    cargo test --locked --no-run "$@" && return
    version=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    cargo build --locked --quiet --package amiquip >"$logs/amiquip.log" 2>&1 || cat >&2 <<TEXT

amiquip, or a crate that it needs, does not compile with $(rustc --version).
For now: build with a toolchain that compiles it: \`rustup override set $version\`.
For good: these crates are unmaintained, so copy the one that the errors name to a directory, fix it there, and
name that directory in [patch.crates-io] of Cargo.toml. Most likely it is nom 4.2.3: see
\`cargo report future-incompatibilities\`. src/broker.rs says what the notifier needs from amiquip.
The errors are in $logs/amiquip.log
TEXT
    exit 1
}

# Installs the TOOLS in the background, while the tests are compiled.
install_tools() {
    scripts/install-tools.sh "${TOOLS[@]}" >"$logs/install-tools.log" 2>&1 &
    installation=$!
}

# run NAME ARGUMENTS...: runs `cargo test` with these arguments, and keeps its output.
run() {
    local log=$logs/$1-tests.log
    shift
    cargo test --locked "$@" 2>&1 | tee -- "$log" || code=$?
}

# begin NAME COMMAND...: runs a command in the background.
begin() {
    local log=$logs/$1.log
    : >"$log"
    set -m
    { "${@:2}" && exit "$code"; } >"$log" 2>&1 &
    groups[$1]=$!
    set +m
}

# await NAME: waits for the command that began under this name, if one did. It must succeed.
await() {
    [[ -n ${groups[$1]:-} ]] || return 0
    wait "${groups[$1]}" || code=$?
    unset "groups[$1]"
    cat -- "$logs/$1.log"
}

# Repeats the failures at the end of the output, where readers look first.
finish() {
    awk 'FNR == 1 { shown = 0 } /^failures:$/ { shown = 1 } /^test result:/ { shown = 0 } shown' \
        "$logs"/*-tests.log >&2
    exit "$code"
}

run_only() {
    install_tools
    compile --lib --test integration
    # Perhaps none of these tests needs the tools; one that does says what is missing.
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
        begin beside_alone run beside-alone --test integration -- --exact "$BESIDE_ALONE"
        run alone --test integration -- --test-threads=1 --exact "${ALONE[@]}"
        await beside_alone
    fi
    local done_with=("--skip=$CHAOS" "--skip=$BESIDE_ALONE" "${ALONE[@]/#/--skip=}") waiting=("${WAITING[@]/%/::}")
    export TESTS_ALONE_ARE_DONE=1
    begin waiting run waiting --test integration -- --test-threads="$WAITING_THREADS" "${done_with[@]}" "${waiting[@]}"
    run other --test integration -- --test-threads="$THREADS" "${done_with[@]}" "${waiting[@]/#/--skip=}"
    await waiting
    await chaos
    await beside
}

# Runs the unit tests, which need no servers, and BESIDE, at idle priority.
# shellcheck disable=SC2317  # called by begin
run_beside() {
    chrt --idle --pid 0 "$BASHPID"
    run unit --no-fail-fast --lib --bins
    run doc --doc
    # In a target directory of its own: cargo locks one while it builds there.
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
