#!/bin/bash
# Builds a function: build.sh "<build command>"
# Takes the source from /mnt/code and leaves code.tar.gz there.
set -e
shopt -s dotglob

input="${OPEN_RUNTIMES_BUILD_INPUT_DIR:-/mnt/code}"
output="${OPEN_RUNTIMES_BUILD_OUTPUT_DIR:-/mnt/code}"
result="/usr/local/build/${OPEN_RUNTIMES_OUTPUT_DIRECTORY:-}"

is_empty() {
  [ -z "$(ls -A "$1" 2>/dev/null)" ]
}

if is_empty "$input"; then
  echo "Error: No source code found. Ensure your source isn't empty."
  exit 1
fi
mkdir -p /usr/local/build
cp -R "$input"/* /usr/local/build/

cd /usr/local/build
bash -c "${1:-}"

if is_empty "$result"; then
  echo "Error: No build output found. Ensure your output directory isn't empty."
  exit 1
fi
cd "$result"
echo "OPEN_RUNTIMES_ENTRYPOINT=${OPEN_RUNTIMES_ENTRYPOINT:-}" > .open-runtimes
mkdir -p "$output"
tar --exclude ./code.tar.gz -czf "$output/code.tar.gz" .
echo "Build finished."
