#!/bin/sh
# engine.sh start|stop: the node's dockerd, as its init script would do it.
set -eu

start() {
    # shellcheck disable=SC2086  # a list of flags
    setsid dockerd ${lab_dockerd:-} </dev/null >>/var/log/dockerd.log 2>&1 &
    until docker version >/dev/null 2>&1; do sleep 0.1; done
}

stop() {
    pid=$(cat /run/docker.pid)
    kill "$pid"
    while [ -e "/proc/$pid" ]; do sleep 0.1; done
}

"$1"
