#!/usr/bin/env bash
# Turns the source in /mnt/code into /mnt/code/code.tar.gz. The argument is the build command.
set -e
shopt -s dotglob nullglob

input="${OPEN_RUNTIMES_BUILD_INPUT_DIR:-/mnt/code}"
output="${OPEN_RUNTIMES_BUILD_OUTPUT_DIR:-/mnt/code}"
build="${OPEN_RUNTIMES_BUILD_DIR:-/usr/local/build}"

source=("$input"/*)
if [ ${#source[@]} -eq 0 ]; then
  echo "Error: No source code found. Ensure your source isn't empty."
  exit 1
fi

mkdir -p "$build" "$output"
cp -R "${source[@]}" "$build"
cd "$build"

# What the build command installs goes into the archive; the worker looks for it there.
python3 -m venv runtime-env
export VIRTUAL_ENV="$build/runtime-env" PATH="$build/runtime-env/bin:$PATH"
bash -c "${1:-}"

cd "$build/${OPEN_RUNTIMES_OUTPUT_DIRECTORY:-}"
result=(*)
if [ ${#result[@]} -eq 0 ]; then
  echo "Error: No build output found. Ensure your output directory isn't empty."
  exit 1
fi
[ "$PWD" = "$build" ] || cp -R "$build/runtime-env" .
printf 'OPEN_RUNTIMES_ENTRYPOINT=%s\n' "${OPEN_RUNTIMES_ENTRYPOINT:-}" > .open-runtimes
tar --exclude=./code.tar.gz -czf "$output/code.tar.gz" .
echo "Build finished."
