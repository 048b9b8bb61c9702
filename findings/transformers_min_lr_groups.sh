#!/usr/bin/env bash
# transformers 5.24.0: groups with their own learning rates don't end at min_lr of the cosine schedule, nor at lr_end of the polynomial one.
#
# Guess, written down before the run: min_lr and lr_end are divided by optimizer.defaults["lr"], so groups with other learning rates end
# elsewhere.
# Seen: yes. Two groups with 3e-4 and 6e-3 (matrices and embedding, or widths under muP) and "The minimum learning rate to reach" 1e-5 end
# at 3e-6 and 6e-5 when AdamW's lr is left out, since every group has its own: its default of 1e-3, which no parameter uses, is what 1e-5 is
# divided by. With lr=3e-4 beside the groups they end at 1e-5 and 2e-4. So the last rate depends on a number that is otherwise without
# effect, and runs that differ in it alone are different runs. torch's CosineAnnealingLR(eta_min=1e-5) ends at 1e-5 in each group. Nothing
# is said, and the curve of the first group may look right. min_lr_rate, which is meant to be a ratio, does what it says.
# Fails when every group ends at min_lr.
#
#   transformers_min_lr_groups.sh [VENV]      a virtual environment with transformers 5.24.0 and torch 2.15.0; else one is made
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
venv=${1:-}
if [[ -z $venv ]]; then
  venv=$folder/venv
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 torch==2.15.0
fi
"$venv/bin/python" - <<'PYTHON'
import sys

import torch
import transformers
from torch.optim.lr_scheduler import CosineAnnealingLR
from transformers.optimization import get_scheduler

print("transformers", transformers.__version__, "torch", torch.__version__)
RATES, WARMUP, STEPS, LAST = (3e-4, 6e-3), 10, 100, 1e-5


def last_rates(make, **defaults):
    """The groups' learning rates at the last step of the schedule."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in RATES]
    optimizer = torch.optim.AdamW(groups, **defaults)
    schedule = make(optimizer)
    for _ in range(STEPS):
        optimizer.step()
        schedule.step()
    return [float(f"{group['lr']:.3g}") for group in optimizer.param_groups]


def named(name, **options):
    return lambda optimizer: get_scheduler(
        name, optimizer, num_warmup_steps=WARMUP, num_training_steps=STEPS, scheduler_specific_kwargs=options)


wrong = set()
for name, make, wanted in (
        ("torch's CosineAnnealingLR, eta_min", lambda optimizer: CosineAnnealingLR(optimizer, STEPS, eta_min=LAST), [LAST] * 2),
        ("cosine_with_min_lr, min_lr_rate 0.1", named("cosine_with_min_lr", min_lr_rate=0.1), [0.1 * rate for rate in RATES]),
        ("cosine_with_min_lr, min_lr", named("cosine_with_min_lr", min_lr=LAST), [LAST] * 2),
        ("polynomial, lr_end", named("polynomial", lr_end=LAST), [LAST] * 2)):
    for defaults in ({}, {"lr": 3e-4}, {"lr": 6e-3}):
        rates = last_rates(make, **defaults)
        right = rates == [float(f"{rate:.3g}") for rate in wanted]
        print(f"{name}, AdamW(groups{''.join(f', lr={rate}' for rate in defaults.values())}): groups end at {rates}, right: {right}")
        if not right:
            wrong.add(name)
assert wrong <= {"cosine_with_min_lr, min_lr", "polynomial, lr_end"}
if len(wrong) < 2:
    sys.exit("CHANGED: every group ends at the rate asked for")
PYTHON
