#!/usr/bin/env bash
# tensorboard 2.21.0 with tensorboard_data_server 0.7.2: a value that comes late takes away those of later steps; the old loader keeps them.
#
# Guess, written down before the run: TensorBoard's two loaders, the data server that is used where it can be and the older one in Python,
# show other points of the same event file when the steps of a tag go back.
# Seen: yes. Evaluations of the checkpoints of steps 100, 200, 150 and 300, logged as they finish, are the points 100, 150, 300 with the
# data server: 150 removes 200. Of several values of one step only the last is left, and of steps that begin again in each epoch only the
# last epoch. The older loader (--load_fast=false) has them all. --purge_orphaned_data=false, whose help offers it "to debug data
# disappearance", does not reach the data server. A value for step 0 at the end of a run leaves one point of its curve. The event file has
# everything, and nothing is said.
# Fails when both loaders have the same points.
#
#   tensorboard_late_value.sh [VENV]      a virtual environment with tensorboard 2.21.0 and tensorboard_data_server 0.7.2; else one is made
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
venv=${1:-}
if [[ -z $venv ]]; then
  venv=$folder/venv
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check tensorboard==2.21.0 tensorboard_data_server==0.7.2
fi
"$venv/bin/python" - "$folder/runs" 2>"$folder/errors" <<'PYTHON' || { tail -n 5 "$folder/errors" >&2; exit 1; }
import importlib.metadata
import sys
import time

import tensorboard
from tensorboard import context, default, program
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

print("tensorboard", tensorboard.__version__, "tensorboard_data_server", importlib.metadata.version("tensorboard_data_server"))
RUNS = {
    "in order": [(100, 3.0), (150, 2.8), (200, 2.7), (300, 2.5)],
    "late": [(100, 3.0), (200, 2.7), (150, 2.8), (300, 2.5)],
    "step 0 at the end": [(100, 3.0), (200, 2.7), (300, 2.5), (0, 2.4)],
    "two of a step": [(100, 3.0), (100, 3.1), (200, 2.7)],
    "per epoch": [(step, 3.0 - epoch) for epoch in range(3) for step in (0, 1, 2)]}
for run, points in RUNS.items():
    writer = EventFileWriter(f"{sys.argv[1]}/{run}")
    for second, (step, loss) in enumerate(points):
        value = summary_pb2.Summary.Value(tag="loss", simple_value=loss)
        writer.add_event(event_pb2.Event(wall_time=1e9 + second, step=step, summary=summary_pb2.Summary(value=[value])))
    writer.close()


def shown(*options):
    """The steps that `tensorboard --logdir RUNS OPTIONS` has, by run."""
    board = program.TensorBoard(plugins=default.get_plugins())
    board.configure(["tensorboard", "--logdir", sys.argv[1], "--reload_interval", "0", *options])
    provider = board._make_data_ingester()
    provider.start()
    for _ in range(200):
        scalars = provider.data_provider.read_scalars(context.RequestContext(), experiment_id="", plugin_name="scalars", downsample=1000)
        if len(scalars) == len(RUNS):
            break
        time.sleep(0.1)
    time.sleep(0.5)
    scalars = provider.data_provider.read_scalars(context.RequestContext(), experiment_id="", plugin_name="scalars", downsample=1000)
    return {run: [point.step for point in tags["loss"]] for run, tags in scalars.items()}


fast, unpurged, slow = shown("--load_fast=true"), shown("--load_fast=true", "--purge_orphaned_data=false"), shown("--load_fast=false")
for run, points in RUNS.items():
    print(f"{run}: file {[step for step, _ in points]}, data server {fast[run]}, Python loader {slow[run]}")
    assert slow[run] == [step for step, _ in points]
assert fast["in order"] == slow["in order"]
print("data server with --purge_orphaned_data=false: the same:", unpurged == fast)
if fast["late"] == slow["late"] or unpurged != fast:
    sys.exit("CHANGED: the data server keeps what came before a late value")
PYTHON
