# shellcheck shell=bash
#
# How a server's processes are started, found and stopped. Part of services.sh.

readonly START_TIMEOUT=60
readonly STOP_TIMEOUT=20
# How long it may take until a new server's process can be found.
readonly SPAWN_TIMEOUT=5
readonly MAX_LOG_BYTES=$((20 * 1024 * 1024))

# detach LOG: makes a server independent of the terminal, of Ctrl-C and of the
# caller's pipes: `make` and $(...) wait until every copy of their pipe is closed.
detach() {
    local log=$1 fd
    if [[ -f $log ]] && (($(stat -c %s -- "$log") > MAX_LOG_BYTES)); then : >"$log"; fi
    exec </dev/null >>"$log" 2>&1
    for fd in /proc/self/fd/*; do
        fd=${fd##*/}
        # Bash reads this script from 255, and closes it on exec.
        if ((fd > 2 && fd != 255)); then exec {fd}>&-; fi
    done
    cd /
}

# Prints the pid of a server's main process, or nothing if it does not run.
main_pid() {
    local name=$1 pid_file pid=''
    pid_file=$("${name}_pid_file")
    { read -r pid <"$pid_file"; } 2>/dev/null || true
    if [[ -n $pid ]] && grep -qx -- "$pid" <<<"$("${name}_pids")"; then printf '%s' "$pid"; fi
}

is_running() { [[ -n $(main_pid "$1") ]]; }

# Sends SIGKILL to every process of a server until none is left: a process may
# have forked just before it was killed.
kill_all() {
    local name=$1 pids deadline=$((SECONDS + STOP_TIMEOUT))
    while pids=$("${name}_pids") && [[ -n $pids ]]; do
        ((SECONDS < deadline)) || die "$name: processes survive SIGKILL: ${pids//$'\n'/ }"
        # shellcheck disable=SC2086  # one word per pid
        kill -KILL $pids 2>/dev/null || true
        sleep 0.05
    done
}

# The pids that signal_stop has signalled, by server. The pid files don't show when these have ended:
# RabbitMQ removes its own when it begins to stop.
declare -A stopping=()

signal_stop() {
    local name=$1 pid
    pid=$(main_pid "$name")
    stopping[$name]=$pid
    [[ -z $pid ]] || kill -s "$("${name}_stop_signal")" "$pid" 2>/dev/null || true
}

# After signal_stop: waits until the server has ended, and kills what remains, such as the broker's epmd.
await_stop() {
    local name=$1 deadline=$((SECONDS + STOP_TIMEOUT))
    while [[ -n ${stopping[$name]} ]] && grep -qx -- "${stopping[$name]}" <<<"$("${name}_pids")"; do
        if ((SECONDS >= deadline)); then
            say "$name did not stop within $STOP_TIMEOUT s: killing it"
            break
        fi
        sleep 0.05
    done
    kill_all "$name"
}

launch() {
    local name=$1
    if is_running "$name"; then return; fi
    kill_all "$name"
    "${name}_prepare"
    "${name}_exec"
}

await_start() {
    local name=$1 began=$SECONDS
    until is_running "$name" && "${name}_answers"; do
        if ((SECONDS - began >= SPAWN_TIMEOUT)) && [[ -z $("${name}_pids") ]]; then
            start_failed "$name" "it exited while starting"
        fi
        if ((SECONDS - began >= START_TIMEOUT)); then
            kill_all "$name"
            start_failed "$name" "it did not answer within $START_TIMEOUT s"
        fi
        sleep 0.05
    done
}

start_failed() {
    local name=$1 log=$LOGS/$1.log
    say "$name did not start: $2. The last lines of $log:"
    tail -n 20 -- "$log" >&2 || true
    die "fix what the log reports, or delete the data by 'scripts/services.sh down --purge' and start again"
}

# enter ROOT: sets `inside`, the command prefix that runs a program of the system in that directory, with our
# files at their usual path. Without ROOT it is empty, for this machine's programs. The mounts and the new root
# belong to that process, and end with it.
enter() {
    inside=()
    [[ -n $1 ]] || return 0
    # shellcheck disable=SC2016  # for the shell inside
    local mounts='set -e; root=$1 ours=$2; shift 2
        for dir in /proc /dev "$ours"; do mkdir -p "$root$dir"; mount --rbind "$dir" "$root$dir"; done'
    if ((EUID == 0)); then
        # shellcheck disable=SC2016  # likewise
        inside=(unshare --mount sh -c "$mounts; "'exec chroot "$root" "$@"' sh "$1" "$LOCAL")
    else
        # Root in a user namespace may mount; a second namespace makes it the user again.
        # shellcheck disable=SC2016  # likewise
        inside=(unshare --user --map-root-user --mount sh -c
            "$mounts; exec unshare --user --map-user=$EUID --map-group=$(id -g)"' --root="$root" "$@"'
            sh "$1" "$LOCAL")
    fi
}
