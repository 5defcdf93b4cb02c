#!/bin/bash
# Makes a release out of a clean tree; docker/docs/release.md says what becomes of it.
#   docker/release.sh                 builds both programs and packs them into target/release-VERSION
#   docker/release.sh pack FROM TO    packs those in FROM into TO, and builds nothing
set -euo pipefail

cd "$(dirname "$0")/.."
root=$PWD
source=$root/target/release-source
triple=$(rustc -vV | sed -n 's/^host: //p')
export LC_ALL=C TZ=UTC
# The same commit gives the same bytes, whenever and wherever it is built.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
umask 022

fail() {
    printf '%s: %s\nhint: %s\n' "$0" "$1" "$2" >&2
    exit 1
}

# That of Cargo.toml at its tag, else with the commit.
version() {
    local package tag
    package=$(cargo pkgid --offline -p deadlight-agent)
    tag=$(git describe --exact-match --tags --match 'v*' 2>/dev/null || true)
    case $tag in
        "v${package##*[#@]}") echo "${package##*[#@]}" ;;
        "") echo "${package##*[#@]}-$(git rev-parse --short=12 HEAD)" ;;
        *) fail "tag $tag is on version ${package##*[#@]} of Cargo.toml" "git tag -d $tag, set the version, commit, tag that" ;;
    esac
}

# What git knows of, and nothing else: an SBOM is written beside each manifest.
copy_source() {
    rm -rf "$source"
    mkdir -p "$source"
    git ls-files -z | tar --create --null --files-from=- | tar --extract -C "$source"
}

# The list of what is compiled in goes with each program, for `cargo audit bin`.
build() {
    local prefix="-ffile-prefix-map=$source=/deadlight -ffile-prefix-map=$root/target/release-build=/build \
        -ffile-prefix-map=${CARGO_HOME:-$HOME/.cargo}=/cargo"
    (cd "$source" && CARGO_TARGET_DIR=$root/target/release-build CARGO_INCREMENTAL=0 CFLAGS=$prefix \
        RUSTFLAGS="--remap-path-prefix=$source=/deadlight --remap-path-prefix=$root/target/release-build=/build \
            --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo" \
        cargo auditable build --release --locked -p deadlight-scanner -p deadlight-agent)
}

# pack FROM TO
pack() {
    local from to program name directory
    from=$(realpath "$1") to=$2
    mkdir -p "$to"
    copy_source
    (cd "$source" && cargo cyclonedx --quiet --format json --spec-version 1.5 --describe binaries --target "$triple")
    stage=$(mktemp -d)
    trap 'rm -rf "$stage" "$source"' EXIT
    for program in deadlight-scanner deadlight-agent; do
        name=$program-$version-$triple
        directory=$stage/$name
        mkdir -p "$directory/systemd"
        install -m 755 "$from/$program" "$directory/"
        cp README.md CHANGELOG.md SECURITY.md LICENSE-APACHE LICENSE-MIT "$directory/"
        cp docker/README.md "$directory/INSTALL.md"
        cp -r docker/systemd/deadlight*.conf docker/systemd/deadlight-.service.d "$directory/systemd/"
        case $program in
            deadlight-scanner) cp docker/systemd/deadlight-scanner.service "$directory/systemd/" ;;
            *)
                cp docker/systemd/*.{service,socket} docker/systemd/docker.service.d-deadlight.conf "$directory/systemd/"
                rm "$directory/systemd/deadlight-scanner.service"
                ;;
        esac
        "$from/$program" --print-config > "$directory/${program#deadlight-}.toml"
        if "$from/$program" man --help > /dev/null 2>&1; then
            mkdir "$directory/completions" "$directory/man1"
            "$from/$program" man --dir "$directory/man1"
            for shell in bash zsh fish; do
                "$from/$program" completions "$shell" > "$directory/completions/$program.$shell"
            done
        fi
        sed "s#file://$source#file:///deadlight#g" "$source/${program#deadlight-}/${program}_bin.cdx.json" > "$to/$name.cdx.json"
        cp "$to/$name.cdx.json" "$directory/$program.cdx.json"
        tar --create --sort=name --format=ustar --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner \
            --mode=u=rwX,go=rX -C "$stage" "$name" | gzip -9n > "$to/$name.tar.gz"
    done
    (cd "$to" && find . -type f ! -name SHA256SUMS -printf '%P\0' | sort -z | xargs -0 sha256sum > SHA256SUMS)
}

# needs TOOL…
needs() {
    for tool in "$@"; do
        command -v "$tool" > /dev/null || fail "$tool is missing" "cargo install --locked $tool"
    done
}

needs cargo-cyclonedx
version=$(version)
case ${1:-} in
    "")
        needs cargo-auditable
        [ -z "$(git status --porcelain)" ] || fail "the tree is not clean" "commit or remove what \`git status\` shows"
        out=$root/target/release-$version
        rm -rf "$out"
        copy_source
        build
        docker/debian/build.sh "$root/target/release-build"
        mkdir -p "$out"
        cp "$root"/target/release-build/debian/*.deb "$out"
        pack "$root/target/release-build/release" "$out"
        echo "$out"
        ;;
    pack) pack "${2:?FROM}" "${3:?TO}" ;;
    *) fail "no such word: $1" "docker/release.sh, or docker/release.sh pack FROM TO" ;;
esac
