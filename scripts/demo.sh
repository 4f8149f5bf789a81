#!/usr/bin/env bash
#
# A demonstration in half a minute: events on three queues, three webhooks, and a receiver that fails
# twice before it accepts an event. `make demo` starts the servers and runs this.
#
# Exits with 0 only if every delivery arrived. It uses its own queues and schema, so that it doesn't
# affect anything else on the servers.

set -euo pipefail

readonly BINARY=$1
readonly SCHEMA=webhook_notifier_demo
readonly SERVER_DATABASE_URL=$DATABASE_URL
readonly DEADLINE=60
WORK=$(mktemp -d)
readonly WORK
started=()

say() { printf '\n== %s\n' "$*"; }

fail() {
    printf 'demo failed: %s\n' "$*" >&2
    sed 's/^/    /' "$WORK"/notifier.log >&2 2>/dev/null || true
    exit 1
}

clean_up() {
    local pid
    for pid in "${started[@]}"; do
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    psql -qX "$SERVER_DATABASE_URL" -c "DROP SCHEMA IF EXISTS $SCHEMA CASCADE" 2>/dev/null || true
    rm -rf "$WORK"
}
trap clean_up EXIT

# wait_for SECONDS COMMAND...: repeats the command until it succeeds.
wait_for() {
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || return 1
        sleep 0.05
    done
}

# start_receiver NAME OPTION...: sets $url.
start_receiver() {
    local name=$1
    shift
    "$BINARY" listen --json --addr 127.0.0.1:0 "$@" >"$WORK/$name.jsonl" 2>&1 &
    started+=($!)
    wait_for 10 grep -q listening "$WORK/$name.jsonl" || fail "the receiver $name did not start"
    url=$(sed -n '1s/.*"listening":"\(.*\)\/".*/\1/p' "$WORK/$name.jsonl")
}

# Counts only what this run has published: an interrupted one may have left events in the queues.
accepted() {
    cat "$WORK"/{steady,flaky}.jsonl | grep -F -f "$WORK/ids" | grep -c '"status":200' || true
}
all_accepted() { (($(accepted) >= expected)); }

# A line for each accepted delivery: type, webhook, attempts, time since publishing.
table() {
    sed -n 's/^{"at":"\([^"]*\)","path":"\/\([^"]*\)","attempt":\([0-9]*\),"status":200,"webhook_id":"\([^"]*\)".*\\"event_type\\":\\"\([^\\]*\)\\".*\\"published_at_ms\\":\([0-9]*\).*/\4 \5 \2 \3 \1 \6/p' \
        "$WORK"/{steady,flaky}.jsonl |
        while read -r id type path attempts at published; do
            [[ -n ${queue_of[$id]:-} ]] || continue
            at=$(date -d "$at" +%s%3N)
            printf '%-15s  %-22s  %-27s  %8s  %6s ms\n' \
                "$type" "${queue_of[$id]}" "$path" "$attempts" $((at - published))
        done | sort
}

metrics() {
    local address=${1#http://} line
    exec 3<>"/dev/tcp/${address%:*}/${address##*:}"
    printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3
    while read -r line <&3; do printf '%s\n' "${line%$'\r'}"; done
    exec 3<&-
}

command -v psql >/dev/null || fail "needs psql: install postgresql-client"
say "a schema of its own, three webhooks, two receivers"
psql -qX "$DATABASE_URL" -c "SET client_min_messages = warning" \
    -c "DROP SCHEMA IF EXISTS $SCHEMA CASCADE" -c "CREATE SCHEMA $SCHEMA"
separator='?'
[[ $DATABASE_URL == *\?* ]] && separator='&'
export DATABASE_URL="$DATABASE_URL${separator}options=-csearch_path%3D$SCHEMA"
export QUEUES=demo_high_priority,demo_medium_priority,demo_low_priority
export ALLOW_NETWORKS=127.0.0.0/8 METRICS_ADDR=127.0.0.1:0 RUST_LOG=${RUST_LOG:-info}
# Three events that fail twice each must not open the circuit breaker, which would take another half minute.
export CIRCUIT_BREAKER=10,30s,10m
"$BINARY" migrate
start_receiver steady
steady=$url
start_receiver flaky --fail-first 2
flaky=$url
"$BINARY" webhooks add "$steady/exact" user.created >/dev/null
"$BINARY" webhooks add "$flaky/prefix-fails-twice" 'order.*' >/dev/null
"$BINARY" webhooks add "$steady/catch-all" '*' >/dev/null
"$BINARY" webhooks list

say "the notifier"
"$BINARY" run 2>"$WORK/notifier.log" &
notifier=$!
started+=("$notifier")
wait_for 30 grep -q 'ready: ' "$WORK/notifier.log" || fail "the notifier was not ready within 30 s"
address=$(sed -n 's/.*metrics on \(http:.*\)\/metrics/\1/p' "$WORK/notifier.log")
sed 's/^/    /' "$WORK/notifier.log"

say "three events on each of the three queues"
declare -A queue_of
for queue in ${QUEUES//,/ }; do
    for type in user.created order.paid invoice.sent; do
        id=$("$BINARY" publish "$queue" --type "$type")
        queue_of[$id]=$queue
        echo "$id" >>"$WORK/ids"
    done
done
# The catch-all webhook gets all nine events, the other two get one from each queue.
expected=15
wait_for "$DEADLINE" all_accepted || fail "$(accepted) of $expected deliveries arrived in $DEADLINE s"

say "delivered"
printf '%-15s  %-22s  %-27s  %8s  %9s\n' EVENT QUEUE WEBHOOK ATTEMPTS TOOK
table
rows=$(table | wc -l)

say "from $address/metrics"
metrics "$address" | grep -E '^webhook_(request_(success|failure)_total|retries_scheduled_total)' |
    grep -v ' 0$'
metrics "$address" | grep -E '^webhook_event_processing_seconds_(count|sum)'

say "SIGTERM"
kill -TERM "$notifier"
code=0
wait "$notifier" || code=$?
tail -n 1 "$WORK/notifier.log"
((code == 0)) || fail "the notifier exited with $code"
((rows == expected)) || fail "$rows deliveries instead of $expected: some arrived twice"
printf '\nall %d deliveries arrived, each once, 3 of them at the third attempt\n' "$expected"
