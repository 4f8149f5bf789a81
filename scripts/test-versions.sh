#!/usr/bin/env bash
#
# Runs the integration tests with other versions of RabbitMQ and PostgreSQL: those of other releases of
# Debian and Ubuntu.
#
#   scripts/test-versions.sh [VERSION...]
#
# VERSION is the release whose RabbitMQ and PostgreSQL are used, or two releases: bookworm+bullseye is
# RabbitMQ of the first and PostgreSQL of the second.
#
# The packages are unpacked into .local/versions/<release>-<package> without running their scripts,
# and services.sh runs the servers from there. Nothing is installed, and no root is needed. Unpacked
# packages are reused the next time; `rm -r .local/versions` frees the space.
#
# DEBIAN_MIRROR and UBUNTU_MIRROR name the mirrors. If this machine runs that distribution, the default
# is the mirror in its apt sources.

set -euo pipefail

REPO=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
VERSIONS=${WEBHOOK_NOTIFIER_LOCAL_DIR:-$REPO/.local}/versions
[[ $VERSIONS == /* ]] || VERSIONS=$PWD/$VERSIONS
readonly REPO VERSIONS

# The distribution of a release.
declare -rA DISTRIBUTION=(
    [bullseye]=debian [bookworm]=debian [trixie]=debian [forky]=debian [sid]=debian
    [jammy]=ubuntu [noble]=ubuntu [plucky]=ubuntu [questing]=ubuntu [resolute]=ubuntu
)
# The defaults. Together they cover all versions of both servers that these releases have:
#   RabbitMQ: bookworm 3.10, noble 3.12, trixie 4.0, forky 4.3
#   PostgreSQL: bullseye 13, jammy 14, bookworm 15, noble 16, trixie 17, forky 18
readonly OF_DEBIAN=(bookworm+bullseye trixie+bookworm trixie forky)
readonly OF_UBUNTU=(noble+jammy noble)

# Packages that the servers and services.sh need without depending on them, since every Debian system
# has them.
readonly ESSENTIAL=(coreutils dash grep hostname libc-bin mawk sed util-linux)
# The space that is needed to unpack the largest package, PostgreSQL with its JIT compiler.
readonly NEEDED_MIB=1500

say() { printf 'test-versions: %s\n' "$*" >&2; }

die() {
    say "$*"
    exit 1
}

# mirror_of DISTRIBUTION
mirror_of() {
    local variable=${1^^}_MIRROR
    if [[ -n ${!variable:-} ]]; then
        printf '%s' "${!variable}"
        return
    fi
    (
        ID='' VERSION_CODENAME=''
        # shellcheck source=/dev/null
        source /etc/os-release
        [[ $ID == "$1" ]] || exit 1
        # shellcheck disable=SC2016  # for apt
        apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
            awk -v release="$VERSION_CODENAME" '$1 == release && $2 == "main" { print $3; exit }'
    )
}

# keyring_of DISTRIBUTION: the file of the keys that sign its releases, installed on this machine or, for
# Ubuntu, unpacked from Debian's package.
keyring_of() {
    local file=/usr/share/keyrings/$1-archive-keyring.gpg
    if [[ -f $file ]]; then
        printf '%s' "$file"
    elif [[ $1 == ubuntu ]]; then
        unpack trixie ubuntu-keyring >&2
        printf '%s' "$VERSIONS/trixie-ubuntu-keyring$file"
    else
        die "$file is missing: install the package $1-archive-keyring"
    fi
}

# configure_apt DIRECTORY RELEASE: configures apt for a release, with its own directories, independent of
# this machine's packages.
configure_apt() {
    local directory=$1 release=$2 mirror keyring distribution=${DISTRIBUTION[$2]-}
    [[ -n $distribution ]] || die "'$release' is not a known release; these are: ${!DISTRIBUTION[*]}"
    mirror=$(mirror_of "$distribution") || mirror=''
    [[ -n $mirror ]] ||
        die "no mirror of ${distribution^} is known: set ${distribution^^}_MIRROR, for example to the one in" \
            "/etc/apt/sources.list of a machine with ${distribution^}"
    keyring=$(keyring_of "$distribution") || exit 1
    mkdir -p -- "$directory"/{lists/partial,archives/partial,etc}
    : >"$directory/status"
    echo "deb [signed-by=$keyring] $mirror $release main" >"$directory/sources.list"
    cat >"$directory/apt.conf" <<CONF
Dir::State "$directory";
Dir::State::status "$directory/status";
Dir::Cache "$directory";
Dir::Etc "$directory/etc";
Dir::Etc::SourceList "$directory/sources.list";
Dir::Etc::SourceParts "$directory/etc";
Dir::Etc::Parts "$directory/etc";
Dir::Etc::PreferencesParts "$directory/etc";
Dir::Etc::TrustedParts "$directory/etc";
APT::Architectures { "$(dpkg --print-architecture)"; };
APT::Install-Recommends "false";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Retries "3";
# The lists of old releases have expired.
Acquire::Check-Valid-Until "false";
CONF
    # Use this machine's proxies.
    apt-config dump | grep -iE '^Acquire::https?::' >>"$directory/apt.conf" || true
}

# unpack RELEASE PACKAGE [PACKAGE...]: unpacks packages of a release with all dependencies, and prints the
# version of the first.
unpack() (
    release=$1 package=$2
    root=$VERSIONS/$release-$package
    if [[ -f $root/version ]]; then
        cat -- "$root/version"
        exit
    fi
    free=$(df --output=avail --block-size=1M -- "$VERSIONS" | tail -n 1)
    ((free >= NEEDED_MIB)) ||
        die "$package of $release needs $NEEDED_MIB MiB, and $VERSIONS has only $free MiB left: free some space"
    # An interrupted run may have left these.
    new=$root.new apt=$root.apt log=$VERSIONS/$release-$package.log
    rm -rf -- "$root" "$new" "$apt"
    trap 'rm -rf -- "$new" "$apt"' EXIT
    configure_apt "$apt" "$release"
    export APT_CONFIG=$apt/apt.conf
    say "$release: downloading $package"
    shift
    {
        apt-get update -q --error-on=any && apt-get install -q --yes --download-only "$@"
    } </dev/null >"$log" 2>&1 || die "$release: apt-get could not download $*: $(grep -E '^[EW]:' "$log" || tail -n 3 "$log")
Is the mirror reachable, and does it have this release? The full output is in $log"
    mkdir -p -- "$new"/{usr/{bin,sbin,lib,lib64},etc,proc,dev,tmp,run,var}
    chmod 1777 -- "$new/tmp"
    for directory in bin sbin lib lib64; do ln -s "usr/$directory" "$new/$directory"; done
    for archive in "$apt"/archives/*.deb; do
        dpkg-deb --fsys-tarfile "$archive" |
            tar -x --directory="$new" --keep-directory-symlink --no-same-owner \
                --exclude='./usr/share/'{doc,info,locale,man}'/*' 2>>"$log" ||
            die "$archive can't be unpacked: $(tail -n 3 "$log")"
    done
    # Links that the packages' scripts would have created.
    [[ -e $new/bin/sh ]] || ln -s dash "$new/bin/sh"
    [[ ! -e $new/bin/mawk || -e $new/bin/awk ]] || ln -s mawk "$new/bin/awk"
    # The servers need this machine's users, and no name lookup may leave the machine.
    cp -- /etc/passwd /etc/group "$new/etc/"
    echo '127.0.0.1 localhost' >"$new/etc/hosts"
    echo 'hosts: files' >"$new/etc/nsswitch.conf"
    # The package postgresql is empty: it depends on one such as postgresql-17, whose version counts.
    archive=$(compgen -G "$apt/archives/$package-[0-9]*.deb" || compgen -G "$apt/archives/${package}_*.deb")
    if ! dpkg-deb --field "$archive" Version | sed 's/^[0-9]*://; s/[-+~].*//' >"$new/version" ||
        ! mv -- "$new" "$root"; then
        die "$root can't be created"
    fi
    cat -- "$root/version"
)

# run_version VERSION: runs the tests with the servers of one or two releases, and adds a line to `table`.
run_version() {
    local broker=${1%+*} postgres=${1#*+} broker_version postgres_version dir log began=$SECONDS result
    broker_version=$(unpack "$broker" rabbitmq-server libeatmydata1 "${ESSENTIAL[@]}") || return 1
    postgres_version=$(unpack "$postgres" postgresql "${ESSENTIAL[@]}") || return 1
    dir=$VERSIONS/servers/$1 log=$VERSIONS/$1.log
    say "$1: RabbitMQ $broker_version, PostgreSQL $postgres_version; $log"
    export WEBHOOK_NOTIFIER_LOCAL_DIR=$dir WITHOUT_ALONE=yes SERVICES_SYNC=no
    export BROKER_ROOT=$VERSIONS/$broker-rabbitmq-server POSTGRES_ROOT=$VERSIONS/$postgres-postgresql
    purge "$dir"
    (
        # Otherwise the tests would use the servers that these name.
        unset AMQP_URL DATABASE_URL
        exec "$REPO/scripts/with-services.sh" "$REPO/scripts/test.sh"
    ) >"$log" 2>&1 8>&- || failed=1
    purge "$dir"
    result=$(sed -n 's/^test result: [a-zA-Z]*[.] \([0-9]* passed\); \([0-9]* failed\);.*/\1, \2/p' "$log" | tail -n 1)
    table+=$(printf '%-20s %-10s %-11s %s, %d min' "$1" "$broker_version" "$postgres_version" \
        "${result:-no test has run: see $log}" "$(((SECONDS - began + 59) / 60))")$'\n'
    table+=$(sed -n 's/^test \(.*\) [.][.][.] FAILED$/    failed: \1/p' "$log" | sort -u)$'\n'
}

purge() {
    local directory
    for directory in "$1"/{faults,long-faults,shared-faults,.}; do
        [[ ! -d $directory ]] ||
            WEBHOOK_NOTIFIER_LOCAL_DIR=$(realpath -- "$directory") "$REPO/scripts/services.sh" down --purge
    done
    rm -rf -- "$1"
}

main() {
    local version table='' failed=0 versions=("$@")
    case ${1-} in
        help | -h | --help)
            sed -n '3,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
            return
            ;;
    esac
    command -v apt-get >/dev/null ||
        die "this needs apt-get to download the packages: run it on Debian or Ubuntu, or in a container with one of them"
    umask 022
    mkdir -p -- "$VERSIONS"
    exec 8>"$VERSIONS/lock"
    flock -n 8 || die "another run holds $VERSIONS/lock: wait for it, or end it"
    if ((${#versions[@]} == 0)); then
        versions=("${OF_DEBIAN[@]}")
        if [[ -n $(mirror_of ubuntu) ]]; then
            versions+=("${OF_UBUNTU[@]}")
        else
            say "only Ubuntu has RabbitMQ 3.12, PostgreSQL 14 and 16: set UBUNTU_MIRROR to test these, too"
        fi
    fi
    for version in "${versions[@]}"; do
        if ! run_version "$version"; then
            failed=1
            table+=$(printf '%-20s %s' "$version" "not run: see the messages above")$'\n'
        fi
    done
    printf '\n%-20s %-10s %-11s %s\n%s' RELEASES RABBITMQ POSTGRESQL TESTS "$(grep . <<<"$table")"
    echo
    return "$failed"
}

main "$@"
