# shellcheck shell=bash
# Gets a Docker Engine from the distribution's packages and unpacks it in a private prefix.
# Source after common.sh and private_apt.sh.

readonly MIN_ENGINE=27

# candidate_major [SUITE]: major version of docker.io in SUITE (or in the host's own release); 0 if none.
candidate_major() {
    local version
    version=$(apt-cache show --no-all-versions "docker.io${1:+/$1}" 2>/dev/null | sed -n 's/^Version: //p;T;q')
    version=${version#*:}
    version=${version%%.*}
    printf '%s\n' "${version:-0}"
}

# Sets apt up and sets ENGINE_SUITE: '' for the host's own release, else the newer Debian suite to take
# the engine from (Go programs, which run on the older C library).
choose_suite() {
    local dir=$1
    ENGINE_SUITE=''
    if [[ $OS_ID == ubuntu ]]; then
        private_apt_setup "$dir"
        (($(candidate_major) < MIN_ENGINE)) || return 0
        die "$EXIT_TARGET" "$OS_NAME offers docker.io $(candidate_major), and $MIN_ENGINE or newer is needed;" \
            "enable $OS_CODENAME-updates (universe) in the apt sources, or install Docker Engine yourself"
    fi
    private_apt_setup "$dir" sid
    ENGINE_SUITE=sid
    (($(candidate_major sid) < MIN_ENGINE)) || return 0
    die "$EXIT_TARGET" "the Debian mirror has no docker.io >= $MIN_ENGINE in sid;" \
        'use a complete mirror in the apt sources, or install Docker Engine yourself'
}

# download_engine DIR: all package files for the prefix, into DIR.
download_engine() {
    local debs=$1 package specs=() helpers=() names=(docker.io docker-buildx containerd)
    if [[ $OS_ID == ubuntu ]]; then names+=(docker-compose-v2); else names+=(docker-compose); fi
    # The client is a package of its own in Debian, a part of docker.io in Ubuntu releases so far.
    if apt-cache show docker-cli >/dev/null 2>&1; then names+=(docker-cli); fi
    for package in "${names[@]}"; do specs+=("$package${ENGINE_SUITE:+/$ENGINE_SUITE}"); done
    (cd "$debs" && apt-get -qq download "${specs[@]}" >&2) \
        || die "$EXIT_TARGET" "could not download ${specs[*]}; see apt's lines above"
    # runc and the network tools are not Go: they come from the host's own release, if it lacks them.
    command -v iptables >/dev/null || helpers+=(iptables)
    command -v ip >/dev/null || helpers+=(iproute2)
    [[ $OS_ID == ubuntu ]] || helpers+=(tini-static)
    fetch_missing "$debs" runc "${helpers[@]}" \
        || die "$EXIT_TARGET" "could not download runc ${helpers[*]}; see apt's lines above"
}

# link_programs PREFIX: fill PREFIX/bin and PREFIX/cli-plugins from the packages in PREFIX/root.
link_programs() {
    local prefix=$1 root=$1/root name path
    mkdir -p "$prefix/bin" "$prefix/cli-plugins"
    for name in docker dockerd docker-proxy docker-init containerd containerd-shim-runc-v2 ctr runc ip; do
        for path in usr/bin usr/sbin sbin bin usr/libexec/docker; do
            [[ -x $root/$path/$name ]] || continue
            expose "$root" "$prefix/bin" "$name" "$root/$path/$name"
            break
        done
    done
    for name in docker-buildx docker-compose; do
        path=$(find "$root/usr" -path "*cli-plugins/$name" -type f | head -n 1)
        [[ -n $path ]] || die "$EXIT_TARGET" "the downloaded packages hold no $name plugin"
        ln -sf "$path" "$prefix/cli-plugins/$name"
    done
    if [[ -x $root/usr/sbin/xtables-nft-multi ]]; then link_iptables "$prefix"; fi
}

# iptables through nf_tables where the kernel has it, else through the older interface.
link_iptables() {
    local root=$1/root bin=$1/bin modules kind
    modules=$(find "$root/usr/lib" -type d -name xtables | head -n 1)
    for kind in nft legacy; do
        expose "$root" "$bin" iptables "$root/usr/sbin/iptables-$kind" "XTABLES_LIBDIR=$modules"
        if "$bin/iptables" -w -t nat -S >/dev/null 2>&1; then return; fi
    done
    die "$EXIT_TARGET" "iptables finds no nat table in this kernel: $("$bin/iptables" -w -t nat -S 2>&1 | tail -n 1)"
}

# install_engine PREFIX WORK: make PREFIX if it is not there. PREFIX/versions is written last and means whole.
install_engine() {
    local prefix=$1 work=$2 program
    [[ ! -s $prefix/versions ]] || return 0
    [[ ! -e $prefix ]] || rm -rf "$prefix"
    note "getting Docker Engine from the packages of $OS_ID (about 90 MB), into $prefix"
    rm -rf "$work/debs"
    mkdir -p "$work/debs" "$prefix/root"
    choose_suite "$work/apt"
    download_engine "$work/debs"
    unpack_all "$work/debs" "$prefix/root" >"$prefix/versions.part"
    link_programs "$prefix"
    for program in docker dockerd containerd runc; do
        [[ -x $prefix/bin/$program ]] || command -v "$program" >/dev/null \
            || die "$EXIT_TARGET" "the downloaded packages hold no $program"
        PATH=$prefix/bin:$PATH "$program" --version >/dev/null 2>"$work/run-error" \
            || die "$EXIT_TARGET" "the downloaded $program does not run here: $(tail -n 1 "$work/run-error")"
    done
    rm -rf "$work/debs" "$work/run-error"
    mv "$prefix/versions.part" "$prefix/versions"
}
