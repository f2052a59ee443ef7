#!/usr/bin/env bash
# Serves the two example functions, calls them, and prints replies and timings.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp --directory)
servers=()
stop() {
    for server in "${servers[@]}"; do kill "$server" 2> /dev/null || true; done
    for server in "${servers[@]}"; do wait "$server" 2> /dev/null || true; done
    rm -rf "$work"
}
trap stop EXIT

# Prints the URL once calls are accepted.
serve() { # language, folder
    target/release/hearth serve "$2" --listen 127.0.0.1:0 --logs "$work/$1" > "$work/$1.out" &
    servers+=($!)
    for _ in $(seq 600); do
        grep -q 'HTTP server successfully started!' "$work/$1.out" && return
        kill -0 $! 2> /dev/null || { echo "$1 did not start" >&2; exit 1; }
        sleep 0.05
    done
    echo "$1 did not start within 30 seconds" >&2
    exit 1
}

call() { # url, curl's arguments
    curl --silent --show-error --write-out '\n   %{http_code} in %{time_total} s\n' "${@:2}" "$1"
}

for language in javascript python; do
    serve "$language" "runtimes/$language/example"
    url=$(sed -n 's/^listening on //p' "$work/$language.out")
    echo "== $language: hearth serve runtimes/$language/example"
    echo "GET  $url/?name=Ada"
    call "$url/?name=Ada"
    call "$url/?name=Grace"
    echo "POST $url/ with JSON"
    call "$url/" --header 'content-type: application/json' --data '{"answer": 42}'
    echo "log of the first call:"
    first=$(ls -tr "$work/$language" | grep _logs.log | head -n 1)
    sed 's/^/   /' "$work/$language/$first"
    echo
done
echo "Try it on your own: target/release/hearth serve FOLDER"
