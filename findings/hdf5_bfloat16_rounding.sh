#!/usr/bin/env bash
# HDF5 2.0.0 (h5py 3.16.0): its bf16 rounds halves away from zero, so weights it converts are not those that torch or numpy would write.
#
# Guess, written down before the run: HDF5 rounds another way than ml_dtypes when it converts fp32 to bf16 on a write, or cuts off.
# Seen: to nearest, but halves always away from zero, where torch, numpy's ml_dtypes and processors take the even neighbour. Of fp16 weights
# one in 16 differs, all of these larger: a bf16 data set that the library converts is biased, and equals no other export of the same
# weights. 3.4e38 rounds to infinity elsewhere and becomes the largest finite number here; in fp16 it is the other way: 65,510 rounds to
# 65,504 elsewhere and becomes infinite here.
# Fails when the halves go to the even neighbour.
#
#   hdf5_bfloat16_rounding.sh [VENV]      a virtual environment with h5py 3.16.0, ml_dtypes 0.6.0 and numpy 2.4.6; else one is made
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
venv=${1:-}
if [[ -z $venv ]]; then
  venv=$folder/venv
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check h5py==3.16.0 ml_dtypes==0.6.0 numpy==2.4.6
fi
"$venv/bin/python" - "$folder" <<'PYTHON'
import sys

import h5py
import ml_dtypes
import numpy as np

np.seterr(all="ignore")
print("HDF5", h5py.version.hdf5_version, "h5py", h5py.version.version, "ml_dtypes", ml_dtypes.__version__)


def bfloat16():
    """The file type that HDF5 2.0 names H5T_FLOAT_BFLOAT16LE, which h5py 3.16 has no name for."""
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_size(2)
    kind.set_ebias(127)
    return kind


def through_hdf5(values, kind):
    with h5py.File(f"{sys.argv[1]}/numbers.h5", "w") as file:
        dataset = h5py.Dataset(h5py.h5d.create(file.id, b"numbers", kind, h5py.h5s.create_simple(values.shape)))
        dataset[:] = values
        return dataset[:].astype(np.float32)


def exact(values):
    return values.astype(ml_dtypes.bfloat16).astype(np.float32)


halves = np.float32([1 + 2**-8, -1 - 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20])
seen, wanted = through_hdf5(halves, bfloat16()), exact(halves)
for value, here, elsewhere in zip(halves, seen, wanted):
    print(f"{value:.7f} as bf16: HDF5 {here}, ml_dtypes {elsewhere}")
assert np.array_equal(seen[2:], wanted[2:])

weights = np.random.default_rng(0).normal(0, 0.02, 100_000).astype(np.float16).astype(np.float32)
here, elsewhere = through_hdf5(weights, bfloat16()), exact(weights)
other = here != elsewhere
larger = (np.abs(here) > np.abs(elsewhere))[other].mean()
print(f"fp16 weights as bf16: {other.mean():.2%} are others, of these larger in size: {larger:.0%}")
large = np.float32([3.4e38])
print(f"3.4e38 as bf16: HDF5 {through_hdf5(large, bfloat16())[0]:.4e}, ml_dtypes {exact(large)[0]}")
half = np.float32([65510])
print(f"65510 as fp16: HDF5 {through_hdf5(half, h5py.h5t.IEEE_F16LE)[0]}, numpy {half.astype(np.float16)[0].astype(np.float32)}")
if np.array_equal(seen, wanted):
    sys.exit("CHANGED: halves go to the even neighbour")
PYTHON
