#!/usr/bin/env bash
# Runs a daemon under everything that functions and clients do, and looks whether it grows.
#
# Usage: scripts/soak.sh [SECONDS]   (default 600, at least 60; HEARTH_BIN names another program)
#
# The first fifth is for warming up. The rest is split in two: a resource whose mean in the second
# half is above that of the first by more than its slack fails the run. So does a warm call that
# is not answered with 200, and anything that is left after the daemon's end.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-600}
hearth=$(realpath "${HEARTH_BIN:-target/release/hearth}")
fixtures=conformance/functions/platform
every=10
[ "$seconds" -ge 60 ] || { echo "at least 60 seconds" >&2; exit 64; }

# What is watched, and by how much its mean may grow: percent, and units beside. Data: the catalog's
# write-ahead log fills up to 4 MiB before it is folded in, which in short runs is most of it.
names=(rss_kib descriptors threads processes launcher_kib mounts cgroups data_kib)
percent=(5 0 0 5 5 5 5 5)
beside=(1024 5 2 4 1024 4 4 5120)

work=$(mktemp --directory)
mix=()
daemon=
stop() {
    for pid in "${mix[@]}"; do kill "$pid" 2> /dev/null || true; done
    [ -z "$daemon" ] || kill -KILL "$daemon" 2> /dev/null || true
    wait 2> /dev/null || true
    rm -rf "$work"
}
trap stop EXIT

printf 'log-bytes = "256KiB"\n' > "$work/config.toml"
export HEARTH_DATA=$work/data
"$hearth" up --listen 127.0.0.1:0 --config "$work/config.toml" > "$work/out" 2> "$work/errors" &
daemon=$!
for _ in $(seq 100); do
    grep -q '^listening on ' "$work/out" && break
    kill -0 "$daemon" 2> /dev/null || { cat "$work/errors" >&2; exit 1; }
    sleep 0.1
done
HEARTH_URL=$(sed -n 's/^listening on //p' "$work/out")
export HEARTH_URL

deploy() { # name, language, flags
    "$hearth" deploy "$fixtures/$2" --name "$1" "${@:3}" > /dev/null 2>> "$work/deploys"
}

languages=()
for language in node python; do
    if deploy "warm-$language" "$language"; then
        languages+=("$language")
        deploy "cold-$language" "$language" --idle 1s
        deploy "changing-$language" "$language"
        deploy "crashing-$language" "$language"
        deploy "left-$language" "$language"
        deploy "loud-$language" "$language"
    else
        echo "skipped: $language: it cannot be deployed here" >&2
    fi
