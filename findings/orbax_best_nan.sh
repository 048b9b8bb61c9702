#!/usr/bin/env bash
# orbax-checkpoint 0.12.8: a new checkpoint whose loss is NaN counts as the best one, and the best good one is deleted for it.
#
# Guess, written down before the run: CheckpointManager sorts by best_fn, and a NaN among the losses makes it keep the wrong ones.
# Seen: yes. Checkpoints are sorted as numbers are, and where one is NaN the newer counts as better, with best_mode "min" and "max" alike.
# Losses 3, 2, 1 and then NaN with max_to_keep=1 leave the weights of the diverged step alone, and best_step() and latest_step() name it: a
# restart from the best and one from the latest both go on from NaN. After losses 1, NaN, 2 the best is 2, since 1 made room for the NaN.
# Keeping two helps for one more step. Infinity is ordered as one expects. Nothing is said. A best_fn that turns NaN into infinity is the
# way out.
# Fails when the best good checkpoint is kept.
#
#   orbax_best_nan.sh [VENV]      a virtual environment with orbax-checkpoint 0.12.8 and jax 0.10.2; else one is made
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
venv=${1:-}
if [[ -z $venv ]]; then
  venv=$folder/venv
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check orbax-checkpoint==0.12.8 jax==0.10.2
fi
JAX_PLATFORMS=cpu "$venv/bin/python" - "$folder" 2>"$folder/errors" <<'PYTHON' || { tail -n 5 "$folder/errors" >&2; exit 1; }
import itertools
import logging
import sys

import numpy as np
import orbax.checkpoint as orbax

logging.disable(logging.CRITICAL)
print("orbax-checkpoint", orbax.__version__)
nan, number = float("nan"), itertools.count()


def kept(losses, mode, count, best_fn=lambda metrics: metrics["loss"]):
    """The losses of the checkpoints that are left, of the best and of the latest one, after a save with each loss in turn."""
    options = orbax.CheckpointManagerOptions(max_to_keep=count, best_fn=best_fn, best_mode=mode)
    with orbax.CheckpointManager(f"{sys.argv[1]}/run {next(number)}", options=options) as manager:
        for step, loss in enumerate(losses):
            manager.save(step, args=orbax.args.StandardSave({"weight": np.full(2, loss)}), metrics={"loss": loss})
            manager.wait_until_finished()
        return [losses[step] for step in sorted(manager.all_steps())], losses[manager.best_step()], losses[manager.latest_step()]


def show(losses, mode, count, *best_fn):
    result = kept(losses, mode, count, *best_fn)
    print(f"losses {losses}, best_mode {mode}, max_to_keep {count}{', NaN as infinity' if best_fn else ''}: "
          "kept {}, best {}, latest {}".format(*result))
    return result


assert show([3.0, 2.0, 1.0, 4.0], "min", 1) == ([1.0], 1.0, 1.0)
assert show([3.0, 1.0, float("inf")], "min", 1) == ([1.0], 1.0, 1.0)
assert show([3.0, 1.0, nan], "min", 1, lambda metrics: np.nan_to_num(metrics["loss"], nan=np.inf)) == ([1.0], 1.0, 1.0)
diverged = [show([3.0, 2.0, 1.0, nan], "min", 1), show([1.0, 2.0, 3.0, nan], "max", 1)]
show([1.0, nan, 2.0], "min", 1)
show([2.0, 1.0, nan], "min", 2)
show([2.0, 1.0, nan, nan], "min", 2)
if any(best == best for _, best, _ in diverged):
    sys.exit("CHANGED: the best good checkpoint is kept")
PYTHON
