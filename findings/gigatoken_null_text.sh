#!/usr/bin/env bash
# gigatoken 0.10.0: a JSON line without a text ends the reading of its file; all documents after it are lost, and nothing is said.
#
# Guess, written down before the run: encode_files loses or shifts documents whose text is null or empty.
# Seen: an empty text is an empty document, as it should be. A line whose text is null, whose text is missing, or is a number ends the
# documents there: of 1,000 lines with a null in line 100, 99 come back, and the next file goes on as usual. No error, no warning, with and
# without parallel. The same nulls in a Parquet file are empty documents and the rest is there, as its help says; pyarrow reads every line.
# One bad line at the front of a shard and the shard is gone; the only sign is a number of documents that nobody has counted.
# Fails when the documents after the line come, or an error does.
#
#   gigatoken_null_text.sh [VENV]      a virtual environment with gigatoken 0.10.0, tokenizers 0.23.3, pyarrow 26.0.1; else one is made
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
venv=${1:-}
if [[ -z $venv ]]; then
  venv=$folder/venv
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check gigatoken==0.10.0 tokenizers==0.23.3 pyarrow==26.0.1
fi
"$venv/bin/python" - "$folder" <<'PYTHON'
import importlib.metadata
import json
import sys

import gigatoken
import pyarrow
import pyarrow.json
import pyarrow.parquet
from tokenizers import Tokenizer, models, pre_tokenizers

print("gigatoken", importlib.metadata.version("gigatoken"))
folder = sys.argv[1]
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
byte_tokens = Tokenizer(models.BPE(vocab={byte: token for token, byte in enumerate(alphabet)}, merges=[]))
byte_tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
byte_tokens.save(f"{folder}/tokenizer.json")
tokenizer = gigatoken.Tokenizer(f"{folder}/tokenizer.json")


def read(source, **options):
    try:
        return len(tokenizer.encode_files(source, **options))
    except Exception as error:
        sys.exit(f"CHANGED: {error}")


def lines(name, hundredth):
    """A file of 1000 lines, of which line 100 is the given one."""
    rows = [json.dumps({"id": number, "text": f"document {number}"}) for number in range(1, 1001)]
    rows[99] = json.dumps(hundredth)
    with open(f"{folder}/{name}", "w") as file:
        file.write("\n".join(rows) + "\n")
    return f"{folder}/{name}"


whole, counts = lines("whole.jsonl", {"id": 100, "text": "document 100"}), {}
for name, row in (("empty", {"id": 100, "text": ""}), ("null", {"id": 100, "text": None}), ("missing", {"id": 100}),
                  ("a number", {"id": 100, "text": 100})):
    path = lines(f"{name}.jsonl", row)
    counts[name] = read(gigatoken.JsonlFileSource([path]))
    both = read(gigatoken.JsonlFileSource([path, whole]))
    parallel = [read(gigatoken.JsonlFileSource([path]), parallel=parallel) for parallel in (True, False)]
    print(f"text of line 100 of 1000 is {name}: {counts[name]} documents, with parallel on and off {parallel}; with a second file {both}")
table = pyarrow.json.read_json(f"{folder}/null.jsonl")
pyarrow.parquet.write_table(table, f"{folder}/null.parquet")
parquet = read(gigatoken.ParquetFileSource([f"{folder}/null.parquet"]))
print(f"null: pyarrow reads {table.num_rows} lines; gigatoken has {parquet} documents of the same rows in Parquet")
assert read(gigatoken.JsonlFileSource([whole])) == counts["empty"] == parquet == table.num_rows == 1000
if counts["null"] >= 999:
    sys.exit("CHANGED: the documents after the line come")
PYTHON
