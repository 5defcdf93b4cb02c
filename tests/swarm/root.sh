#!/bin/sh
# root.sh SUITE DIRECTORY: a Debian root tree with Docker, for a User-Mode Linux node to boot from.
set -eu
suite=$1 root=$2

# Bookworm's Compose is version 1.
case $suite in bookworm) client= ;; *) client=,docker-cli,docker-compose ;; esac
# What the agent's package needs, where systemd is not the first process.
sysusers=,systemd-standalone-sysusers,systemd-standalone-tmpfiles
# The machine's own mirror, so that it works wherever the machine's packages came from.
mirror=$(grep -hoE 'https?://[^ ]+/debian/?$' /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | head -n 1 || :)

# A mirror that was frozen once has Release files that are out of date.
mmdebstrap --quiet --variant=essential \
    --include="docker.io$client,iptables,nftables,conntrack,iproute2,kmod,procps,socat,busybox-static,ca-certificates$sysusers" \
    --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Check-Valid-Until "false"' \
    "$suite" "$root" "${mirror:-http://deb.debian.org/debian}"
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/doc/* "$root/etc/resolv.conf"

cp -a /usr/lib/uml/modules "$root/usr/lib/"
# Debian's User-Mode Linux has no nf_tables for IPv4 and IPv6.
for tool in iptables ip6tables; do
    for command in '' -save -restore; do
        ln -sf /usr/sbin/xtables-legacy-multi "$root/etc/alternatives/$tool$command"
    done
done

# The tree is read-only and the same for all nodes: what a node does is in the lab's own directory.
mkdir -p "$root/lab" "$root/disk" "$root/etc/docker" "$root/var/lib/docker" "$root/var/lib/deadlight"
cat > "$root/init" <<'INIT'
#!/bin/sh
busybox mount -t hostfs -o "$lab_shared" lab /lab
exec /lab/init.sh
INIT
chmod 755 "$root/init"
