#!/usr/bin/env bash
# What a newcomer meets: a bare root of one release, HEAD cloned into it, the README's commands typed there. As root.
#   tests/launch/fresh_root.sh [--start] [--user root|newcomer] SUITE[:mpich]
# SUITE is a release of Debian or Ubuntu (bookworm, trixie, noble, resolute, ...), with Open MPI, or with MPICH instead.
#   (nothing)   ./launch/quickstart.sh and ./launch/test.sh, each twice: the second time there is nothing left to install or build
#   --start     the shortest proof that set-up names every package: install, configure, build, train a few steps, one test
#   --user      root, or "newcomer", an ordinary user with sudo (default root)
# Mounts and processes live in namespaces of their own, which end with this script, however it ends; the root is in a temporary
# folder (TMPDIR) and is removed. The last lines are one per command: wall and CPU seconds, and how it ended.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

say() { echo "fresh: $*"; }
die() { echo "fresh: error: $*" >&2; exit 1; }
usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; }

start=0 user=root suite="" inside=""
while [[ $# -gt 0 ]]; do
  case $1 in
    --start) start=1 ;;
    --user) [[ ${2:-} == root || ${2:-} == newcomer ]] || die "--user: found '${2:-}', expected root or newcomer"; user=$2; shift ;;
    --inside) inside=$2; shift ;;   # this script's own, in the namespaces
    -h|--help) usage; exit 0 ;;
    -*) die "unknown option '$1' (--help)" ;;
    *) [[ -z $suite ]] || die "found a second release, '$1', expected one"; suite=$1 ;;
  esac
  shift
