#!/bin/sh
# The first process of a node. What `lab.sh up` was told comes in the environment: lab_node, lab_number (the last part
# of the node's addresses), lab_forward (whether the node forwards before dockerd starts), lab_dockerd (more flags).
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root

# Debian's essential set has no mount; busybox knows it by this name.
mount() { busybox mount "$@"; }
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t cgroup2 cgroup /sys/fs/cgroup
for directory in /dev/shm /run /tmp /root /var/log /etc/docker; do mount -t tmpfs tmp "$directory"; done
# What Docker and the agent keep outlives a reboot.
mount -t ext4 /dev/ubda /disk
for name in docker deadlight; do
    mkdir -p "/disk/$name"
    mount -o bind "/disk/$name" "/var/lib/$name"
done

hostname "$lab_node"
for module in overlay bridge br_netfilter veth vxlan ip_vs ip_vs_rr nf_conntrack nf_conntrack_netlink \
    iptable_raw iptable_mangle iptable_nat iptable_filter ip6table_raw ip6table_mangle ip6table_nat ip6table_filter \
    ipt_REJECT ip6t_REJECT xt_addrtype xt_comment xt_conntrack xt_mark xt_MASQUERADE xt_multiport xt_nat; do
    modprobe "$module"
done

# As a unit before network-pre.target would.
[ ! -x "/lab/$lab_node.before-network" ] || "/lab/$lab_node.before-network" >/var/log/before-network.log 2>&1

ip link set lo up
ip link set vec0 up
ip addr add "198.51.100.$lab_number/24" dev vec0
ip addr add "2001:db8:51::$lab_number/64" dev vec0 nodad
ip route add default via 198.51.100.1
ip route add default via 2001:db8:51::1 dev vec0
ip link set vec1 up
ip addr add "203.0.113.$lab_number/24" dev vec1
[ -z "$lab_forward" ] || echo 1 >/proc/sys/net/ipv4/ip_forward

socat -t 600 "TCP-LISTEN:2222,bind=203.0.113.$lab_number,reuseaddr,fork" EXEC:/lab/shell.sh &
/lab/engine.sh start
# Swarm asks the registry first: this one refuses at once, without a name to resolve.
image=127.0.0.1:1/web:1
docker image inspect $image >/dev/null 2>&1 || /lab/image.sh | docker import - $image >/dev/null
echo READY
# The shell's wait reaps the orphans that come to the first process.
while :; do wait; sleep 1; done
