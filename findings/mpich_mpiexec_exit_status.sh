#!/usr/bin/env bash
# MPICH 5.0.2 (PyPI wheel "mpich"): mpiexec's exit status is the bitwise OR of the ranks', so it may be one that no rank had.
#
# Guess, written down before the run: with ranks that exit with 1 and 2 mpiexec exits with 3, though its page says the largest of them.
# Seen: yes. 75 (stopped, start me again) and 76 (diverged, do not) give 79, which is neither; 75 and 1 give 75, so a job in which a rank
# failed looks like one that wants to go on, and a launcher that starts again on 75 does so.
# Fails when a status is not the OR.
#
#   mpich_mpiexec_exit_status.sh [VENV]      a virtual environment with mpich 5.0.2; else one is made
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
venv=${1:-}
if [[ -z $venv ]]; then
  venv=$folder/venv
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check mpich==5.0.2
fi
export PATH="$venv/bin:$PATH"
mpiexec --version | sed -n 's/^ *Version: */MPICH /p'
cat >"$folder/rank.sh" <<'RANK'
#!/bin/sh
# Exits with the argument of its rank; the second one later, so that all statuses are there.
shift "$PMI_RANK"
[ "$PMI_RANK" = 0 ] || sleep 0.3
exit "$1"
RANK
chmod +x "$folder/rank.sh"

for statuses in "0 0" "0 75" "75 75" "1 2" "75 76" "75 1"; do
  read -r first second <<<"$statuses"
  status=0
  mpiexec -n 2 "$folder/rank.sh" "$first" "$second" >"$folder/log" 2>&1 || status=$?
  echo "ranks exit with $first and $second: mpiexec with $status"
  if ((status != (first | second))); then
    echo "CHANGED: not $((first | second))"
    exit 1
  fi
done
