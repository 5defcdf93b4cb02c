#!/bin/sh
# contexts.sh PROGRAMS OUTPUT: in OUTPUT a build context for each image, from the programs in PROGRAMS and this machine's
# libraries and iptables. The same inputs give the same contexts, byte for byte. As root: the trees have owners.
set -eu
here=$(dirname "$(readlink -f "$0")")
programs=$1
output=$(readlink -m "$2")
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"
epoch=${SOURCE_DATE_EPOCH:-$(git -C "$here" log -1 --format=%ct)}

agent() {
    for program in xtables-legacy-multi xtables-nft-multi nft; do take "/usr/sbin/$program"; done
    for tool in iptables ip6tables; do
        for flavour in legacy nft; do
            for verb in '' -save -restore; do
                ln -s "xtables-$flavour-multi" "$root/usr/sbin/$tool-$flavour$verb"
            done
        done
    done
    # The extensions of iptables, where it looks for them.
    # shellcheck disable=SC2046  # a list of files
    tar -C / -c $(dpkg -L iptables | grep '/xtables/' | cut -c 2-) | tar -C "$root" -x
    install -d "$root/etc/deadlight" "$root/var/lib/deadlight"
}

scanner() {
    # For alerts to the world outside.
    install -D -m 644 /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
    install -d "$root/etc/deadlight-scanner"
    install -d --owner=65532 --group=65532 "$root/var/lib/deadlight-scanner"
    # Probes by packets, without root.
    setcap cap_net_raw+ep "$root/usr/bin/deadlight-scanner"
}

# Copies a file with what it is linked with, which is found at the same place there.
take() {
    [ -e "$1" ] || { echo "$1 is missing; hint: apt-get install iptables nftables" >&2; exit 1; }
    install -D "$1" "$root/${2:-$1}"
    for library in $(ldd "$1" | grep -o '/[^ ]*'); do install -D "$library" "$root/$library"; done
}

for name in agent scanner; do
    context=$output/$name root=$output/$name/root
    rm -rf "$context"
    install -d "$root/etc"
    echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
    take "$programs/deadlight-$name" "/usr/bin/deadlight-$name"
    "$name"
    tar -C "$root" --sort=name --mtime="@$epoch" --numeric-owner --format=pax \
        --pax-option=exthdr.name=%d/%f,delete=atime,delete=ctime --xattrs --xattrs-include=security.capability \
        -cf "$context/root.tar" .
    rm -r "$root"
    cp "$here/$name.Dockerfile" "$context/Dockerfile"
done
