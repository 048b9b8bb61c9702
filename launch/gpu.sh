#!/usr/bin/env bash
# Builds, tests and measures on a machine with an NVIDIA GPU, in about ten minutes. Needs the CUDA toolkit and the packages that
# launch/setup.sh names; MPI may be missing (one process, ranks as threads).
#   launch/gpu.sh                    everything below
#   launch/gpu.sh --test             build, and every test labelled gpu
#   launch/gpu.sh --sanitize         the op tests under compute-sanitizer: memcheck, then racecheck on a part
#   launch/gpu.sh --bench            bench_gpu_ops, bench_gpu_train, and PyTorch and flash-linear-attention where they are
#   launch/gpu.sh ... --output DIR   where logs go (default build-cuda/gpu)
# Options add up. The architecture is that of the GPU that is there. The exit status is 1 when a test failed.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

die() { echo "gpu: error: $*" >&2; exit 1; }
usage() { sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
section() { printf '\n=== %s (%d s)\n' "$1" "$SECONDS"; }

test=0 sanitize=0 bench=0 output=build-cuda/gpu
while [[ $# -gt 0 ]]; do
  case $1 in
    --test) test=1 ;;
    --sanitize) sanitize=1 ;;
    --bench) bench=1 ;;
    --output) [[ $# -gt 1 ]] || die "--output needs a folder"; output=$2; shift ;;
    -h|--help) usage; exit 0 ;;
    *) die "unknown option '$1', expected --test, --sanitize, --bench or --output" ;;
  esac
  shift
done
[[ $((test + sanitize + bench)) -gt 0 ]] || test=1 sanitize=1 bench=1
mkdir -p "$output"

command -v nvidia-smi >/dev/null || die "nvidia-smi is not here: is the NVIDIA driver installed?"
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
[[ $capability == 90 ]] && capability=90a
export PATH=$PATH:/usr/local/cuda/bin

section "build for sm_$capability"
options=()
if ! /usr/bin/python3 -c "import h5py, torch, yaml" 2>/dev/null && ! python3 -c "import h5py, torch, yaml" 2>/dev/null; then
  echo "no Python with h5py, torch and yaml: the dumps are not compared with the float64 reference"
  options=(-DLAMINA_INTEGRATION_TESTS=OFF)
fi
cmake --preset cuda-release -DLAMINA_CUDA_ARCHITECTURES="$capability-real" "${options[@]}" >"$output/configure.log" ||
  die "cmake could not configure: see $output/configure.log"
cmake --build --preset cuda-release -j "$(nproc)" --target lamina bench_gpu_ops bench_gpu_train \
  tests_core_ops_cuda tests_comm_cuda tests_trainer_cuda >"$output/build.log" ||
  { tail -n 40 "$output/build.log"; die "the build failed"; }
[[ ! -x build-cuda/lamina ]] || build-cuda/lamina doctor --quick | tee "$output/doctor.log" || true

status=0
# Of a tool of compute-sanitizer: name, seconds, tests. It watches the program that it starts, so the time limit stands outside.
watch() {
  local code=0
  timeout "$2" compute-sanitizer --tool "$1" --error-exitcode 1 build-cuda/tests/gpu/tests_core_ops_cuda \
    --gtest_filter="$3" >"$output/$1.log" 2>&1 || code=$?
  tail -n 5 "$output/$1.log"
  case $code in
    0) echo "$1: clean" ;;
    124) echo "$1: clean as far as $2 s went; the last test begun is in $output/$1.log" ;;
    *) echo "$1: FAILED"; status=1 ;;
  esac
}
bench_python() {  # what it measures, script
  local code=0
  python3 "$2" >"$output/$1.log" 2>&1 || code=$?
  tail -n 1 "$output/$1.log"
  [[ $code -eq 0 ]] || echo "$1 did not run: see $output/$1.log"
}
if [[ $test -eq 1 ]]; then
  section "tests labelled gpu"
  ctest --test-dir build-cuda --output-on-failure --no-tests=error -L gpu 2>&1 | tee "$output/tests.log" || status=1
fi
if [[ $sanitize -eq 1 ]]; then
  section "compute-sanitizer"
  watch memcheck 150 '-*Threads*:*Reference*'
  watch racecheck 90 'RmsNorm*:AttnRes*:Router*:GroupRows*:GroupedProducts*:Kda*:Attention*'
fi
if [[ $bench -eq 1 ]]; then
  section "benchmarks"
  build-cuda/bench/bench_gpu_ops 2>&1 | tee "$output/bench_ops.log" || status=1
  bench_python flash-linear-attention bench/fla_kda.py
  build-cuda/bench/bench_gpu_train --peak-tflops 989 2>&1 | tee "$output/bench_train.log" || status=1
  bench_python PyTorch bench/torch_dense.py
fi
section "logs are in $output"
exit "$status"
