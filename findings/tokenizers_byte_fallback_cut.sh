#!/usr/bin/env bash
# tokenizers 0.23.3: a run of byte tokens that is cut inside a character decodes to replacement characters only; whole characters are lost.
#
# Guess, written down before the run: the ByteFallback decoder, which tokenizers made from SentencePiece models have, gives up a whole run
# of byte tokens when its last character is cut, where sentencepiece keeps the characters before it.
# Seen: yes, and the same when the first one is cut: a single stray byte turns its whole run of neighbouring byte tokens into one
# replacement character per token. Of 1,000 characters that the vocabulary lacks, decoded in windows of 100 tokens, tokenizers shows none,
# sentencepiece 980 from the same ids; tokenizers' own ByteLevel decoder keeps them too. Nothing is said. Windows of tokens are what a
# trainer cuts (rows of seq_len, chunks of an evaluation, the last max_new_tokens), so texts in scripts that the vocabulary covers badly
# look like garbage in samples and in decoded data, though the ids are right.
# Fails when a whole character beside the cut one comes out.
#
#   tokenizers_byte_fallback_cut.sh [VENV]      a virtual environment with tokenizers 0.23.3 and sentencepiece 0.2.3; else one is made
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
venv=${1:-}
if [[ -z $venv ]]; then
  venv=$folder/venv
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3 sentencepiece==0.2.3
fi
"$venv/bin/python" - <<'PYTHON'
import io
import sys

import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

print("tokenizers", tokenizers.__version__, "sentencepiece", sentencepiece.__version__)
model = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["a cab fed a bad cafe"] * 50), model_writer=model, model_type="bpe", vocab_size=290, byte_fallback=True,
    hard_vocab_limit=False, minloglevel=2)
reference = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
# The same vocabulary, with the decoder that tokenizers made from Llama's SentencePiece model have.
vocabulary = {reference.id_to_piece(piece): piece for piece in range(reference.get_piece_size())}
converted = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
converted.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
bytes_only = tokenizers.Tokenizer(models.BPE(vocab={symbol: number for number, symbol in enumerate(sorted(
    pre_tokenizers.ByteLevel.alphabet()))}, merges=[]))
bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
bytes_only.decoder = decoders.ByteLevel()

text = "cafe 漢字仮名"
ids = reference.encode(text)
for name, part in (("whole", ids), ("last token cut", ids[:-1]), ("last two cut", ids[:-2]), ("from the second byte", ids[-11:])):
    print(f"{name}: sentencepiece {reference.decode(part)!r}, tokenizers {converted.decode(part)!r}")
assert converted.decode(ids) == reference.decode(ids) == text
assert "漢字仮" in reference.decode(ids[:-1]) and "字仮名" in reference.decode(ids[-11:])

text = "".join(chr(0x4E00 + character) for character in range(1000))


def shown(tokenizer, ids):
    """How many of the text's characters are in the decoded windows of 100 tokens."""
    return sum(window.count(character) for first in range(0, len(ids), 100)
               for window in [tokenizer.decode(ids[first:first + 100])] for character in set(window) & set(text))


ids = reference.encode(text)[1:]  # without the space that it puts first
assert len(ids) == 3000
counts = {
    "sentencepiece": shown(reference, ids), "tokenizers, ByteFallback": shown(converted, ids),
    "tokenizers, ByteLevel": shown(bytes_only, bytes_only.encode(text).ids)}
for name, count in counts.items():
    print(f"{name}: {count} of 1000 characters in windows of 100 tokens")
assert counts["sentencepiece"] > 950 and counts["tokenizers, ByteLevel"] > 950
if counts["tokenizers, ByteFallback"]:
    sys.exit("CHANGED: whole characters beside a cut one come out")
PYTHON
