#!/usr/bin/env bash
# x-transformers 2.31.10: generate, which caches keys and values unless told not to, gives other tokens with four options of its layers.
#
# Guess, written down before the run: for some option of a decoder the cached way and the whole one are different models.
# Seen: yes, for shift_tokens, the forget gate of attention (data_dependent_alibi) and its form per row, and orthog_projected_values. Where
# these need earlier tokens (a part of the features shifted on by a token, the gates' sum) the cache doesn't have them, so that from the
# first cached step on the model is another one. Logits are off by as much as they vary, and greedy tokens soon part. Without the
# cache generate gives the tokens that forward does. Nothing is said; can_cache_kv, by which a model tells that it must not be cached, as
# one with selective attention does, is true. Rotary positions, ALiBi, grouped heads, residual streams and others agree to rounding. So
# a trained model has a fine loss and writes nonsense, and its training gets the blame.
# Fails when every option gives the tokens that it gives without a cache.
#
#   x_transformers_cached_generation.sh [VENV]      a virtual environment with x-transformers 2.31.10 and torch 2.15.0; else one is made
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
venv=${1:-}
if [[ -z $venv ]]; then
  venv=$folder/venv
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check x-transformers==2.31.10 torch==2.15.0 numpy
fi
export CUDA_VISIBLE_DEVICES=''
"$venv/bin/python" -W ignore - 2>"$folder/errors" <<'PYTHON' || { tail -n 5 "$folder/errors" >&2; exit 1; }
import importlib.metadata
import sys

import torch
from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

torch.set_num_threads(1)
print(", ".join(f"{package} {importlib.metadata.version(package)}" for package in ("x-transformers", "torch")))
RIGHT = ({}, {"rotary_pos_emb": True}, {"alibi_pos_bias": True}, {"attn_kv_heads": 2, "rotary_pos_emb": True}, {"attn_selective": True})
WRONG = ({"shift_tokens": 1}, {"shift_tokens": 1, "rotary_pos_emb": True}, {"attn_data_dependent_alibi": True},
         {"attn_data_dependent_alibi": True, "attn_data_dependent_alibi_per_row": True}, {"attn_orthog_projected_values": True})


def cached(options):
    """The largest difference of a cached step's logits, the logits' deviation, and how many of 160 greedy tokens are the same."""
    torch.manual_seed(0)
    model = AutoregressiveWrapper(TransformerWrapper(
        num_tokens=50, max_seq_len=64, use_abs_pos_emb=False, attn_layers=Decoder(dim=32, depth=2, heads=4, **options))).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    tokens = torch.randint(0, 50, (8, 20))
    with torch.no_grad():
        whole = model.net(tokens)
        _, cache = model.net(tokens[:, :15], return_intermediates=True)
        largest = 0.0
        for last in range(15, 20) if model.net.can_cache_kv else ():
            logits, cache = model.net(tokens[:, :last + 1], cache=cache, return_intermediates=True)
            largest = max(largest, (logits[:, -1] - whole[:, last]).abs().max().item())
        default, plain = (model.generate(tokens[:, :4], 20, temperature=0.0, **choice) for choice in ({}, {"cache_kv": False}))
        running = tokens[:, :4]
        for _ in range(20):
            running = torch.cat([running, model.net(running)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(plain, running[:, 4:])
    same = (default == plain).sum().item()
    print(f"{options}: can_cache_kv {model.net.can_cache_kv}, cached logits differ by up to {largest:.2g} (deviation {whole.std():.1f}), "
          f"{same} of {plain.numel()} greedy tokens are those of the whole forward")
    return largest < 1e-3 and same == plain.numel()


assert all([cached(options) for options in RIGHT])
if all([cached(options) for options in WRONG]):
    sys.exit("CHANGED: a cache gives the same tokens as none")
PYTHON
