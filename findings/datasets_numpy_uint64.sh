#!/usr/bin/env bash
# datasets 5.2.0: with_format("numpy") makes int64 of a uint64 column: large hashes come out negative.
#
# Guess, written down before the run: with_format("torch") wraps unsigned 64-bit numbers, which torch used to lack, to negative ones.
# Seen: "torch" does, although torch has uint64 now, and so does "numpy", which always had it: the column's type is uint64, the array that
# comes is int64, and half of all 64-bit hashes are negative in it. "arrow" and "pandas" give what was stored. So hashes of documents that
# one step reads with the numpy format are not those that another step wrote, and nothing is said. (float64 comes as float32, which is
# known; numpy at least warns where it makes inf.)
# Fails when the numpy format gives the stored numbers.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 numpy==2.4.6
HF_HUB_OFFLINE=1 HF_HOME=$folder "$folder/venv/bin/python" - <<'PYTHON'
import sys

import datasets
import numpy as np

print("datasets", datasets.__version__)
hashes = np.array([1, 2**63 + 5, 2**64 - 1], dtype=np.uint64)
data = datasets.Dataset.from_dict({"hash": hashes, "tokens": np.array([1, 2, 65535], dtype=np.uint16)})
print("column types:", {name: feature.dtype for name, feature in data.features.items()})
assert data[:]["hash"] == hashes.tolist() and data.with_format("arrow")[:]["hash"].to_pylist() == hashes.tolist()
assert data.with_format("pandas")[:]["hash"].tolist() == hashes.tolist()
seen = data.with_format("numpy")[:]
for name, column in seen.items():
    print(f"numpy format, {name}: {column.dtype} {column.tolist()}")
if seen["hash"].tolist() == hashes.tolist():
    sys.exit("CHANGED: the numpy format gives the stored numbers")
PYTHON
