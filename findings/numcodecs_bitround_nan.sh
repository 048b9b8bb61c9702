#!/usr/bin/env bash
# numcodecs 0.16.6: BitRound makes -0.0 of a NaN whose bits are all set, as GPUs compute it; numpy's own NaN comes through.
#
# Guess, written down before the run: rounding by adding to a number's bits carries a NaN with a full mantissa over into the sign, so that
# it becomes 0, and one with low bits only becomes infinite.
# Seen: yes, in fp16, fp32 and fp64, for every number of bits kept but all of them. NVIDIA's GPUs have one NaN of fp32, 0x7fffffff, and it
# becomes -0.0; 0xffffffff becomes 0.0, and 0x7f800001 infinite. The widest NaN of bf16, 0x7fff, widened to fp32, is lost once fewer than 7
# bits are kept. np.nan, which a test of the codec would use, is 0x7fc00000 and stays. So gradients, activations or weights that are stored
# rounded to compress better hold a plausible zero where the run had gone wrong, and a check for NaN in the store finds nothing. Nothing
# is said. ml_dtypes' casts to bf16 and fp16 keep all of them.
# Fails when every NaN stays one.
#
#   numcodecs_bitround_nan.sh [VENV]      a virtual environment with numcodecs 0.16.6, ml_dtypes 0.6.0 and numpy 2.4.6; else one is made
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
venv=${1:-}
if [[ -z $venv ]]; then
  venv=$folder/venv
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check numcodecs==0.16.6 ml_dtypes==0.6.0 numpy==2.4.6
fi
"$venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import ml_dtypes
import numpy as np
from numcodecs.bitround import BitRound

print(", ".join(f"{package} {importlib.metadata.version(package)}" for package in ("numcodecs", "ml_dtypes", "numpy")))
MANTISSA = {"f2": 10, "f4": 23, "f8": 52}
NANS = {"f2": (0x7FFF, 0xFFFF, 0x7C01), "f4": (0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7FFF0000),
        "f8": (0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF, 0x7FF0000000000001)}


def rounded(values, bits):
    codec = BitRound(keepbits=bits)
    return np.asarray(codec.decode(codec.encode(values))).view(values.dtype)


lost = 0
for dtype, mantissa in MANTISSA.items():
    for pattern in NANS[dtype]:
        value = np.array([pattern], "u" + dtype[1]).view(dtype)
        assert np.isnan(value).all()
        kept = [bits for bits in range(1, mantissa) if np.isnan(rounded(value, bits)).all()]
        lost += mantissa - 1 - len(kept)
        print(f"{dtype} {pattern:#x}: keepbits=3 gives {rounded(value, 3)[0]}; a NaN with {kept or 'no number of'} bits kept")
        assert np.isnan(rounded(value, mantissa)).all()
    assert all(np.isnan(rounded(np.array([np.nan], dtype), bits)).all() for bits in range(1, mantissa))
    print(f"{dtype} np.nan: a NaN with every number of bits kept")

gradient = np.random.default_rng(0).normal(0, 1e-3, 10_000).astype(np.float32)
gradient.view(np.uint32)[::100] = 0x7FFFFFFF
stored = rounded(gradient, 7)
print(f"a gradient with {np.isnan(gradient).sum()} NaNs of a GPU: {np.isnan(stored).sum()} stored, mean {stored.mean():.2g}, as bf16 "
      f"{np.isnan(gradient.astype(ml_dtypes.bfloat16)).sum()}, as fp16 {np.isnan(gradient.astype(np.float16)).sum()}")
assert np.isnan(gradient.astype(ml_dtypes.bfloat16)).sum() == np.isnan(gradient.astype(np.float16)).sum() == 100
if lost == 0:
    sys.exit("CHANGED: every NaN stays one")
PYTHON
