#!/bin/sh
# Builds both programs of another revision into target/compat/bin, out of a work tree that is gone afterwards.
set -eu

cd "$(dirname "$0")/../.."
revision=$(git rev-parse --verify --quiet "${1:?which revision?}^{commit}") || {
    echo "$0: there is no revision $1 here" >&2
    echo "hint: git fetch --tags" >&2
    exit 1
}
compat=$PWD/target/compat
source=$compat/source
mkdir -p "$compat/bin"
remove() { [ ! -e "$source" ] || git worktree remove --force "$source"; }
remove
trap remove EXIT
trap 'exit 1' HUP INT TERM
git worktree add --quiet --detach "$source" "$revision"
# What both depend on is built already.
if [ ! -e "$compat/target" ] && [ -e target/debug/deps ]; then
    mkdir -p "$compat/target/debug"
    cp -al target/debug/deps target/debug/build "$compat/target/debug"
    # Cargo writes into these where they are.
    cp -a target/debug/.fingerprint "$compat/target/debug"
fi
(cd "$source" && CARGO_TARGET_DIR=$compat/target CARGO_INCREMENTAL=0 cargo build --locked -p deadlight-scanner -p deadlight-agent)
cp "$compat/target/debug/deadlight-scanner" "$compat/target/debug/deadlight-agent" "$compat/bin"
