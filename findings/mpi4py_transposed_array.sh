#!/usr/bin/env bash
# mpi4py 4.1.2: a transposed matrix is sent as it lies in memory; beside an ordinary receive buffer every number lands in a wrong place.
#
# Guess, written down before the run: Allreduce and the like take arrays in Fortran order and don't look at the order of the other buffer.
# Seen: yes. In Allreduce shapes agree, the sum of all elements is right, and the matrix is scrambled; Allgather, Sendrecv and torch tensors
# do the same. In Bcast it is enough that two ranks made the same matrix in two ways. Nothing is said, though a slice with gaps is refused
# with a BufferError. numpy.empty_like keeps the order and so hides it; numpy.empty and numpy.zeros of the same shape show it.
# Fails when the result is the matrix, or the transpose is refused.
#
#   mpi4py_transposed_array.sh [VENV]      a virtual environment with mpi4py 4.1.2, mpich 5.0.2 and numpy 2.4.6; else one is made
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
venv=${1:-}
if [[ -z $venv ]]; then
  venv=$folder/venv
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check mpi4py==4.1.2 mpich==5.0.2 numpy==2.4.6
fi
export PATH="$venv/bin:$PATH"
cat >"$folder/transposed.py" <<'PYTHON'
import sys

import mpi4py
import numpy as np
from mpi4py import MPI

ranks = MPI.COMM_WORLD
if ranks.rank == 0:
    print("mpi4py", mpi4py.__version__, "on", MPI.Get_library_version().splitlines()[0].replace("\t", " "))
weight = np.arange(6.0).reshape(2, 3)
right = ranks.size * weight.T
total = {}
for name, gradient in (("C order", np.ascontiguousarray(weight.T)), ("transposed", weight.T)):
    total[name] = np.empty(gradient.shape)
    try:
        ranks.Allreduce(gradient, total[name])
    except (BufferError, ValueError) as error:
        sys.exit(f"CHANGED: {name}: {error}")
try:
    ranks.Allreduce(weight[:, :2], np.empty((2, 2)))
    slice_refused = False
except BufferError:
    slice_refused = True
# Rank 0 holds the matrix in one order, the others in the other.
shared = weight.T if ranks.rank == 0 else np.zeros((3, 2))
ranks.Bcast(shared)
agree = ranks.allreduce(bool(np.array_equal(shared, weight.T)), op=MPI.LAND)
if ranks.rank == 0:
    for name, result in total.items():
        print(f"Allreduce of two ranks, {name}: {result.tolist()}, right: {np.array_equal(result, right)}")
    print("Bcast of a transposed matrix into an ordinary one, right on all ranks:", agree)
    print("a slice with gaps is refused:", slice_refused)
assert np.array_equal(total["C order"], right) and slice_refused
if np.array_equal(total["transposed"], right) or agree:
    sys.exit("CHANGED: the transposed matrix is understood")
PYTHON
mpiexec -n 2 "$venv/bin/python" "$folder/transposed.py"
