# shellcheck shell=bash
#
# PostgreSQL, the server `postgres`. Part of services.sh.

readonly PG_HOME=$LOCAL/postgres
readonly PG_DATA=$PG_HOME/data
readonly PG_USER=postgres

# The user who runs PostgreSQL may have no access to $PG_HOME by its path (for
# example in a clone under /root or in a `mktemp -d`). A descriptor that was
# opened before the change of user gives access without the path.
readonly PG_FD_PATH=/proc/self/fd/3

# The version that created the data directory, otherwise the newest installed one.
find_postgres_bin() {
    local dir version='' root=$POSTGRES_ROOT
    { read -r version <"$PG_DATA/PG_VERSION"; } 2>/dev/null || true
    dir=$root/usr/lib/postgresql/$version/bin
    if [[ -z $version || ! -x $dir/initdb ]]; then
        dir=$(printf '%s\n' "$root"/usr/lib/postgresql/*/bin | sort -V | tail -n 1)
    fi
    if [[ -z $root && ! -x $dir/initdb ]]; then
        dir=$(command -v initdb) && dir=$(dirname -- "$dir")
    fi
    [[ -x $dir/postgres && -x $dir/pg_isready ]] && printf '%s' "${dir#"$root"}"
}

postgres_pids() {
    local proc
    for proc in /proc/[0-9]*; do
        if [[ $proc/cwd -ef $PG_DATA ]] && grep -qx postgres "$proc/comm" 2>/dev/null; then
            echo "${proc##*/}"
        fi
    done
}
postgres_pid_file() { printf '%s' "$PG_DATA/postmaster.pid"; }
postgres_stop_signal() { printf INT; }
postgres_port() { printf '%s' "$POSTGRES_PORT"; }

# Prints UID:GID of the user who runs PostgreSQL. It refuses to run as root: then
# it is the owner of the data, or the package's user for new data.
postgres_owner() {
    if ((EUID != 0)); then
        printf '%s' "$EUID:$(id -g)"
    elif [[ -d $PG_DATA ]]; then
        stat -c %u:%g -- "$PG_DATA"
    else
        getent passwd postgres nobody | head -n 1 | cut -d: -f3,4
    fi
}

postgres_prepare() {
    assign_port POSTGRES_PORT
    : "${POSTGRES_PASSWORD:=$(random_password)}"
    save_state
    # None of our processes is left, so an existing lock file names a dead
    # postmaster. PostgreSQL would believe it if another process has that pid now.
    rm -f -- "$(postgres_pid_file)"
    if peer_is_primary && ! is_standby "$LOCAL"; then
        copy_peer
    elif [[ ! -d $PG_DATA ]]; then
        create_data
    fi
    if [[ -n $TLS ]]; then
        # PostgreSQL accepts only a key that it owns and nobody else can read.
        cp -- "$TLS_HOME"/{ca.pem,server.pem,server.key} "$PG_DATA/"
        if ((EUID == 0)); then chown -- "$(postgres_owner)" "$PG_DATA"/{ca.pem,server.pem,server.key}; fi
    fi
}

# Under another name until complete: an interrupted initdb must not look like
# a data directory.
create_data() {
    local owner
    owner=$(postgres_owner)
    make_new_data "$owner"
    { scram_secret || echo "$POSTGRES_PASSWORD"; } >"$PG_HOME/password"
    if ((EUID == 0)); then chown "$owner" "$PG_HOME/password"; fi
    run_postgres "$owner" initdb -D "$PG_FD_PATH/new" --username="$PG_USER" \
        --pwfile="$PG_FD_PATH/password" --auth=scram-sha-256 \
        --encoding=UTF8 --locale=C.UTF-8 || start_failed postgres "initdb failed"
    rm -- "$PG_HOME/password"
    mv -- "$PG_HOME/new" "$PG_DATA"
}

