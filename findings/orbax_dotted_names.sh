#!/usr/bin/env bash
# orbax-checkpoint 0.12.8: arrays whose paths in the tree read the same when joined by dots share one place in the file; one is lost.
#
# Guess, written down before the run: some Python values and containers come back from a checkpoint as something else.
# Seen: types do (a tuple as a list, a key 1 as "1"), values don't, but for one case: a key with a dot in it beside a branch.
# {"layers.0": a, "layers": {"0": b}} is a tree of two arrays; both are written to "layers.0", and both come back as a or both as b. Which
# one differs between two saves of the same tree. It happens with StandardCheckpointer, PyTreeCheckpointer and CheckpointManager, with
# and without OCDBT, and with a target to restore into, too; both shapes and the tree's structure are right, and nothing is said. Where
# the two have different shapes save raises. Names with dots come from torch's state dicts, flattened optimizer states, versions ("v1.5");
# one flat and one nested part of a state with the same beginning are enough. Slashes in names are kept apart.
# Fails when both arrays come back, or the tree is refused.
#
#   orbax_dotted_names.sh [VENV]      a virtual environment with orbax-checkpoint 0.12.8 and jax 0.10.2; else one is made
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
venv=${1:-}
if [[ -z $venv ]]; then
  venv=$folder/venv
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check orbax-checkpoint==0.12.8 jax==0.10.2 numpy==2.4.6
fi
JAX_PLATFORMS=cpu "$venv/bin/python" -W ignore - "$folder" 2>"$folder/errors" <<'PYTHON' || { tail -n 5 "$folder/errors" >&2; exit 1; }
import importlib.metadata
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

print(", ".join(f"{package} {importlib.metadata.version(package)}" for package in ("orbax-checkpoint", "jax")))


def standard(path, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
        checkpointer.wait_until_finished()
        return checkpointer.restore(path, tree)


def pytree(path, tree):
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
        return checkpointer.restore(path)


def files(path, tree):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
        checkpointer.save(path, tree)
        return checkpointer.restore(path)


def manager(path, tree):
    with ocp.CheckpointManager(path) as checkpoints:
        checkpoints.save(0, args=ocp.args.StandardSave(tree))
        checkpoints.wait_until_finished()
        return checkpoints.restore(0, args=ocp.args.StandardRestore(tree))


def one(number):
    return jnp.full(3, number, jnp.float32)


TREES = {"dots": {"layers.0": one(1), "layers": {"0": one(2)}}, "a list": {"layers.0": one(1), "layers": [one(2)]},
         "two branches": {"adam.m": {"w": one(1)}, "adam": {"m.w": one(2)}},
         "no clash": {"layers.1": one(1), "layers": {"0": one(2)}}, "underscores": {"layers_0": one(1), "layers": {"0": one(2)}}}
wrong = {}
for name, tree in TREES.items():
    for save in (standard, pytree, files, manager):
        try:
            restored = save(f"{sys.argv[1]}/{name.replace(' ', '-')}-{save.__name__}", tree)
        except Exception as error:
            if name in ("no clash", "underscores"):
                raise
            sys.exit(f"CHANGED: {name}, {save.__name__}: {error}")
        numbers = jax.tree.map(lambda array: float(np.asarray(array)[0]), restored)
        same = jax.tree.leaves(numbers) == [float(leaf[0]) for leaf in jax.tree.leaves(tree)]
        wrong[name] = wrong.get(name, False) or not same
        print(f"{name}, {save.__name__}: saved {jax.tree.map(lambda array: float(array[0]), tree)}, restored {numbers}")
assert not wrong["no clash"] and not wrong["underscores"]
if not (wrong["dots"] or wrong["a list"] or wrong["two branches"]):
    sys.exit("CHANGED: both arrays come back")
PYTHON
