#!/usr/bin/env bash
# transformers 5.24.0: save_pretrained of a Kimi Linear model calls the MLP of its dense layers block_sparse_moe.
#
# Guess, written down before the run: save_pretrained writes the names of transformers' own modules, experts and convolutions fused.
# Seen: it turns its conversion around and writes the released names (experts one by one, three convolutions), as one would wish, but
# for the dense layers. Loading renames block_sparse_moe to mlp; turned around, that also catches the MLPs that always were mlp:
# model.layers.0.mlp.gate_proj.weight of the released model is saved as model.layers.0.block_sparse_moe.gate_proj.weight. transformers
# reads it back, since both become mlp; whoever knows the released names misses three tensors per dense layer.
# Fails when a dense layer's MLP has its released name.
#
#   transformers_kimi_linear_dense_mlp.sh [VENV]      a virtual environment with transformers 5.24.0 and torch; else one is made
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
venv=${1:-}
if [[ -z $venv ]]; then
  venv=$folder/venv
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 torch
fi
HF_HUB_OFFLINE=1 "$venv/bin/python" - "$folder/saved" <<'PYTHON'
import sys

import torch
import transformers
from safetensors import safe_open

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
print("transformers", transformers.__version__)
config = transformers.KimiLinearConfig(
    vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, kv_lora_rank=8, qk_nope_head_dim=8,
    qk_rope_head_dim=4, v_head_dim=8, intermediate_size=24, moe_intermediate_size=8, num_experts=4, num_experts_per_token=2,
    linear_attn_config={"kda_layers": [1], "full_attn_layers": [2], "num_heads": 2, "head_dim": 8, "short_conv_kernel_size": 4},
    first_k_dense_replace=1, pad_token_id=None, bos_token_id=1, eos_token_id=1)
model = transformers.AutoModelForCausalLM.from_config(config).eval()
model.save_pretrained(sys.argv[1])
with safe_open(f"{sys.argv[1]}/model.safetensors", "pt") as file:
    names = set(file.keys())
released = {f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
for name in sorted(name for name in names if name.startswith("model.layers.0.") and "_proj" in name and "self_attn" not in name):
    print("dense layer:", name)
expert = "model.layers.1.block_sparse_moe.experts.3.w1.weight"
print("experts one by one, by their released names:", expert in names)
print("convolutions by their released names:", "model.layers.0.self_attn.q_conv1d.weight" in names)
again = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
tokens = torch.arange(9).unsqueeze(0)
print("transformers reads it back:", torch.equal(model(tokens).logits, again(tokens).logits))
if released & names:
    sys.exit(f"CHANGED: {sorted(released & names)} are saved by their released names")
PYTHON
