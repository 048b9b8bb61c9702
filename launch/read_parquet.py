#!/usr/bin/env python3
"""Parquet and Arrow files as JSON lines, a row each, for `lamina prepare -`. Needs pyarrow 15 or newer (python3 -m venv DIR && DIR/bin/pip install pyarrow).

    launch/read_parquet.py [--column NAME]... FILE_OR_FOLDER... | lamina prepare --output data/web -

Reads Parquet files, Arrow files (Feather) and Arrow streams, which their first bytes tell apart, in constant memory; of a folder all that are
in it, by name. A row has the column `text`, or those of --column (a.b is the field b of a); --text-key of `lamina prepare` names the text.
"""
import argparse
import json
import os
import sys
from pathlib import Path

ROWS = 1024   # of a batch


def batches(path: Path, columns: list[str]):
    import pyarrow as arrow
    import pyarrow.parquet as parquet
    with path.open("rb") as file:
        magic = file.read(8)
    if magic.startswith(b"PAR1"):
        source = parquet.ParquetFile(path, page_checksum_verification=True)
        check_columns(path, source.schema_arrow, columns)
        yield from source.iter_batches(batch_size=ROWS, columns=columns)
        return
    if magic.startswith(b"ARROW1"):
        reader = arrow.ipc.open_file(arrow.memory_map(str(path)))
        found = (reader.get_batch(i) for i in range(reader.num_record_batches))
    elif magic.startswith(b"\xff\xff\xff\xff"):
        reader = found = arrow.ipc.open_stream(arrow.memory_map(str(path)))
    else:
        raise ValueError("found neither Parquet nor Arrow data")
    check_columns(path, reader.schema, columns)
    tops = list(dict.fromkeys(column if column in reader.schema.names else column.split(".")[0] for column in columns))
    for batch in found:
        for begin in range(0, batch.num_rows, ROWS):
            yield batch.slice(begin, ROWS).select(tops)


def check_columns(path: Path, schema, columns: list[str]) -> None:
    for column in columns:
        if column not in schema.names and column.split(".")[0] not in schema.names:
            raise ValueError(f"no column {column}; found {', '.join(schema.names)}")


def files_of(names: list[str]) -> list[Path]:
    files = []
    for name in names:
        path = Path(name)
        files += sorted(p for p in path.rglob("*") if p.is_file() and p.suffix in (".parquet", ".arrow", ".feather")) if path.is_dir() else [path]
    return files


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", metavar="FILE_OR_FOLDER")
    parser.add_argument("--column", action="append", metavar="NAME", help="as often as needed; default: text")
    options = parser.parse_args()
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        print(f"read_parquet: {sys.executable} has no pyarrow: python3 -m venv DIR && DIR/bin/pip install pyarrow", file=sys.stderr)
        return 1
    files = files_of(options.paths)
    if not files:
        print(f"read_parquet: {options.paths[0]}: found no .parquet, .arrow or .feather file", file=sys.stderr)
        return 1
    for path in files:
        try:
            for batch in batches(path, options.column or ["text"]):
                sys.stdout.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in batch.to_pylist())
        except BrokenPipeError:   # the reader said why
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except (OSError, ValueError) as error:   # pyarrow's errors are of these two
            reason = f"read_parquet: {path}: {' '.join(str(error).split())}"
            print(reason, file=sys.stderr)
            print(reason, flush=True)   # no record: the pipe's reader must not take the rows so far for all of them
            return 1
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogatepass")
    sys.exit(main())
