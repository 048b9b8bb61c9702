#!/usr/bin/env bash
# Trains on this machine or on several: starts `lamina train` under the mpirun on the PATH, Open MPI 4 or 5, with checks before the start.
#   launch/mpirun.sh [options] [--] CONFIG.yaml [key=value ...]
#
# Which machines, and what each rank gets there
#   --hosts A,B,C          hosts, reached by ssh without a password (default: this machine; in a Slurm job: its nodes)
#   --hostfile FILE        the same, one a line, as Open MPI has it: "node-a slots=4"
#   --ranks-per-node N     default: the hostfile's slots where they are all the same, else 1
#   --bind cores|none      cores (default): each rank of a host gets an equal, contiguous share of its cores, in NUMA order
#   --interface NAME|CIDR  the network for everything: MPI, its daemons and NCCL; "eth0" or, where names differ, "10.1.0.0/16"
#   --ucx-devices LIST     InfiniBand for MPI through UCX: UCX_NET_DEVICES, such as mlx5_0:1
# GPUs: with run.device=cuda each rank of a host takes one of the GPUs it sees, in turn; CUDA_VISIBLE_DEVICES limits them.
# How
#   --env NAME[=VALUE]     also pass this variable on (as often as needed); LAMINA_*, NCCL_*, OMP_*, GOMP_*, DNNL_*, UCX_*, CUDA_*, MALLOC_* and
#                          LD_LIBRARY_PATH are passed on when set
#   --restart N            start again up to N times when the job stops early or fails (for clusters without a scheduler)
#   --restart-delay S      seconds before that (default 10)
#   --binary FILE          default: build/lamina of this script's tree, or the bin/lamina that it was installed with
#   --ssh COMMAND          default: ssh; such as "ssh -p 2222 -i KEY"
#   --host-timeout S       a host that does not answer for so long ends the job (default 30)
#   --mpirun-option WORD   a further argument for mpirun (as often as needed)
#   --no-checks            start without looking at the hosts first
#   --dry-run              print mpirun's command and the hosts, and start nothing
# Examples
#   launch/mpirun.sh configs/tiny.yaml
#   launch/mpirun.sh --ranks-per-node 4 configs/tiny.yaml parallel.pipeline=4
#   launch/mpirun.sh --hosts node-a,node-b --ranks-per-node 8 --interface eth0 --restart 20 configs/tiny.yaml run.output_dir=/shared/runs/tiny
#
# SIGTERM, SIGUSR1, SIGHUP (a terminal that closes) and the first SIGINT (Ctrl-C) ask all ranks to save a checkpoint and stop, after
# the step that they are in. This script waits for them as long as that takes; who sends the SIGTERM may not (Slurm's KillWait and
# Kubernetes: 30 s, docker stop: 10 s). A second SIGINT ends the ranks within seconds, and nothing more is saved.
# The exit status is the job's: 0 done, 75 stopped early (the same command goes on), 76 diverged (not started again: it would go the same
# way), anything else a failure.
set -euo pipefail
root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)   # installed: share/lamina, and bin/lamina-mpirun leads here
resume=75 diverged=76   # core/base/stop.h

say() { echo "mpirun.sh: $*" >&2 || true; }   # the terminal may be gone
die() { say "error: $*"; exit 1; }
usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; }

asked="" interrupts=0 child=0 reminder=0
ask() {  # signal
  [[ -n $asked ]] || say "$1: asking all ranks to save and stop"
  asked=${asked:-$1}
  [[ $child -eq 0 || $reminder -ne 0 ]] || remind
  [[ $1 != SIGINT ]] || interrupts=$((interrupts + 1))
  if [[ $interrupts -gt 1 && $child -ne 0 ]]; then
    say "SIGINT again: ending the ranks"
    kill -INT "$child" 2>/dev/null || true
  fi
}

