#!/usr/bin/env bash
# transformers 5.24.0: a GGUF file's RoPE scaling is left out; a model with linear, YaRN or Llama 3 scaling is loaded as one without.
#
# Guess, written down before the run: of the keys of a GGUF file, those of rope.scaling are dropped.
# Seen: yes. A Qwen3 of two layers written with rope.scaling.type linear or yarn and a factor of 4 comes back with rope_type default and
# other logits, by as much as the logits themselves; so does a Llama whose rope_freqs tensor holds the divisors of Llama 3.1's scaling, the
# form that such files have. The same files without scaling come back equal to the last bit. Of all architectures gpt-oss alone has
# its scaling looked at. The weights are right and nothing is warned of (the keys are named at the level info), and short texts read well:
# what is wrong are the positions, so that a model that was trained on to a longer context, with the scaling, loses that training.
# Fails when the logits are those of the model that was written, or the file is refused.
#
#   transformers_gguf_rope_scaling.sh [VENV]      a virtual environment with the packages below; else one is made
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
venv=${1:-}
if [[ -z $venv ]]; then
  venv=$folder/venv
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 torch==2.15.0 gguf==0.19.0 accelerate==1.15.0
fi
export CUDA_VISIBLE_DEVICES='' HF_HUB_OFFLINE=1
"$venv/bin/python" - "$folder" 2>"$folder/errors" <<'PYTHON' || { tail -n 5 "$folder/errors" >&2; exit 1; }
import importlib.metadata
import sys

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

torch.set_num_threads(1)
print(", ".join(f"{package} {importlib.metadata.version(package)}" for package in ("transformers", "gguf", "torch")))
LENGTH, LAYERS, HEADS, WIDTH = 200, 2, 4, 128  # WIDTH is a head's
SCALINGS = {"default": {}, "linear": {"factor": 4.0}, "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
            "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}


def write(path, model, architecture, scaling):
    writer = gguf.GGUFWriter(path, architecture)
    config = model.config
    for add, value in ((writer.add_name, "model"), (writer.add_block_count, LAYERS), (writer.add_vocab_size, config.vocab_size),
                       (writer.add_context_length, config.max_position_embeddings), (writer.add_embedding_length, config.hidden_size),
                       (writer.add_feed_forward_length, config.intermediate_size), (writer.add_head_count, HEADS),
                       (writer.add_head_count_kv, HEADS), (writer.add_key_length, WIDTH), (writer.add_value_length, WIDTH),
                       (writer.add_rope_dimension_count, WIDTH), (writer.add_rope_freq_base, 10000.0),
                       (writer.add_layer_norm_rms_eps, config.rms_norm_eps)):
        add(value)
    if scaling in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling))
        writer.add_rope_scaling_factor(SCALINGS[scaling]["factor"])
    if scaling == "yarn":
        writer.add_rope_scaling_orig_ctx_len(SCALINGS[scaling]["original_max_position_embeddings"])
    if scaling == "llama3":
        plain = 10000.0 ** -(np.arange(0, WIDTH, 2) / WIDTH)
        writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32))
    names = gguf.get_tensor_name_map({"llama": gguf.MODEL_ARCH.LLAMA, "qwen3": gguf.MODEL_ARCH.QWEN3}[architecture], LAYERS)
    for name, weight in model.state_dict().items():
        weight = weight.numpy()
        if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):  # GGUF has the pairs of RoPE side by side
            weight = weight.reshape(HEADS, 2, WIDTH // 2, -1).swapaxes(1, 2).reshape(weight.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def difference(architecture, scaling):
    """The largest difference of the logits after a way through a GGUF file."""
    torch.manual_seed(0)
    config = {"llama": LlamaConfig, "qwen3": Qwen3Config}[architecture](
        hidden_size=64, intermediate_size=128, num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=HEADS,
        head_dim=WIDTH, vocab_size=96, max_position_embeddings=512, initializer_range=0.2, tie_word_embeddings=False,
        rope_parameters={"rope_type": scaling, "rope_theta": 10000.0, **SCALINGS[scaling]})
    model = AutoModelForCausalLM.from_config(config).eval()
    name = f"{architecture}-{scaling}.gguf"
    write(f"{sys.argv[1]}/{name}", model, architecture, scaling)
    try:
        loaded = AutoModelForCausalLM.from_pretrained(sys.argv[1], gguf_file=name, dtype=torch.float32).eval()
    except Exception as error:
        sys.exit(f"CHANGED: {name} is refused: {error}")
    tokens = torch.randint(0, 96, (1, LENGTH))
    with torch.no_grad():
        written, read = model(tokens).logits, loaded(tokens).logits
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    largest = (written - read).abs().max().item()
    print(f"{name}: weights equal, rope_type {loaded.config.rope_parameters['rope_type']}, logits (deviation {written.std():.1f}) "
          f"differ by up to {largest:.3g}")
    return largest


assert difference("llama", "default") == difference("qwen3", "default") == 0
wrong = [difference(*case) for case in (("qwen3", "linear"), ("qwen3", "yarn"), ("llama", "linear"), ("llama", "llama3"))]
if min(wrong) < 0.01:
    sys.exit("CHANGED: the scaling is read")
PYTHON
