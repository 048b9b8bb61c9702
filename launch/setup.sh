#!/usr/bin/env bash
# Installs what is missing and builds Lamina, as root or with sudo. Seen to work on bare Debian 12 and 13 and Ubuntu 24.04.
#   launch/setup.sh            the program: build/lamina
#   launch/setup.sh --tests    also the test packages, the tests and the benchmarks
#   launch/setup.sh --with P   also package P (as often as needed)
#   launch/setup.sh --mpi M    openmpi (default) or mpich: the MPI that is installed and built with
#   launch/setup.sh --target T build only target T of CMake's (as often as needed)
#   launch/setup.sh --cuda     build-cuda/lamina instead, for NVIDIA GPUs too (preset cuda-release); the CUDA toolkit must be here
#   launch/setup.sh --prefix P then install into P, a tree that may be moved: bin/lamina, share/lamina/configs, the launch scripts, and
#                              share/lamina/packages, the packages of this release that it needs
#   launch/setup.sh --packages FILE   only install the packages that FILE names, one a line; build nothing
# Safe to run again: when nothing changed it installs nothing and builds nothing.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
minimum_cmake=3.22

packages=(g++ cmake ninja-build pkg-config git libdnnl-dev libhdf5-dev libyaml-cpp-dev
  libspdlog-dev libfmt-dev libcli11-dev libsentencepiece-dev libzstd-dev zlib1g-dev liblzma-dev libbz2-dev libxxhash-dev libhwy-dev
  libpcre2-dev libutf8proc-dev nlohmann-json3-dev libeigen3-dev libprotobuf-dev protobuf-compiler libcpp-httplib-dev)
# With a question mark: of some releases of Ubuntu, and the tests that need it are left out elsewhere.
test_packages=(ccache libgtest-dev libgmock-dev libbenchmark-dev python3 python3-h5py 'python3-torch?' python3-yaml
  clang-format clang-tidy 'chromium?')

say() { echo "setup: $*"; }
die() { echo "setup: error: $*" >&2; exit 1; }

usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; }

