#!/bin/bash
# Starts a built function: start.sh "<start command>", which is usually "bash helpers/server.sh".
set -e

archive=/mnt/code/code.tar.gz
function=/usr/local/server/src/function

if [ ! -f "$archive" ]; then
  echo "Code archive not found."
  exit 1
fi
mkdir -p "$function"
tar -xf "$archive" -C "$function"

# The build's choice wins over the environment. The file is read, not run: it came with the code.
entrypoint="$(sed -n 's/^OPEN_RUNTIMES_ENTRYPOINT=//p' "$function/.open-runtimes" 2>/dev/null || true)"
if [ -n "$entrypoint" ]; then
  export OPEN_RUNTIMES_ENTRYPOINT="$entrypoint"
fi

cd /usr/local/server
echo "Runtime started."
exec bash -c "$1"
