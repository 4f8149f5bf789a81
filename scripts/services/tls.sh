# shellcheck shell=bash
#
# The certificates of `up --tls`. Part of services.sh.

readonly TLS_HOME=$LOCAL/tls

# Creates a CA, and a certificate for the servers and one for a client. Only once, so that programs that have
# the CA's certificate can go on using it.
make_certificates() {
    [[ ! -f $TLS_HOME/done ]] || return 0
    rm -rf -- "$TLS_HOME"
    mkdir -p -- "$TLS_HOME"
    run_openssl req -x509 -days 3650 -subj '/CN=webhook-notifier private CA' \
        -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
        -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign \
        -keyout "$TLS_HOME/ca.key" -out "$TLS_HOME/ca.pem"
    make_certificate server serverAuth 'subjectAltName=DNS:localhost,IP:127.0.0.1'
    make_certificate client clientAuth 'subjectAltName=DNS:client'
    touch -- "$TLS_HOME/done"
}

# make_certificate NAME USAGE EXTENSION
make_certificate() {
    local file=$TLS_HOME/$1
    run_openssl req -new -subj "/CN=webhook-notifier $1" \
        -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
        -keyout "$file.key" -out "$file.csr"
    printf '%s\n' basicConstraints=CA:FALSE "extendedKeyUsage=$2" "$3" >"$file.extensions"
    run_openssl x509 -req -days 3650 -in "$file.csr" -extfile "$file.extensions" \
        -CA "$TLS_HOME/ca.pem" -CAkey "$TLS_HOME/ca.key" -CAcreateserial -out "$file.pem"
    rm -- "$file.csr" "$file.extensions"
}

run_openssl() {
    local log=$LOGS/openssl.log
    openssl "$@" >"$log" 2>&1 || die "openssl $1 failed: $(tail -n 3 -- "$log")"
}
