#!/usr/bin/env bash
# pytorch_optimizer 4.1.0: AdamP, AdaBelief, AdEMAMix and some thirty others step 0.1 to 31 times as far for a late parameter.
#
# Guess, written down before the run: steps are counted for a group and not for a parameter, so that the correction of the first moments is
# that of the run and not of the parameter.
# Seen: yes, for most that correct a bias. A parameter whose gradient was None until now (an expert that no token came to, a layer that was
# frozen, a second head) has moments of 0 and gets the correction of the group's step, next to none. Its first step after 3,000 others is
# 3 times as far as that of a parameter which begins with the run in AdaBelief, AdamP, AdEMAMix, Apollo, DiffGrad and GaLore, 31 times in
# LaProp and Amos, and a tenth or a fifth of it in AdaMax, Lamb, StableAdamW and Adan. adam and adamw of the same package, which are
# torch's, count for each parameter; with them, Adafactor, Lion and CAME the first step is that of the start. So a switch from AdamW to one
# of its relatives changes what waking experts do, and a warm-up, long over, does not help them. Nothing is said.
# Fails when AdamP, AdaBelief and AdEMAMix step as far as at the start.
#
#   pytorch_optimizer_late_gradient.sh [VENV]      a virtual environment with pytorch_optimizer 4.1.0 and torch 2.15.0; else one is made
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
venv=${1:-}
if [[ -z $venv ]]; then
  venv=$folder/venv
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check pytorch_optimizer==4.1.0 torch==2.15.0 numpy
fi
CUDA_VISIBLE_DEVICES='' "$venv/bin/python" -W ignore - 2>"$folder/errors" <<'PYTHON' || { tail -n 5 "$folder/errors" >&2; exit 1; }
import importlib.metadata
import sys

import torch
from pytorch_optimizer import load_optimizer

torch.set_num_threads(1)
print(", ".join(f"{package} {importlib.metadata.version(package)}" for package in ("pytorch_optimizer", "torch")))
LATE = 3000


def first_step(name, others):
    """How far a parameter moves with its first gradient, after this many steps of another one of its group."""
    early, late = (torch.nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    optimizer = load_optimizer(name)([early, late], lr=1e-3, weight_decay=0.0)
    for _ in range(others):
        early.grad = torch.full((4, 4), 0.01)
        optimizer.step()
    before = late.detach().clone()
    early.grad, late.grad = (torch.full((4, 4), 0.01) for _ in range(2))
    optimizer.step()
    return (late.detach() - before).abs().mean().item()


WRONG = ("adamp", "adabelief", "ademamix", "apollo", "diffgrad", "galore", "laprop", "amos", "adamax", "adan", "lamb", "stableadamw")
RIGHT = ("adam", "adamw", "adafactor", "lion", "came")
ratio = {}
for name in (*RIGHT, *WRONG):
    start, now = first_step(name, 0), first_step(name, LATE)
    ratio[name] = now / start
    print(f"{name}: the first step is {start:.3g} at the start, {now:.3g} after {LATE} steps of the others: {ratio[name]:.2f} times as far")
assert all(abs(ratio[name] - 1) < 0.05 for name in RIGHT)
if all(abs(ratio[name] - 1) < 0.1 for name in ("adamp", "adabelief", "ademamix")):
    sys.exit("CHANGED: the first step is as far as at the start")
PYTHON
