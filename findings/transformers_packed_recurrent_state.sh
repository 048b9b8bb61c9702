#!/usr/bin/env bash
# transformers 5.24.0: documents packed into one row run into each other in models with a state, also with all that the collator can give.
#
# Guess, written down before the run: a packed row whose positions start again keeps documents apart in softmax layers and not in a
# recurrent state or a short convolution; its manual says that such models need the collator's other fields, so with these all is right.
# Seen: in llama the second document has the logits that it has alone. With return_flash_attn_kwargs and return_seq_idx MiniMax, Jamba,
# Mamba, Mamba-2, RecurrentGemma and xLSTM take the fields and let the first document's state flow into the second, without a word.
# kimi_linear and qwen3_next refuse them on CPUs, where their kernels are missing, which is right; but kimi_linear with the lengths alone
# (no seq_idx) leaks as if nothing had been given, where qwen3_next refuses that too. A loss on packed rows looks normal, and the model
# learns to expect another document's state.
# Fails when a row that was accepted gives the logits of the document alone, or is refused.
#
#   transformers_packed_recurrent_state.sh [VENV]      a virtual environment with transformers 5.24.0 and torch 2.15.0; else one is made
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
venv=${1:-}
if [[ -z $venv ]]; then
  venv=$folder/venv
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 torch==2.15.0
fi
HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES='' "$venv/bin/python" - <<'PYTHON'
import sys
import warnings

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, DataCollatorWithFlattening

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
torch.set_num_threads(1)
print("transformers", transformers.__version__)
COMMON = dict(
    vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8, intermediate_size=48,
    pad_token_id=0, bos_token_id=1, eos_token_id=2)
MODELS = {
    "llama": {},
    "kimi_linear": dict(
        num_key_value_heads=4, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8, kv_lora_rank=16, moe_intermediate_size=16,
        num_experts=4, num_experts_per_token=2, num_shared_experts=1, first_k_dense_replace=2,
        linear_attn_config={"kda_layers": [1], "full_attn_layers": [2], "num_heads": 2, "head_dim": 8, "short_conv_kernel_size": 4}),
    "qwen3_next": dict(
        layer_types=["linear_attention", "full_attention"], linear_num_value_heads=2, linear_num_key_heads=2, linear_key_head_dim=8,
        linear_value_head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16),
    "minimax": dict(layer_types=["full_attention", "linear_attention"], num_local_experts=4, block_size=8),
    "jamba": dict(
        attn_layer_offset=1, attn_layer_period=2, use_mamba_kernels=False, mamba_d_state=8, mamba_dt_rank=4, num_experts=2,
        num_experts_per_tok=1),
    "mamba": {},
    "mamba2": dict(num_heads=4, head_dim=16, state_size=8, n_groups=1, expand=2),
    "recurrent_gemma": {},
    "xlstm": {},
}
COLLATORS = {
    "positions": {}, "and lengths": dict(return_flash_attn_kwargs=True),
    "and seq_idx": dict(return_flash_attn_kwargs=True, return_seq_idx=True)}
torch.manual_seed(1)
DOCUMENTS = [torch.randint(3, 64, (length,)).tolist() for length in (9, 8)]


def difference(model, collator):
    """The largest difference of the second document's logits between the packed row and the document alone; None when it is refused."""
    batch = DataCollatorWithFlattening(**collator)([{"input_ids": document} for document in DOCUMENTS])
    del batch["labels"]
    with torch.no_grad():
        alone = model(torch.tensor([DOCUMENTS[1]]), use_cache=False).logits
        try:
            packed = model(**batch, use_cache=False).logits
        except ValueError:
            return None
    return (packed[:, len(DOCUMENTS[0]):] - alone).abs().max().item()


seen = {}
for name, own in MODELS.items():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **{**COMMON, **own})).float().eval()
    for matrix in model.parameters():
        if matrix.ndim >= 2 and matrix.shape[0] > 1:
            matrix.data.normal_(0, 0.2)
    seen[name] = {fields: difference(model, collator) for fields, collator in COLLATORS.items()}
    print(f"{name}:", {fields: "refused" if value is None else f"{value:.1e}" for fields, value in seen[name].items()})
assert all(value < 1e-4 for value in seen["llama"].values())
assert seen["qwen3_next"]["and lengths"] is None and seen["kimi_linear"]["and seq_idx"] is None
leaks = [(name, "and seq_idx") for name in ("minimax", "jamba", "mamba", "mamba2", "recurrent_gemma", "xlstm")]
leaks.append(("kimi_linear", "and lengths"))
changed = [name for name, fields in leaks if seen[name][fields] is None or seen[name][fields] < 1e-2]
if changed:
    sys.exit(f"CHANGED: {changed} keep the documents apart, or refuse them")
PYTHON
