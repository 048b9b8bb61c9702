#!/usr/bin/env bash
# gigatoken 0.10.0: of a gzip file of several members only the first is read, so most of a concatenated or block-compressed shard is lost.
#
# Guess, written down before the run: encode_files loses documents of a compressed file that was put together of several.
# Seen: yes for .gz, no for .zst. A .jsonl.gz made of three (cat a.gz b.gz c.gz, which gzip's format allows and gzip, Python and pyarrow
# read whole) gives the documents of the first alone, as does a text file; frames of zstandard are all read. bgzip and tools that
# compress in parallel write a member for every piece, and crawls one for every record, so that a shard of thousands of documents can come
# down to one. No error, no warning.
# Fails when every document comes, or an error does.
#
#   gigatoken_gzip_members.sh [VENV]      a virtual environment with gigatoken 0.10.0, tokenizers 0.23.3, pyarrow 26.0.1; else one is made
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
import gzip
import importlib.metadata
import json
import sys

import gigatoken
import pyarrow
import pyarrow.json
from tokenizers import Tokenizer, models, pre_tokenizers

print("gigatoken", importlib.metadata.version("gigatoken"))
folder = sys.argv[1]
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
byte_tokens = Tokenizer(models.BPE(vocab={byte: token for token, byte in enumerate(alphabet)}, merges=[]))
byte_tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
byte_tokens.save(f"{folder}/tokenizer.json")
tokenizer = gigatoken.Tokenizer(f"{folder}/tokenizer.json")
shards = ["".join(json.dumps({"text": f"document {shard} {number}"}) + "\n" for number in range(100)).encode() for shard in range(3)]
codec = pyarrow.Codec("zstd")


def read(name, parts):
    """Numbers of documents by gigatoken, and by pyarrow, of a file made of the parts."""
    path = f"{folder}/{name}"
    with open(path, "wb") as file:
        file.write(b"".join(parts))
    compression = {"gz": "gzip", "zst": "zstd"}[name.split(".")[-1]]
    with pyarrow.input_stream(path, compression=compression) as stream:
        whole = pyarrow.json.read_json(stream).num_rows
    try:
        count = len(tokenizer.encode_files(gigatoken.JsonlFileSource([path])))
    except Exception as error:
        sys.exit(f"CHANGED: {error}")
    print(f"{name}, {len(parts)} parts: gigatoken has {count} documents, pyarrow {whole}")
    assert whole == 300
    return count


assert read("one.jsonl.gz", [gzip.compress(b"".join(shards))]) == 300
assert read("frames.jsonl.zst", [codec.compress(shard, asbytes=True) for shard in shards]) == 300
three = read("members.jsonl.gz", [gzip.compress(shard) for shard in shards])
records = read("records.jsonl.gz", [gzip.compress(line) for shard in shards for line in shard.splitlines(keepends=True)])
with open(f"{folder}/members.jsonl.gz", "rb") as file:
    assert gzip.decompress(file.read()) == b"".join(shards)
if three == 300 or records == 300:
    sys.exit("CHANGED: every document comes")
PYTHON
