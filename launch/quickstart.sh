#!/usr/bin/env bash
# From a fresh clone to a trained model and its first words, in a few minutes on a laptop: installs what is missing,
# builds, turns text into tokens, trains a small Block AttnRes model and samples from it.
#   launch/quickstart.sh             trains on this repository's own sources
#   launch/quickstart.sh FILE...     trains on your text (.txt, .jsonl, .gz, .zst)
# NUM_STEPS=200 and RANKS=1 in the environment change the length and the number of ranks. Running it again resumes.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
case ${1:-} in
  -h|--help) sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
esac
files=()
for file in "$@"; do
  [[ -r $file ]] || { echo "quickstart: error: $file: no such file, or not readable" >&2; exit 1; }
  files+=("$(realpath "$file")")
done
cd "$root"
launch/setup.sh

run=runs/quickstart ranks=${RANKS:-1}
mkdir -p "$run"
if [[ ${#files[@]} -eq 0 ]]; then
  git ls-files -z -- '*.md' '*.h' '*.cpp' '*.py' | xargs -0 cat >"$run/text.txt"
  files=("$run/text.txt")
fi
# Tokens are made once: a run that resumes needs the same ones.
[[ -d $run/tokens ]] || build/lamina prepare --tokenizer bytes --output "$run/tokens" "${files[@]}"
cat >"$run/quickstart.yaml" <<YAML
run: {name: quickstart, output_dir: $run/train}
model:
  hidden_size: 128
  num_hidden_layers: 6
  residual: block_attnres
  attn_res_block_size: 2
  num_attention_heads: 4
  kv_lora_rank: 64
  qk_nope_head_dim: 32
  qk_rope_head_dim: 16
  v_head_dim: 32
  intermediate_size: 384
data:
  seq_len: 128
  train: [{path: $run/tokens}]
train:
  num_steps: ${NUM_STEPS:-200}
  global_batch_size: 16
  micro_batch_size: 4
  precision: bf16
  optimizer: {name: adamw, lr: 3.0e-3}
  lr_schedule: {name: wsd, warmup_steps: 20, decay_steps: 50}
checkpoint: {interval: 100}
logging: {interval: 10}
YAML
if [[ $ranks -gt 1 ]]; then
  [[ $(id -u) -ne 0 ]] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1   # Open MPI asks root to insist
  mpirun -n "$ranks" build/lamina train "$run/quickstart.yaml"
else
  build/lamina train "$run/quickstart.yaml"
fi
newest=$(find "$run/train/checkpoints" -maxdepth 1 -name 'step-*' ! -name '*.tmp' | sort | tail -n 1)
echo
echo "A sample of $newest:"
build/lamina sample --checkpoint "$newest" --prompt "The "
