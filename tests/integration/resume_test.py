#!/usr/bin/env python3
"""Kills training at random moments, resumes until done, and expects the bits of a run that was never disturbed.

    resume_test.py LAMINA
"""
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import h5py

from training import Lamina, merged, metrics

STEPS, KILLS = 40, 7


def changes(steps: int, dump: bool = True) -> dict:
    # A checkpoint after every step: most kills hit one being written.
    return {"train": {"num_steps": steps, "optimizer": {"lr": 3e-3}},
            "checkpoint": {"interval": 1, "keep": 3}, "debug": {"dump_step": steps if dump else 0}}


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(f"resume_test: {message}")


def assert_same_bits(one: Path, other: Path) -> None:
    with h5py.File(one, "r") as a, h5py.File(other, "r") as b:
        def names(file):
            found = []
            file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
            return found
        expect(names(a) == names(b), f"{one} and {other} hold other tensors")

        def content(file, name):
            if name != "table":
                return file[name][()].tobytes()
            table = json.loads(file[name][()].tobytes())
            table["extra"].pop("command", None)   # runs that differ in what they are called
            return table
        bad = [name for name in names(a) if content(a, name) != content(b, name)]
        expect(not bad, f"{other} differs from {one} in {len(bad)} of {len(names(a))} tensors: {bad[:5]}")


def descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue   # ended meanwhile
            children.setdefault(parent, []).append(int(entry.name))
    found, pending = [], [pid]
    while pending:
        for child in children.get(pending.pop(), []):
            found.append(child)
            pending.append(child)
    return found


def signal_all(pid: int, number: int) -> None:
    """To that process and to all that it started."""
    for one in [pid, *descendants(pid)]:
        try:
            os.kill(one, number)
        except ProcessLookupError:
            pass   # ended meanwhile


def kill_all(process: subprocess.Popen) -> None:
    """The launcher first, so that it can't tidy up; the ranks at the same moment, as when a machine loses power."""
    ranks = descendants(process.pid)
    for pid in [process.pid, *ranks]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    process.wait()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() and "Z" != Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
              for pid in ranks if Path(f"/proc/{pid}").exists()) and time.monotonic() < deadline:
        time.sleep(0.01)


def checkpoints(run: Path) -> list[Path]:
    return sorted(path for path in (run / "checkpoints").glob("step-*") if (path / "COMMITTED").exists())


def wait_for_checkpoint(process: subprocess.Popen, run: Path, already: int) -> None:
    """Until the run got further than checkpoint `already`, so that a random kill meets training, not only the start."""
    while process.poll() is None:
        done = checkpoints(run)
        if done and int(done[-1].name.removeprefix("step-")) > already:
            return
        time.sleep(0.005)


def kill_and_resume(lamina: Lamina, ranks: int, randomly: random.Random, layout: dict | None = None, max_kills: int = KILLS,
                    steps: list[int] | None = None) -> Path:
    """`layout`: more changes of the experiment. `steps`: the checkpoint after which each kill comes; else the next one. Returns the run
    that was left alone."""
    label = f"{ranks} rank(s){f', {layout}' if layout else ''}"
    name = f"killed-{len(list(lamina.folder.iterdir()))}"
    experiment = merged(changes(STEPS), layout or {})
    undisturbed = lamina.train(f"undisturbed-{name}", experiment, ranks)
    config, run = lamina.write_config(name, experiment), lamina.folder / name
    kills = 0
    while kills < max_kills:
        reached = int(checkpoints(run)[-1].name.removeprefix("step-")) if checkpoints(run) else 0
        process = subprocess.Popen(lamina.command(["train", str(config)], ranks), env=lamina.environment,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if kills > 0:   # the first one may die before anything is there
            wait_for_checkpoint(process, run, max(reached, steps[kills] - 1) if steps else reached)
        time.sleep(randomly.uniform(0.0, 0.06))
        alive = process.poll() is None
        kill_all(process)
        if not alive:
            expect(process.returncode == 0, f"a resumed run failed: {process.stderr.read()}")
            break
        kills += 1
    expect(kills >= 3, f"only {kills} kills before the run was done: it's too short for this test")
    steps_left = sorted(path.name for path in (run / "checkpoints").glob("*"))
    lamina.train(name, experiment, ranks)
    assert_same_bits(undisturbed / f"dump-step-{STEPS}.h5", run / f"dump-step-{STEPS}.h5")
    rows, expected = metrics(run), metrics(undisturbed)
    expect([row["step"] for row in rows] == list(range(1, STEPS + 1)), f"steps in metrics.jsonl: {[row['step'] for row in rows]}")
    for key in ("loss", "grad_norm", "lr", "tokens"):
        expect([row[key] for row in rows] == [row[key] for row in expected], f"'{key}' in metrics.jsonl differs")
    check_times(expected, 1)
    check_times(rows, 2)
    left = [path.name for path in (run / "checkpoints").iterdir()]
    expect(sorted(left) == [f"step-{s:08d}" for s in range(STEPS - 2, STEPS + 1)], f"left in checkpoints/: {left}")
    print(f"{label}: {kills} kills, last of them left {steps_left}; the same bits", flush=True)
    return undisturbed


def check_times(rows: list[dict], least_starts: int) -> None:
    """When, where and by which start; and the rate of an interval counts all that passed in it, so it is at most that of its steps."""
    starts, times = [row["start"] for row in rows], [row["time"] for row in rows]
    expect(starts == sorted(starts) and starts[0] >= 1 and starts[-1] >= least_starts, f"starts {starts}")
    expect(times == sorted(times) and all(datetime.strptime(time, "%Y-%m-%dT%H:%M:%SZ") for time in times), f"times {times}")
    expect({row["host"] for row in rows} == {socket.gethostname()}, f"hosts {[row['host'] for row in rows]}")
    seconds, last, logged = 0.0, None, 0
    for row, before in zip(rows, [{"tokens": 0, "start": 0}, *rows]):
        if row["start"] != before["start"]:
            seconds, last = 0.0, before["tokens"]
        seconds += (row["tokens"] - before["tokens"]) / row["tokens_per_second"]
        if "interval_tokens_per_second" in row:
            rate = (row["tokens"] - last) / seconds
            expect(0 < row["interval_tokens_per_second"] <= rate * (1 + 1e-9), f"step {row['step']}: {row}, steps alone {rate}")
            seconds, last, logged = 0.0, row["tokens"], logged + 1
    expect(logged > 0, "no row has the rate of an interval")


def flip_bit(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0x10]))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def take_the_previous(lamina: Lamina) -> None:
    """A damaged newest checkpoint is named in the log, and the one before it is taken."""
    undisturbed = lamina.train("whole", changes(9))
    damages = [("bit in shard", lambda newest: flip_bit(newest / "shard-00000.h5")),
               ("bit in table", lambda newest: flip_bit(newest / "checkpoint.h5")),
               ("short shard", lambda newest: truncate(newest / "shard-00000.h5")),
               ("short table", lambda newest: truncate(newest / "checkpoint.h5")),
               ("no shard", lambda newest: (newest / "shard-00000.h5").unlink()),
               ("empty commit mark", lambda newest: os.truncate(newest / "COMMITTED", 0))]
    for number, (what, damage) in enumerate(damages):
        run = lamina.train(f"damaged-{number}", changes(6, dump=False))
        newest = checkpoints(run)[-1]
        expect(newest.name == "step-00000006", f"newest checkpoint is {newest.name}")
        damage(newest)
        done = lamina.run(["train", str(lamina.write_config(run.name, changes(9)))])
        expect(done.returncode == 0, f"{what}: training did not go on: {done.stderr}")
        log = (run / "log.txt").read_text()
        expect(newest.name in log and newest.name in done.stderr, f"{what}: the log does not name {newest.name}:\n{done.stderr}")
        expect("step-00000005" in done.stderr, f"{what}: the log does not say what was taken instead:\n{done.stderr}")
        assert_same_bits(undisturbed / "dump-step-9.h5", run / "dump-step-9.h5")
        print(f"{what}: the previous checkpoint was taken", flush=True)


