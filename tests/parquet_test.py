#!/usr/bin/env python3
"""Text through Parquet and Arrow files gives the tokens of the same text as JSON lines. Not part of ctest: needs pyarrow.

    parquet_test.py LAMINA [VENV]

VENV is a virtual environment with pyarrow and h5py; without it one is made in a temporary folder (pip install pyarrow h5py).
"""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WRITE = """
import json, sys
import pyarrow as arrow, pyarrow.parquet as parquet
rows = [json.loads(line) for line in open("rows.jsonl", encoding="utf-8")]
table = arrow.Table.from_pylist(rows)
for compression in ("none", "snappy", "zstd"):
    parquet.write_table(table, f"{compression}.parquet", compression=compression, row_group_size=700)
with arrow.ipc.new_file("file.arrow", table.schema) as file:
    file.write_table(table)
with arrow.ipc.new_stream("stream.arrow", table.schema) as file:
    file.write_table(table)
data = open("zstd.parquet", "rb").read()
middle, length = len(data) // 2, len(data) // 4   # of every column something
open("damaged.parquet", "wb").write(data[:middle] + bytes(length) + data[middle + length:])
"""
HASHES = "import h5py, sys; f = h5py.File(sys.argv[1]); print(f.attrs['tokens_hash'], f.attrs['text_hash'], f.attrs['num_documents'])"


def main() -> int:
    lamina = str(Path(sys.argv[1]).resolve())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        venv = Path(sys.argv[2]).resolve() if len(sys.argv) > 2 else folder / "venv"
        if len(sys.argv) <= 2:
            subprocess.run([sys.executable, "-m", "venv", venv], check=True)
            subprocess.run([venv / "bin/pip", "install", "-q", "pyarrow", "h5py"], check=True)
        python = venv / "bin/python"
        with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
            for i in range(5000):
                text = f"document {i}, \u00e9\u4f60\U0001f600 \"quoted\"\n" * (i % 7 + 1)
                file.write(json.dumps({"id": i, "text": text, "page": {"body": text, "n": i}}, ensure_ascii=False) + "\n")
        subprocess.run([python, "-c", WRITE], cwd=folder, check=True)

        def prepare(output: str, source: str, *options: str, reader: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
            command = [lamina, "prepare", "--overwrite", *options, "--output", output]
            if not reader:
                return subprocess.run([*command, source], cwd=folder, capture_output=True, text=True)
            with subprocess.Popen([python, ROOT / "launch/read_parquet.py", *reader, source], cwd=folder, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE) as pipe:
                done = subprocess.run([*command, "-"], cwd=folder, stdin=pipe.stdout, capture_output=True, text=True)
                pipe.stdout.close()
                pipe.stderr.read()
            return done

        def hashes(output: str) -> str:
            return subprocess.run([python, "-c", HASHES, folder / output / "tokens.h5"], check=True, capture_output=True, text=True).stdout

        done = prepare("expected", "rows.jsonl")
        assert done.returncode == 0, done.stderr
        for source in ("none.parquet", "snappy.parquet", "zstd.parquet", "file.arrow", "stream.arrow"):
            for reader, options in ((("--column", "text"), ()), (("--column", "page.body"), ("--text-key", "page.body"))):
                done = prepare("found", source, *options, reader=reader)
                assert done.returncode == 0, done.stderr
                assert hashes("found") == hashes("expected"), source
            done = prepare("refused", source)
            assert done.returncode != 0 and "read_parquet.py" in done.stderr and not (folder / "refused").exists(), done.stderr
            print(f"ok {source}")
        done = prepare("refused", "damaged.parquet", reader=("--column", "text"))
        assert done.returncode != 0 and not (folder / "refused").exists(), "a reader that failed went unnoticed"
        print("ok damaged.parquet")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT", "1")
    os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    sys.exit(main())
