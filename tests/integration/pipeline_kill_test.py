#!/usr/bin/env python3
"""Kills one rank of a pipeline in the middle of training: the whole job ends within seconds, says which rank it was and
by which signal, fails, and leaves no process behind. A rank that is merely late for a while does no harm.

    pipeline_kill_test.py LAMINA
"""
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from resume_test import descendants, expect
from training import Lamina, metrics

SECONDS = 10.0
LAYOUTS = [(2, {"pipeline": 2, "virtual_stages": 2, "schedule": "interleaved_1f1b"}),
           (2, {"pipeline": 2, "virtual_stages": 2, "schedule": "zero_bubble"}),
           (4, {"pipeline": 2, "virtual_stages": 1, "data": 2, "schedule": "1f1b"})]
KILLS_PER_LAYOUT = 4


def rank_of(pid: int) -> int | None:
    try:
        for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if entry.startswith(b"OMPI_COMM_WORLD_RANK="):
                return int(entry.split(b"=")[1])
    except OSError:
        pass   # ended meanwhile
    return None


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def start(lamina: Lamina, name: str, ranks: int, parallel: dict, steps: int) -> tuple[subprocess.Popen, dict[int, int]]:
    """Returns the launcher and the processes by rank, once a few steps are done."""
    config = lamina.write_config(name, {"train": {"num_steps": steps, "global_batch_size": 24, "micro_batch_size": 1,
                                                  "optimizer": {"lr": 1e-4}}, "parallel": parallel})
    process = subprocess.Popen(lamina.command(["train", str(config)], ranks), env=lamina.environment, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=lamina.folder)
    log, deadline = lamina.folder / name / "metrics.jsonl", time.monotonic() + 60
    while not (log.exists() and log.read_bytes().count(b"\n") >= 2):
        expect(process.poll() is None and time.monotonic() < deadline, f"{name}: training does not start")
        time.sleep(0.005)
    pids = {rank_of(pid): pid for pid in descendants(process.pid) if rank_of(pid) is not None}
    expect(sorted(pids) == list(range(ranks)), f"{name}: ranks {sorted(pids)} of {ranks}")
    return process, pids


def kill_one(lamina: Lamina, name: str, ranks: int, parallel: dict, victim: int, moment: float) -> float:
    process, pids = start(lamina, name, ranks, parallel, steps=1_000_000)
    time.sleep(moment)
    everyone = descendants(process.pid)
    killed_at = time.monotonic()
    os.kill(pids[victim], signal.SIGKILL)
    try:
        output, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        for pid in [process.pid, *descendants(process.pid)]:
            os.kill(pid, signal.SIGKILL)
        raise SystemExit(f"pipeline_kill_test: {name}: still running {SECONDS} s after rank {victim} was killed") from None
    seconds = time.monotonic() - killed_at
    expect(process.returncode != 0, f"{name}: the job succeeded although rank {victim} was killed:\n{output}")
    named = re.search(rf"process rank {victim} with PID \d+ on node \S+ exited on\s+signal 9", output)   # it may print PID 0
    expect(named is not None, f"{name}: the output does not say that rank {victim} died of signal 9:\n{output}")
    time.sleep(0.2)
    left = [pid for pid in everyone if alive(pid)]
    expect(not left, f"{name}: processes {left} are left behind")
    return seconds


def pause_one(lamina: Lamina) -> None:
    """A rank that stops for a second is waited for; nothing that was in flight is lost."""
    parallel = {"pipeline": 2, "virtual_stages": 2}
    process, pids = start(lamina, "paused", 2, parallel, steps=150)
    os.kill(pids[1], signal.SIGSTOP)
    time.sleep(1.0)
    os.kill(pids[1], signal.SIGCONT)
    output, _ = process.communicate(timeout=60)
    expect(process.returncode == 0, f"a paused rank ended the job:\n{output}")
    expect([row["step"] for row in metrics(lamina.folder / "paused")] == list(range(1, 151)), "steps are missing after a pause")
    print("a rank that pauses is waited for", flush=True)


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        lamina = Lamina(sys.argv[1], Path(folder))
        lamina.prepare()
        randomly = random.Random(22)
        for number, (ranks, parallel) in enumerate(LAYOUTS):
            for kill in range(KILLS_PER_LAYOUT):
                victim, moment = kill % ranks, randomly.uniform(0.0, 0.15)
                seconds = kill_one(lamina, f"killed-{number}-{kill}", ranks, parallel, victim, moment)
                print(f"{parallel}: rank {victim} killed {moment * 1e3:.0f} ms on, the job ended {seconds:.2f} s later", flush=True)
        pause_one(lamina)


if __name__ == "__main__":
    main()
