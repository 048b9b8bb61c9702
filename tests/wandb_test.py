#!/usr/bin/env python3
"""Turns a run folder into an offline run with launch/wandb_offline.py, and lets the real `wandb sync` send it. Not part of ctest: needs the
network, or a wandb.

    wandb_test.py LAMINA [VENV]

VENV is a virtual environment with wandb; without it one is made in a temporary folder (pip install wandb==0.31.0). No account: wandb sync
sends to a server on this machine that answers as wandb's does and keeps what comes. Checks configuration, every row of the history against
metrics.jsonl and layers.jsonl, the summary, the id of a run that went on, and what is refused.
"""
import gzip
import http.server
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
from datetime import datetime
from pathlib import Path

sys.dont_write_bytecode = True
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "integration"))
from training import Lamina, metrics  # noqa: E402

CHANGES = {"train": {"num_steps": 6}, "checkpoint": {"interval": 3}, "logging": {"layer_stats_interval": 2, "interval": 2}}


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(f"wandb_test: {message}")


class Server(http.server.ThreadingHTTPServer):
    """As much of wandb's as its client asks for when it sends a run."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.runs, self.history, self.summary = [], [], {}
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        document = {}
        if self.path == "/graphql":
            document = {"data": self.graphql(json.loads(body))}
        elif self.path.endswith("/file_stream"):
            files = json.loads(body).get("files") or {}
            for line in files.get("wandb-history.jsonl", {}).get("content", []):
                self.server.history.append(json.loads(line))
            for line in files.get("wandb-summary.json", {}).get("content", []):
                self.server.summary = json.loads(line)
        text = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def graphql(self, request: dict) -> dict:
        variables = request.get("variables") or {}
        if "upsertBucket" in request["query"]:
            self.server.runs.append(variables)
            project = {"id": "p", "name": variables["project"], "entity": {"id": "e", "name": "somebody"}}
            bucket = {"id": "b", "name": variables["name"], "displayName": variables["displayName"], "description": "", "config": "{}",
                      "sweepName": None, "historyLineCount": 0, "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "createRunFiles" in request["query"]:
            files = [{"name": name, "uploadUrl": f"{self.server.url}/upload"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        return {}

    do_GET = do_POST = do_PUT = answer

    def log_message(self, *_) -> None:
        pass


def paths(row: dict) -> dict:
    """Numbers by path."""
    found = {}
    for key, value in row.items():
        if isinstance(value, dict):
            found |= {f"{key}/{path}": number for path, number in paths(value).items()}
        elif isinstance(value, list):
            found |= {f"{key}/{i}": number for i, number in enumerate(value)}
        elif key not in ("step", "time", "host"):
            found[key] = value
    return found


def expected_history(run: Path) -> list[dict]:
    layers = {}
    for line in (run / "layers.jsonl").read_text().splitlines():
        row = json.loads(line)
        layers.setdefault(row["step"], []).append(row)
    rows = []
    for row in metrics(run):
        values = paths(row)
        for layer in layers.get(row["step"], []):
            place = f"{layer['layer']:03}.{layer['sublayer']}"
            for key, value in layer.items():
                if key in ("step", "layer", "sublayer"):
                    continue
                values |= paths({f"layers/{key}/{place}": value})
        rows.append(values | {"_step": row["step"], "_timestamp": datetime.fromisoformat(row["time"].replace("Z", "+00:00")).timestamp()})
    return rows


class Case:
    def __init__(self, lamina: Lamina, environment: Path, folder: Path):
        self.lamina, self.folder = lamina, folder
        self.python, self.wandb = str(environment / "bin" / "python"), str(environment / "bin" / "wandb")
        self.environment = {**os.environ, "HOME": str(folder)}
        self.environment.pop("WANDB_API_KEY", None)

    def convert(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([self.python, str(ROOT / "launch/wandb_offline.py"), *arguments], env=self.environment, cwd=self.folder,
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)

    def synced(self, run: Path) -> Server:
        done = self.convert("--project", "trials", str(run))
        expect(done.returncode == 0, f"the script ended with {done.returncode}: {done.stdout}{done.stderr}")
        place = done.stdout.strip().partition("wandb sync ")[2]
        expect(Path(place).is_dir(), f"no folder in: {done.stdout}")
        server = Server()
        sync = subprocess.run([self.wandb, "sync", place], env={**self.environment, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": "a" * 40},
                              cwd=self.folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)
        expect(sync.returncode == 0, f"wandb sync ended with {sync.returncode}: {sync.stdout}{sync.stderr}")
        expect((Path(place) / (next(Path(place).glob("*.wandb")).name + ".synced")).exists(), "wandb does not say that it is synced")
        server.shutdown()
        return server


def check_rows(found: list[dict], expected: list[dict]) -> None:
    expect([row["_step"] for row in found] == [row["_step"] for row in expected], f"steps {[row['_step'] for row in found]}")
    for row, values in zip(found, expected):
        for key, value in values.items():
            got = row.get(key)
            same = isinstance(got, (int, float)) and (math.isclose(got, value, rel_tol=1e-15) if value is not None else math.isnan(got))
            expect(same, f"step {row['_step']}: {key}: {got!r} found, {value!r} expected; it has {sorted(row)[:8]}")
        extra = set(row) - set(values) - {"_runtime", "_wandb"}
        expect(not extra, f"step {row['_step']}: {sorted(extra)} are in no file")


def test(case: Case) -> None:
    case.lamina.prepare()
    run = case.lamina.train("first", CHANGES)
    server = case.synced(run)
    expected = expected_history(run)
    check_rows(server.history, expected)
    sent = server.runs[0]
    expect(sent["project"] == "trials" and sent["displayName"] == "test", f"project and name: {sent}")
    config = json.loads(sent["config"])
    expect(config["train"]["value"]["global_batch_size"] == 4 and config["model"]["value"]["residual"] == "block_attnres", str(config))
    expect(server.summary.get("loss") == expected[-1]["loss"], f"summary: {server.summary}")

    # A run that went on keeps its id; what a killed process half wrote at the end is passed over.
    more = case.lamina.train("first", {**CHANGES, "train": {"num_steps": 9}})
    with (more / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "lo')
    again = case.synced(more)
    expect(again.runs[0]["name"] == sent["name"], "the id is another")
    expect([row["_step"] for row in again.history] == list(range(1, 10)), "not the longer run")

    for arguments, reason in ((["missing"], "missing: found no config.yaml"), (["--output", "nowhere", str(run)], "nowhere: no such folder")):
        done = case.convert(*arguments)
        expect(done.returncode == 1 and reason in done.stderr and done.stderr.count("\n") == 1, f"{arguments}: {done.stderr}")
    lines = (more / "metrics.jsonl").read_text().splitlines()
    (more / "metrics.jsonl").write_text("\n".join([lines[0], "no row", *lines[1:9]]) + "\n")
    done = case.convert(str(more))
    expect(done.returncode == 1 and "metrics.jsonl: line 2: no JSON object" in done.stderr, done.stderr)


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="lamina-wandb-") as name:
        folder = Path(name)
        if len(sys.argv) > 2:
            environment = Path(sys.argv[2])
        else:
            environment = folder / "venv"
            subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
            subprocess.run([str(environment / "bin" / "pip"), "install", "-q", "wandb==0.31.0"], check=True)
        test(Case(Lamina(sys.argv[1], folder), environment, folder))
    print("wandb_test: passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
