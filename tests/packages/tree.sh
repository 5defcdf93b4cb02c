#!/bin/sh
# tree.sh SUITE: prints the path of a clean Debian of this suite with what the packages depend on. Built where this recipe
# never was; kept for the next time.
set -eu
cache=/var/cache/deadlight-packages
recipe=$(sha256sum "$0" | cut -c 1-12)
tree=$cache/$1-$recipe

mkdir -p "$cache"
exec 9>"$cache/$1.lock"
flock 9
if [ ! -e "$tree" ]; then
    # The machine's own mirror, so that it works wherever the machine's packages came from.
    mirror=$(grep -hoE 'https?://[^ ]+/debian/?$' /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | head -n 1 || :)
    # Under another name until it is whole: a tree that exists can be used. A mirror that was frozen once has Release files
    # that are out of date.
    rm -rf "$tree.part"
    mmdebstrap --quiet --variant=minbase --include=systemd,iptables,nftables,ca-certificates \
        --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Check-Valid-Until "false"' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        "$1" "$tree.part" "${mirror:-http://deb.debian.org/debian}" >&2
    rm -rf "$tree.part"/var/cache/apt/* "$tree.part"/var/lib/apt/lists/* "$tree.part"/etc/resolv.conf
    mv "$tree.part" "$tree"
fi
echo "$tree"
