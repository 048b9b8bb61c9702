#!/usr/bin/env bash
# torch 2.15.0, backend gloo: all_reduce with MAX or MIN keeps or loses a NaN by its rank and place, and other ranks' numbers with it.
#
# Guess, written down before the run: MAX over ranks, one of which has NaN, is NaN or not depending on which rank it is, though torch.max
# always says NaN.
# Seen: worse. Four ranks bring 1, 2, 3, 4. With NaN in place of the 1 the result is NaN; in place of the 2 it is 1, in place of the 3 it
# is 2, in place of the 4 it is 3: smaller than numbers that healthy ranks brought. A tensor of 8 equal elements comes back with unequal
# ones, some NaN, some not. All ranks agree on the wrong result, and nothing is said. The sum is NaN in every case.
# So a largest gradient, logit or loss over ranks is no test for NaN: take the sum, or reduce a flag besides.
# Fails when NaN on any rank gives NaN, as torch.max does.
#
#   torch_gloo_max_nan.sh [VENV]      a virtual environment with torch 2.15.0 and numpy; else one is made
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
venv=${1:-}
if [[ -z $venv ]]; then
  venv=$folder/venv
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy
fi
cat >"$folder/ranks.py" <<'PYTHON'
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

RANKS = 4


def reduced(rank, bad, size, op):
    value = torch.full((size,), float("nan") if rank == bad else float(rank + 1))
    dist.all_reduce(value, op=op)
    everyone = [None] * RANKS
    dist.all_gather_object(everyone, str(value.tolist()))
    assert len(set(everyone)) == 1, "ranks have different results"
    return value


def run(rank, file):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=RANKS)
    lost = 0
    for bad in range(RANKS):
        largest, smallest, many = (reduced(rank, bad, size, op) for size, op in (
            (1, dist.ReduceOp.MAX), (1, dist.ReduceOp.MIN), (8, dist.ReduceOp.MAX)))
        total = reduced(rank, bad, 1, dist.ReduceOp.SUM)
        assert total.isnan().all()
        lost += sum(int((~value.isnan()).any()) for value in (largest, many))
        if rank == 0:
            print(f"NaN on rank {bad}: MAX {largest.item()}, MIN {smallest.item()}, SUM {total.item()}; MAX of 8 elements {many.tolist()}",
                  flush=True)
    dist.destroy_process_group()
    if lost == 0:
        sys.exit("CHANGED: NaN on any rank gives NaN")


if __name__ == "__main__":
    print("torch", torch.__version__, "- torch.max of 1, NaN, 3, 4:", torch.tensor([1, float("nan"), 3, 4]).max().item(), flush=True)
    mp.spawn(run, (sys.argv[1],), RANKS)
PYTHON
"$venv/bin/python" "$folder/ranks.py" "$folder/rendezvous"
