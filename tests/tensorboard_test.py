#!/usr/bin/env python3
"""Opens the event files of real runs in the real TensorBoard. Not part of ctest: needs the network, or a TensorBoard.

    tensorboard_test.py LAMINA [VENV]

VENV is a virtual environment with tensorboard; without it one is made in a temporary folder (pip install tensorboard==2.21.0).
Checks, through TensorBoard's own reader and through its web server: all runs, all tags, every scalar against metrics.jsonl, the
histograms, and that after a kill and a resume what the kill left behind is purged.
"""
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent / "integration"))
import event_files  # noqa: E402
import yaml  # noqa: E402
from training import Lamina, merged, metrics  # noqa: E402

BASE = {"model": {"num_experts": 4, "num_experts_per_token": 2, "moe_intermediate_size": 12, "first_k_dense_replace": 1},
        "train": {"num_steps": 12, "optimizer": {"lr": 3e-3}}, "checkpoint": {"interval": 5},
        "logging": {"layer_stats_interval": 3}}

# Runs inside the virtual environment: prints what TensorBoard's own reader finds.
READER = r"""
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util
events = EventAccumulator(sys.argv[1], size_guidance={"tensors": 0, "scalars": 0, "histograms": 0})
events.Reload()
tags = events.Tags()
out = {"scalars": {}, "histograms": {}}
for tag in tags["scalars"]:
    out["scalars"][tag] = [[e.step, e.value] for e in events.Scalars(tag)]
for tag in tags["histograms"]:
    out["histograms"][tag] = [[e.step, e.histogram_value.num, e.histogram_value.sum] for e in events.Histograms(tag)]
for tag in tags["tensors"]:
    plugin = events.SummaryMetadata(tag).plugin_data.plugin_name
    values = [[e.step, tensor_util.make_ndarray(e.tensor_proto).tolist()] for e in events.Tensors(tag)]
    out.setdefault(plugin, {})[tag] = values
print(json.dumps(out, default=bytes.decode))
"""


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(f"tensorboard_test: {message}")


def make_environment(folder: Path) -> Path:
    environment = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    subprocess.run([str(environment / "bin" / "pip"), "install", "-q", "tensorboard==2.21.0"], check=True)
    return environment


def rows_of(run: Path) -> tuple[dict, dict, dict[int, list[dict]]]:
    scalars: dict[str, list] = {}
    layers: dict[int, list[dict]] = {}
    for line in (run / "layers.jsonl").read_text().splitlines():
        row = json.loads(line)
        layers.setdefault(row["step"], []).append(row)
    histograms: dict[str, list] = {}
    for row in metrics(run):
        values = event_files.flattened(row)
        if row["step"] in layers:
            more, lists = event_files.layer_tags(layers[row["step"]])
            values |= more
            for tag, numbers in lists.items():
                histograms.setdefault(tag, []).append([row["step"], len(numbers)])
        for tag, value in values.items():
            scalars.setdefault(tag, []).append([row["step"], value])
    return scalars, histograms, layers


def check_reader(environment: Path, run: Path) -> None:
    done = subprocess.run([str(environment / "bin" / "python"), "-c", READER, str(run)], check=False, capture_output=True, text=True)
    expect(done.returncode == 0, f"TensorBoard's reader failed:\n{done.stderr}")
    found = json.loads(done.stdout)
    scalars, histograms, _ = rows_of(run)
    expect(found["scalars"] == scalars, f"{run.name}: TensorBoard's reader has other scalars than metrics.jsonl: "
           f"{[(t, found['scalars'].get(t), scalars.get(t)) for t in sorted(scalars.keys() | found['scalars'].keys()) if found['scalars'].get(t) != scalars.get(t)][:3]}")
    sizes = {tag: [[step, num] for step, num, _ in values] for tag, values in found["histograms"].items()}
    expect(sizes == histograms, f"{run.name}: other histograms: {sorted(sizes.keys() ^ histograms.keys())}")
    print(f"{run.name}: TensorBoard's reader finds {len(scalars)} scalar tags ({sum(map(len, scalars.values()))} values equal to "
          f"metrics.jsonl and layers.jsonl) and {len(histograms)} histogram tags", flush=True)


class Server:
    def __init__(self, environment: Path, logs: Path, *options: str):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [str(environment / "bin" / "tensorboard"), "--logdir", str(logs), "--host", "127.0.0.1", "--port", str(self.port),
             "--reload_interval", "1", *options], stdout=self.log, stderr=self.log, start_new_session=True)

    def get(self, path: str):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=20) as answer:
            return json.load(answer)

    def wait_for(self, path: str, good, seconds: float = 60):
        """The answer, as soon as it is good; the last one when it never is."""
        deadline, answer = time.monotonic() + seconds, None
        while time.monotonic() < deadline:
            expect(self.process.poll() is None, f"tensorboard ended with {self.process.poll()}")
            try:
                answer = self.get(path)
                if good(answer):
                    return answer
            except (urllib.error.URLError, ConnectionError, json.JSONDecodeError):
                pass
            time.sleep(0.3)
        return answer

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(timeout=20)
        self.log.close()


