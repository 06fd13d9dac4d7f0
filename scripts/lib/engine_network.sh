# shellcheck shell=bash
# The private engine's own bridge. Uses BRIDGE, DIR, PREFIX of scripts/engine.

# ip, from the prefix if the host has none.
run_ip() { PATH=$PREFIX/bin:$PATH ip "$@"; }

uplink_mtu() {
    local device
    device=$(run_ip -o -4 route show default | sed -n 's/.* dev \([^ ]*\).*/\1/p;q')
    # A host without a default route (offline) gets the usual value.
    if [[ -n $device ]]; then cat "/sys/class/net/$device/mtu"; else echo 1500; fi
}

# A 10.N.0.0/16 that no route of the host touches: sets NET to "10.N". The search starts at a number made
# from the directory's name, so that two engines start apart.
find_subnet() {
    local start i n
    start=$((16#${BRIDGE#bu-} % 200))
    for ((i = 0; i < 200; i++)); do
        n=$((20 + (start + i) % 200))
        if [[ -z $(run_ip -4 route show root "10.$n.0.0/16") ]] \
            && [[ -z $(run_ip -4 route show match "10.$n.0.0/16" | grep -v '^default' || true) ]]; then
            NET=10.$n
            return
        fi
    done
    die "$EXIT_TARGET" 'every 10.N.0.0/16 is in use on this host; free one for the engine'
}

# The engine never makes or deletes the host's docker0: its default bridge is this one, made here.
make_bridge() {
    remove_bridge
    find_subnet
    run_ip link add "$BRIDGE" type bridge
    run_ip link set "$BRIDGE" mtu "$MTU"
    run_ip address add "$NET.0.1/24" dev "$BRIDGE"
    run_ip link set "$BRIDGE" up
}

remove_bridge() {
    if [[ -e /sys/class/net/$BRIDGE ]]; then run_ip link delete "$BRIDGE"; fi
}
