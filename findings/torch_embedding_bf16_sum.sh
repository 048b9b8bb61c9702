#!/usr/bin/env bash
# torch 2.15.0 on CPUs: the gradient of a bf16 embedding stops growing with the token's count; the compiled one and index_select's do not.
#
# Guess, written down before the run: nn.Embedding adds up the gradient rows of equal tokens in bf16, so 1,000 times 1 gives 256.
# Seen: 256, where the right sum, 1000, is a bf16 number. w[tokens] and index_put_(accumulate=True) do the same. torch.compile of the very
# same line, index_select, scatter_add_ and index_add_ of rows give 1000, as sum does: most sums of bf16 on CPUs are taken in fp32. A
# frequent token (a line end, a space) learns too slowly by a factor that depends on the batch, in eager mode only.
# Fails when nn.Embedding gives 1000.
#
#   torch_embedding_bf16_sum.sh [VENV]      a virtual environment with torch 2.15.0 and numpy, and a C++ compiler; else one is made
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
venv=${1:-}
if [[ -z $venv ]]; then
  venv=$folder/venv
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy
fi
TORCHINDUCTOR_CACHE_DIR=$folder/compiled "$venv/bin/python" - <<'PYTHON'
import sys
import warnings

import torch
import torch.nn.functional as F

warnings.filterwarnings("ignore")
torch.set_num_threads(1)
print("torch", torch.__version__)
COUNT = 1000
tokens = torch.zeros(COUNT, dtype=torch.long)
ones = torch.ones(COUNT, 2, dtype=torch.bfloat16)


def gradient(look_up, dtype=torch.bfloat16):
    weight = torch.zeros(4, 2, dtype=dtype, requires_grad=True)
    look_up(weight).sum().backward()
    return weight.grad[0, 0].item()


def filled(add):
    return add(torch.zeros(4, 2, dtype=torch.bfloat16))[0, 0].item()


eager = gradient(lambda weight: F.embedding(tokens, weight))
seen = {
    "embedding": eager,
    "embedding, compiled": gradient(torch.compile(lambda weight: F.embedding(tokens, weight))),
    "embedding, fp32": gradient(lambda weight: F.embedding(tokens, weight), torch.float32),
    "weight[tokens]": gradient(lambda weight: weight[tokens]),
    "weight.index_select": gradient(lambda weight: weight.index_select(0, tokens)),
    "index_add_": filled(lambda sums: sums.index_add_(0, tokens, ones)),
    "index_put_": filled(lambda sums: sums.index_put_((tokens,), ones, accumulate=True)),
    "scatter_add_": filled(lambda sums: sums.scatter_add_(0, tokens.unsqueeze(1).expand(-1, 2), ones)),
    "sum": ones[:, 0].sum().item(),
}
for name, value in seen.items():
    print(f"{COUNT} gradients of 1, {name}: {value:g}")
if eager == COUNT:
    sys.exit("CHANGED: the embedding's gradient is the sum")
PYTHON
