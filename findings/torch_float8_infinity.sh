#!/usr/bin/env bash
# torch 2.15.0 and ml_dtypes 0.6.0: torch makes the largest number, 448, of an infinity in float8_e4m3fn, and only there.
#
# Guess, written down before the run: torch and ml_dtypes round some fp32 numbers differently to float8 types.
# Seen: all finite numbers in range are equal, for all five types. Beyond the range torch's float8_e4m3fn saturates, which its releases
# since 2.12 do on purpose, but inf and -inf too become 448 and -448: after the cast nothing says that the tensor had overflowed. ml_dtypes
# (and so numpy and JAX) has NaN for both. torch's other types behave otherwise: float8_e5m2 keeps inf, the fnuz types make NaN of
# everything beyond. float8_e8m0fnu, the scales, drops the sign in torch (-2 becomes 2) and makes 2^-127 of 0, where ml_dtypes has NaN.
# A check for values that are not finite has to come before the cast.
# Fails when torch does not make 448 of inf.
#
#   torch_float8_infinity.sh [VENV]      a virtual environment with torch 2.15.0, ml_dtypes 0.6.0 and numpy; else one is made
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
venv=${1:-}
if [[ -z $venv ]]; then
  venv=$folder/venv
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 ml_dtypes==0.6.0 numpy
fi
"$venv/bin/python" - <<'PYTHON'
import sys

import ml_dtypes
import numpy as np
import torch

torch.set_num_threads(1)
print("torch", torch.__version__, "ml_dtypes", ml_dtypes.__version__)
every_bf16 = (torch.arange(1 << 16, dtype=torch.int32) << 16).view(torch.float32)
every_bf16 = every_bf16[every_bf16.isfinite()]
special = torch.tensor([float("inf"), -float("inf"), 1e6, 0.0, -2.0])


def both(name, values):
    ours = values.to(getattr(torch, name)).float()
    with np.errstate(all="ignore"):
        theirs = torch.from_numpy(values.numpy().astype(getattr(ml_dtypes, name)).astype(np.float32))
    return ours, theirs


for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"):
    inside = every_bf16[every_bf16.abs() <= torch.finfo(getattr(torch, name)).max]
    if name == "float8_e8m0fnu":
        inside = inside[inside > 0]
    ours, theirs = both(name, inside)
    assert torch.equal(ours, theirs), name
    ours, theirs = both(name, special)
    print(f"{name}: {len(inside)} numbers equal; of inf, -inf, 1e6, 0, -2 torch makes {ours.tolist()}, ml_dtypes {theirs.tolist()}")
infinity = torch.full((100,), float("inf"))
if not all(value.to(torch.float8_e4m3fn).float().eq(448).all() for value in (infinity, infinity.bfloat16(), infinity[:1])):
    sys.exit("CHANGED: an infinity does not become 448")
PYTHON
