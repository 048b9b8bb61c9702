#!/usr/bin/env bash
# transformers 5.24.0: MiniMax whose first layer is linear attention, as released, thinks its cache empty: batches generate other texts.
#
# Guess, written down before the run: a prompt padded on the left in a batch gives other logits than alone in the models with a recurrent
# state.
# Seen: not in a forward pass, and not in kimi_linear, qwen3_next, lfm2, falcon_h1 and others, with or without a cache. But MiniMax's
# get_seq_length() asks layer 0, which has no keys when it is linear attention, and says 0 for ever. So the mask of the softmax layers is
# made for an empty past: a padded prompt generates other tokens with the cache than without it, and a text read in two pieces gets other
# logits than in one. Nothing warns. With softmax attention first, as in the default configuration, everything is right.
# Fails when the cache has a length, or the padded prompt generates what it generates without the cache.
#
#   transformers_minimax_cache_length.sh [VENV]      a virtual environment with transformers 5.24.0 and torch 2.15.0; else one is made
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
venv=${1:-}
if [[ -z $venv ]]; then
  venv=$folder/venv
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 torch==2.15.0
fi
HF_HUB_OFFLINE=1 "$venv/bin/python" - <<'PYTHON'
import sys
import warnings

import torch
import transformers
from transformers import AutoModelForCausalLM, MiniMaxConfig

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
torch.set_num_threads(1)
print("transformers", transformers.__version__)
LENGTH, PADDING, NEW = 21, 5, 12


def seen(layers):
    """The cache's length after a prompt, the largest difference of logits read in two pieces, and whether a padded prompt goes on right."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MiniMaxConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=16, intermediate_size=48,
        num_local_experts=4, block_size=8, layer_types=layers, pad_token_id=0, bos_token_id=1, eos_token_id=2)).eval()
    for matrix in model.parameters():
        if matrix.ndim >= 2:
            matrix.data.normal_(0, 0.15)
    prompt = torch.randint(3, 64, (1, LENGTH))
    padded = torch.cat([torch.zeros(1, PADDING, dtype=torch.long), prompt], 1)
    mask = (padded != 0).long()
    with torch.no_grad():
        whole = model(prompt).logits
        first = model(prompt[:, :10], use_cache=True)
        second = model(prompt[:, 10:], past_key_values=first.past_key_values, use_cache=True)
        alone, cached, uncached = (
            model.generate(tokens, attention_mask=ones, use_cache=cache, max_new_tokens=NEW, do_sample=False, eos_token_id=None)[0, -NEW:]
            for tokens, ones, cache in ((prompt, torch.ones_like(prompt), True), (padded, mask, True), (padded, mask, False)))
    assert torch.equal(alone, uncached)
    return (second.past_key_values.get_seq_length(), (second.logits - whole[:, 10:]).abs().max().item(), torch.equal(alone, cached))


for name, layers in (("softmax first", ["full_attention", "linear_attention"] * 2),
                     ("linear first", ["linear_attention", "full_attention"] * 2)):
    length, difference, right = seen(layers)
    print(f"{name}: after {LENGTH} tokens the cache has {length}; read in two pieces the logits differ by {difference:.1e};"
          f" the padded prompt generates {'the same as alone' if right else 'other tokens than alone or without the cache'}")
    if name == "softmax first":
        assert length == LENGTH and difference < 1e-4 and right
if length == LENGTH or right:
    sys.exit("CHANGED: the cache has a length, or the padded prompt generates the right tokens")
PYTHON
