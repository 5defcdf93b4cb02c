#!/usr/bin/env bash
# A real Docker Swarm on one machine: nodes are User-Mode Linux kernels with real engines, on a bridge in one network
# namespace that has no way out.
#
#   lab.sh build SUITE                   a root tree: bookworm (Docker 20.10), trixie (26.1) or forky (28.5)
#   lab.sh up NODE NUMBER SUITE [K=V…]   boot a node at 198.51.100.NUMBER and 2001:db8:51::NUMBER; K is forward (=1: the
#                                        node forwards before dockerd starts) or dockerd (more of its flags)
#   lab.sh reboot NODE                   cut its power and boot it again, with the same disk
#   lab.sh sh NODE COMMAND               run a shell command on a node
#   lab.sh out COMMAND                   run one outside of the cluster, in the namespace: the "internet"
#   lab.sh down                          end all of it; nothing stays behind
#
# SWARM_LAB is the directory of this lab, SWARM_NETNS its namespace, SWARM_CACHE where root trees are kept.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
lab=${SWARM_LAB:-/tmp/deadlight-swarm}
netns=${SWARM_NETNS:-dl-swarm}
cache=${SWARM_CACHE:-/var/cache/deadlight-swarm}
patience=90

# The path of a suite's root tree, which is built where this recipe never was.
build() {
    local recipe root
    recipe=$(cat "$here/root.sh" <(ls /usr/lib/uml/modules) | sha256sum)
    root=$cache/$1-${recipe:0:12}
    mkdir -p "$cache"
    exec {lock}>"$cache/$1.lock"
    flock "$lock"
    if [[ ! -e $root ]]; then
        # Under another name until it is whole: a tree that exists can be used.
        rm -rf "$root.part"
        "$here/root.sh" "$1" "$root.part" >&2
        mv "$root.part" "$root"
    fi
    exec {lock}>&-
    echo "$root"
}

up() {
    local node=$1 number=$2 suite=$3 root option
    shift 3
    local options=()
    for option in "$@"; do options+=("lab_${option%%=*}=\"${option#*=}\""); done
    root=$(build "$suite")
    network
    mkdir -p "$lab/shared"
    cp "$here"/{init,engine,image,shell}.sh "$lab/shared/"
    echo "$number" >"$lab/$node.number"
    truncate -s 2G "$lab/$node.disk"
    mkfs.ext4 -q "$lab/$node.disk"
    # The internet knows for ever where the node is, so that what is sent to it while it boots is not held back.
    local index mac=02:00:00:00:00:$number address
    for address in "198.51.100.$number" "2001:db8:51::$number"; do
        ip -n "$netns" neigh replace "$address" lladdr "$mac" nud permanent dev bridge0
    done
    for index in 0 1; do
        ip -n "$netns" tuntap add dev "tap$index-$number" mode tap
        ip -n "$netns" link set "tap$index-$number" master "bridge$index" up
    done
    printf '%s\n' linux.uml mem=1200M root=/dev/root rootfstype=hostfs "rootflags=$root" ro init=/init "ubda=$lab/$node.disk" \
        "vec0:transport=tap,ifname=tap0-$number,mac=$mac,depth=64,gro=1" "vec1:transport=tap,ifname=tap1-$number,depth=64" \
        con0=null,fd:1 con=null quiet "lab_shared=$lab/shared" "lab_node=$node" "lab_number=$number" "${options[@]}" \
        >"$lab/$node.command"
    boot "$node"
}

reboot() {
    on "$1" sync
    # A node is many processes of this machine, in a session of its own.
    halt $(pgrep --session "$(cat "$lab/$1.pid")")
    boot "$1"
}

boot() {
    local node=$1 command
    mapfile -t command <"$lab/$node.command"
    # User-Mode Linux keeps the node's memory in a file of this directory.
    TMPDIR=/dev/shm setsid ip netns exec "$netns" "${command[@]}" </dev/null >"$lab/$node.console" 2>&1 &
    echo $! >"$lab/$node.pid"
    for ((deadline = SECONDS + patience; SECONDS < deadline; )); do
        ! grep -q '^READY' "$lab/$node.console" || return 0
        kill -0 "$!" 2>/dev/null || break
        sleep 0.1
    done
    echo "node $node did not come up:" >&2
    tail "$lab/$node.console" >&2
    return 1
}

on() {
    local number reply rest
    number=$(cat "$lab/$1.number")
    reply=$(printf %s "$2" | ip netns exec "$netns" socat -t 600 STDIO "TCP:203.0.113.$number:2222")
    rest=${reply#*$'\x1e'}
    [[ $rest == *$'\x1e'* ]] || { echo "node $1 did not answer" >&2; return 255; }
    printf %s "${reply%%$'\x1e'*}"
    printf %s "${rest%%$'\x1e'*}" >&2
    return "${rest##*$'\x1e'}"
}

down() {
    if [[ -e /run/netns/$netns ]]; then
        # shellcheck disable=SC2046  # a list of numbers
        halt $(ip netns pids "$netns")
        ip netns del "$netns"
    fi
    rm -rf "$lab"
}

halt() {
    local pid
    for pid in "$@"; do kill -KILL "$pid" 2>/dev/null || :; done
    for pid in "$@"; do while [[ -e /proc/$pid ]]; do sleep 0.1; done; done
}

# bridge0 is the internet, bridge1 the way of `lab.sh sh`, which no rule of a node and no scan ever meets.
network() {
    [[ -e /run/netns/$netns ]] || ip netns add "$netns"
    ! ip -n "$netns" link show bridge0 >/dev/null 2>&1 || return 0
    ip -n "$netns" link set lo up
    local index address
    for index in 0 1; do
        ip -n "$netns" link add "bridge$index" type bridge
        # Without a querier, snooping forgets who listens: a node that boots again would not be found over IPv6.
        ip -n "$netns" link set "bridge$index" up type bridge mcast_snooping 0
    done
    for address in 198.51.100.1/24 198.51.100.2/24 "2001:db8:51::1/64 nodad" "2001:db8:51::2/64 nodad"; do
        # shellcheck disable=SC2086  # an address and its flag
        ip -n "$netns" addr add $address dev bridge0
    done
    ip -n "$netns" addr add 203.0.113.1/24 dev bridge1
}

case ${1:-} in
    build | up | reboot | down) "$@" ;;
    sh) on "$2" "$3" ;;
    out) ip netns exec "$netns" sh -c "$2" ;;
    *) sed -n '2,/^set/{/^#/!d;s/^# \?//;p}' "$0" >&2; exit 2 ;;
esac
