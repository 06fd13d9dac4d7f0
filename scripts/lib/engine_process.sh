# shellcheck shell=bash
# Starts and stops the private dockerd and containerd. Uses DIR, PREFIX, SOCKET, BRIDGE, MTU, NET.

# is_ours PID PROGRAM: is PID really our PROGRAM? Processes are found this way and not by pid files, which
# outlive their process while the number is used again. Another pid namespace is a container's own engine.
is_ours() {
    local exe words=()
    { mapfile -d '' -t words <"/proc/$1/cmdline"; } 2>/dev/null || return 1
    [[ " ${words[*]}" == *" $DIR/"* && /proc/$1/ns/pid -ef /proc/self/ns/pid ]] || return 1
    exe=$(readlink "/proc/$1/exe" 2>/dev/null) || return 1
    exe=${exe% (deleted)}
    [[ ${exe##*/} == "$2" ]]
}

our_pids() {
    local path pid
    for path in /proc/[0-9]*; do
        pid=${path#/proc/}
        if is_ours "$pid" "$1"; then printf '%s\n' "$pid"; fi
    done
}

write_config() {
    mkdir -p "$DIR"/{run,config,data,containerd,cdi}
    ln -sfn "$PREFIX/cli-plugins" "$DIR/config/cli-plugins"
    cat >"$DIR/daemon.json" <<EOF
{
  "hosts": ["$HOST"],
  "group": "root",
  "data-root": "$DIR/data",
  "exec-root": "$DIR/run/docker",
  "pidfile": "$DIR/run/docker.pid",
  "containerd": "$DIR/run/containerd.sock",
  "bridge": "$BRIDGE",
  "iptables": false,
  "ip6tables": false,
  "ip-forward": false,
  "userland-proxy-path": "$DIR/docker-proxy",
  "mtu": $MTU,
  "default-network-opts": {"bridge": {"com.docker.network.driver.mtu": "$MTU"}},
  "default-address-pools": [{"base": "$NET.128.0/17", "size": 24}],
  "exec-opts": ["native.cgroupdriver=cgroupfs"],
  "storage-driver": "overlay2",
  "log-opts": {"max-size": "50m", "max-file": "3"},
  "features": {"cdi": true, "containerd-snapshotter": false},
  "cdi-spec-dirs": ["$DIR/cdi", "/etc/cdi", "/var/run/cdi"]
}
EOF
    # What carries bytes to published ports runs before ordinary programs: on two cores a busy server in a container
    # was seen to keep it waiting for seconds, so that a stream of tokens arrived as one block.
    cat >"$DIR/docker-proxy" <<EOF
#!/bin/sh
if chrt --rr 1 true 2>/dev/null; then exec chrt --rr 1 "$PREFIX/bin/docker-proxy" "\$@"; fi
exec "$PREFIX/bin/docker-proxy" "\$@"
EOF
    chmod 755 "$DIR/docker-proxy"
    cat >"$DIR/containerd.toml" <<EOF
version = 2
root = "$DIR/containerd"
state = "$DIR/run/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images"]
[grpc]
address = "$DIR/run/containerd.sock"
EOF
}

# spawn PROGRAM ARGS...: start it in a session of its own, away from this terminal and from the lock; sets SPAWNED.
spawn() {
    PATH=$PREFIX/bin:$PATH setsid "$@" >"$DIR/$1.log" 2>&1 </dev/null 9>&- &
    SPAWNED=$!
}

# await NAME TEST...: wait until TEST succeeds; on failure print the daemon's last lines and stop everything.
await() {
    local name=$1 deadline=$((SECONDS + 60))
    shift
    until "$@"; do
        if ((SECONDS >= deadline)) || ! kill -0 "$SPAWNED" 2>/dev/null; then
            tail -n 15 "$DIR/$name.log" >&2
            stop_private
            die "$EXIT_TARGET" "the private $name did not start; its last lines are above, all in $DIR/$name.log"
        fi
        sleep 0.2
    done
}

start_private() {
    stop_private
    install_engine "$PREFIX" "$DIR/work"
    MTU=$(uplink_mtu)
    trap 'stop_private' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    make_network
    write_config
    spawn containerd --config "$DIR/containerd.toml"
    await containerd test -S "$DIR/run/containerd.sock"
    spawn dockerd --config-file "$DIR/daemon.json"
    await dockerd private_answers
    trap - EXIT INT TERM
}

# end_program SECONDS PROGRAM: TERM, wait, then KILL.
end_program() {
    local program=$2 kill_at=$((SECONDS + $1)) pids
    mapfile -t pids < <(our_pids "$program")
    ((${#pids[@]})) || return 0
    kill -TERM "${pids[@]}" 2>/dev/null || true
    while [[ -n $(our_pids "$program") ]]; do
        if ((SECONDS >= kill_at)); then kill -KILL "${pids[@]}" 2>/dev/null || true; fi
        ((SECONDS < kill_at + 10)) || die "$EXIT_TARGET" "$program (pid ${pids[*]}) does not end, not even by" \
            "SIGKILL; look at it with 'cat /proc/${pids[0]}/stack' and restart the host if need be"
        sleep 0.1
    done
}

descendants() {
    local child
    # shellcheck disable=SC2013  # one line of words, all of them numbers
    for child in $(cat /proc/"$1"/task/*/children 2>/dev/null); do
        descendants "$child"
        printf '%s\n' "$child"
    done
}

# Containers that outlived a killed engine: their processes, then their shims.
end_shims() {
    local shim pids
    for shim in $(our_pids containerd-shim-runc-v2); do
        mapfile -t pids < <(descendants "$shim")
        kill -KILL "${pids[@]}" "$shim" 2>/dev/null || true
    done
}

# Stops what start_private started, in any half-way state, and nothing else.
stop_private() {
    local mount
    end_program 40 dockerd
    end_shims
    end_program 10 containerd
    while read -r mount; do umount -l "$mount" 2>/dev/null || true; done \
        < <(awk -v d="$DIR/" 'index($5, d) == 1 { print $5 }' /proc/self/mountinfo | sort -r)
    rm -rf "$DIR/run"
    remove_network
}
