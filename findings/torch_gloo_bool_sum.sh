#!/usr/bin/env bash
# torch 2.15.0: gloo's all_reduce of a bool tensor adds bytes, modulo 256: after eight sums over two ranks True is False on both.
#
# Guess, written down before the run: SUM, the default operation, of a bool tensor adds its bytes, and True is lost at 256.
# Seen: yes. The bytes of the sum are those of the ranks added up, which doubles a True of both at each call: 2, 4, .., 128, 0. Until then
# nothing shows: the tensor prints as True and counts as one. A flag that is kept and summed over the ranks in each step, as "has any
# of them seen a NaN" or "stop after this step", is lost that way (a sum over 256 ranks needs a single call). MAX of the same tensor stays
# True, as does the sum of int32. SUM is what a boolean or is asked for by: torch's NCCL backend takes SUM of bool as MAX, so that the same
# program is right on GPUs and wrong in its test on CPUs. Nothing is said.
# Fails when True stays True, or the operation is refused.
#
#   torch_gloo_bool_sum.sh [VENV]      a virtual environment with torch 2.15.0 and numpy; else one is made
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
venv=${1:-}
if [[ -z $venv ]]; then
  venv=$folder/venv
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 numpy
fi
cat >"$folder/sum.py" <<'PYTHON'
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def rank_main(rank, ranks, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
    say = print if rank == 0 else lambda *words: None
    say("torch", torch.__version__, "with", ranks, "ranks")
    flags = torch.tensor([True, False, rank == 0])  # of both ranks, of none, of the first
    number, largest = flags.int(), flags.clone()
    try:
        for count in range(1, 9):
            dist.all_reduce(flags)
            dist.all_reduce(largest, op=dist.ReduceOp.MAX)
            say(f"sum {count}: bytes {flags.view(torch.uint8).tolist()}, {flags.tolist()}; MAX {largest.tolist()}")
    except RuntimeError as error:
        sys.exit(f"CHANGED: {error}")
    dist.all_reduce(number)
    assert number.tolist() == [ranks, 0, 1] and largest.tolist() == [True, False, True]
    if flags[0]:
        sys.exit("CHANGED: True stays True")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    mp.spawn(rank_main, (2, sys.argv[1]), nprocs=2)
PYTHON
CUDA_VISIBLE_DEVICES='' "$venv/bin/python" "$folder/sum.py" "$folder" 2>"$folder/errors" || { tail -n 20 "$folder/errors" >&2; exit 1; }
