#!/usr/bin/env bash
# sentencepiece 0.2.3: once a seed is set, sampling segments a batch the same way at every call, so subword regularisation is gone.
#
# Guess, written down before the run: with a seed set, the threads of every batch call start with the same generator, so each epoch samples
# the very same segmentations.
# Seen: yes. encode() of a list with enable_sampling=True and num_threads=1 gives one and the same result in ten epochs. With more threads,
# or num_threads left out, there are one to three results in ten epochs, as sentences fall to one thread or another. A list of one sentence
# 20 times has the same 20 segmentations at the next call. Encoding the sentences one by one gives ten different epochs, and so does a list
# when no seed was ever set. Nothing is said, and each batch by itself looks sampled: who sets the seed to have a repeatable run trains on
# one frozen sample.
# Fails when the epochs differ.
#
#   sentencepiece_seeded_batches.sh [VENV]      a virtual environment with sentencepiece 0.2.3; else one is made
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
venv=${1:-}
if [[ -z $venv ]]; then
  venv=$folder/venv
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check sentencepiece==0.2.3
fi
"$venv/bin/python" - <<'PYTHON'
import io
import random
import sys

import sentencepiece

print("sentencepiece", sentencepiece.__version__)
EPOCHS = 10
words = "alpha beta gamma deltas running runner tokens tokenizer model models".split()
random.seed(0)
corpus = [" ".join(random.choice(words) for _ in range(8)) for _ in range(300)]
model = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(corpus), model_writer=model, vocab_size=30, model_type="unigram", minloglevel=2, num_threads=1)
tokenizer = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
batch = corpus[:40]
SAMPLING = dict(enable_sampling=True, alpha=0.1, nbest_size=-1)


def epochs(encode):
    """The number of different epochs out of ten."""
    return len({str(encode()) for _ in range(EPOCHS)})


def one_by_one():
    return [tokenizer.encode(sentence, **SAMPLING) for sentence in batch]


unseeded = epochs(lambda: tokenizer.encode(batch, **SAMPLING))
sentencepiece.set_random_generator_seed(7)
single = epochs(one_by_one)
print(f"no seed, lists: {unseeded} different epochs of {EPOCHS}\nseed, one by one: {single}")
assert unseeded == single == EPOCHS
seeded = {}
for name, threads in (("num_threads left out", {}), ("num_threads=1", {"num_threads": 1}), ("num_threads=2", {"num_threads": 2})):
    sentencepiece.set_random_generator_seed(7)
    seeded[name] = epochs(lambda: tokenizer.encode(batch, **SAMPLING, **threads))
    print(f"seed, lists, {name}: {seeded[name]}")
sentence = [batch[0]] * 20
first, second = (tokenizer.encode(sentence, **SAMPLING, num_threads=1) for _ in range(2))
different = len({tuple(pieces) for pieces in first})
print(f"one sentence 20 times in a list: {different} segmentations; the next call gives the same: {first == second}")
if seeded["num_threads=1"] == EPOCHS:
    sys.exit("CHANGED: the epochs differ")
PYTHON
