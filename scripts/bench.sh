#!/usr/bin/env bash
# Runs the benchmark programs whose rows begin with one of the given prefixes (all by default), prints one table and writes
# build/bench/report.json. Usage: bench.sh BUILD_FOLDER 'PREFIX PREFIX ...'
set -euo pipefail
build=${1:?build folder} prefixes=${2:-}
out=build/bench
mkdir -p "$out"
rm -f "$out"/*.json

# program -> the room its rows begin with
programs=(crc32c_bench:base transfer_bench:transfer store_bench:store collective_bench:collective attention_bench:kernels streaming_bench:streaming decode_bench:e2e rag_bench:e2e gateway_replay:e2e remote_bench:kvstore ssd_bench:ssd index_bench:kvstore)

wanted() {
  [ -z "$prefixes" ] && return 0
  local p
  for p in $prefixes; do
    case "$1/" in "${p%%/*}"/*) return 0 ;; esac
  done
  return 1
}
for entry in "${programs[@]}"; do
  program=${entry%%:*} room=${entry##*:}
  wanted "$room" || continue
  # Files on the disk that the build lies on.
  folder=()
  [ "$program" = ssd_bench ] && folder=(--folder "$out/ssd")
  "$build/bench/$program" --json "$out/$program.json" "${folder[@]}"
  rm -rf "$out/ssd"
done
if ! ls "$out"/*.json >/dev/null 2>&1; then
  echo "bench: no benchmark has rows beginning with '$prefixes'; there are rows in: ${programs[*]##*:}" >&2
  exit 2
fi
"$build/bench/merge_reports" "$out/report.json" "$prefixes" "$out"/*.json
