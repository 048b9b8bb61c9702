#!/usr/bin/env bash
# Runs the tests; installs and builds what they need (launch/setup.sh --tests).
#   launch/test.sh                unit and integration tests of the optimised build
#   launch/test.sh --cuda         the code for GPUs on an emulated one; with the CUDA toolkit here, also compiled and linked
#   launch/test.sh --lint         clang-format and clang-tidy, of the version that the tree follows (14)
#   launch/test.sh --sanitizers   unit tests under the address, undefined-behaviour and thread sanitizers
#   launch/test.sh --all          all of the above
#   launch/test.sh --alone        each source compiled alone, which shows a missing #include (the usual build takes a few at once)
#   launch/test.sh --fresh SUITE[:mpich]...        as root: a bare root of each release (bookworm, trixie, ...), HEAD cloned into it, and
#                                 README's two commands typed there, by root and by an ordinary user with sudo; leaves nothing behind
#   launch/test.sh --fresh-start SUITE[:mpich]...  the same up to a first test: install, configure, build, train a few steps, by root
#   launch/test.sh --cluster      several hosts, Slurm and signals (tests/cluster). As root, in a system that may make network namespaces;
#                                 installs openssh-server, iproute2 and slurm-wlm (10 minutes)
# Options add up. The last line is "N passed, N failed".
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

die() { echo "test: error: $*" >&2; exit 1; }
usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; }

