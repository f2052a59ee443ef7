#!/usr/bin/env bash
# Starts the platform, deploys two examples, calls them, prints replies, timings and URLs. Stays up
# until it is interrupted; with ONCE=1 it stops by itself.
set -euo pipefail
cd "$(dirname "$0")/.."

hearth=${HEARTH:-target/release/hearth}
work=$(mktemp --directory)
daemon=
stop() {
    if [ -n "$daemon" ]; then
        kill "$daemon" 2> /dev/null || true
        wait "$daemon" 2> /dev/null || true
    fi
    rm -rf "$work"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# A port of its own if it is to stop by itself, so that it disturbs nobody.
if [ -n "${ONCE:-}" ]; then listen=127.0.0.1:0; else listen=${LISTEN:-127.0.0.1:8080}; fi
export HEARTH_DATA="$work/data"
"$hearth" up --listen "$listen" > "$work/out" 2> "$work/log" &
daemon=$!
for _ in $(seq 600); do
    grep -q '^listening on ' "$work/out" && break
    if ! kill -0 "$daemon" 2> /dev/null; then
        cat "$work/log" >&2
        echo "the daemon did not start; is something else at $listen? LISTEN=127.0.0.1:8081 make run" >&2
        exit 1
    fi
    sleep 0.05
done
HEARTH_URL=$(sed -n 's/^listening on //p' "$work/out")
export HEARTH_URL
grep '^note:' "$work/log" || true
echo "hearth up: $HEARTH_URL"

call() { # url, curl's arguments
    echo "\$ curl $*"
    curl --silent --show-error --header 'x-hearth-timing: 1' --dump-header "$work/head" \
        --write-out '\n   %{http_code} in %{time_total} s\n' "${@:2}" "$1"
    sed -n 's/^server-timing: /   /Ip' "$work/head" | tr -d '\r'
}

for language in javascript python; do
    echo
    echo "\$ hearth deploy runtimes/$language/example --name $language --idle 1s"
    "$hearth" deploy "runtimes/$language/example" --name "$language" --idle 1s
    url="$HEARTH_URL/fn/$language"
    call "$url/?name=Ada"
    call "$url/" --header 'content-type: application/json' --data '{"answer": 42}'
    # With nobody calling, its instance is stopped: the next call starts from a spare.
    for _ in $(seq 200); do
        "$hearth" ps | grep -q " $language .*idle" || break
        sleep 0.1
    done
    call "$url/?name=Grace"
    echo "\$ hearth logs $language"
    "$hearth" logs "$language" | sed 's/^/   /'
done
echo
"$hearth" ls
if [ -z "${ONCE:-}" ]; then
    echo
    echo "Try it on your own, then end it with ctrl-C:"
    echo "  export HEARTH_DATA=$HEARTH_DATA HEARTH_URL=$HEARTH_URL"
    echo "  $hearth deploy FOLDER    $hearth top    $hearth logs python --follow"
    wait "$daemon"
fi