with_tests=0 mpi=openmpi only=() preset=cpu-release build=build prefix="" package_file=""
while [[ $# -gt 0 ]]; do
  case $1 in
    --tests) with_tests=1; packages+=("${test_packages[@]}") ;;
    --with) [[ $# -gt 1 ]] || die "--with needs the name of a package"; packages+=("$2"); shift ;;
    --mpi) [[ ${2:-} == openmpi || ${2:-} == mpich ]] || die "--mpi: found '${2:-}', expected openmpi or mpich"; mpi=$2; shift ;;
    --target) [[ $# -gt 1 ]] || die "--target needs the name of a target"; only+=("$2"); shift ;;
    --cuda) preset=cuda-release build=build-cuda ;;
    --prefix) [[ ${2:-} == /* ]] || die "--prefix: found '${2:-}', expected a folder, from / on"; prefix=$2; shift ;;
    --packages) [[ -r ${2:-} ]] || die "--packages: can't read '${2:-}'"; package_file=$2; shift ;;
    -h|--help) usage; exit 0 ;;
    *) die "unknown option '$1' (--help)" ;;
  esac
  shift
done
case $mpi in
  openmpi) packages+=(libopenmpi-dev openmpi-bin) ;;
  mpich) packages+=(libmpich-dev mpich) ;;
esac

as_root() {
  if [[ $(id -u) -eq 0 ]]; then
    env DEBIAN_FRONTEND=noninteractive "$@"
  else
    sudo env DEBIAN_FRONTEND=noninteractive "$@"
  fi
}

installed() { [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]; }
available() {   # in this release; a name that others only mention has the candidate "(none)"
  [[ $(LC_ALL=C apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: //p') == [0-9]* ]]
}

# Moves what is optional and not of this release from `missing` to `left_out`.
left_out=()
leave_out() {
  local package still=()
  for package in ${missing[@]+"${missing[@]}"}; do
    if [[ $package == *\? ]] && ! available "${package%\?}"; then left_out+=("${package%\?}"); else still+=("$package"); fi
  done
  missing=(${still[@]+"${still[@]}"})
}

install_missing() {
  [[ -x $(command -v apt-get) && -x $(command -v dpkg-query) ]] ||
    die "apt-get is not here: this script knows Debian and Ubuntu only. Install by hand the counterparts of: ${packages[*]}"
  local missing=() package
  for package in "${packages[@]}"; do
    installed "${package%\?}" || missing+=("$package")
  done
  if compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null; then leave_out; fi   # else apt knows nothing yet
  if [[ ${#missing[@]} -eq 0 ]]; then
    say "all $((${#packages[@]} - ${#left_out[@]})) packages are here"
    return
  fi
  [[ $(id -u) -eq 0 ]] || command -v sudo >/dev/null ||
    die "missing packages, and neither root nor sudo to install them. As root: apt-get install ${missing[*]%\?}"
  say "installing ${#missing[@]} missing packages: ${missing[*]%\?}"
  as_root apt-get update -qq || die "apt-get update failed: is the network up, and are the sources in /etc/apt right?"
  leave_out
  for package in "${missing[@]%\?}"; do
    available "$package" ||
      die "this release has no package $package. Needed: Debian 12 or Ubuntu 24.04 (with 'universe' on) or newer"
  done
  as_root apt-get install -y -qq --no-install-recommends "${missing[@]%\?}" >/dev/null ||
    die "apt-get install failed: its reason stands above"
}

check_cmake() {
  local version
  version=$(cmake --version | sed -n '1s/[^0-9]*\([0-9.]*\).*/\1/p')
  [[ $(printf '%s\n' "$minimum_cmake" "$version" | sort -V | head -n 1) == "$minimum_cmake" ]] ||
    die "$(command -v cmake) is version $version, needed: $minimum_cmake or newer"
}

# Tests that were once switched on stay on, so that a plain set-up after --tests doesn't throw their build away.
build() {
  local options=(-DLAMINA_BUILD_TESTS=OFF -DLAMINA_BUILD_BENCH=OFF) targets=(--target lamina)
  if [[ $with_tests -eq 1 ]]; then
    options=(-DLAMINA_BUILD_TESTS=ON -DLAMINA_BUILD_BENCH=ON -DLAMINA_TORCH_TESTS=ON -DLAMINA_BROWSER_TESTS=ON)
    targets=()
    for package in ${left_out[@]+"${left_out[@]}"}; do
      case $package in
        python3-torch) say "this release has no python3-torch: tests that compare with PyTorch are left out"; options+=(-DLAMINA_TORCH_TESTS=OFF) ;;
        chromium) say "this release has no chromium: tests of pages in a browser are left out"; options+=(-DLAMINA_BROWSER_TESTS=OFF) ;;
      esac
    done
  elif grep -qs '^LAMINA_BUILD_TESTS:BOOL=ON' "$build/CMakeCache.txt" && installed libgtest-dev && installed libbenchmark-dev; then
    options=()
  fi
  [[ ${#only[@]} -eq 0 ]] || targets=(--target "${only[@]}")
  # Where both are here, CMake would take the system's default.
  [[ $mpi != mpich ]] || options+=(-DLAMINA_MPI=ON -DMPI_C_COMPILER=mpicc.mpich -DMPIEXEC_EXECUTABLE=/usr/bin/mpiexec.mpich)
  # In CI a warning is an error; for users, whose compiler may be newer than any that was seen, it is not.
  [[ -z ${LAMINA_WERROR:-} ]] || options+=("-DLAMINA_WERROR=$LAMINA_WERROR")
  # Lets the compiler cache, where there is one, serve another clone of the same sources.
  export CCACHE_BASEDIR=$root CCACHE_NOHASHDIR=1 CCACHE_SLOPPINESS=pch_defines,time_macros
  say "configuring $build/ (preset $preset)"
  local log
  log=$(mktemp)
  if ! cmake --preset "$preset" "${options[@]}" >"$log" 2>&1; then
    cat "$log" >&2
    rm -f "$log"
    die "cmake could not configure $build/: its reason stands above"
  fi
  rm -f "$log"
  say "building on $(nproc) cores"
  cmake --build "$build" -j "$(nproc)" "${targets[@]}" || die "the build failed: the compiler's reason stands above"
}

# What the program needs while it runs: the packages of its libraries, and MPI's launcher with its way to other hosts.
runtime_packages() {
  local library
  printf '%s\n' openssh-client "$([[ $mpi == mpich ]] && echo mpich || echo openmpi-bin)"
  ldd "$build/lamina" | sed -n 's/.*=> \(\/[^ ]*\).*/\1/p' | while read -r library; do
    # Where /lib is a link to /usr/lib, a release may know the file by either name.
    for library in "$library" "$(realpath "$library")" "${library#/usr}" "/usr$library"; do
      dpkg-query -S "$library" 2>/dev/null | sed 's/[:,].*//' && break
    done
  done | sort -u
}

install_tree() {
  cmake --install "$build" --prefix "$prefix" >/dev/null || die "could not install into $prefix: its reason stands above"
  runtime_packages >"$prefix/share/lamina/packages"
  say "installed: $prefix/bin/lamina"
}

if [[ -n $package_file ]]; then
  mapfile -t packages < <(grep -v '^ *\(#.*\)\{0,1\}$' "$package_file")
  [[ ${#packages[@]} -gt 0 ]] || die "--packages: $package_file names no package"
  install_missing
  exit
fi
cd "$root"
install_missing
check_cmake
build
say "done: $build/lamina"
[[ -z $prefix ]] || install_tree