# mpirun passes SIGUSR1 on to all ranks and lives on. It is started with SIGUSR1 ignored, so that one that comes before it is ready,
# or when it is about to end, does no harm; what got lost is sent again.
remind() {
  (
    trap '' TERM USR1 INT HUP
    pause=2
    while kill -USR1 "$child" 2>/dev/null; do
      sleep "$pause"
      pause=$((pause < 16 ? 2 * pause : 16))
    done
  ) >/dev/null 2>&1 &
  reminder=$!
}
trap 'ask SIGTERM' TERM
trap 'ask SIGUSR1' USR1
trap 'ask SIGINT' INT
trap 'ask SIGHUP' HUP

# Until that child has ended, through signals of our own.
await() {  # pid
  local status again=0
  while true; do
    status=0
    wait "$1" 2>/dev/null || status=$?
    kill -0 "$1" 2>/dev/null || break
  done
  if [[ $status -gt 128 ]]; then   # a signal and the end at the same moment: the shell still knows how it ended
    wait "$1" 2>/dev/null || again=$?
    [[ $again -eq 127 ]] || status=$again
  fi
  return "$status"
}

hosts=() ranks_per_node=0 bind=cores interface="" ucx_devices="" passed=() restarts=0 restart_delay=10
binary=$root/build/lamina
[[ -e $binary || ! -x $root/../../bin/lamina ]] || binary=$root/../../bin/lamina
ssh=ssh host_timeout=30 extra=() checks=1 dry_run=0

whole() { [[ $2 =~ ^[0-9]+$ ]] || die "$1: found '$2', expected a whole number"; }

