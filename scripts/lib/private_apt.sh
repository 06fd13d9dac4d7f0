# shellcheck shell=bash
# An apt of our own: the host's mirrors, proxies and keyring, but private lists, cache and sources, so that
# the host's package state is only read. Source after common.sh and after require_supported_host.

# "URI suite component" of each package index, as apt itself reads the host's sources.
host_indexes() {
    # shellcheck disable=SC2016  # apt expands these, not the shell
    apt-get indextargets --no-release-info --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' \
        'Created-By: Packages' | sort -u
}

# host_mirror SUITE: the mirror the host uses for SUITE. Third parties name suites after releases too, so a
# URI that ends in the distribution's name goes first; a wrong one cannot pass the keyring in any case.
host_mirror() {
    local found
    found=$(host_indexes | awk -v s="$1" '$2 == s && $3 == "main" { print $1 }')
    { grep -E "/$OS_ID(-security|-ports)?/?\$" <<<"$found" || printf '%s\n' "$found"; } | head -n 1
}

# The suites of the host's own release that the host itself uses.
release_suites() {
    local suite
    for suite in "$OS_CODENAME" "$OS_CODENAME-updates" "$OS_CODENAME-security"; do
        if [[ -n $(host_mirror "$suite") ]]; then printf '%s\n' "$suite"; fi
    done
}

archive_keyring() {
    local file="/usr/share/keyrings/$OS_ID-archive-keyring.gpg"
    [[ -r $file ]] || die "$EXIT_TARGET" "$file is missing, so packages cannot be verified;" \
        "install the package $OS_ID-archive-keyring"
    printf '%s\n' "$file"
}

# private_apt_setup DIR [EXTRA_SUITE...]: make DIR an apt state and update it; sets APT_CONFIG for this process.
private_apt_setup() {
    local dir=$1 suite mirror main keyring components=main
    shift
    keyring=$(archive_keyring)
    main=$(host_mirror "$OS_CODENAME")
    [[ -n $main ]] || die "$EXIT_TARGET" "apt on this host has no source for '$OS_CODENAME main';" \
        'add the distribution mirror to /etc/apt/sources.list and run this again'
    [[ $OS_ID != ubuntu ]] || components='main universe'
    mkdir -p "$dir"/{lists,cache,state,none}
    for suite in $(release_suites) "$@"; do
        mirror=$(host_mirror "$suite")
        printf 'deb [signed-by=%s] %s %s %s\n' "$keyring" "${mirror:-$main}" "$suite" "$components"
    done >"$dir/sources.list"
    # Of the host's settings only how to reach mirrors is kept (proxy, TLS, a frozen mirror's dates); hooks are
    # not run, and nothing that would allow unsigned packages is taken over.
    {
        apt-config dump | grep -E '^Acquire::(https?|ForceIPv[46]|Check-(Valid-Until|Date))\b' || true
        cat <<EOF
Dir::State "$dir/state";
Dir::State::Lists "$dir/lists";
Dir::State::status "/var/lib/dpkg/status";
Dir::Cache "$dir/cache";
Dir::Etc::Main "/dev/null";
Dir::Etc::Parts "$dir/none";
Dir::Etc::SourceList "$dir/sources.list";
Dir::Etc::SourceParts "$dir/none";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "$dir/none";
APT::Default-Release "/^$OS_CODENAME(-updates|-security)?\$/";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
EOF
    } >"$dir/apt.conf"
    export APT_CONFIG="$dir/apt.conf"
    apt-get -qq -o APT::Update::Error-Mode=any update >&2 \
        || die "$EXIT_TARGET" "apt could not read a signed index from ${main}; see its lines above"
}

# fetch_missing DIR PACKAGE...: download into DIR the named packages and their dependencies the host lacks.
# Nothing is installed. A package the host already has is left out.
fetch_missing() {
    local dir=$1
    shift
    mkdir -p "$dir/partial"
    apt-get -qq -y -o Dir::Cache::archives="$dir" install --download-only --no-install-recommends "$@" >&2
}

# unpack_all DIR ROOT: unpack each package file in DIR below ROOT, print "name version" of each.
unpack_all() {
    local file
    for file in "$1"/*.deb; do
        [[ -e $file ]] || continue
        dpkg -x "$file" "$2"
        # shellcheck disable=SC2016  # dpkg expands these, not the shell
        dpkg-deb --show --showformat='${Package} ${Version}\n' "$file"
    done
}

# expose ROOT BIN NAME PROGRAM [ENV...]: make BIN/NAME run PROGRAM of ROOT, with ROOT's libraries if it needs
# them (only then: a library path that is not needed could shadow the host's).
expose() {
    local root=$1 bin=$2 name=$3 program=$4 libs='' dir
    shift 4
    if ldd "$program" 2>/dev/null | grep -q 'not found'; then
        while read -r dir; do libs+="${libs:+:}$dir"; done \
            < <(find "$root/lib" "$root/usr/lib" -maxdepth 1 -type d -name '*-linux-gnu*' 2>/dev/null)
        set -- "LD_LIBRARY_PATH=$libs" "$@"
    fi
    rm -f "${bin:?}/$name"
    if (($# == 0)); then
        ln -s "$program" "$bin/$name"
    else
        printf '#!/bin/sh\nexec env %s %s "$@"\n' "${*@Q}" "${program@Q}" >"$bin/$name"
        chmod 755 "$bin/$name"
    fi
}
