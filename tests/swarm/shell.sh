#!/bin/sh
# One command from `lab.sh sh`: its standard output, its standard error and its exit status, each ended by a
# record separator.
messages=$(mktemp)
sh -c "$(cat)" </dev/null 2>"$messages"
status=$?
printf '\036'
cat "$messages"
printf '\036%d' "$status"
rm "$messages"
