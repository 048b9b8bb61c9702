#!/usr/bin/env bash
# pyarrow 26.0.1 and tensorstore 0.1.86: a big-endian array becomes a Tensor or an array of other numbers; pyarrow.array refuses it.
#
# Guess, written down before the run: of the libraries that take numpy arrays some read the bytes of a big-endian one as native.
# Seen: orjson, DuckDB, jax, mlx and pyarrow.array refuse such an array with a message, polars, zarr and numcodecs convert it. But
# pyarrow.Tensor.from_numpy and tensorstore.array take its bytes as they lie: tokens 1, 2, 300 are 256, 512 and 11,265, 1.5 is 6.9e-41, and
# what is written or computed from there on has these numbers. The same tensorstore converts when the array is assigned to an open store.
# Token files with the type ">u2", IDX and FITS files and what Java wrote come as such arrays from numpy.load, fromfile and astype;
# arithmetic in numpy is right, so the array looks like any other. 16-bit tokens stay in range and are only other tokens. Nothing is said.
# Fails when the numbers are those of the array, or it is refused.
#
#   bigendian_tensors.sh [VENV]      a virtual environment with pyarrow 26.0.1, tensorstore 0.1.86 and numpy 2.4.6; else one is made
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
venv=${1:-}
if [[ -z $venv ]]; then
  venv=$folder/venv
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check pyarrow==26.0.1 tensorstore==0.1.86 numpy==2.4.6
fi
"$venv/bin/python" -W ignore - "$folder" <<'PYTHON'
import importlib.metadata
import sys

import numpy as np
import pyarrow as pa
import tensorstore

print(", ".join(f"{package} {importlib.metadata.version(package)}" for package in ("pyarrow", "tensorstore", "numpy")))


def ipc(array):
    """Written as a tensor message of Arrow and read again."""
    path = f"{sys.argv[1]}/tensor"
    with pa.OSFile(path, "wb") as file:
        pa.ipc.write_tensor(pa.Tensor.from_numpy(array), file)
    with pa.memory_map(path) as file:
        return pa.ipc.read_tensor(file).to_numpy()


def assigned(array):
    store = tensorstore.open({"driver": "zarr3", "kvstore": "memory://"}, create=True, dtype=array.dtype.newbyteorder("="),
                             shape=array.shape).result()
    store[...] = array
    return store.read().result()


TAKEN = {"pyarrow.Tensor": lambda array: pa.Tensor.from_numpy(array).to_numpy(), "pyarrow.Tensor, written and read": ipc,
         "tensorstore.array": lambda array: tensorstore.array(array).read().result()}
wrong = 0
for name, native in (("tokens", np.array([1, 2, 300], np.uint16)), ("weights", np.array([1.5, -0.02, 100], np.float32)),
                     ("counters", np.array([5_000_000_000], np.int64))):
    swapped = native.astype(native.dtype.newbyteorder(">"))
    assert np.array_equal(swapped, native)
    try:
        pa.array(swapped)
        sys.exit(f"CHANGED: pyarrow.array takes {swapped.dtype}")
    except pa.ArrowNotImplementedError as error:
        print(f"{name}, {swapped.dtype}: pyarrow.array: {error}")
    assert np.array_equal(assigned(swapped), native)
    for way, take in TAKEN.items():
        assert np.array_equal(take(native), native)
        try:
            seen = take(swapped)
        except Exception as error:
            sys.exit(f"CHANGED: {way}: {error}")
        wrong += not np.array_equal(seen, native)
        print(f"  {way}: {native.tolist()} is {seen.tolist()} ({seen.dtype})")
if wrong == 0:
    sys.exit("CHANGED: the numbers are those of the array")
PYTHON
