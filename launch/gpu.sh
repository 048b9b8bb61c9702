#!/usr/bin/env bash
# Tests and measures on an NVIDIA GPU, in ten minutes, and judges every claim that needs one (docs/performance.md).
#   launch/gpu.sh                  build, pack and run on this machine; needs what launch/setup.sh --cuda needs
#   launch/gpu.sh --pack           only build and pack: a folder of at most 64 MiB for a machine without a network that has nothing but
#                                  bash, an NVIDIA driver, CUDA's libraries and, for the comparisons, PyTorch
#   PACK/launch/gpu.sh --run       there: runs the pack
# Options of packing:
#   --to FOLDER       where the pack goes (default build-gpu-pack; an older pack there is replaced)
#   --arch A          what the kernels are compiled for (default: this machine's GPU; without one 90a, that is H100 and H200)
#   --emulated        pack the build for the emulated device, to try a pack where no GPU is
#   --build FOLDER    pack this build as it is instead of building
#   --program NAME    pack only this program (as often as needed); parts of the run that need others are told as not run
#   --most MIB        the largest that the pack may get (default 64)
# Options of running:
#   --output FOLDER   for results.txt, results.md and a log of each part (default gpu-results)
#   --seconds N       for everything together (default 600); the time limits of the parts grow and shrink with it
#   --only A,B        only these parts: load, bits, tests-ops, tests-comm, tests-trainer, ops, attention, fla, dense, torch, launch, kimi,
#                     attnres, train, racecheck-kda, racecheck-attention, racecheck-attnres, memcheck
# The exit status of a run is 0 when every claim that was judged passed, 1 when one failed, 2 when the run could not begin.
set -euo pipefail
export PATH=${PATH:+$PATH:}/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/cuda/bin
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

die() { echo "gpu: error: $*" >&2; exit 2; }
say() { echo "gpu: $*"; }
usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; }

mode=all emulated=0 arch="" to="" build="" programs=() most=64 run_options=() pack_options=()
while [[ $# -gt 0 ]]; do
  case $1 in
    --pack|--run) [[ $mode == all ]] || die "found both --pack and --run; without either both are done"; mode=${1#--} ;;
    --emulated) emulated=1; pack_options+=("$1") ;;
    --to|--arch|--build|--program|--most)
      [[ -n ${2:-} ]] || die "$1 needs a value (--help)"
      pack_options+=("$1")
      case $1 in
        --to) to=$2 ;;
        --arch) [[ $2 =~ ^[0-9]+a?$ ]] || die "--arch: found '$2', expected a compute capability without a point, as 90a"; arch=$2 ;;
        --build) build=$2 ;;
        --program) programs+=("$2") ;;
        --most) [[ $2 =~ ^[1-9][0-9]*$ ]] || die "--most: found '$2', expected a whole number of MiB"; most=$2 ;;
      esac
      shift ;;
    --output|--seconds|--only) [[ -n ${2:-} ]] || die "$1 needs a value (--help)"; run_options+=("$1" "$2"); shift ;;
    -h|--help) usage; exit 0 ;;
    *) die "unknown option '$1' (--help)" ;;
  esac
  shift
