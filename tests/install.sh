#!/bin/sh
# Installs what the tests and the demo need on Debian, with the word `swarm` what make test-swarm needs besides, and with
# the word `build` only what a compiler needs; does nothing where it is already there.
set -eu
word=${1:-}

# command:package
needed='ip:iproute2 iptables-nft:iptables nft:nftables conntrack:conntrack
        dockerd:docker.io docker:docker.io containerd:containerd runc:runc ps:procps tcpdump:tcpdump
        nsenter:util-linux cc:gcc make:make nmap:nmap socat:socat ethtool:ethtool curl:curl
        systemctl:systemd systemd-analyze:systemd systemd-sysusers:systemd systemd-tmpfiles:systemd
        ufw:ufw firewalld:firewalld dbus-daemon:dbus faketime:faketime
        prometheus-alertmanager:prometheus-alertmanager promtool:prometheus
        exim4:exim4-daemon-light
        mmdebstrap:mmdebstrap dpkg-shlibdeps:dpkg-dev strip:binutils
        chromium:chromium chromedriver:chromium-driver npm:npm'
unnamed='postgresql libc6-dev busybox-static'
[ "$word" != build ] || needed='cc:gcc make:make' unnamed=libc6-dev
[ "$word" != swarm ] || needed="$needed linux.uml:user-mode-linux mkfs.ext4:e2fsprogs setcap:libcap2-bin"

PATH=$PATH:/usr/sbin:/sbin
missing=
for pair in $needed; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair#*:}"
done
# No program in PATH tells of these: PostgreSQL's have a directory of their own, gcc links nothing without libc6-dev, and not
# every busybox will do: a dynamically linked one cannot run in the empty image of the tests.
for package in $unnamed; do
    dpkg-query -s "$package" >/dev/null 2>&1 || missing="$missing $package"
done

# What judges whether everybody can read the pages; nothing of it is installed into the system.
axe() {
    [ "$word" != build ] || return 0
    axe=$(dirname "$0")/../target/axe
    [ -e "$axe/node_modules/axe-core/axe.min.js" ] ||
        npm install --prefix "$axe" --no-save --no-package-lock --ignore-scripts --silent axe-core@4.11.0
}

if [ -z "$missing" ]; then
    axe
    echo "tests/install.sh: everything needed is installed"
    exit 0
fi
if [ "$(id -u)" != 0 ]; then
    echo "tests/install.sh: these packages are missing:$missing" >&2
    echo "hint: sudo $0 $*" >&2
    exit 1
fi
if ! command -v apt-get >/dev/null 2>&1; then
    echo "tests/install.sh: this is not a Debian system; install by hand:$missing" >&2
    exit 1
fi

# The packages would start their daemons on this machine; the tests start their own, inside namespaces.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod 755 "$policy"
fi

export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086  # a list of package names
install() { apt-get install -y --no-install-recommends $missing; }
install || { apt-get update && install; }
# From Debian 13 on the client is a package of its own.
command -v docker >/dev/null 2>&1 || apt-get install -y --no-install-recommends docker-cli
# Nor at the next boot: they would change the firewall of whoever runs the tests, or serve there.
for package in $missing; do
    case $package in
        ufw | firewalld | postgresql | prometheus-alertmanager | prometheus) ! command -v systemctl >/dev/null 2>&1 || systemctl disable "$package" ;;
        exim4-daemon-light) ! command -v systemctl >/dev/null 2>&1 || systemctl disable exim4 ;;
    esac
done
axe