# Prints the password as PostgreSQL stores it (RFC 5803), with a single iteration. By default there are 4096,
# which slow down whoever guesses passwords. Nobody guesses ours, and each login in the tests would compute
# them: nearly a tenth of all their CPU time. Fails if Perl lacks the modules; then the server uses its default.
scram_secret() {
    printf '%s' "$POSTGRES_PASSWORD" | perl -MDigest::SHA=sha256,hmac_sha256 -MMIME::Base64=encode_base64 -e '
        open(my $random, "<", "/dev/urandom") or die;
        read($random, my $salt, 16) == 16 or die;
        my $salted_password = hmac_sha256($salt . pack("N", 1), scalar <STDIN>);
        my $stored_key = sha256(hmac_sha256("Client Key", $salted_password));
        my $server_key = hmac_sha256("Server Key", $salted_password);
        printf "SCRAM-SHA-256\$1:%s\$%s:%s\n", map { encode_base64($_, "") } $salt, $stored_key, $server_key;
    ' 2>/dev/null
}

make_new_data() {
    rm -rf -- "$PG_HOME/new"
    mkdir -p -- "$PG_HOME/new"
    if ((EUID == 0)); then chown -R "$1" "$PG_HOME"; fi
}

is_standby() { [[ -f $1/postgres/data/standby.signal ]]; }
peer_is_primary() {
    [[ -n $PEER ]] && ! is_standby "$PEER" &&
        WEBHOOK_NOTIFIER_LOCAL_DIR=$PEER "$REPO/scripts/services.sh" status postgres >/dev/null
}

# Replaces our data with a copy of the primary's, and becomes its standby. Our own data are older, or were
# written by a primary that has been replaced since.
copy_peer() {
    local owner port
    owner=$(postgres_owner)
    port=$(sed -n 's/^POSTGRES_PORT=//p' "$PEER/services.env")
    make_new_data "$owner"
    run_postgres "$owner" pg_basebackup -D "$PG_FD_PATH/new" --write-recovery-conf --wal-method=stream \
        --checkpoint=fast --no-sync -h 127.0.0.1 -p "$port" -U "$PG_USER" ||
        start_failed postgres "pg_basebackup could not copy the primary's data"
    rm -rf -- "$PG_DATA"
    mv -- "$PG_HOME/new" "$PG_DATA"
}

postgres_exec() {
    local options=()
    [[ -z $TLS ]] ||
        options=(-c ssl=on -c ssl_ca_file=ca.pem -c ssl_cert_file=server.pem -c ssl_key_file=server.key)
    [[ $SYNC != no ]] || options+=(-c fsync=off)
    run_postgres "$(postgres_owner)" postgres -D "$PG_FD_PATH/data" \
        -c listen_addresses=127.0.0.1 -c port="$POSTGRES_PORT" \
        -c unix_socket_directories= -c max_connections=300 \
        -c logging_collector=off -c log_destination=stderr "${options[@]}"
}

# run_postgres UID:GID PROGRAM ARGS...: runs the server itself in the background.
run_postgres() (
    owner=$1 program=$2
    shift 2
    argv=("$(find_postgres_bin)/$program" "$@")
    if ((EUID == 0)); then
        argv=(setpriv --reuid="${owner%:*}" --regid="${owner#*:}" --clear-groups "${argv[@]}")
    fi
    if [[ $program == postgres ]]; then argv=(setsid --fork "${argv[@]}"); fi
    detach "$LOGS/postgres.log"
    exec 3<"$PG_HOME"
    enter "$POSTGRES_ROOT"
    exec "${inside[@]}" env -i PATH="$PATH" LC_ALL=C.UTF-8 PGPASSWORD="$POSTGRES_PASSWORD" "${argv[@]}"
)

postgres_answers() {
    local inside
    enter "$POSTGRES_ROOT"
    "${inside[@]}" "$(find_postgres_bin)/pg_isready" -q -t 2 -h 127.0.0.1 -p "$POSTGRES_PORT"
}