done
[[ $mode != pack || ${#run_options[@]} -eq 0 ]] || die "${run_options[0]} is an option of running, not of --pack"
[[ $mode != run || ${#pack_options[@]} -eq 0 ]] || die "${pack_options[0]} is an option of packing, not of --run"
if [[ $mode == run ]]; then
  [[ -f $root/CONTENTS && -f $root/programs.tar.gz ]] ||
    die "$root is no pack: make one with launch/gpu.sh --pack, and start its own launch/gpu.sh"
  exec "$BASH" "$root/launch/gpu_run.sh" ${run_options[@]+"${run_options[@]}"}
fi

[[ ! -f $root/CONTENTS ]] || die "$root is a pack: --run runs it"

# ---- Building

all_programs=(lamina tests_core_ops_cuda tests_comm_cuda tests_trainer_cuda bench_gpu_ops bench_gpu_train bench_gpu_launch)
[[ ${#programs[@]} -gt 0 ]] || programs=("${all_programs[@]}")
for program in "${programs[@]}"; do
  [[ " ${all_programs[*]} " == *" $program "* ]] || die "--program: found '$program', expected one of ${all_programs[*]}"
done

in_build() {  # program
  case $1 in
    lamina) echo "$build/lamina" ;;
    tests_*) echo "$build/tests/gpu/$1" ;;
    *) echo "$build/bench/$1" ;;
  esac
}

# MPI stays out: its plug-ins would not be found there.
build_programs() {
  local preset=cuda-release found=""
  local options=(-DLAMINA_MPI=OFF -DLAMINA_BUILD_TESTS=ON -DLAMINA_BUILD_BENCH=ON -DLAMINA_INTEGRATION_TESTS=OFF)
  build=$root/build-gpu
  if [[ $emulated -eq 1 ]]; then
    preset=cuda-emulated build=$root/build-gpu-emulated
  else
    if [[ -z $arch ]] && command -v nvidia-smi >/dev/null; then
      found=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d .) || found=""
      [[ $found != 90 ]] || found=90a
    fi
    [[ -n $arch ]] || arch=${found:-90a}
    options+=(-DLAMINA_CUDA_ARCHITECTURES="$arch-real")
  fi
  [[ -z ${LAMINA_WERROR:-} ]] || options+=("-DLAMINA_WERROR=$LAMINA_WERROR")
  export CCACHE_BASEDIR=$root CCACHE_NOHASHDIR=1 CCACHE_SLOPPINESS=pch_defines,time_macros
  say "building in $build (preset $preset${arch:+, sm_$arch})"
  local log
  log=$(mktemp)
  (cd "$root" && cmake --preset "$preset" -B "$build" "${options[@]}" &&
    cmake --build "$build" -j "$(nproc)" --target "${programs[@]}") >"$log" 2>&1 ||
    { tail -n 40 "$log" >&2; rm -f "$log"; die "the build failed: the reason stands above"; }
  rm -f "$log"
}

# ---- Packing

cached() { sed -n "s/^$1:[A-Z]*=//p" "$build/CMakeCache.txt"; }

# The system's C library can't be taken along (it belongs to the loader), and NVIDIA's libraries are there, and large.
comes_from_the_machine() {  # a library's name
  case $1 in
    ld-linux*|libc.so.*|libm.so.*|libdl.so.*|libpthread.so.*|librt.so.*|libresolv.so.*|libutil.so.*) return 0 ;;
    libcuda.so.*|libcudart.so.*|libcublas.so.*|libcublasLt.so.*|libnccl.so.*|libnvidia-*) echo "$1" >>"$stage/nvidia"; return 0 ;;
  esac
  return 1
}

copy_libraries() {  # of a program
  local name path
  while read -r name path; do
    comes_from_the_machine "$name" && continue
    [[ $path == /* ]] || die "$1 needs $name, which is not on this machine"
    # GCC's run-time libraries are only for machines whose own are older than these: see launch/gpu_run.sh.
    case $name in
      libstdc++.so.*|libgcc_s.so.*) cp -Lu "$path" "$stage/files/lib/gcc/$name" ;;
      *) cp -Lu "$path" "$stage/files/lib/$name" ;;
    esac
  done < <(ldd "$1" | awk '$2 == "=>" { print $1, ($3 == "not" ? "-" : $3) }')
}

sizes() {  # of the files in a folder: bytes and names, the largest first
  (cd "$1" && find . -type f ! -name CONTENTS -printf '%s %P\n' | sort -rn)
}
in_mib() { awk -v bytes="$1" 'BEGIN { printf "%.1f MiB", bytes / 1048576 }'; }

write_contents() {  # folder
  local commit
  commit=$(git -C "$root" rev-parse --short=10 HEAD 2>/dev/null) || commit="of no commit"
  [[ $commit == "of no commit" ]] || git -C "$root" diff --quiet HEAD || commit+=" with changes"
  echo "lamina $commit"
  echo "built $(date -u +%Y-%m-%dT%H:%M:%SZ)"
  if [[ $emulated -eq 1 ]]; then
    echo "device emulated"
  else
    echo "device sm_$(cached LAMINA_CUDA_ARCHITECTURES | sed 's/-real//g'), CUDA $("$(cached CMAKE_CUDA_COMPILER)" --version |
      sed -n 's/.*release \([0-9.]*\).*/\1/p')"
  fi
  echo "needs glibc $(find "$stage/files" -type f ! -path '*/gcc/*' -exec objdump -T {} + 2>/dev/null |
    grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -n 1 | tr -d A-Z_)"
  [[ ! -f $stage/nvidia ]] || echo "needs $(sort -u "$stage/nvidia" | paste -sd ' ')"
  printf '\nin this folder, bytes:\n'
  sizes "$1" | sed 's/^/  /'
  printf '\nin programs.tar.gz, bytes before compression:\n'
  sizes "$stage/files" | sed 's/^/  /'
}

pack() {
  local program strip=--strip-all file total
  [[ $emulated -eq 0 ]] || strip=--strip-debug   # the emulator reads the names of its kernels
  mkdir -p "$stage/files/bin" "$stage/files/lib/gcc" "$stage/pack"/{launch,bench,configs/devices,data}
  for program in "${programs[@]}"; do
    file=$(in_build "$program")
    [[ -x $file ]] || die "$file is not there: build it, or name the programs that are with --program"
    strip "$strip" -o "$stage/files/bin/$program" "$file"
    copy_libraries "$file"
  done
  tar -C "$stage/files" -cf - bin lib | gzip >"$stage/pack/programs.tar.gz"
  cp "$root"/launch/{gpu,gpu_run}.sh "$stage/pack/launch/"
  cp "$root"/bench/{torch_dense,torch_attention,fla_kda}.py "$stage/pack/bench/"
  cp "$root"/configs/{quickstart,tiny}.yaml "$stage/pack/configs/"
  cp "$root"/configs/devices/*.yaml "$stage/pack/configs/devices/"
  cp "$root/docs/guide.md" "$stage/pack/data/text.md"
  write_contents "$stage/pack" >"$stage/pack/CONTENTS"
  total=$(find "$stage/pack" -type f -printf '%s\n' | awk '{ sum += $1 } END { print sum }')
  if [[ $total -gt $((most * 1048576)) ]]; then
    cat "$stage/pack/CONTENTS" >&2
    die "the pack would have $(in_mib "$total"), at most $most MiB are allowed (--most); the largest of it: $(
      sizes "$stage/files" | head -n 4 | while read -r bytes name; do echo -n "$name $(in_mib "$bytes"), "; done)before compression"
  fi
  rm -rf "$to"
  mv "$stage/pack" "$to"
  cat "$to/CONTENTS"
  say "packed: $to, $(in_mib "$total") of at most $most MiB; there: $(basename "$to")/launch/gpu.sh --run"
}

[[ -n $to ]] || to=$root/build-gpu-pack
[[ ! -e $to || -f $to/CONTENTS ]] || die "--to: $to is there and is no pack"
[[ -d $(dirname "$to") ]] || die "--to: there is no folder $(dirname "$to")"
if [[ -n $build ]]; then
  [[ -f $build/CMakeCache.txt ]] || die "--build: $build is no build folder"
else
  build_programs
fi
case $(cached LAMINA_CUDA) in
  EMULATED) emulated=1 ;;
  OFF) die "--build: $build has no code for GPUs (LAMINA_CUDA=OFF)" ;;
  *) [[ $emulated -eq 0 ]] || die "--emulated: $build is for GPUs (LAMINA_CUDA=$(cached LAMINA_CUDA))" ;;
esac
stage=$(mktemp -d "$(dirname "$to")/.gpu-pack.XXXXXX")
trap 'rm -rf "$stage"' EXIT
pack
[[ $mode == all ]] || exit 0
"$to/launch/gpu.sh" --run ${run_options[@]+"${run_options[@]}"}
