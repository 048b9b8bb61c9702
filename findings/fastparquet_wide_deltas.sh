#!/usr/bin/env bash
# fastparquet 2026.9.0: hashes in a Parquet file of version 2 as DuckDB 2.0.1 writes it come as other numbers, 99 % of them.
#
# Guess, written down before the run: of pyarrow, polars, duckdb and fastparquet, which read one file with many types and encodings, one
# gives other values than the rest.
# Seen: fastparquet, for integers in the encoding DELTA_BINARY_PACKED, once neighbours differ so much that a difference takes more than 28
# bits: of random numbers below 2^27 all are right, below 2^28 one in a hundred is. pyarrow and DuckDB agree. DuckDB uses that encoding for
# integers with parquet_version v2, pyarrow when asked. Nothing is said, and the first values of a column are right, and so is a column of
# sorted offsets, however large, where differences are small. What is wrong are the columns that look random: hashes of documents, buckets,
# seeds. Of 2,500 documents that come twice, found by such a column, 625 are left, and splits by it are other splits.
# Fails when fastparquet gives the numbers of the file.
#
#   fastparquet_wide_deltas.sh [VENV]      a virtual environment with fastparquet 2026.9.0, duckdb 2.0.1, pyarrow 26.0.1; else one is made
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
venv=${1:-}
if [[ -z $venv ]]; then
  venv=$folder/venv
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check fastparquet==2026.9.0 duckdb==2.0.1 pyarrow==26.0.1 pandas==3.1.1 numpy==2.4.6
fi
"$venv/bin/python" -W ignore - "$folder" <<'PYTHON'
import sys

import duckdb
import fastparquet
import numpy as np
import pyarrow
import pyarrow.parquet

print("fastparquet", fastparquet.__version__, "duckdb", duckdb.__version__, "pyarrow", pyarrow.__version__)


def wrong(path):
    """The share of a file's numbers that fastparquet gives otherwise than pyarrow and DuckDB; whether the first ten are right."""
    numbers = pyarrow.parquet.read_table(path)["hash"].to_numpy()
    assert np.array_equal(numbers, duckdb.sql(f"select hash from '{path}'").fetchnumpy()["hash"])
    seen = fastparquet.ParquetFile(path).to_pandas()["hash"].to_numpy()
    assert len(seen) == len(numbers)
    encodings = pyarrow.parquet.read_metadata(path).row_group(0).column(0).encodings
    duplicates = len(numbers) - len(np.unique(numbers)), len(seen) - len(np.unique(seen))
    print(f"{path.split('/')[-1]}, {', '.join(encodings)}: {np.mean(seen != numbers):.1%} wrong; duplicates {duplicates[0]} and "
          f"{duplicates[1]}; last number {numbers[-1]} and {seen[-1]}")
    return np.mean(seen != numbers)


shares = {}
for version in ("v1", "v2"):
    path = f"{sys.argv[1]}/duckdb {version}.parquet"
    duckdb.sql(f"copy (select (hash(i // 2) % 1073741824)::uinteger as hash from range(5000) documents(i)) "
               f"to '{path}' (format parquet, parquet_version {version})")
    shares[version] = wrong(path)
random = np.random.default_rng(0)
columns = {f"random below 2^{bits}": random.integers(0, 2**bits, 5000).astype(np.uint32) for bits in (24, 27, 28, 30)}
columns["sorted below 2^30"] = np.sort(columns["random below 2^30"])
for name, numbers in columns.items():
    path = f"{sys.argv[1]}/pyarrow, {name}.parquet"
    pyarrow.parquet.write_table(
        pyarrow.table({"hash": numbers}), path, use_dictionary=False, column_encoding={"hash": "DELTA_BINARY_PACKED"})
    shares[name] = wrong(path)
for name in ("v1", "random below 2^24", "random below 2^27", "sorted below 2^30"):
    assert shares[name] == 0
if shares["v2"] == 0 or shares["random below 2^30"] == 0:
    sys.exit("CHANGED: fastparquet gives the numbers of the file")
PYTHON
