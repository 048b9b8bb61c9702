#!/usr/bin/env bash
# safetensors 0.8.0 with jax 0.10.2: safetensors.flax loads a 64-bit counter as 32 bits, so 5,000,000,000 tokens become 705,032,704.
#
# Guess, written down before the run: an int64 number of tokens above 2^31 comes back from a checkpoint as int32, wrapped, without a word.
# Seen: yes, from load and from load_file, with no warning even when all are shown; uint64 hashes become their low 32 bits. The file holds
# the right number, and safetensors.numpy and safetensors.torch give it. jax keeps 64 bits only when jax_enable_x64 is on, and says so for
# an asked-for dtype; here nobody asks for one. A schedule by tokens seen goes back to an earlier learning rate, a data loader to an earlier
# place, once a run is longer than 2.1 billion tokens, so a short test of the resume shows nothing.
# Fails when the counter is right, or something is said.
#
#   safetensors_flax_int64.sh [VENV]      a virtual environment with safetensors 0.8.0, jax 0.10.2 and numpy 2.4.6; else one is made
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
venv=${1:-}
if [[ -z $venv ]]; then
  venv=$folder/venv
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 jax==0.10.2 numpy==2.4.6
fi
JAX_PLATFORMS=cpu "$venv/bin/python" - "$folder" <<'PYTHON'
import sys
import warnings

import jax
import numpy as np
import safetensors
import safetensors.flax
import safetensors.numpy

print("safetensors", safetensors.__version__, "jax", jax.__version__)
path = f"{sys.argv[1]}/state.safetensors"
state = {
    "weight": np.ones((2, 2), np.float32), "tokens_seen": np.array([5_000_000_000]), "step": np.array([20_000]),
    "hash": np.array([2**63 + 5], np.uint64)}
safetensors.numpy.save_file(state, path)
with open(path, "rb") as file:
    content = file.read()

right = safetensors.numpy.load_file(path)
assert all(np.array_equal(right[name], value) and right[name].dtype == value.dtype for name, value in state.items())
changed = False
for reader, read in (("load_file", lambda: safetensors.flax.load_file(path)), ("load", lambda: safetensors.flax.load(content))):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        loaded = read()
    for name in ("step", "tokens_seen", "hash"):
        print(f"safetensors.flax.{reader}, {name}: {loaded[name].dtype} {loaded[name][0]}, is {state[name][0]}; warnings: {len(said)}")
    assert loaded["step"][0] == 20_000
    changed = changed or bool(said) or int(loaded["tokens_seen"][0]) == 5_000_000_000
jax.config.update("jax_enable_x64", True)
assert int(safetensors.flax.load(content)["tokens_seen"][0]) == 5_000_000_000
print("with jax_enable_x64 the counter is right")
if changed:
    sys.exit("CHANGED: the counter is right, or a warning is given")
PYTHON
