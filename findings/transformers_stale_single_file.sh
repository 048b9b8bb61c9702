#!/usr/bin/env bash
# transformers 5.24.0: a sharded save over a smaller model's folder is never read; from_pretrained goes on giving the old weights.
#
# Guess, written down before the run: save_pretrained with shards leaves model.safetensors of an earlier save, and from_pretrained takes
# that one.
# Seen: yes, and without a warning, though save_pretrained does clear away an earlier save's shards. The folder then holds config.json and
# shards of the new model beside the weights of the old one. It happens whenever the second save is the first to need shards: a smaller
# max_shard_size, or fp32 where the first was bf16.
# Fails when the new weights are read, or the old file is gone.
#
#   transformers_stale_single_file.sh [VENV]      a virtual environment with transformers 5.24.0 and torch 2.15.0; else one is made
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
venv=${1:-}
if [[ -z $venv ]]; then
  venv=$folder/venv
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 torch==2.15.0
fi
HF_HUB_OFFLINE=1 "$venv/bin/python" - "$folder" <<'PYTHON'
import os
import sys

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

transformers.logging.disable_progress_bar()
print("transformers", transformers.__version__)
torch.set_num_threads(1)
torch.manual_seed(0)
config = LlamaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
old, new = LlamaForCausalLM(config), LlamaForCausalLM(config)


def read_after(name, first, second):
    path = f"{sys.argv[1]}/{name}"
    old.save_pretrained(path, max_shard_size=first)
    new.save_pretrained(path, max_shard_size=second)
    read = LlamaForCausalLM.from_pretrained(path).model.embed_tokens.weight
    return path, "new" if torch.equal(read, new.model.embed_tokens.weight) else (
        "old" if torch.equal(read, old.model.embed_tokens.weight) else "neither")


for name, first, second in (("shards, then one file", "20KB", "1GB"), ("shards, then fewer", "20KB", "40KB")):
    path, weights = read_after(name, first, second)
    print(f"{name}: from_pretrained gives the {weights} weights")
    assert weights == "new"
path, weights = read_after("one file, then shards", "1GB", "20KB")
print(f"one file, then shards: from_pretrained gives the {weights} weights of", sorted(os.listdir(path)))
if weights == "new":
    sys.exit("CHANGED: the new weights are read")
PYTHON