done
[[ -n $suite ]] || die "no release: tests/launch/fresh_root.sh bookworm (--help)"
release=${suite%%:*} mpi=openmpi
[[ $suite != *:* ]] || mpi=${suite#*:}
[[ $mpi == openmpi || $mpi == mpich ]] || die "found '$suite', expected $release or $release:mpich"
[[ $mpi == openmpi || $start -eq 1 ]] || die "with MPICH only --start is here: the tests start their ranks with Open MPI's options"

child=""
clean_up() {
  if [[ -n $child ]]; then { kill -KILL "$child" && wait "$child"; } 2>/dev/null || true; fi
  rm -rf --one-file-system "$folder"
}

# Outside: namespaces whose end ends all that runs and is mounted inside, then the folder goes.
outside() {
  [[ $(id -u) -eq 0 ]] || die "this is no root: making a root for another system needs it"
  command -v debootstrap >/dev/null || die "debootstrap is not here: apt-get install debootstrap"
  unshare --mount --pid --fork true 2>/dev/null || die "this system does not let root make mount and process namespaces"
  local status=0
  folder=$(mktemp -d --tmpdir lamina-fresh.XXXXXX)
  trap clean_up EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  local options=()
  [[ $start -eq 0 ]] || options+=(--start)
  unshare --mount --pid --fork --kill-child=KILL "${BASH_SOURCE[0]}" ${options[@]+"${options[@]}"} --user "$user" --inside "$folder" "$suite" &
  child=$!
  wait "$child" || status=$?
  child=""
  exit "$status"
}

# Debian's debootstrap knows Debian's releases, and of Ubuntu's those before its own. Sets `source`: options before the release, and what
# comes after the folder. Ubuntu's universe is on, as where it was installed by hand or from an image.
where_from() {
  local keys=/usr/share/keyrings/ubuntu-archive-keyring.gpg
  options=() source=()
  case $release in
    bookworm|trixie|forky|duke|sid|stable|testing|unstable) return ;;
  esac
  options=(--components=main,universe --keyring="$keys")
  [[ -r $keys ]] || { say "$keys is not here: the root's first packages are not verified"; options[1]=--no-check-gpg; }
  source=(http://archive.ubuntu.com/ubuntu gutsy)   # the script that all of Ubuntu's releases since share
}

bare_root() {  # folder
  local packages=git,ca-certificates options source
  [[ $user == root ]] || packages+=,sudo
  say "a bare $release in $1, with $packages"
  where_from
  debootstrap --variant=minbase --include="$packages" ${options[@]+"${options[@]}"} "$release" "$1" ${source[@]+"${source[@]}"} >"$1.log" 2>&1 ||
    { tail -n 20 "$1.log" >&2; die "debootstrap $release failed"; }
  cp /etc/resolv.conf "$1/etc/resolv.conf"
  echo "fresh-$release" >"$1/etc/hostname"
  printf '127.0.0.1 localhost %s\n::1 localhost\n' "$(hostname)" >"$1/etc/hosts"
  git clone --quiet "file://$root" "$1/lamina"
  [[ $user == root ]] || {
    chroot "$1" useradd --create-home --shell /bin/bash "$user"
    echo "$user ALL=(ALL) NOPASSWD:ALL" >"$1/etc/sudoers.d/$user"
    chroot "$1" chown -R --no-dereference "$user:" /lamina   # whose number this machine need not know
  }
}

# As a container has them: nothing of this machine's /dev but the harmless ones.
mounts() {  # folder
  local name
  mount -t proc proc "$1/proc"
  mount -t sysfs -o ro sysfs "$1/sys"
  mount -t tmpfs -o mode=755 tmpfs "$1/dev"
  for name in null zero full random urandom; do
    touch "$1/dev/$name"
    mount --bind "/dev/$name" "$1/dev/$name"
  done
  mkdir "$1/dev/pts" "$1/dev/shm"
  mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts "$1/dev/pts"
  mount -t tmpfs -o mode=1777 tmpfs "$1/dev/shm"
  ln -s pts/ptmx "$1/dev/ptmx"
  ln -s /proc/self/fd "$1/dev/fd"
  for name in 0:stdin 1:stdout 2:stderr; do ln -s "/proc/self/fd/${name%%:*}" "$1/dev/${name##*:}"; done
}

# Sets `seconds`: the CPU's, of all that this shell has started and waited for. (A subshell would have waited for nothing.)
count_seconds() {
  times >"$folder/times"
  seconds=$(awk 'NR == 2 { for (i = 1; i <= 2; ++i) { split($i, t, /[ms]/); sum += 60 * t[1] + t[2] } printf "%.0f", sum }' "$folder/times")
}

failed=0 table=()
typed() {  # what it is called, a command line as a newcomer types it in the clone
  local name=$1 line=$2 status=0 started=$SECONDS before
  printf '\n=== %s, %s: %s\n' "$suite" "$user" "$line"
  count_seconds
  before=$seconds
  env -i PATH="$PATH" TERM="${TERM:-dumb}" ${http_proxy:+http_proxy="$http_proxy"} ${https_proxy:+https_proxy="$https_proxy"} \
    ${LAMINA_WERROR:+LAMINA_WERROR="$LAMINA_WERROR"} \
    chroot "$folder/root" su --whitelist-environment=TERM,http_proxy,https_proxy,LAMINA_WERROR - "$user" -c "cd /lamina && $line" \
    </dev/null || status=$?
  count_seconds
  table+=("$(printf '%-16s %-9s %-24s %5d s %6d s CPU   %s' "$suite" "$user" "$name" $((SECONDS - started)) \
    $((seconds - before)) "$([[ $status -eq 0 ]] && echo passed || echo "FAILED ($status)")")")
  [[ $status -eq 0 ]] || failed=$((failed + 1))
  return "$status"
}

# launch/mpirun.sh is for Open MPI.
two_ranks="launch/mpirun.sh --ranks-per-node 2"
[[ $mpi == openmpi ]] || two_ranks="mpirun -n 2 build/lamina train"
few_steps="build/lamina prepare --output data/fresh README.md docs/guide.md && $two_ranks configs/tiny.yaml \
run.output_dir=runs/fresh data.train.0.path=data/fresh data.validation.path=data/fresh data.validation.num_sequences=4 \
train.num_steps=3 train.lr_schedule.decay_steps=1 train.lr_schedule.warmup_steps=1 && test -f runs/fresh/checkpoints/step-00000003/COMMITTED"

run_inside() {
  folder=$inside
  bare_root "$folder/root"
  mounts "$folder/root"
  if [[ $start -eq 1 ]]; then
    if typed "set-up" "./launch/setup.sh --tests --mpi $mpi --target lamina --target tests_core_io"; then
      typed "three steps, two ranks" "$few_steps" || true
      typed "one test" "ctest --test-dir build --output-on-failure --no-tests=error -R '^tests_core_io\$'" || true
    fi
  else
    typed "quick start" "./launch/quickstart.sh" || true
    typed "quick start, again" "./launch/quickstart.sh" || true
    typed "tests" "./launch/test.sh" || true
    typed "tests, again" "./launch/test.sh" || true
  fi
  printf '\n'
  printf '%s\n' "${table[@]}"
  [[ $failed -eq 0 ]]
}

if [[ -n $inside ]]; then run_inside; else outside; fi
