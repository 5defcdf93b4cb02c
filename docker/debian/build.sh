#!/bin/sh
# build.sh TARGET [OPTION…]: Debian packages of the programs in TARGET/release, into TARGET/debian; OPTIONs are cargo-deb's.
set -eu
target=$1
shift
programs=$target/release made=$target/release/debian-files

# What the programs themselves can say best.
rm -rf "$made" "$target/debian"
mkdir -p "$made/man" "$made/completions"
for program in deadlight-agent deadlight-scanner; do
    "$programs/$program" man --dir "$made/man"
    "$programs/$program" completions bash >"$made/completions/$program"
    "$programs/$program" completions zsh >"$made/completions/_$program"
    "$programs/$program" completions fish >"$made/completions/$program.fish"
done
gzip -9 --no-name "$made"/man/*.1

# The service writes into its own directory alone.
state=/var/lib/deadlight-scanner
"$programs/deadlight-scanner" --print-config | sed \
    -e "s|^directory = \"pki\"$|directory = \"$state/pki\"|" \
    -e "s|^# url = \"sqlite:deadlight.db\"$|url = \"sqlite:$state/deadlight.db\"|" >"$made/scanner.toml"
[ "$(grep -c "$state" "$made/scanner.toml")" = 2 ] || { echo "build.sh: the scanner's template has changed" >&2; exit 1; }

for package in deadlight-agent deadlight-scanner; do
    CARGO_TARGET_DIR=$target cargo deb --no-build --locked --package "$package" "$@"
done
