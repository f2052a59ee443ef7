#!/usr/bin/env bash
# Unpacks /mnt/code/code.tar.gz and becomes the start command, which is the argument.
set -e

server="${OPEN_RUNTIMES_SERVER_DIR:-/usr/local/server}"
archive="${OPEN_RUNTIMES_CODE_DIR:-/mnt/code}/code.tar.gz"
if [ ! -f "$archive" ]; then
  echo "Code archive not found."
  exit 1
fi

mkdir -p "$server/src/function"
# GNU tar finds out by itself how the archive is compressed, if at all.
tar -xf "$archive" -C "$server/src/function"

# Read, not sourced: the value comes from whoever built the archive.
if [ -f "$server/src/function/.open-runtimes" ]; then
  while IFS='=' read -r name value; do
    [ "$name" = OPEN_RUNTIMES_ENTRYPOINT ] && [ -n "$value" ] && export OPEN_RUNTIMES_ENTRYPOINT="$value"
  done < "$server/src/function/.open-runtimes"
fi

cd "$server"
exec bash -c "$1"
