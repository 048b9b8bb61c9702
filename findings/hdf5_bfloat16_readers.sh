#!/usr/bin/env bash
# pyfive 1.3.0 and PyTables 3.11.1 read the bf16 of HDF5 2.0 as fp16: 1.0 comes as 1.875 from one, 1e30 as infinity from the other.
#
# Guess, written down before the run: readers of HDF5 other than h5py look at a float's size only, so that bf16 is taken for fp16.
# Seen: yes. pyfive, which reads HDF5 without its library, takes the two bytes for fp16 as they are: 1.0 is 1.875, 0.02 is 1.16, infinity
# is not a number; of weights drawn with a deviation of 0.02 none is right, and their deviation is 1.1, which neither a check of the shape
# nor one for finite numbers sees. PyTables does convert, but into float16, which the file has not: what is above 65,504 is infinite, and
# what is below 3e-8, as second moments of Adam are, is 0. Nothing is said in either case. h5py gives fp32 and every number. The type is one
# that HDF5 2.0 names itself (H5T_FLOAT_BFLOAT16LE). Integers that begin inside their bytes come shifted from pyfive as well.
# Fails when one of the two gives the numbers of the file, or refuses.
#
#   hdf5_bfloat16_readers.sh [VENV]      a virtual environment with the packages below; else one is made
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
venv=${1:-}
if [[ -z $venv ]]; then
  venv=$folder/venv
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check pyfive==1.3.0 tables==3.11.1 h5py==3.16.0 numpy==2.4.6
fi
"$venv/bin/python" -W ignore - "$folder" <<'PYTHON'
import importlib.metadata
import sys

import h5py
import numpy as np
import pyfive
import tables

print(", ".join(f"{package} {importlib.metadata.version(package)}" for package in ("pyfive", "tables", "h5py")), "with HDF5",
      h5py.version.hdf5_version)
path = f"{sys.argv[1]}/weights.h5"
bfloat16 = h5py.h5t.IEEE_F32LE.copy()  # the fields of H5T_FLOAT_BFLOAT16LE, which h5py 3.16 has no name for
bfloat16.set_fields(15, 7, 8, 0, 7)
bfloat16.set_size(2)
bfloat16.set_ebias(127)
shifted = h5py.h5t.STD_I32LE.copy()  # 12 bits, above 4 unused ones
shifted.set_precision(12)
shifted.set_offset(4)
VALUES = {"some": np.float32([1, -3.5, 0.02, 100, 2.0**-40, 1e30, np.inf]),
          "weights": np.random.default_rng(0).normal(0, 0.02, 10_000).astype(np.float32)}
with h5py.File(path, "w") as file:
    for name, values in VALUES.items():
        h5py.Dataset(h5py.h5d.create(file.id, name.encode(), bfloat16, h5py.h5s.create_simple(values.shape)))[:] = values
    h5py.Dataset(h5py.h5d.create(file.id, b"integers", shifted, h5py.h5s.create_simple((3,))))[:] = np.int32([1, 100, 2000])


def with_h5py(name):
    with h5py.File(path) as file:
        return file[name][:]


def with_pyfive(name):
    with pyfive.File(path) as file:
        return np.asarray(file[name][:])


def with_tables(name):
    with tables.open_file(path) as file:
        return file.root[name][:]


right = {name: with_h5py(name) for name in VALUES}
for name, values in VALUES.items():
    assert np.allclose(right[name], values, rtol=2.0**-8)
print(f"h5py: {right['some'].dtype} {right['some'].tolist()}")
wrong = {}
for package, read in (("pyfive", with_pyfive), ("PyTables", with_tables)):
    try:
        seen = {name: read(name) for name in VALUES}
    except Exception as error:
        sys.exit(f"CHANGED: {package} refuses: {error}")
    wrong[package] = {name: np.mean(seen[name].astype(np.float32) != right[name]) for name in VALUES}
    print(f"{package}: {seen['some'].dtype} {seen['some'].tolist()}")
    print(f"{package}: weights {wrong[package]['weights']:.1%} wrong, their deviation is {seen['weights'].astype(np.float64).std():.3g}, "
          f"h5py's {right['weights'].std():.3g}")
print("integers of 12 bits: h5py", with_h5py("integers").tolist(), "pyfive", with_pyfive("integers").tolist())
if wrong["pyfive"]["weights"] == 0 or wrong["PyTables"]["some"] == 0:
    sys.exit("CHANGED: the numbers are those of the file")
PYTHON
