# shellcheck shell=bash
#
# The processes of a server: how they start, are found, and end. Part of services.sh.

readonly START_TIMEOUT=60
readonly STOP_TIMEOUT=20
# How long a new server may take to show up as a process.
readonly SPAWN_TIMEOUT=5
readonly MAX_LOG_BYTES=$((20 * 1024 * 1024))

# Lets a server outlive the terminal, Ctrl-C and the pipes of whoever called
# us: a `make` or $(...) waits until every copy of its pipe is closed.
detach() {
    local log=$1 fd
    if [[ -f $log ]] && (($(stat -c %s -- "$log") > MAX_LOG_BYTES)); then : >"$log"; fi
    exec </dev/null >>"$log" 2>&1
    for fd in /proc/self/fd/*; do
        fd=${fd##*/}
        # 255 is where bash reads this script from; it is closed on exec.
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

# SIGKILL to every process of a server, again until none is left: one that is
# killed may just have forked.
kill_all() {
    local name=$1 pids deadline=$((SECONDS + STOP_TIMEOUT))
    while pids=$("${name}_pids") && [[ -n $pids ]]; do
        ((SECONDS < deadline)) || die "$name: processes survive SIGKILL: ${pids//$'\n'/ }"
        # shellcheck disable=SC2086  # one word per pid
        kill -KILL $pids 2>/dev/null || true
        sleep 0.05
    done
}

# By name, what signal_stop asked to stop. The pid files can't tell whether it has: RabbitMQ removes
# its own when it begins to stop.
declare -A stopping=()

signal_stop() {
    local name=$1 pid
    pid=$(main_pid "$name")
    stopping[$name]=$pid
    [[ -z $pid ]] || kill -s "$("${name}_stop_signal")" "$pid" 2>/dev/null || true
}

# After signal_stop; also ends what stays behind, such as the broker's epmd.
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
    die "remedy what the log names; 'scripts/services.sh down --purge' starts afresh without the data"
}

# Sets `inside`: what runs a program of the system whose files are in a directory, with our files where they
# are, or nothing for the machine's own. Mounts and the new root are the process's, and go with it.
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
        # Root in a user namespace may do that, and becomes the user again in another one.
        # shellcheck disable=SC2016  # likewise
        inside=(unshare --user --map-root-user --mount sh -c
            "$mounts; exec unshare --user --map-user=$EUID --map-group=$(id -g)"' --root="$root" "$@"'
            sh "$1" "$LOCAL")
    fi
}
