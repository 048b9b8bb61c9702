#!/usr/bin/env python3
"""A run folder has one run at a time, a refused start leaves every file as it was, and a run that diverges says so and keeps what is good.

    run_folder_test.py LAMINA
"""
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import yaml

from resume_test import checkpoints, flip_bit
from training import Lamina, merged, metrics

DIVERGED = 76   # core/base/stop.h
LONG = {"train": {"num_steps": 10**6, "optimizer": {"lr": 1e-4}}}


def check(condition, message) -> None:
    if not condition:
        raise SystemExit(f"run_folder_test: {message}")


def tree(folder: Path) -> dict:
    """Every file by its content, every folder by its name."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            for path in sorted(folder.rglob("*"))}


def start(lamina: Lamina, config: Path, ranks: int = 1) -> subprocess.Popen:
    return subprocess.Popen(lamina.command(["train", str(config)], ranks), env=lamina.environment, cwd=lamina.folder,
                            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for_rows(process: subprocess.Popen, run: Path, count: int = 3) -> None:
    rows, end = run / "metrics.jsonl", time.monotonic() + 60
    while not rows.exists() or rows.read_text().count("\n") < count:
        check(process.poll() is None and time.monotonic() < end, f"{run.name}: no rows")
        time.sleep(0.02)


def lock_of(run: Path) -> dict:
    return dict(line.split(": ", 1) for line in (run / "lock").read_text().splitlines())


def a_second_start_is_refused(lamina: Lamina) -> None:
    for ranks in (1, 2):
        name = f"twice-{ranks}"
        config = lamina.write_config(name, merged(LONG, {
            "checkpoint": {"interval": 3, "keep": 0}, "data": {"validation": {"path": str(lamina.tokens), "num_sequences": 4, "interval": 0}}}))
        run = lamina.folder / name
        first = start(lamina, config, ranks)
        wait_for_rows(first, run, 5)
        holder = lock_of(run)
        if ranks == 1:
            check(int(holder["process"]) == first.pid, f"the lock names {holder}, not {first.pid}")
        for other in (1, 2):
            second = lamina.run(["train", str(config)], other, timeout=60)
            check(second.returncode == 1, f"a second start on {other} rank(s) ended with {second.returncode}: {second.stderr}")
            check(f"process {holder['process']} on {holder['host']} (lamina train, since {holder['since']})" in second.stderr,
                  f"the second start does not name the first: {second.stderr}")
            check(other > 1 or len(second.stderr.splitlines()) == 1, f"more than one line: {second.stderr}")
        for reader in (["inspect", str(run)], ["report", str(run)], ["eval", str(config), "--checkpoint", str(run)]):
            done = lamina.run(reader)
            check(done.returncode == 0, f"{reader[0]} beside a run: {done.stderr}")
        wait_for_rows(first, run, len(metrics(run)) + 3)
        os.kill(int(holder["process"]), signal.SIGUSR1)
        check(first.wait(timeout=60) == 75, f"the first start ended with {first.returncode}: {first.stderr.read()}")
        check(not (run / "lock").exists(), "the lock is still there")
        steps = [row["step"] for row in metrics(run)]
        check(steps == list(range(1, len(steps) + 1)), f"rows of both starts: {steps}")
        check(len(list(run.glob("events.out.*"))) == 1, "event files of both starts")
        check("process" not in (run / "log.txt").read_text(), "the refused start is in log.txt")
    print("a second start is refused, and names the first", flush=True)


def a_killed_run_goes_on_at_once(lamina: Lamina) -> None:
    config, run = lamina.write_config("killed", merged(LONG, {"checkpoint": {"interval": 1}})), lamina.folder / "killed"
    first = start(lamina, config)
    wait_for_rows(first, run)
    before = lock_of(run)["process"]
    first.kill()     # not waited for: it is a zombie, or still ending
    begin = time.monotonic()
    second = start(lamina, config)
    while lock_of(run)["process"] == before:
        check(second.poll() is None, f"refused after a kill with {second.returncode}")
        check(time.monotonic() - begin < 20, "the lock of a killed process is not taken over")
        time.sleep(0.02)
    took = time.monotonic() - begin
    second.kill()
    first.wait(), second.wait()
    check(took < 5, f"taking over took {took:.1f} s")
    # On another machine: as its lock says, and no sign of life. A stop ends the wait.
    text = (run / "lock").read_text()
    (run / "lock").write_text(text.replace(f"boot: {lock_of(run)['boot']}", "boot: another"))
    third = start(lamina, config)
    time.sleep(1)
    check(third.poll() is None, "another machine's lock was judged at once")
    third.send_signal(signal.SIGUSR1)
    check(third.wait(timeout=20) == 75 and "sign of life" in third.stderr.read(), "a stop did not end the wait for a sign of life")
    (run / "lock").write_text(text)
    print(f"a killed run goes on at once ({took:.2f} s)", flush=True)


def refusals_leave_everything(lamina: Lamina) -> None:
    base = {"train": {"num_steps": 4}, "checkpoint": {"interval": 2}}
    run = lamina.train("kept", base)
    other = lamina.folder / "other.txt"
    other.write_text("something else entirely " * 4000)
    check(lamina.run(["prepare", "--tokenizer", "bytes", "--output", str(lamina.folder / "others"), str(other)]).returncode == 0, "prepare")
    # What a kill may have left, which the next save cleans up: a refused start is none.
    (run / "checkpoints/step-00000009.tmp").mkdir()
    with (run / "metrics.jsonl").open("a") as rows:
        rows.write('{"step": 5, "lo')
    cases = [
        ("another experiment", {"model": {"hidden_size": 40}}, "model.hidden_size", 1),
        ("other data", {"data": {"train": [{"path": str(lamina.folder / "others"), "weight": 1.0}]}}, "trained on other data", 1),
        ("no data", {"data": {"train": [{"path": "nowhere", "weight": 1.0}]}}, "nowhere", 1),
        ("a layout that can't be", {"parallel": {"pipeline": 3}}, "parallel", 1),
        ("ranks that don't fit", {"train": {"global_batch_size": 4}}, "global_batch_size", 3),
        ("a dump that can't be written", {"debug": {"dump_step": 8, "dump_path": str(other / "x.h5")}}, "debug.dump_path", 1),
        ("a dump beyond the end", {"debug": {"dump_step": 80}}, "debug.dump_step", 1),
        ("other data on two ranks", {"data": {"train": [{"path": str(lamina.folder / "others"), "weight": 1.0}]}}, "trained on other data", 2),
    ]
    for what, changes, reason, ranks in cases:
        # With a key that may change: it must not be stored either.
        config = lamina.write_config("kept", merged(merged(base, {"train": {"num_steps": 8}}), changes))
        before = tree(run)
        done = lamina.run(["train", str(config)], ranks)
        check(done.returncode != 0 and reason in done.stderr, f"{what}: {done.returncode} {done.stderr}")
        after = tree(run)
        if ranks > 1:
            after.pop("lock", None)    # a rank that the others' end kills can't take it along
        check(after == before, f"{what}: changed {[k for k in {**before, **after} if before.get(k) != after.get(k)]}")
    for checkpoint in checkpoints(run):
        flip_bit(checkpoint / "shard-00000.h5")
    before = tree(run)
    done = lamina.run(["train", str(lamina.write_config("kept", merged(base, {"train": {"num_steps": 8}})))])
    check(done.returncode == 1 and "all refused" in done.stderr and tree(run) == before, f"damaged checkpoints: {done.stderr}")
    # A new folder, with folders above it that are not there either.
    for what, changes in (("a start from nothing", {"checkpoint": {"init_from": str(lamina.folder / "none")}}),
                          ("a start from another model", {"model": {"hidden_size": 40}, "checkpoint": {"init_from": str(lamina.train("source", base))}})):
        config = lamina.write_config("new", merged(changes, {"run": {"output_dir": str(lamina.folder / "a/b/new")}}))
        done = lamina.run(["train", str(config)])
        check(done.returncode == 1 and not (lamina.folder / "a").exists(), f"{what}: {done.returncode} {done.stderr}")
    print(f"{len(cases) + 3} refused starts left everything as it was", flush=True)


def assert_finite(checkpoint: Path) -> None:
    with h5py.File(checkpoint / "shard-00000.h5", "r") as file:
        bad = []
        file.visititems(lambda name, item: bad.append(name) if isinstance(item, h5py.Dataset) and
                        not (abs(item[()].astype("f8")) < float("inf")).all() else None)
    check(not bad, f"{checkpoint} holds {bad}")


def divergences(lamina: Lamina) -> None:
    """(what, keys of the second part, does a checkpoint of step 4 come to be, its fate)"""
    validation = {"validation": {"path": str(lamina.tokens), "num_sequences": 4, "interval": 0}}
    for what, steps, lr, ranks in (("parameters", 6, 3e38, 1), ("parameters", 6, 3e38, 2), ("parameters in the last step", 4, 3e38, 1),
                                   ("loss", 6, 1e12, 1), ("validation in the last step", 4, 1e12, 1), ("loss", 6, 1e12, 2)):
        name = f"diverging-{what.replace(' ', '-')}-{ranks}"
        good = {"data": validation, "checkpoint": {"interval": 1, "keep": 1},
                "train": {"num_steps": 3, "grad_clip": 0.0, "optimizer": {"lr": 1e-3, "eps": 1e-8}}}
        run = lamina.train(name, good, ranks)
        check([path.name for path in (run / "checkpoints").iterdir()] == ["step-00000003"], "keep: 1")
        kept = tree(run / "checkpoints/step-00000003")
        config = lamina.write_config(name, merged(good, {"train": {"num_steps": steps, "optimizer": {"lr": lr}}}))
        for attempt in ("first", "same command"):
            done = lamina.run(["train", str(config)], ranks)
            check(done.returncode == DIVERGED, f"{name}, {attempt}: exit status {done.returncode}\n{done.stderr}")
            check("error: diverged: step " in done.stderr and "step-00000003" in done.stderr, f"{name}: {done.stderr}")
            check(attempt == "first" or "the last start diverged" in done.stderr, f"{name}: {done.stderr}")
            check([path.name for path in checkpoints(run)] in (["step-00000003"], ["step-00000003", "step-00000004.diverged"]),
                  f"{name}: {list((run / 'checkpoints').iterdir())}")
            check(tree(run / "checkpoints/step-00000003") == kept, f"{name}: the good checkpoint was touched")
            told = json.loads((run / "diverged.json").read_text())
            check(told["step"] == (5 if what == "loss" else 4) and told["reason"] in done.stderr, f"{name}: {told}")
            check(not list((run / "checkpoints").glob("*.tmp")), f"{name}: a half-written checkpoint is left")
        # What helps, helps: the run goes on from the good checkpoint and is done.
        done = lamina.run(["train", str(config), "train.optimizer.lr=1e-3", "train.num_steps=6"], ranks)
        check(done.returncode == 0 and not (run / "diverged.json").exists(), f"{name}: {done.returncode} {done.stderr}")
        check([row["step"] for row in metrics(run)] == [1, 2, 3, 4, 5, 6], f"{name}: {metrics(run)}")
        check([path.name for path in (run / "checkpoints").iterdir()] == ["step-00000006"], f"{name}: keep: 1 at the end")
        assert_finite(run / "checkpoints/step-00000006")
        print(f"{what}, {ranks} rank(s): diverged, and the good checkpoint is kept", flush=True)


def the_first_checkpoint_may_be_bad(lamina: Lamina) -> None:
    """No good one is left: the same command begins anew, and a rate that works gets past it."""
    bad = {"checkpoint": {"interval": 1}, "train": {"num_steps": 4, "grad_clip": 0.0, "optimizer": {"lr": 1e12, "eps": 1e-8}}}
    config, run = lamina.write_config("bad-at-once", bad), lamina.folder / "bad-at-once"
    for _ in range(2):
        done = lamina.run(["train", str(config)])
        check(done.returncode == DIVERGED and "begins anew" in done.stderr, f"{done.returncode} {done.stderr}")
        check([path.name for path in (run / "checkpoints").iterdir()] == ["step-00000001.diverged"], "set aside")
    page = lamina.run(["report", str(run)])
    check(page.returncode == 0 and "diverged at step 2 of 4" in (run / "report.html").read_text(), page.stderr)
    done = lamina.run(["train", str(config), "train.optimizer.lr=1e-3"])
    check(done.returncode == 0 and len(metrics(run)) == 4, f"{done.returncode} {done.stderr}")
    check(yaml.safe_load((run / "config.yaml").read_text())["train"]["optimizer"]["lr"] == 1e-3, "config.yaml")
    print("a first checkpoint that is bad is passed", flush=True)


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        lamina = Lamina(sys.argv[1], Path(folder))
        lamina.prepare()
        a_second_start_is_refused(lamina)
        a_killed_run_goes_on_at_once(lamina)
        refusals_leave_everything(lamina)
        divergences(lamina)
        the_first_checkpoint_may_be_bad(lamina)


if __name__ == "__main__":
    main()
