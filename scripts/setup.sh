#!/usr/bin/env bash
# Installs what functions and tests need and this machine lacks. Changes nothing where all is there.
set -euo pipefail

declare -A package=(
    [node]=nodejs [npm]=npm [python3]=python3 [pip3]=python3-pip [curl]=curl [nft]=nftables [cc]=gcc
)
missing=()
for program in "${!package[@]}"; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "$program" > /dev/null || missing+=("${package[$program]}")
done
[ ${#missing[@]} -eq 0 ] && exit 0

echo "missing: ${missing[*]}"
if ! command -v apt-get > /dev/null; then
    echo "install them with your package manager, then run this again" >&2
    exit 1
fi
root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo > /dev/null || { echo "run as root: apt-get install ${missing[*]}" >&2; exit 1; }
    root=(sudo)
fi
"${root[@]}" apt-get update --quiet=2
DEBIAN_FRONTEND=noninteractive "${root[@]}" apt-get install --yes --quiet=2 --no-install-recommends "${missing[@]}"
