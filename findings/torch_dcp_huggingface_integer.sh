#!/usr/bin/env bash
# torch 2.15.0 and safetensors 0.8.0: HuggingFaceStorageWriter saves a state with a plain number in it as a file nobody can open.
#
# Guess, written down before the run: torch.distributed.checkpoint.save with HuggingFaceStorageWriter leaves out what is not a tensor (the
# step, the learning rate) without a word.
# Seen: it does not leave it out, it loses everything else. save() returns as for a good checkpoint, the index names the tensor and its
# file, and model-00001-of-00001.safetensors is not one: the number's pickle (a zip file, "PK") stands where the header must be. safetensors
# and HuggingFaceStorageReader find that out when the run is resumed. The same state with the step as a 0-dimensional tensor is fine, and so
# is the number with torch's own FileSystemWriter.
# Fails when save() refuses the number or the file can be opened.
#
#   torch_dcp_huggingface_integer.sh [VENV]      a virtual environment with torch 2.15.0, safetensors 0.8.0 and numpy; else one is made
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
venv=${1:-}
if [[ -z $venv ]]; then
  venv=$folder/venv
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 safetensors==0.8.0 numpy
fi
"$venv/bin/python" - "$folder" <<'PYTHON'
import json
import sys
import warnings

import safetensors
import torch
import torch.distributed.checkpoint as dcp

warnings.filterwarnings("ignore")
torch.set_num_threads(1)
print("torch", torch.__version__, "safetensors", safetensors.__version__)


def saved(name, step):
    """What is at the start of the file that save() made of two tensors and a step, and why it cannot be opened (None if it can)."""
    path = f"{sys.argv[1]}/{name}"
    state = {"norm": torch.ones(4), "weight": torch.arange(6.0).reshape(2, 3), "step": step}
    dcp.save(state, storage_writer=dcp.HuggingFaceStorageWriter(path=path))
    with open(f"{path}/model.safetensors.index.json") as file:
        files = json.load(file)["weight_map"]
    file = f"{path}/{files['weight']}"
    try:
        with safetensors.safe_open(file, "pt") as tensors:
            assert torch.equal(tensors.get_tensor("weight"), state["weight"])
        problem = None
    except safetensors.SafetensorError as error:
        problem = str(error)
    with open(file, "rb") as content:
        return content.read(4), problem


start, problem = saved("tensor", torch.tensor(7))
print("step as a tensor: opens:", problem is None)
assert problem is None
start, problem = saved("number", 7)
print(f"step as a number: save() returned, the file begins with {start}, safe_open: {problem}")
if problem is None:
    sys.exit("CHANGED: the file can be opened")
PYTHON
