#!/usr/bin/env bash
# optax 0.2.8 (jax 0.10.2): clip_by_global_norm of bf16 gradients stops counting at some tensor, and lets too large a step through.
#
# Guess, written down before the run: global_norm adds the tensors' squared norms in the gradients' own dtype, so with many tensors in bf16
# it stagnates.
# Seen: 1,000 tensors of norm 1 have the global norm 16, and 4,000 too, instead of 31.6 and 63.2: the sum stops at 256. Clipped "to 1" they
# have norm 1.98 and 3.95. Inside a tensor the squares are added in fp32, so it takes many tensors to see it; the same numbers in one tensor
# are clipped to 1. The order counts as well: a large tensor that comes first hides all small ones after it. In fp32 all is well.
# Fails when the norm of the clipped gradients is 1.
#
#   optax_global_norm_bf16.sh [VENV]      a virtual environment with optax 0.2.8 and jax 0.10.2; else one is made
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
venv=${1:-}
if [[ -z $venv ]]; then
  venv=$folder/venv
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check optax==0.2.8 jax==0.10.2
fi
JAX_PLATFORMS=cpu "$venv/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

print("optax", optax.__version__, "jax", jax.__version__)
clip = optax.clip_by_global_norm(1.0)


def norms(gradients):
    clipped, _ = clip.update(gradients, clip.init(gradients))
    exact = np.sqrt(sum(np.square(np.asarray(leaf, np.float64)).sum() for leaf in jax.tree.leaves(clipped)))
    return float(optax.global_norm(gradients)), float(exact)


wrong = 0.0
for count in (100, 1000, 4000):
    for dtype in (jnp.float32, jnp.bfloat16):
        norm, clipped = norms([jnp.ones(1, dtype)] * count)
        print(f"{count} tensors of norm 1, {np.dtype(dtype)}: global norm {norm:.4g} (is {count ** 0.5:.4g}), clipped to 1: {clipped:.3g}")
        if dtype == jnp.bfloat16:
            wrong = max(wrong, clipped - 1)
norm, clipped = norms([jnp.ones(4000, jnp.bfloat16)])
print(f"one bf16 tensor of 4000 ones: global norm {norm:.4g}, clipped to 1: {clipped:.3g}")
assert abs(clipped - 1) < 0.02
for name, order in (("large first", [16] + [1] * 1000), ("large last", [1] * 1000 + [16])):
    print(f"norm 16 and 1000 of norm 1, {name}: {norms([jnp.full(1, size, jnp.bfloat16) for size in order])[0]:.4g} (is 35.44)")
if wrong < 0.02:
    sys.exit("CHANGED: the clipped gradients have norm 1")
PYTHON