def refuse_when_all_are_damaged(lamina: Lamina) -> None:
    run = lamina.train("all-damaged", changes(3, dump=False))
    for checkpoint in checkpoints(run):
        flip_bit(checkpoint / "shard-00000.h5")
    before = sorted(path.name for path in (run / "checkpoints").iterdir())
    done = lamina.run(["train", str(lamina.write_config(run.name, changes(5)))])
    expect(done.returncode != 0 and "step-00000003" in done.stderr, f"all damaged, yet: {done.returncode} {done.stderr}")
    expect(before == sorted(path.name for path in (run / "checkpoints").iterdir()), "checkpoints were touched")
    print("all damaged: refused", flush=True)


def change_ranks(lamina: Lamina) -> None:
    """From one rank to two: the same state, then sums in another order."""
    config = lamina.write_config("moved", changes(6))
    lamina.train("moved", changes(3, dump=False))
    done = lamina.run(["train", str(config), "train.num_steps=6"], ranks=2)
    expect(done.returncode == 0, f"one rank's checkpoint on two ranks: {done.stderr}")
    whole = metrics(lamina.train("unmoved", changes(6)))
    moved = metrics(lamina.folder / "moved")
    expect([row["step"] for row in moved] == [row["step"] for row in whole], "steps are missing after the move")
    for a, b in zip(moved, whole):
        expect(abs(a["loss"] - b["loss"]) <= 2e-6 * b["loss"], f"step {a['step']}: {a['loss']} on two ranks, {b['loss']} on one")
    print("one rank's checkpoint goes on with two", flush=True)


def change_threads(lamina: Lamina) -> None:
    """The checkpoint knows the number of threads; another number is no obstacle, but it is said."""
    warning = "thread(s) per rank, saved with"
    run = lamina.train("threads", changes(3, dump=False))
    inspected = lamina.run(["inspect", str(run)])
    expect("\nthreads        1\n" in inspected.stdout, f"inspect does not tell the number of threads:\n{inspected.stdout}")
    config = str(lamina.write_config("threads", changes(9, dump=False)))
    same = lamina.run(["train", config, "train.num_steps=6"])
    expect(same.returncode == 0 and warning not in same.stderr, f"a warning without a reason: {same.stderr}")
    other = lamina.run(["train", config, "train.num_steps=9", "run.num_threads=2"])
    expect(other.returncode == 0 and f"resumed with 2 {warning} 1" in other.stderr, f"not a word of the threads: {other.stderr}")
    expect("\nthreads        2\n" in lamina.run(["inspect", str(run)]).stdout, "inspect does not tell the new number of threads")
    print("another number of threads: said", flush=True)


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        lamina = Lamina(sys.argv[1], Path(folder))
        lamina.prepare()
        randomly = random.Random(20)
        for ranks in (1, 2):
            kill_and_resume(lamina, ranks, randomly)
        take_the_previous(lamina)
        refuse_when_all_are_damaged(lamina)
        change_ranks(lamina)
        change_threads(lamina)


if __name__ == "__main__":
    main()