done
[ ${#languages[@]} -gt 0 ] || { cat "$work/deploys" >&2; exit 1; }

call() { # file for statuses, path, curl's arguments
    curl --silent --output /dev/null --write-out '%{http_code}\n' "${@:3}" "$HEARTH_URL/fn/$2" \
        >> "$work/$1" || true
}

warm() { while :; do call warm "warm-$1/?[1-200]"; sleep 0.2; done; }
cold() { while :; do call cold "cold-$1/"; sleep 2.5; done; }
crash() { while :; do call crashed "crashing-$1/crash"; sleep 1; done; }
leave() {
    while :; do
        call left "left-$1/stream" --max-time 0.3
        call left "left-$1/sleep?ms=20000" --max-time 0.3
    done
}
shout() { while :; do call loud "loud-$1/flood?kib=256"; sleep 1; done; }
change() {
    for ((version = 1; ; version++)); do
        deploy "changing-$1" "$1" --env "VERSION=$version" || echo failed >> "$work/changes"
        call changed "changing-$1/"
        sleep 4
    done
}
for language in "${languages[@]}"; do
    for kind in warm cold crash leave shout change; do
        "$kind" "$language" &
        mix+=($!)
    done
done

family() { # all processes below one
    ps -e -o pid=,ppid= | awk -v top="$1" '
        { parent[$1] = $2 }
        END { for (p in parent) for (q = p; q in parent; q = parent[q]) if (parent[q] == top) { print p; break } }'
}
field() { # file, name
    awk -v name="$2:" '$1 == name { print $2 }' "$1" 2> /dev/null || echo 0
}
launcher() { family "$1" | while read -r pid; do
    grep -qz __launcher "/proc/$pid/cmdline" 2> /dev/null && echo "$pid" && break; done || true; }
# Groups of the launcher that our daemon has; other daemons' have other numbers.
groups() {
    local owner
    owner=$(family "$daemon" | sed 's|.*|/proc/&/cgroup|' | xargs cat 2> /dev/null \
        | grep -o 'hearth/[0-9]*' | head -n 1 || true)
    [ -n "$owner" ] || { echo 0; return; }
    find /sys/fs/cgroup -path "*/$owner/*" -type d 2> /dev/null | wc -l
}
sample() {
    local status=/proc/$daemon/status below
    below=$(launcher "$daemon")
    below=${below:-$daemon}
    echo "$(field "$status" VmRSS) $(find "/proc/$daemon/fd" -mindepth 1 2> /dev/null | wc -l)" \
        "$(field "$status" Threads) $(family "$daemon" | wc -l)" \
        "$(field "/proc/$below/status" VmRSS) $(wc -l < "/proc/$below/mounts")" \
        "$(groups) $(du -sk "$HEARTH_DATA" 2> /dev/null | cut -f 1)"
}

printf '%8s' second; printf '%13s' "${names[@]}"; echo
begun=$SECONDS
while [ $((SECONDS - begun)) -lt "$seconds" ]; do
    sleep "$every"
    kill -0 "$daemon" 2> /dev/null || { echo "the daemon ended" >&2; tail "$work/errors" >&2; exit 1; }
    line="$((SECONDS - begun)) $(sample)"
    echo "$line" >> "$work/samples"
    # shellcheck disable=SC2086
    { printf '%8s' ${line%% *}; printf '%13s' ${line#* }; echo; }
done

for pid in "${mix[@]}"; do kill "$pid" 2> /dev/null || true; done
wait "${mix[@]}" 2> /dev/null || true
mix=()

failures=0
fail() { echo "FAILED: $*"; failures=$((failures + 1)); }

echo
printf '%-14s %12s %12s %12s\n' mean 'first half' 'second half' 'at most'
for index in "${!names[@]}"; do
    verdict=$(awk -v column=$((index + 2)) -v percent="${percent[index]}" -v beside="${beside[index]}" '
        { value[NR] = $column }
        END {
            begin = int(NR / 5) + 1; middle = begin + int((NR - begin + 1) / 2)
            for (i = begin; i < middle; i++) { first += value[i]; m++ }
            for (i = middle; i <= NR; i++) { second += value[i]; n++ }
            first /= m; second /= n; most = first * (1 + percent / 100) + beside
            printf "%12.1f %12.1f %12.1f %s", first, second, most, (second > most ? "grows" : "ok")
        }' "$work/samples")
    printf '%-14s %s\n' "${names[index]}" "$verdict"
    case $verdict in *ok) ;; *) fail "${names[index]} grows" ;; esac
done

echo
for kind in warm cold changed crashed left loud; do
    [ ! -f "$work/$kind" ] || echo "$kind calls: $(sort "$work/$kind" | uniq -c | awk '{ printf "%s × %s  ", $1, $2 }')"
done
for kind in warm cold changed; do
    ! grep -qv '^200$' "$work/$kind" || fail "$kind calls without 200"
done
[ ! -f "$work/changes" ] || fail "$(wc -l < "$work/changes") deployments, see: $(tail -n 1 "$work/deploys")"

mapfile -t left < <(family "$daemon")
kill -TERM "$daemon"
wait "$daemon" || fail "the daemon ended with $?"
daemon=
for pid in "${left[@]}"; do
    [ ! -e "/proc/$pid" ] || sleep 1
    [ ! -e "/proc/$pid" ] || fail "process $pid is left: $(tr '\0' ' ' < "/proc/$pid/cmdline")"
done
grep -E ' (WARN|ERROR) ' "$work/errors" | sed -E 's/^[^ ]+ +//; s/[0-9a-f]{8}-[-0-9a-f]+|-[0-9]+|[0-9]+/N/g' \
    | sort | uniq -c | sort -rn | head -n 10 | sed 's/^/daemon said: /' || true
[ "$failures" -eq 0 ]
