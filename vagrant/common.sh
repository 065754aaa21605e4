# shellcheck shell=bash
# What the machines' scripts share; they run as root on Debian, again without harm, and in the project's own tests too.
set -euo pipefail

PACKAGE=/flatnet/flatnet-agent.deb
ENDPOINT_PORT=2379

# need PROGRAM PACKAGE: installs the package unless the program is there.
need() {
    command -v "$1" >/dev/null || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$2"; }
}

# within SECONDS COMMAND…: until it succeeds.
within() {
    local deadline=$((SECONDS + $1)) said
    shift
    until said=$("$@" 2>&1); do
        if ((SECONDS > deadline)); then
            echo "not in time: $*: $said" >&2
            return 1
        fi
        sleep 0.5
    done
}

# etcd ADDRESS CONFIG: an etcd at ADDRESS that knows the network `default`.
etcd() {
    local address=$1 config=$2
    need etcd etcd-server
    need etcdctl etcd-client
    mkdir -p /etc/default
    cat >/etc/default/etcd <<SETTINGS
ETCD_LISTEN_CLIENT_URLS="http://$address:$ENDPOINT_PORT,http://127.0.0.1:$ENDPOINT_PORT"
ETCD_ADVERTISE_CLIENT_URLS="http://$address:$ENDPOINT_PORT"
SETTINGS
    systemctl enable --quiet etcd
    systemctl restart etcd
    ETCDCTL_API=3 within 120 etcdctl put /coreos.com/network/config "$config"
}

# agent_with SETTING…: the agent as a service, with these lines in its configuration; returns when it holds a subnet.
agent_with() {
    need nft nftables
    [ -e "$PACKAGE" ] || { echo "$PACKAGE is not there: run make deb in the project's sources first" >&2; return 1; }
    # --force-confold: the configuration below is ours already when this runs again.
    dpkg -i --force-confold "$PACKAGE"
    printf '%s\n' 'log-format = "journald"' "$@" >/etc/flatnet/agent.toml
    systemctl enable --quiet flatnet-agent
    systemctl restart flatnet-agent
}

# container BRIDGE: a network namespace c1 with the second address of this host's subnet.
container() {
    local bridge=$1 FLANNEL_SUBNET FLANNEL_IPV6_SUBNET='' FLANNEL_MTU
    # shellcheck source=/dev/null
    . /run/flatnet/subnet.env
    container_with "$bridge" "$FLANNEL_MTU" "$FLANNEL_SUBNET" "$FLANNEL_IPV6_SUBNET"
}

# container_with BRIDGE MTU GATEWAY/LENGTH…: likewise, told what the agent would write.
container_with() {
    local bridge=$1 mtu=$2 gateway address
    shift 2
    ip netns del c1 2>/dev/null || true
    ip netns add c1
    ip -n c1 link set lo up
    ip link add c1 mtu "$mtu" type veth peer name eth0 mtu "$mtu" netns c1
    ip link set c1 master "$bridge" up
    ip -n c1 link set eth0 up
    for gateway in "$@"; do
        [ -n "$gateway" ] || continue
        address=${gateway%/*}
        # Ends in .1 or ::1: a subnet's first address.
        ip -n c1 addr add "${address%1}2/${gateway#*/}" dev eth0 $([[ $gateway == *:* ]] && echo nodad)
        ip -n c1 route add default via "$address"
    done
}
