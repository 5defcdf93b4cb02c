#!/bin/sh
# systemctl, on a node that has no systemd: the agent's service, and nothing else.
set -eu

stop() {
    [ -e /run/agent-service.pid ] || return 0
    pid=$(cat /run/agent-service.pid)
    rm /run/agent-service.pid
    kill "$pid"
    while [ -e "/proc/$pid" ]; do sleep 0.1; done
}

start() {
    setsid deadlight-agent run </dev/null >>/run/agent-service.log 2>&1 &
    echo $! >/run/agent-service.pid
    until busybox nc -w 1 127.0.0.1 7443 </dev/null 2>/dev/null; do
        [ -e "/proc/$!" ] || { cat /run/agent-service.log >&2; exit 1; }
        sleep 0.1
    done
}

case "$*" in
"enable --now "*deadlight-agent.service*) start ;;
"restart deadlight-agent") stop && start ;;
"disable --now "*deadlight-agent.service*) stop ;;
*) echo "systemctl $*: an emulated node cannot" >&2 && exit 1 ;;
esac
