# shellcheck shell=bash
# The private engine's own bridge and packet rules. Uses BRIDGE, DIR, MTU, PREFIX of scripts/engine; sets NET.
#
# dockerd is told to leave iptables alone: when a second dockerd starts, it deletes the DOCKER chains of the
# first, and the first one's containers lose the network. So the few rules needed lie in chains named after the
# bridge, no other engine is disturbed, and all of it can be taken away again. Published ports go through
# docker-proxy. What this costs: the engine's own networks are not shut off from each other.

# Held while bridge, subnet and rules change, so that two engines cannot choose the same.
readonly NETWORK_LOCK=/run/bringup-engine-network.lock
# Exists while forwarding is on because of us: nothing but our containers is to be forwarded then.
readonly FORWARD_CHAIN=bringup-forward

run_ip() { PATH=$PREFIX/bin:$PATH ip "$@"; }
run_iptables() { PATH=$PREFIX/bin:$PATH iptables -w "$@"; }

uplink_mtu() {
    local device mtu
    device=$(run_ip -o -4 route show default | sed -n 's/.* dev \([^ ]*\).*/\1/p;q')
    [[ -z $device ]] || mtu=$(run_ip -o link show dev "$device" | sed -n 's/.* mtu \([0-9]*\) .*/\1/p')
    # A host without a default route (offline) gets the usual value.
    printf '%s\n' "${mtu:-1500}"
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

add_rules() {
    local ours=$NET.0.0/16
    run_iptables -N "$BRIDGE"
    run_iptables -A "$BRIDGE" -s "$ours" -j ACCEPT
    run_iptables -A "$BRIDGE" -d "$ours" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    run_iptables -A "$BRIDGE" -d "$ours" -j DROP
    run_iptables -I FORWARD -j "$BRIDGE"
    run_iptables -t nat -N "$BRIDGE"
    run_iptables -t nat -A "$BRIDGE" -s "$ours" ! -d "$ours" -j MASQUERADE
    run_iptables -t nat -I POSTROUTING -j "$BRIDGE"
    if [[ $(</proc/sys/net/ipv4/ip_forward) == 0 ]]; then
        run_iptables -N "$FORWARD_CHAIN"
        run_iptables -A "$FORWARD_CHAIN" -j DROP
        run_iptables -A FORWARD -j "$FORWARD_CHAIN"
        echo 1 >/proc/sys/net/ipv4/ip_forward
    fi
}

# drop_chain TABLE PARENT CHAIN: remove CHAIN and the jump to it, if they are there.
drop_chain() {
    run_iptables -t "$1" -S "$3" >/dev/null 2>&1 || return 0
    run_iptables -t "$1" -D "$2" -j "$3" 2>/dev/null || true
    run_iptables -t "$1" -F "$3"
    run_iptables -t "$1" -X "$3"
}

remove_rules() {
    drop_chain filter FORWARD "$BRIDGE"
    drop_chain nat POSTROUTING "$BRIDGE"
    if run_iptables -S "$FORWARD_CHAIN" >/dev/null 2>&1 \
        && ! run_iptables -S FORWARD | grep -qE -- '-j (bu-|DOCKER)'; then
        # Forwarding was off before our first engine, and no other engine uses it now.
        echo 0 >/proc/sys/net/ipv4/ip_forward
        drop_chain filter FORWARD "$FORWARD_CHAIN"
    fi
}

# The engine never makes or deletes the host's docker0: its default bridge is this one, made here.
make_network() {
    {
        flock 8
        find_subnet
        run_ip link add "$BRIDGE" type bridge
        run_ip link set "$BRIDGE" mtu "$MTU"
        run_ip address add "$NET.0.1/24" dev "$BRIDGE"
        run_ip link set "$BRIDGE" up
        add_rules
    } 8>"$NETWORK_LOCK"
}

remove_network() {
    local link
    # Nothing was made before the programs were there.
    [[ -s $PREFIX/versions ]] || return 0
    {
        flock 8
        # The networks of compose files are bridges in our subnet; a killed engine leaves them behind.
        for link in $(our_links); do
            run_ip link delete "$link" || note "could not delete the interface $link"
        done
        remove_rules
    } 8>"$NETWORK_LOCK"
}

# Our bridge, and the bridges dockerd made for other networks in the same subnet.
our_links() {
    local net=''
    [[ ! -e $DIR/daemon.json ]] || net=$(sed -n 's/.*"base": "\(10\.[0-9]*\)\..*/\1/p' "$DIR/daemon.json")
    [[ -z $net ]] || run_ip -o -4 address show | awk -v n="$net." '$2 ~ /^br-/ && index($4, n) == 1 { print $2 }'
    if run_ip link show dev "$BRIDGE" >/dev/null 2>&1; then printf '%s\n' "$BRIDGE"; fi
}