def check_configurations(server: Server, logs: Path, names: list[str]) -> None:
    """As a text, and as hyperparameters of every run."""
    request = {"experimentName": "", "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
               "colParams": [], "startIndex": 0, "sliceSize": 100}
    groups = server.get(f"/data/plugin/hparams/session_groups?{urllib.parse.urlencode({'request': json.dumps(request)})}")["sessionGroups"]
    shown = {group["sessions"][0]["name"]: group["hparams"] for group in groups}
    expect(sorted(shown) == names, f"hyperparameters are shown of {sorted(shown)}, expected {names}")
    for name in names:
        stored = yaml.safe_load((logs / name / "config.yaml").read_text())
        # TensorBoard keeps to the first start's, where a later one has changed the learning rate.
        first = event_files.read_whole(event_files.files(logs / name)[0])[2]["hparams"]
        for key, value in (("train.optimizer.lr", first["train.optimizer.lr"]), ("model.residual", stored["model"]["residual"]),
                           ("model.hidden_size", stored["model"]["hidden_size"]), ("logging.tensorboard", True)):
            expect(shown[name].get(key) == value, f"{name}: {key} is shown as {shown[name].get(key)!r}, expected {value!r}")
        texts = server.get(f"/data/plugin/text/text?{urllib.parse.urlencode({'run': name, 'tag': 'configuration'})}")
        expect("hidden_size: " + str(stored["model"]["hidden_size"]) in texts[-1]["text"], f"{name}: the text is {texts}")


def check_server(environment: Path, logs: Path, *options: str) -> None:
    server = Server(environment, logs, *options)
    try:
        names = sorted(path.name for path in logs.iterdir() if event_files.files(path))
        runs = server.wait_for("/data/runs", lambda found: sorted(found) == names)
        expect(sorted(runs or []) == names, f"/data/runs is {runs}, expected {names}")
        for name in names:
            scalars, histograms, _ = rows_of(logs / name)
            tags = server.wait_for("/data/plugin/scalars/tags", lambda found, n=name, s=scalars: set(found.get(n, {})) == set(s))
            expect(set(tags[name]) == set(scalars), f"{name}: scalar tags differ in {sorted(set(tags[name]) ^ set(scalars))[:5]}")
            shown = server.get("/data/plugin/histograms/tags")
            expect(set(shown[name]) == set(histograms), f"{name}: histogram tags differ: {sorted(set(shown[name]) ^ set(histograms))[:5]}")
            for tag in ("loss", "grad_norm", "comm_bytes/data", "layers/hidden_rms/000.mixer"):
                query = urllib.parse.urlencode({"run": name, "tag": tag})
                wanted = scalars[tag]
                values = server.wait_for(f"/data/plugin/scalars/scalars?{query}", lambda found, w=wanted: [v[1:] for v in found] == w, 20)
                expect([v[1:] for v in values] == wanted, f"{name}: {tag} is shown as {values}, expected {wanted}")
        check_configurations(server, logs, names)
        print(f"tensorboard {' '.join(options)}: serves {names} with all their tags and values".replace("  ", " "), flush=True)
    finally:
        server.stop()


def kill_after(lamina: Lamina, config: Path, run: Path, step: int) -> None:
    process = subprocess.Popen(lamina.command(["train", str(config)]), env=lamina.environment, stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=lamina.folder)
    deadline = time.monotonic() + 60
    while not (run / "metrics.jsonl").exists() or len((run / "metrics.jsonl").read_text().splitlines()) < step:
        expect(process.poll() is None and time.monotonic() < deadline, f"the run ended before step {step}")
        time.sleep(0.001)
    process.kill()
    process.wait()


def main() -> None:
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(sys.argv[2]).resolve() if len(sys.argv) == 3 else make_environment(Path(folder))
        version = subprocess.run([str(environment / "bin" / "tensorboard"), "--version"], check=True, capture_output=True, text=True)
        print(f"TensorBoard {version.stdout.strip()}", flush=True)
        logs = Path(folder) / "logs"
        logs.mkdir()
        lamina = Lamina(sys.argv[1], logs)
        lamina.prepare()
        shutil.rmtree(logs / "venv", ignore_errors=True)
        lamina.train("whole", BASE)
        lamina.train("ranks", merged(BASE, {"parallel": {"pipeline": 2}, "train": {"micro_batch_size": 1}}), 2)
        # A long run, killed between two checkpoints, and gone on from the one before: with another learning rate, so that what
        # the kill left behind differs from what comes in its place.
        many = merged(BASE, {"train": {"num_steps": 2000}, "checkpoint": {"interval": 500, "keep": 2}, "logging": {"layer_stats_interval": 0}})
        killed = logs / "killed"
        kill_after(lamina, lamina.write_config("killed", many), killed, 700)
        left = len(event_files.read_whole(event_files.files(killed)[0]))
        few = merged(many, {"train": {"num_steps": 510, "optimizer": {"lr": 1e-3}}, "logging": {"layer_stats_interval": 1}})
        lamina.train("killed", few)
        first, second = event_files.files(killed)
        start = event_files.read(second)[1]
        expect(start["step"] == 501, f"the second file begins at {start}")
        print(f"killed: the first file has {left} events, up to step {event_files.read_whole(first)[-1]['step']}; the second begins at "
              f"step {start['step']}", flush=True)
        for run in ("whole", "ranks", "killed"):
            check_reader(environment, logs / run)
        check_server(environment, logs)
        check_server(environment, logs, "--load_fast=false")


if __name__ == "__main__":
    main()