read_hostfile() {
  local line slots="" mine name
  [[ -r $1 ]] || die "--hostfile: can't read $1"
  while IFS= read -r line || [[ -n $line ]]; do
    line=${line%%#*}
    read -r name _ <<<"$line" || true
    [[ -n ${name:-} ]] || continue
    hosts+=("$name")
    mine=$(sed -n 's/.*slots *= *\([0-9][0-9]*\).*/\1/p' <<<"$line")
    slots+="${mine:-1}"$'\n'
  done <"$1"
  [[ ${#hosts[@]} -gt 0 ]] || die "--hostfile: $1 names no host"
  hostfile_slots=$(sort -u <<<"${slots%$'\n'}")
}

# What mpirun runs in place of ssh: HOST COMMAND.... Open MPI's daemons talk over TCP, where a host that is cut off is missed
# after a quarter of an hour, and not at all by mpirun once it has something to tell it: the job would hang. This ssh asks for a sign of life,
# and sends one along; without it the host ends the daemon and the ranks that it has left.
agent() {
  local host=$1 mpirun=$PPID interval=$((MPIRUN_SH_TIMEOUT / 4)) status=0 first=0 name ranks message script
  shift
  script="exec 3<&0
setsid bash -c $(printf '%q' "$*") </dev/null & daemon=\$!
(while read -r -t $MPIRUN_SH_TIMEOUT -u 3 _; do :; done
for signal in TERM KILL; do pkill -\$signal -s \$daemon; sleep 2; done) >/dev/null 2>&1 & watch=\$!
status=0; wait \$daemon || status=\$?
kill \$watch 2>/dev/null
exit \$status"
  # shellcheck disable=SC2086  # --ssh may hold options
  $MPIRUN_SH_SSH -o BatchMode=yes -o ConnectTimeout="$MPIRUN_SH_TIMEOUT" -o ServerAliveInterval="$interval" -o ServerAliveCountMax=3 "$host" \
    "bash -c $(printf '%q' "$script")" < <(while kill -0 "$mpirun" 2>/dev/null && echo; do sleep "$interval"; done) || status=$?
  [[ $status -eq 255 ]] || exit "$status"   # 255 is ssh's own
  for name in $MPIRUN_SH_HOSTS; do
    [[ $name == "$host" ]] && break
    first=$((first + MPIRUN_SH_RANKS))
  done
  ranks="rank $first"
  [[ $MPIRUN_SH_RANKS -eq 1 ]] || ranks="ranks $first-$((first + MPIRUN_SH_RANKS - 1))"
  message="host $host ($ranks) does not answer any more (limit $MPIRUN_SH_TIMEOUT s): its machine, its network or its sshd is down; ending the job"
  say "$message"
  [[ ! -f $MPIRUN_SH_LOG ]] || echo "$(date +%FT%T.%3N) E mpirun.sh: $message" >>"$MPIRUN_SH_LOG"
  # mpirun ends the other ranks by itself, when it can.
  (sleep 5; kill -KILL "$mpirun") >/dev/null 2>&1 &
  exit 255
}

parse() {
  local option
  hostfile_slots=""
  while [[ $# -gt 0 ]]; do
    option=$1
    case $option in
      -h|--help) usage; exit 0 ;;
      --no-checks) checks=0; shift; continue ;;
      --dry-run) dry_run=1; shift; continue ;;
      --) shift; break ;;
      -*) ;;
      *) break ;;
    esac
    [[ $# -gt 1 ]] || die "$option needs a value (--help)"
    case $option in
      --hosts) IFS=, read -r -a hosts <<<"$2" ;;
      --hostfile) read_hostfile "$2" ;;
      --ranks-per-node) whole "$option" "$2"; [[ $2 -gt 0 ]] || die "$option: found 0, expected at least 1"; ranks_per_node=$2 ;;
      --bind) [[ $2 == cores || $2 == none ]] || die "$option: found '$2', expected cores or none"; bind=$2 ;;
      --interface) interface=$2 ;;
      --ucx-devices) ucx_devices=$2 ;;
      --env) [[ $2 =~ ^[A-Za-z_][A-Za-z0-9_]*(=|$) ]] || die "$option: found '$2', expected NAME or NAME=VALUE"; passed+=("$2") ;;
      --restart) whole "$option" "$2"; restarts=$2 ;;
      --restart-delay) whole "$option" "$2"; restart_delay=$2 ;;
      --binary) binary=$2 ;;
      --ssh) ssh=$2 ;;
      --host-timeout) whole "$option" "$2"; [[ $2 -ge 4 ]] || die "$option: found $2, expected at least 4"; host_timeout=$2 ;;
      --mpirun-option) extra+=("$2") ;;
      *) die "unknown option '$option' (--help)" ;;
    esac
    shift 2
  done
  [[ $# -gt 0 ]] || die "no configuration: launch/mpirun.sh [options] CONFIG.yaml [key=value ...] (--help)"
  config=$1
  shift
  overrides=("$@")
  local override
  for override in "$@"; do
    [[ $override == *=* ]] || die "found '$override' behind the configuration, expected key=value; options come before it"
  done
}

# In a Slurm job without --hosts: its nodes, and Slurm instead of ssh to reach them.
complete() {
  local host seen=" "
  in_slurm=0
  if [[ ${#hosts[@]} -eq 0 && -n ${SLURM_JOB_NODELIST:-} ]]; then
    mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    [[ ${#hosts[@]} -gt 0 ]] || die "scontrol does not tell the nodes of job ${SLURM_JOB_ID:-?} ($SLURM_JOB_NODELIST)"
    in_slurm=1
  fi
  several=1
  if [[ ${#hosts[@]} -eq 0 ]]; then
    hosts=("$(hostname)")
    several=0
  fi
  for host in "${hosts[@]}"; do
    [[ $host =~ ^[A-Za-z0-9._-]+$ ]] || die "--hosts: '$host' is no name or address of a host"
    [[ $seen != *" $host "* ]] || die "--hosts: $host is there twice; --ranks-per-node says how many ranks a host gets"
    seen+="$host "
  done
  if [[ $ranks_per_node -eq 0 ]]; then
    [[ $hostfile_slots != *$'\n'* ]] || die "--hostfile: its slots differ ($(tr '\n' ' ' <<<"$hostfile_slots")); say --ranks-per-node"
    ranks_per_node=${hostfile_slots:-1}
  fi
  num_ranks=$((ranks_per_node * ${#hosts[@]}))
  [[ -x $binary ]] || die "$binary is not there: launch/setup.sh builds it, or say --binary"
  binary=$(realpath "$binary")
  [[ -r $config ]] || die "can't read $config in $PWD"
}

# Sets `open_mpi`: its major version, and what it calls its daemon on each host, its way to reach hosts, and its own network.
# Since version 5 those are PRRTE's.
know_mpirun() {
  local mpirun told
  mpirun=$(command -v mpirun) || die "mpirun is not here: apt-get install openmpi-bin (launch/setup.sh does)"
  told=$("$mpirun" --version 2>&1) || true
  case $told in
    *"(Open MPI) "[0-9]*) open_mpi=${told#*"(Open MPI) "} open_mpi=${open_mpi%%[!0-9]*} ;;
    *HYDRA*|*Intel*) die "$mpirun is Hydra, of MPICH or Intel MPI; this script starts ranks with Open MPI 4 or newer. Put its folder first on the" \
      "PATH; or, if $binary was built with this MPI, type: mpirun -n $num_ranks $binary train $config ${overrides[*]}" ;;
    *) die "$mpirun is no Open MPI: --version says '$(head -n 1 <<<"$told")'; put the folder of Open MPI 4 or newer first on the PATH" ;;
  esac
  [[ $open_mpi -ge 4 ]] || die "$mpirun is of Open MPI $open_mpi, expected 4 or newer"
  if [[ $open_mpi -ge 5 ]]; then
    daemon=prted runtime=--prtemca remote_shell=plm_ssh daemons_network=prte_if_include launch_agent=prte_launch_agent
  else
    daemon=orted runtime=--mca remote_shell=plm_rsh daemons_network=oob_tcp_if_include launch_agent=orte_launch_agent
  fi
  # A shell that ssh starts knows the system's folders only.
  prefix=$(dirname "$(dirname "$mpirun")")
  if [[ $prefix == /usr || $prefix == / || $several -eq 0 ]]; then prefix=""; else daemon=$prefix/bin/$daemon; fi
  # It refuses root unless told twice that this is meant.
  [[ $(id -u) -ne 0 ]] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
}

is_here() { [[ $1 == "$(hostname)" || $1 == "$(hostname -s)" || $1 == localhost || $several -eq 0 ]]; }

on_host() {  # host, script
  if is_here "$1"; then
    bash -c "$2" </dev/null
  elif [[ $in_slurm -eq 1 ]]; then
    srun --overlap --nodes=1 --ntasks=1 --nodelist="$1" --quiet bash -c "$2" </dev/null
  else
    # shellcheck disable=SC2086  # --ssh may hold options
    $ssh -o BatchMode=yes -o ConnectTimeout=10 "$1" "bash -c $(printf '%q' "$2")" </dev/null
  fi
}

# The nearest folder at or above run.output_dir that exists, so that a start that is refused leaves none behind.
shared_folder() {
  local folder=$1
  while [[ ! -d $folder ]]; do folder=$(dirname "$folder"); done
  echo "$folder"
}

# What a host must have, told in "name value" lines; each failure is told with the host's name.
check_host() {  # host
  local host=$1 found word script output status=0
  script="cd $(printf '%q' "$PWD") 2>/dev/null || { echo 'failure the folder $PWD is not there'; exit 0; }
cores=\$(lscpu -p=Core,Socket 2>/dev/null | grep -v '^#' | sort -u | wc -l); all=\$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc)
[ \"\$cores\" -gt 0 ] && [ \"\$cores\" -lt \"\$all\" ] || cores=\$all
echo cores \$cores
echo binary \$($(printf '%q' "$binary") --version 2>&1 | head -n 1)
echo config \$(cksum < $(printf '%q' "$config") 2>&1)
echo token \$(cat $(printf '%q' "$probe") 2>&1)
echo daemon \$(command -v $(printf '%q' "$daemon"))"
  output=$(on_host "$host" "$script" 2>&1) || status=$?
  if [[ $status -ne 0 ]]; then
    say "error: $host: not reachable: $(tail -n 1 <<<"$output")"
    [[ $in_slurm -eq 1 ]] || say "error: $host: expected that \"$ssh -o BatchMode=yes $host true\" works, with a key and without a password"
    return 1
  fi
  declare -A told=()
  while read -r word found; do told[$word]=$found; done <<<"$output"
  [[ -z ${told[failure]:-} ]] || { say "error: $host: ${told[failure]}; the job starts in the same folder on every host"; return 1; }
  [[ ${told[binary]:-} == "$version" ]] ||
    { say "error: $host: $binary there says '${told[binary]:-}', here '$version'; expected the same program on every host"; return 1; }
  [[ ${told[config]:-} == "$config_sum" ]] ||
    { say "error: $host: $config is not there, or another: ${told[config]:-} (here $config_sum)"; return 1; }
  [[ ${told[token]:-} == "$token" ]] ||
    { say "error: $host: run.output_dir $output_dir is not a folder shared by all hosts: what is written here is not seen there"; return 1; }
  [[ -n ${told[daemon]:-} ]] ||
    { say "error: $host: Open MPI $open_mpi's daemon $daemon is not there; expected the same Open MPI at the same place on every host"; return 1; }
  echo "${told[cores]}"
}

# Sets `cores`: of the host that has fewest.
check_hosts() {
  local host pid failed=0 i counts=()
  output_dir=$("$binary" check "$config" --ranks "$num_ranks" --run-folder ${overrides[@]+"${overrides[@]}"}) || return 1
  version=$("$binary" --version) config_sum=$(cksum <"$config") token="$(hostname)-$$-$RANDOM"
  probe=$(shared_folder "$output_dir")/.lamina-start-$$
  echo "$token" >"$probe" || die "can't write to $(dirname "$probe") (run.output_dir is $output_dir)"
  scratch=$(mktemp -d)
  for i in "${!hosts[@]}"; do check_host "${hosts[$i]}" >"$scratch/$i" & done
  for pid in $(jobs -p); do await "$pid" || failed=1; done
  rm -f "$probe"
  for i in "${!hosts[@]}"; do counts+=("$(<"$scratch/$i")"); done
  rm -rf "$scratch"
  [[ $failed -eq 0 ]] || return 1
  cores=$(printf '%s\n' "${counts[@]}" | sort -n | head -n 1)
  [[ $(printf '%s\n' "${counts[@]}" | sort -u | wc -l) -eq 1 ]] ||
    say "the hosts have ${counts[*]} cores: each rank gets its share of $cores"
}

compose() {
  local host list="" name
  for host in "${hosts[@]}"; do list+="${list:+,}$host:$ranks_per_node"; done
  command=(mpirun -n "$num_ranks" --host "$list")
  if [[ $bind == none || $cores -lt $ranks_per_node ]]; then
    [[ $bind == none ]] || say "$ranks_per_node ranks share the $cores cores of a host: not bound"
    command+=(--map-by "ppr:$ranks_per_node:node:oversubscribe" --bind-to none)
  else
    command+=(--map-by "ppr:$ranks_per_node:node:PE=$((cores / ranks_per_node))" --bind-to core)
  fi
  command+=(--rank-by slot)
  # Every host's daemon hangs on an ssh of its own, which notices when one of the two ends is gone (agent).
  if [[ $in_slurm -eq 0 && $several -eq 1 ]]; then
    command+=(--leave-session-attached "$runtime" "${remote_shell}_no_tree_spawn" 1)
    command+=("$runtime" "${remote_shell}_num_concurrent" $((${#hosts[@]} + 1)))
    command+=("$runtime" "${remote_shell}_agent" "$root/launch/mpirun.sh --agent")
    export MPIRUN_SH_SSH=$ssh MPIRUN_SH_TIMEOUT=$host_timeout MPIRUN_SH_LOG=${output_dir:+$output_dir/log.txt}
    export MPIRUN_SH_HOSTS="${hosts[*]}" MPIRUN_SH_RANKS=$ranks_per_node
  fi
  # Slurm's SIGTERM at a preemption reaches the daemons that it started on the nodes, too (see run_once).
  [[ $in_slurm -eq 0 ]] || command+=("$runtime" "$launch_agent" "env --block-signal=TERM $(basename "$daemon")")
  [[ -z $prefix ]] || command+=(--prefix "$prefix")
  if [[ -n $interface ]]; then
    command+=(--mca btl_tcp_if_include "$interface" "$runtime" "$daemons_network" "$interface")
    # NCCL knows names only: of a network, the name that it has here.
    name=$interface
    [[ $name != */* ]] || name=$(ip -o -4 route show "$interface" | sed -n 's/.* dev \([^ ]*\).*/\1/p' | head -n 1)
    [[ -z $name || -n ${NCCL_SOCKET_IFNAME:-} ]] || command+=(-x "NCCL_SOCKET_IFNAME=$name")
  fi
  [[ -z $ucx_devices ]] || command+=(--mca pml ucx -x "UCX_NET_DEVICES=$ucx_devices")
  for name in $(compgen -e | grep -E '^(LAMINA|NCCL|OMP|GOMP|DNNL|UCX|CUDA|MALLOC)_|^LD_LIBRARY_PATH$' || true); do command+=(-x "$name"); done
  for name in ${passed[@]+"${passed[@]}"}; do command+=(-x "$name"); done
  command+=(${extra[@]+"${extra[@]}"} "$binary" train "$config" ${overrides[@]+"${overrides[@]}"})
}

# At SIGTERM mpirun kills its ranks: Open MPI 4 sends them SIGTERM after a second and SIGKILL after another, Open MPI 5 SIGKILL after a
# quarter. So it never sees one. It is in a session of its own, out of what a terminal or a scheduler sends to a whole group; and
# SIGTERM is blocked in it, since schedulers send that to every process they find. It unblocks it in its ranks, which save at it.
run_once() {
  local status=0
  (trap '' TERM USR1 HUP; exec env --block-signal=TERM setsid "${command[@]}") </dev/null &
  child=$!
  [[ -z $asked ]] || remind
  await "$child" || status=$?
  child=0
  if [[ $reminder -ne 0 ]]; then
    kill -KILL "$reminder" 2>/dev/null || true
    wait "$reminder" 2>/dev/null || true
    reminder=0
  fi
  # A rank that the signal killed had not reached main(), where it is caught, so that no rank had got past MPI's start.
  [[ -z $asked || ($status -ne $((128 + $(kill -l USR1))) && $status -ne $((128 + $(kill -l TERM)))) ]] || status=$resume
  return "$status"
}

main() {
  local started=0 status
  if [[ ${1:-} == --agent ]]; then
    trap - USR1 INT HUP
    trap '' TERM   # also in ssh: what is sent to every process of the job must not cut off a host
    agent "${@:2}"
  fi
  parse "$@"
  complete
  know_mpirun
  cores=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc)
  while true; do
    status=0
    [[ -z $asked ]] || exit "$resume"
    if [[ $checks -eq 1 ]]; then check_hosts || status=1; fi
    [[ -z $asked ]] || exit "$resume"
    [[ $status -eq 0 || $started -gt 0 ]] || exit 1   # the first time a person is there to mend it
    if [[ $status -eq 0 ]]; then
      [[ $started -eq 0 ]] || export LAMINA_RESTARTS=$started
      compose
      say "$num_ranks rank$([[ $num_ranks -eq 1 ]] || echo s), $ranks_per_node on each of: ${hosts[*]}"
      if [[ $dry_run -eq 1 ]]; then
        printf '%q ' "${command[@]}"
        echo
        exit 0
      fi
      run_once || status=$?
    fi
    [[ $status -ne 0 && $status -ne $diverged && -z $asked && $started -lt $restarts ]] || exit "$status"
    started=$((started + 1))
    say "the job ended with $status; starting again in $restart_delay s ($started of $restarts)"
    sleep "$restart_delay" &
    wait $! || true
    [[ -z $asked ]] || exit "$resume"
  done
}

main "$@"