tests=0 cuda=0 lint=0 sanitizers=0 alone=0 cluster=0 fresh=() fresh_start=()
[[ $# -gt 0 ]] || tests=1
while [[ $# -gt 0 ]]; do
  option=$1
  shift
  case $option in
    --cuda) cuda=1 ;;
    --lint) lint=1 ;;
    --sanitizers) sanitizers=1 ;;
    --all) tests=1 cuda=1 lint=1 sanitizers=1 ;;
    --alone) alone=1 ;;
    --cluster) cluster=1 ;;
    --fresh|--fresh-start)
      [[ $# -gt 0 && $1 != -* ]] || die "$option needs a release: $option bookworm"
      while [[ $# -gt 0 && $1 != -* ]]; do
        if [[ $option == --fresh ]]; then fresh+=("$1"); else fresh_start+=("$1"); fi
        shift
      done ;;
    -h|--help) usage; exit 0 ;;
    *) die "unknown option '$option' (--help)" ;;
  esac
done

passed=0 failed=0
failures=()

# Open MPI refuses to start ranks as root or more ranks than cores unless told that it's meant.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_btl_vader_single_copy_mechanism=none
export CCACHE_BASEDIR=$root CCACHE_NOHASHDIR=1 CCACHE_SLOPPINESS=pch_defines,time_macros

section() { printf '\n=== %s (%d s)\n' "$1" "$SECONDS"; }

count() {  # name, 0 when it passed
  if [[ $2 -eq 0 ]]; then
    passed=$((passed + 1))
    echo "$1: passed"
  else
    failed=$((failed + 1))
    failures+=("$1")
    echo "$1: FAILED"
  fi
}

run_ctest() {  # build folder, further arguments of ctest
  local folder=$1 log status=0 bad total
  shift
  log=$(mktemp)
  ctest --test-dir "$folder" --output-on-failure --no-tests=error --timeout 900 "$@" 2>&1 | tee "$log" || status=$?
  read -r bad total < <(sed -n 's/.*tests passed, \([0-9]*\) tests failed out of \([0-9]*\).*/\1 \2/p' "$log") || true
  rm -f "$log"
  if [[ -z ${total:-} ]]; then
    count "ctest in $folder" 1
    return
  fi
  passed=$((passed + total - bad))
  failed=$((failed + bad))
  [[ $status -eq 0 ]] || failures+=("ctest in $folder")
}

build_preset() {  # preset, targets (all when none is named)
  local preset=$1
  shift
  cmake --preset "$preset" -DLAMINA_BUILD_TESTS=ON ${LAMINA_WERROR:+"-DLAMINA_WERROR=$LAMINA_WERROR"} >/dev/null &&
    cmake --build --preset "$preset" -j "$(nproc)" ${1:+--target "$@"}
}

# Kernels run on the CPU, by an emulator of the device (tests/cuda_emulator); nvcc says that they are CUDA, too.
check_cuda() {
  section "code for GPUs, emulated"
  if build_preset cuda-emulated tests_cuda_emulator tests_core_ops_cuda tests_comm_cuda tests_inference_cuda tests_trainer_cuda bench_gpu_ops lamina; then
    run_ctest build-emulated --parallel "$(nproc)" -R 'cuda'
  else
    count "build with the emulated device" 1
  fi
  section "code for GPUs, compiled"
  if ! command -v nvcc >/dev/null && [[ ! -x /usr/local/cuda/bin/nvcc ]]; then
    echo "the CUDA toolkit is not here: nothing to compile with"
    return
  fi
  local status=0
  build_preset cuda-release lamina bench_gpu_ops bench_gpu_train bench_gpu_launch tests_core_ops_cuda tests_comm_cuda tests_inference_cuda tests_trainer_cuda || status=$?
  count "build with the CUDA toolkit" "$status"
  [[ $status -eq 0 ]] || return 0
  # Where there is no GPU the program runs on CPUs as ever, and says why not on GPUs.
  run_ctest build-cuda -R 'launch_device|launch_doctor'
}

# Each version formats and finds faults in ways of its own.
is_version_14() {  # clang-format or clang-tidy
  local version
  version=$("$1" --version | sed -n 's/.*version \([0-9]*\).*/\1/p' | head -n 1)
  [[ $version -eq 14 ]] || { echo "$1 $version is here, the tree follows 14: nothing judged"; return 1; }
}

check_format() {
  local status=0
  git ls-files -z -- '*.cpp' '*.h' '*.cu' '*.cuh' | xargs -0 clang-format --dry-run --Werror || status=$?
  count clang-format "$status"
}

# As the quick build compiles them, only more sources at once: most of the work is what they include. Headers and sources are judged
# through those. The OpenMP header is the compiler's own, which clang-tidy doesn't look for: its folder goes to the end of the search, behind
# clang's versions of everything else in it.
check_tidy() {
  local status=0 log rooms='(core|configs|parallel|data|model|inference|evaluation|trainer|launch)'
  log=$(mktemp)
  if ! { cmake --preset cpu-release -B build-lint -DLAMINA_QUICK_BUILD=ON -DLAMINA_SOURCES_AT_ONCE=1000 -DLAMINA_BUILD_TESTS=OFF -DLAMINA_BUILD_BENCH=OFF &&
    cmake --build build-lint --target lamina_event_proto &&
    cmake -DSOURCE="$root" -DOUTPUT="$root/build-lint/generated/git_commit.h" -P launch/git_commit.cmake; } >"$log" 2>&1; then
    cat "$log"
    count "configuring for clang-tidy" 1
    return
  fi
  run-clang-tidy -p build-lint -quiet -j "$(nproc)" -checks=-bugprone-suspicious-include \
    -header-filter="/$rooms/.*\.(h|cpp)\$" \
    -extra-arg="-idirafter$(g++ -print-file-name=include)" -extra-arg=-Wno-unknown-warning-option \
    "/Unity/unity_|$root/$rooms/.*\.cpp$" >"$log" 2>&1 || status=$?
  [[ $status -eq 0 ]] || grep -E -A 4 '(warning|error):' "$log" || tail -n 40 "$log"
  rm -f "$log"
  count clang-tidy "$status"
}

# Compiled a few at once, a source may live on what its neighbours include.
check_alone() {
  section "each source alone"
  local status=0
  { cmake --preset cpu-release -B build-alone -DLAMINA_QUICK_BUILD=OFF -DLAMINA_WERROR=ON -DCMAKE_CXX_FLAGS_RELEASE=-O0 >/dev/null &&
    cmake --build build-alone -j "$(nproc)"; } || status=$?
  count "build of each source alone" "$status"
}

check_sanitizers() {
  section "address and undefined-behaviour sanitizers"
  if build_preset cpu-debug; then
    LSAN_OPTIONS="suppressions=$root/tests/support/lsan.supp:print_suppressions=0" ASAN_OPTIONS=detect_stack_use_after_return=1 \
      UBSAN_OPTIONS=print_stacktrace=1 run_ctest build-debug --parallel "$(nproc)" -LE integration
  else
    count "build with the address sanitizer" 1
  fi
  section "thread sanitizer"
  # Where threads meet. Loops over cores are left out: the sanitizer doesn't see the barriers of libgomp that order them. So are tests
  # that count on several threads per rank (ThreadsOfSteps, PeakRate.Grows...).
  local threaded=(tests_core_base tests_core_io tests_parallel_comm tests_parallel_expert tests_parallel_pipeline tests_parallel_zero tests_data
    tests_inference tests_trainer)
  if build_preset cpu-tsan "${threaded[@]}"; then
    # Plans and factors are made by one thread.
    GTEST_FILTER='-Decoder*:ThreadsOfSteps.*:PeakRate.GrowsWithTheThreads:WidthRule.*:BlockRoutes.*:Faults.*:PeakSummaries.*:Lowering.*:ProgramFaults.*:Schedule.*:ScheduleFaults.*:Simulate.*:BalancedSplit.*' \
      TSAN_OPTIONS="suppressions=$root/tests/support/tsan.supp:second_deadlock_stack=1" \
      run_ctest build-tsan --parallel "$(nproc)" -R "^($(IFS='|'; echo "${threaded[*]}"))\$"
  else
    count "build with the thread sanitizer" 1
  fi
}

# Where they can't run they fail: nobody asks for them by accident.
check_cluster() {
  local python script status arguments
  python=$(sed -n 's/^LAMINA_PYTHON:[A-Z]*=//p' build/CMakeCache.txt)
  for script in signals hosts slurm; do
    section "cluster: $script"
    arguments=(build/lamina)
    [[ $script != signals ]] || arguments+=(20)   # shots
    status=0
    "$python" "tests/cluster/$script.py" "${arguments[@]}" || status=$?
    count "tests/cluster/$script.py" "$status"
  done
}

# Each in a root of its own; what they print says what was typed there.
check_fresh() {
  local suite user status
  [[ $((${#fresh[@]} + ${#fresh_start[@]})) -eq 0 ]] || command -v debootstrap >/dev/null ||
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends debootstrap >/dev/null; } ||
    die "debootstrap is not here and could not be installed: --fresh works as root on Debian and Ubuntu"
  for suite in ${fresh[@]+"${fresh[@]}"}; do
    for user in root newcomer; do
      section "a bare $suite, as $user"
      status=0
      tests/launch/fresh_root.sh --user "$user" "$suite" || status=$?
      count "a bare $suite, as $user" "$status"
    done
  done
  for suite in ${fresh_start[@]+"${fresh_start[@]}"}; do
    section "a bare $suite, up to a first test"
    status=0
    tests/launch/fresh_root.sh --start "$suite" || status=$?
    count "a bare $suite, up to a first test" "$status"
  done
}

# Bare roots set themselves up.
if [[ $((tests + cuda + lint + sanitizers + alone + cluster)) -gt 0 ]]; then
  section "set-up"
  cluster_packages=()
  [[ $cluster -eq 0 ]] || cluster_packages=(--with openssh-server --with iproute2 --with slurm-wlm --with util-linux --with procps)
  launch/setup.sh --tests ${cluster_packages[@]+"${cluster_packages[@]}"}
fi
if [[ $tests -eq 1 ]]; then
  section "tests"
  run_ctest build --parallel "$(nproc)"
fi
[[ $cuda -eq 0 ]] || check_cuda
if [[ $lint -eq 1 ]]; then
  section "lint"
  if is_version_14 clang-format; then check_format; fi
  if is_version_14 clang-tidy; then check_tidy; fi
fi
[[ $sanitizers -eq 0 ]] || check_sanitizers
[[ $alone -eq 0 ]] || check_alone
[[ $cluster -eq 0 ]] || check_cluster
check_fresh

section "summary"
for failure in ${failures[@]+"${failures[@]}"}; do
  echo "failed: $failure"
done
echo "$passed passed, $failed failed"
[[ $failed -eq 0 && $passed -gt 0 ]]
