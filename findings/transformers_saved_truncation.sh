#!/usr/bin/env bash
# transformers 5.24.0 and tokenizers 0.23.3: after one call with truncation=True the saved tokenizer cuts every document there.
#
# Guess, written down before the run: the truncation and the padding of a call stay in the tokenizer and go into the tokenizer.json that
# save_pretrained writes, so that tokenizers.Tokenizer.from_file cuts documents.
# Seen: yes. A tokenizer that was called once for a batch of 8 tokens (an evaluation, a look at a prompt) and then saved beside a checkpoint
# gives 8 tokens for a document of 1,000, and 8 for one of one, padding included. transformers itself ignores what the file says, so it
# shows no sign; whatever else reads tokenizer.json (tokenizers, and the data pipelines and servers built on it) obeys it, without a
# warning. The text that is lost is all but the beginning of every document. A later call without truncation=True takes it out again, so it
# depends on which call was the last one before the save.
# Fails when the saved tokenizer gives every token.
#
#   transformers_saved_truncation.sh [VENV]      a virtual environment with transformers 5.24.0 and tokenizers 0.23.3; else one is made
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
venv=${1:-}
if [[ -z $venv ]]; then
  venv=$folder/venv
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 tokenizers==0.23.3
fi
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$venv/bin/python" - "$folder" <<'PYTHON'
import sys

import tokenizers
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

print("transformers", transformers.__version__, "tokenizers", tokenizers.__version__)
LENGTH = 1000


def bytes_tokenizer():
    vocabulary = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))} | {"<|end|>": 256}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")


def saved(name, *calls):
    """Tokens of a document of 1,000 bytes and of one byte, read by tokenizers and by transformers, after the calls and a save."""
    path = f"{sys.argv[1]}/{name}"
    tokenizer = bytes_tokenizer()
    for options in calls:
        tokenizer(["some text", "more"], **options)
    tokenizer.save_pretrained(path)
    plain, auto = Tokenizer.from_file(f"{path}/tokenizer.json"), transformers.AutoTokenizer.from_pretrained(path)
    counts = [len(plain.encode(text).ids) for text in ("x" * LENGTH, "x")], [len(auto(text).input_ids) for text in ("x" * LENGTH, "x")]
    print(f"{name}: a document of {LENGTH} bytes and one of 1: tokenizers {counts[0]} tokens, transformers {counts[1]}")
    assert counts[1] == [LENGTH, 1]
    return counts[0]


cut = dict(truncation=True, max_length=8, padding="max_length")
assert saved("no call", ) == [LENGTH, 1]
assert saved("a cut call, then a plain one", cut, {}) == [LENGTH, 1]
if saved("a cut call", cut) == [LENGTH, 1]:
    sys.exit("CHANGED: the saved tokenizer gives every token")
PYTHON
