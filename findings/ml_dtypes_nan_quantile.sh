#!/usr/bin/env bash
# ml_dtypes 0.6.0 with numpy 2.4.6: a NaN in a bf16 array is hidden by median and quantile, and sort leaves the array unsorted.
#
# Guess, written down before the run: numpy puts NaN last when it sorts its own dtypes only; in bf16 the order around a NaN is broken, and
# median and quantile, which look for a NaN at the end, miss it.
# Seen: yes. Median and quantile of a bf16 array with NaNs are ordinary numbers, where fp32, fp16 and bf16's own max and sum give
# NaN. sort leaves NaNs in the middle with an ascending run on each side, so searchsorted in the result goes wrong, and unique gives numbers
# twice. nanquantile is right. So statistics of gradients that are watched in bf16 look healthy when some of them are not numbers.
# float8_e5m2 does the same.
# Fails when the median is NaN and the sorted array ascends.
#
#   ml_dtypes_nan_quantile.sh [VENV]      a virtual environment with ml_dtypes 0.6.0 and numpy 2.4.6; else one is made
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
venv=${1:-}
if [[ -z $venv ]]; then
  venv=$folder/venv
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check ml_dtypes==0.6.0 numpy==2.4.6
fi
"$venv/bin/python" - <<'PYTHON'
import sys
import warnings

import ml_dtypes
import numpy as np

warnings.filterwarnings("ignore")
print("ml_dtypes", ml_dtypes.__version__, "numpy", np.__version__)
gradients = np.random.default_rng(0).standard_normal(1000)
gradients[[100, 500, 700]] = np.nan


def seen(dtype):
    """Median and 0.9 quantile, whether sort put the numbers in order and NaN last, and how many distinct values unique counts too many."""
    values = gradients.astype(dtype)
    order = np.sort(values).astype(np.float32)
    right = np.sort(values.astype(np.float32))
    assert np.isnan(np.float32(np.max(values))) and np.isnan(np.float32(np.sum(values)))
    return (float(np.median(values)), float(np.quantile(values, 0.9)), np.array_equal(order, right, equal_nan=True),
            len(np.unique(values)) - len(np.unique(values.astype(np.float32))))


hidden = {}
for dtype in (np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2):
    median, quantile, ordered, more = seen(dtype)
    hidden[dtype] = not (np.isnan(median) and np.isnan(quantile) and ordered)
    print(f"{np.dtype(dtype)}: median {median:.4g}, 0.9 quantile {quantile:.4g}, sorted: {ordered}, unique gives {more} too many")
assert not hidden[np.float32] and not hidden[np.float16]
if not hidden[ml_dtypes.bfloat16]:
    sys.exit("CHANGED: the NaN is seen and the array sorted")
PYTHON
