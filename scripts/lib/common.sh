# shellcheck shell=bash
# Helpers every script here needs. Source it; it runs nothing.

# Exit codes of the whole project that scripts use.
# shellcheck disable=SC2034  # used by the scripts that source this file
readonly EXIT_BUG=1 EXIT_USAGE=2 EXIT_TARGET=8

note() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

# die CODE MESSAGE: one line (what was found, what is needed, what to do), then stop.
die() {
    local code=$1
    shift
    printf '%s: error: %s\n' "${0##*/}" "$*" >&2
    exit "$code"
}

# What the host is: sets OS_ID, OS_VERSION, OS_CODENAME, OS_NAME.
read_os() {
    local file=${BRINGUP_OS_RELEASE:-/etc/os-release} key value
    OS_ID='' OS_VERSION='' OS_CODENAME='' OS_NAME=''
    [[ -r $file ]] || return 0
    while IFS='=' read -r key value; do
        value=${value#[\"\']}
        value=${value%[\"\']}
        case $key in
            ID) OS_ID=$value ;;
            VERSION_ID) OS_VERSION=$value ;;
            VERSION_CODENAME) OS_CODENAME=$value ;;
            PRETTY_NAME) OS_NAME=$value ;;
        esac
    done <"$file"
}

# Stop unless this is root on a release the packages are known for. $1: what could not be done.
require_supported_host() {
    read_os
    case "$OS_ID $OS_VERSION" in
        'debian 12' | 'debian 13' | 'ubuntu 22.04' | 'ubuntu 24.04') ;;
        *) die "$EXIT_TARGET" "$1: this is '${OS_NAME:-an unknown system}', and only Debian 12/13 and" \
            'Ubuntu 22.04/24.04 are set up automatically; install Docker Engine >= 27 with its buildx' \
            'and compose plugins (docs.docker.com/engine/install) and run this again' ;;
    esac
    ((EUID == 0)) || die "$EXIT_TARGET" "$1: running as uid $EUID and root is needed; run this with sudo," \
        'or install Docker Engine >= 27 with its buildx and compose plugins'
}
