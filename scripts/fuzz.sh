#!/usr/bin/env bash
# Fuzzes the decoder with libFuzzer. cargo-fuzz wants unstable flags, which a stable compiler takes
# when it is told to.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"

command -v cargo-fuzz > /dev/null || cargo install --locked --quiet cargo-fuzz
RUSTC_BOOTSTRAP=1 cargo fuzz run --sanitizer none decoder -- -max_total_time="$1" -max_len=4096
