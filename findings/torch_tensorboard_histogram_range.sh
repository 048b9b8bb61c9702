#!/usr/bin/env bash
# torch 2.15.0 (tensorboard 2.21.0): SummaryWriter.add_histogram leaves out of its buckets what is beyond 1e20, and counts it all the same.
#
# Guess, written down before the run: huge elements land in the outermost bucket of a histogram.
# Seen: the default buckets end at 9.9e19 on either side and there are none beyond: larger elements are in no bucket, while min, max, num
# and sum of the same record have them. Of a gradient with 4 ordinary elements and two of 1e30 and -1e25 TensorBoard draws the 4: it is the
# run about to diverge whose picture looks healthy. Nothing is logged. bins="auto" has buckets up to the largest element.
# Fails when the buckets add up to num.
#
#   torch_tensorboard_histogram_range.sh [VENV]      a virtual environment with torch 2.15.0, tensorboard 2.21.0 and numpy; else one is made
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
venv=${1:-}
if [[ -z $venv ]]; then
  venv=$folder/venv
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check torch==2.15.0 tensorboard==2.21.0 numpy
fi
"$venv/bin/python" - "$folder/events" <<'PYTHON'
import sys

import numpy as np
import tensorboard
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

print("torch", torch.__version__, "tensorboard", tensorboard.__version__)
gradients = {
    "ordinary": torch.tensor([0.5, -0.25, 0.01, 3.0]),
    "large": torch.tensor([0.5, -0.25, 0.01, 3.0, 1e19, -1e19]),
    "huge": torch.tensor([0.5, -0.25, 0.01, 3.0, 1e30, -1e25]),
}
with SummaryWriter(sys.argv[1]) as writer:
    for name, gradient in gradients.items():
        writer.add_histogram(name, gradient, 1)
    writer.add_histogram("huge, bins=auto", gradients["huge"], 1, bins="auto")
events = EventAccumulator(sys.argv[1], size_guidance={"histograms": 0})
events.Reload()
counted = {}
for name in events.Tags()["histograms"]:
    value = events.Histograms(name)[0].histogram_value
    counted[name] = sum(value.bucket) == value.num
    edges = [edge for edge, count in zip(value.bucket_limit, value.bucket) if count]
    print(f"{name}: num {value.num:g}, min {value.min:.3g}, max {value.max:.3g}; {sum(value.bucket):g} in buckets, the last ends at"
          f" {max(edges):.3g}")
assert counted["ordinary"] and counted["large"] and counted["huge, bins=auto"]
if counted["huge"]:
    sys.exit("CHANGED: every element is in a bucket")
PYTHON
