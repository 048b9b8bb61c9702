#!/usr/bin/env python3
"""lamina sweep as a user runs it: to the end, stopped and started, killed, with failures, and on folders that aren't its own.

    sweep_test.py LAMINA
"""
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))
from training import Lamina, metrics  # noqa: E402

EXPERIMENT = """
run: {name: base, seed: 1, num_threads: 1}
model: {hidden_size: 32, num_hidden_layers: 4, residual: block_attnres, attn_res_block_size: 1, num_attention_heads: 2,
  kv_lora_rank: 8, qk_nope_head_dim: 8, v_head_dim: 8, intermediate_size: 48}
data: {seq_len: 32, train: [{path: tokens}], validation: {path: tokens, num_sequences: 8, interval: 0}}
train: {num_steps: 12, global_batch_size: 4, micro_batch_size: 2, precision: fp32, optimizer: {name: adamw, lr: 1.0e-2},
  lr_schedule: {name: constant}}
checkpoint: {interval: 1, keep: 1}
logging: {interval: 1, peak_gflops: 100}
"""

SWEEP = """
name: study
base: base.yaml
ladder:
  short: {}
  long: {train.num_steps: 16}
axes:
  residual:
    standard: {model.residual: standard, model.attn_res_block_size: null}
    block: {}
seeds: [1, 2]
"""

RUNS = [f"{size}-{residual}-s{seed}" for size in ("short", "long") for residual in ("standard", "block") for seed in (1, 2)]


def check(condition, message):
    if not condition:
        raise SystemExit(f"sweep_test: {message}")


class Study:
    def __init__(self, lamina: Lamina, name: str, sweep: str = SWEEP, experiment: str = EXPERIMENT):
        self.lamina, self.folder = lamina, lamina.folder / name
        self.folder.mkdir()
        (self.folder / "base.yaml").write_text(experiment)
        self.file = self.folder / "sweep.yaml"
        self.file.write_text(sweep + f"output_dir: {self.folder}/out\n")
        self.out = self.folder / "out"

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        return self.lamina.run(["sweep", str(self.file), *arguments])

    def start(self, *arguments: str) -> subprocess.Popen:
        return subprocess.Popen([self.lamina.binary, "sweep", str(self.file), *arguments], env=self.lamina.environment,
                                cwd=self.lamina.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def losses(self) -> dict:
        return {name: [(row["step"], row["loss"], row.get("validation_loss")) for row in metrics(self.out / name)]
                for name in RUNS}


def wait_until(condition, message, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        check(time.monotonic() < end, message)
        time.sleep(0.02)


def runs_to_the_end_and_then_has_nothing_to_do(lamina) -> dict:
    study = Study(lamina, "whole")
    dry = study.run("--dry-run")
    check(dry.returncode == 0 and dry.stdout.count("\n") == len(RUNS) + 2 and not study.out.exists(),
          f"--dry-run: {dry.stdout}{dry.stderr}")
    check("\nmore than " in dry.stdout and " with --jobs 1, by the rates" in dry.stdout, f"no estimate: {dry.stdout}")
    done = study.run("--jobs", "2")
    check(done.returncode == 0 and "8 runs: 8 done, 0 running, 0 waiting, 0 failed" in done.stdout, done.stdout + done.stderr)
    share = [float(line.split()[1]) for line in done.stdout.splitlines() if " FLOP" in line]
    check(len(share) == len(RUNS) and share == sorted(share) and share[-1] == 100 and done.stdout.count(" left") >= len(RUNS) - 2,
          f"progress: {done.stdout}")
    losses = study.losses()
    for name, rows in losses.items():
        steps = 16 if name.startswith("long") else 12
        check([row[0] for row in rows] == list(range(1, steps + 1)) and rows[-1][2] is not None, f"{name}: {rows}")
    check(len({rows[-1][1] for rows in losses.values()}) == len(RUNS), "runs are not different")
    sweep = json.loads((study.out / "sweep.json").read_text())
    check(sweep["name"] == "study" and [run["name"] for run in sweep["runs"]] == RUNS and
          sweep["runs"][2] == {"name": "short-block-s1", "size": "short", "variant": "block", "seed": 1}, f"{sweep}")
    before = {path: path.stat().st_mtime_ns for path in study.out.glob("*/metrics.jsonl")}
    again = study.run()
    check(again.returncode == 0 and "started" not in again.stdout, again.stdout)
    check(before == {path: path.stat().st_mtime_ns for path in study.out.glob("*/metrics.jsonl")}, "a done run was touched")
    status = study.run("--status")
    check(status.returncode == 0 and status.stdout.count(" done ") == len(RUNS), status.stdout)
    # A study may grow; what it had stays.
    study.file.write_text(study.file.read_text().replace("seeds: [1, 2]", "seeds: [1, 2, 3]"))
    left = study.run("--dry-run")  # a third of the work; the rates are those of the runs before
    check(f"\n{200 / 3:.1f} % of " in left.stdout and " left with --jobs 1" in left.stdout, f"estimate of what is left: {left.stdout}")
    grown = study.run("--jobs", "2")
    check(grown.returncode == 0 and grown.stdout.count(": started") == 4 and "12 done" in grown.stdout, grown.stdout)
    return losses


def survives_stops_and_kills(lamina, expected) -> None:
    """Stopped by each of its signals, then killed outright: the runs end as those of an undisturbed sweep."""
    study = Study(lamina, "stopped")
    for number, how in enumerate((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGKILL)):
        process = study.start("--jobs", "2")
        rows = lambda: sum(len(path.read_text().splitlines()) for path in study.out.glob("*/metrics.jsonl"))  # noqa: E731
        wait_until(lambda: rows() > 8 * (number + 1) or process.poll() is not None, "no progress")
        process.send_signal(how)
        output, _ = process.communicate(timeout=60)
        wanted = -signal.SIGKILL if how == signal.SIGKILL else 75
        check(process.returncode == wanted, f"{how}: exit status {process.returncode}\n{output}")
    done = study.run("--jobs", "2")
    check(done.returncode == 0 and "8 done" in done.stdout, done.stdout + done.stderr)
    check("goes on after step" in done.stdout, f"nothing was resumed:\n{done.stdout}")
    check(study.losses() == expected, "a sweep that was stopped ends otherwise")


def one_at_a_time_owns_the_folder(lamina) -> None:
    study = Study(lamina, "owned", experiment=EXPERIMENT.replace("num_steps: 12", "num_steps: 100000"))
    process = study.start("--jobs", "2", "--bind")
    wait_until(lambda: len(list(study.out.glob("*/metrics.jsonl"))) == 2, "nothing started")
    cores = [os.sched_getaffinity(int(path.read_text().split("process: ")[1].split()[0])) for path in study.out.glob("*/lock")]
    check(len(cores) == 2 and all(cores) and not cores[0] & cores[1] and cores[0] | cores[1] == os.sched_getaffinity(0),
          f"--bind: {cores} of {os.sched_getaffinity(0)}")
    status = study.run("--status")
    check("short-standard-s1  running" in status.stdout.replace("   ", "  "), status.stdout)
    other = study.run()
    check(other.returncode == 1 and f"process {process.pid} on" in other.stderr and "lamina sweep, since" in other.stderr,
          f"a second sweep: {other.returncode} {other.stdout}{other.stderr}")
    alone = lamina.run(["train", str(study.out / "configs/short-standard-s1.yaml")])
    check(alone.returncode == 1 and "(lamina train, since" in alone.stderr, f"a start of a sweep's run: {alone.returncode} {alone.stderr}")
    process.terminate()
    process.communicate(timeout=60)
    check(process.returncode == 75, f"exit status {process.returncode}")
    check(not list(study.out.glob("**/lock")), f"locks are left: {list(study.out.glob('**/lock'))}")


def failures_are_told_and_do_not_stop_the_others(lamina) -> None:
    sweep = SWEEP.replace("block: {}", "block: {debug.dump_step: 2, debug.dump_path: base.yaml/x.h5}")
    study = Study(lamina, "failing", sweep.replace("base.yaml/x.h5", f"{lamina.folder}/failing/base.yaml/x.h5"))
    done = study.run("--jobs", "2")
    check(done.returncode == 1, f"exit status {done.returncode}")
    check("4 done, 0 running, 0 waiting, 4 failed" in done.stdout, done.stdout)
    check("short-block-s1: failed: debug.dump_path: " in done.stdout and "is not a folder" in done.stdout, done.stdout)
    check(done.stderr.strip().endswith("4 of 8 runs failed; the others are done, and the same command tries the failed ones again"),
          done.stderr)
    status = study.run("--status")
    check(status.stdout.count("failed") == 5 and "is not a folder" in status.stdout, status.stdout)


def divergences_have_ended(lamina) -> None:
    """In the middle, in the last step's validation and in its parameters: not tried again, and a fit names them."""
    sweep = SWEEP.replace("  long: {train.num_steps: 16}\n", "  first: {train.num_steps: 1}\n  second: {train.num_steps: 2}\n")
    for lr, first in (("1.0e+12", "step 1: validation loss"), ("3.0e+38", "step 1: parameters/")):
        study = Study(lamina, f"diverging-{lr}", sweep.replace("block: {}", f"block: {{train.optimizer.lr: {lr}, train.grad_clip: 0}}"))
        done = study.run("--jobs", "2")
        check(done.returncode == 0, f"exit status {done.returncode}: {done.stdout}{done.stderr}")
        check("6 done, 0 running, 0 waiting, 0 failed, 6 diverged" in done.stdout and "6 of 12 runs diverged" in done.stdout, done.stdout)
        check(f"first-block-s1: diverged: {first}" in done.stdout and "short-block-s2: diverged: step" in done.stdout, done.stdout)
        again = study.run()
        check(again.returncode == 0 and "started" not in again.stdout and "goes on" not in again.stdout, again.stdout)
        status = study.run("--status")
        check(status.stdout.count("  diverged  ") == 6 and first in status.stdout, status.stdout)
        fit = lamina.run(["fit", str(study.out), "--resamples", "0"])
        check(fit.returncode == 0 and "first-block-s1 is left out: diverged at step 1" in fit.stderr and
              fit.stderr.count("is left out: diverged at step") == 6, f"fit: {fit.returncode} {fit.stdout}{fit.stderr}")
        page = lamina.run(["report", str(study.out)])
        check(page.returncode == 0 and "diverged at step 1" in (study.out / "report.html").read_text(), f"report: {page.stderr}")
        # One that is wanted after all: its note removed.
        (study.out / "first-block-s1/diverged.json").unlink()
        rerun = study.run()
        check(rerun.returncode == 0 and rerun.stdout.count("first-block-s1: ") == 2 and "6 diverged" in rerun.stdout, rerun.stdout)


TUNED = """
name: study
base: base.yaml
axes:
  residual:
    standard: {model.residual: standard, model.attn_res_block_size: null}
    block: {}
seeds: [1, 2]
set: {train.num_steps: 6, model.hidden_size: 16, model.num_hidden_layers: 2, train.grad_clip: 0}
tune:
  key: train.optimizer.lr
  values: [1.0e-4, 3.0e-3, 1.0e-2, 1.0e+12]
  rungs: [0.5, 1.0]
"""


def validation_loss(run: Path, step: int) -> float:
    rows = [row for row in metrics(run) if row["step"] == step] if (run / "metrics.jsonl").exists() else []
    value = rows[0].get("validation_loss") if rows else None
    return math.inf if value is None else value


def chooses_by_successive_halving(lamina) -> None:
    """The choice is that of the losses in the run folders; a survivor's run is that of a run of full length."""
    study = Study(lamina, "tuned", TUNED)
    dry = study.run("--dry-run")
    check(dry.returncode == 0 and "tuning: 2 cells, 4 values" in dry.stdout and "train.optimizer.lr is tuned" in dry.stdout and
          not study.out.exists(), f"{dry.stdout}{dry.stderr}")
    done = study.run("--jobs", "2")
    check(done.returncode == 0 and "4 runs: 4 done" in done.stdout, f"{done.stdout}{done.stderr}")
    values = ["1.0e-4", "3.0e-3", "1.0e-2", "1.0e+12"]
    tuning = json.loads((study.out / "tuning.json").read_text())
    check(tuning["seeds"] == [1001] and tuning["schedule"] == "continued", f"{tuning}")
    for cell, name in zip(tuning["cells"], ("standard", "block"), strict=True):
        folder = {value: study.out / "tuning" / f"{name}-lr_{value}-s1001" for value in values}
        first = {value: validation_loss(folder[value], 3) for value in values}
        check(first["1.0e+12"] == math.inf and len(set(first.values())) == 4, f"{name}: {first}")
        left = sorted(values, key=first.get)[:2]
        last = {value: validation_loss(folder[value], 6) for value in left}
        best = min(left, key=last.get)
        check(cell["name"] == name and cell["chosen"] == best, f"{name}: {cell} of {first} and {last}")
        table = [(row["value"], row["steps"], row["validation_losses"][0]) for row in cell["table"]]
        check(table == [(value, 3, first[value] if first[value] < math.inf else "diverged") for value in values] +
              [(value, 6, last[value]) for value in values if value in left], f"{name}: {table}")
        for seed in (1, 2):
            config = yaml.safe_load((study.out / f"{name}-s{seed}" / "config.yaml").read_text())
            check(config["train"]["optimizer"]["lr"] == float(best), f"{name}-s{seed}: {config['train']}")
        line = next(line for line in (study.out / "tuning.md").read_text().splitlines() if line.startswith(f"| {name} ") and best in line)
        check(f"{first[best]:.4f}" in line and f"{last[best]:.4f}" in line and "chosen" in line and line in done.stdout, line)
    whole = lamina.run(["train", str(study.out / "configs/block-s1.yaml"), f"run.output_dir={study.folder}/whole", "run.seed=1001"])
    check(whole.returncode == 0, whole.stderr)
    continued = metrics(study.out / "tuning" / f"block-lr_{best}-s1001")
    check([(row["step"], row["loss"]) for row in continued] == [(row["step"], row["loss"]) for row in metrics(study.folder / "whole")] and
          continued[-1]["validation_loss"] == metrics(study.folder / "whole")[-1]["validation_loss"], "a rung's run goes on otherwise")
    named = [run["name"] for run in json.loads((study.out / "sweep.json").read_text())["runs"]]  # what a fit and a report read
    check(named == ["standard-s1", "standard-s2", "block-s1", "block-s2"], f"sweep.json has {named}")
    again = study.run()
    check(again.returncode == 0 and "started" not in again.stdout and "goes on" not in again.stdout, again.stdout)
    # Killed in the midst: nothing that was done is done again, and the choice is the same.
    killed = Study(lamina, "tuned-killed", TUNED)
    process = killed.start("--jobs", "2")
    wait_until(lambda: len(list(killed.out.glob("tuning/*/metrics.jsonl"))) > 5, "no progress")
    process.kill()
    before, _ = process.communicate(timeout=60)
    resumed = killed.run("--jobs", "2")
    check(resumed.returncode == 0 and "4 runs: 4 done" in resumed.stdout, f"{resumed.stdout}{resumed.stderr}")
    ended = [line.split()[1] for line in before.splitlines() if ": done in" in line or ": diverged" in line]
    check(ended and not any(f"{name} started" in resumed.stdout for name in ended), f"{ended} started again:\n{resumed.stdout}")
    check(json.loads((killed.out / "tuning.json").read_text()) == tuning, "a killed tuning chooses otherwise")
    # The best at the edge is said; a range without a value that trains is an error.
    study.file.write_text(study.file.read_text().replace("[1.0e-4, 3.0e-3, 1.0e-2, 1.0e+12]", "[1.0e-4, 3.0e-3]"))
    edge = study.run("--status")
    check(edge.returncode == 0 and "chosen, at the edge" in edge.stdout, f"{edge.stdout}{edge.stderr}")
    study.file.write_text(study.file.read_text().replace("[1.0e-4, 3.0e-3]", "[1.0e+12, 1.0e+13]"))
    hopeless = study.run("--jobs", "2")
    check(hopeless.returncode == 1 and "tune: standard: every train.optimizer.lr diverged" in hopeless.stderr, hopeless.stderr)


def stops_hopeless_runs(lamina) -> None:
    """And names them: in the status, at the next start, and in the fit."""
    sweep = """
name: study
base: base.yaml
axes:
  rate:
    good: {train.optimizer.lr: 1.0e-2, train.num_steps: 20}
    bad: {train.optimizer.lr: 1.0, train.num_steps: 100000}
set: {data.validation.interval: 2, data.validation.num_sequences: 2}
"""
    rule = "early_stop: {margin: 0.1, after: 1.0e-4, per: []}\n"
    study = Study(lamina, "hopeless", sweep + rule)
    done = study.run()
    check(done.returncode == 0 and "1 done, 0 running, 0 waiting, 0 failed, 1 stopped early" in done.stdout, f"{done.stdout}{done.stderr}")
    reason = next(line for line in done.stdout.splitlines() if "bad-s1: stopped early at step" in line).split(": ", 2)[2]
    loss, step, above = (float(reason.split(word)[1].split()[0]) for word in ("validation", "at step", "is"))
    best = validation_loss(study.out / "good-s1", int(step))
    check(10 <= step <= 20 and abs(loss - validation_loss(study.out / "bad-s1", int(step))) < 1e-4 and
          abs(loss - best - above) < 2e-4 and above > 0.1 and "that of good-s1" in reason, reason)
    again = study.run()
    check(again.returncode == 0 and "started" not in again.stdout and "goes on" not in again.stdout, again.stdout)
    fit = lamina.run(["fit", str(study.out), "--resamples", "0"])
    check(f"stopped early: {reason}" in fit.stderr and "bad-s1 is left out" in fit.stderr, f"fit: {fit.stdout}{fit.stderr}")
    check(" stopped " in study.run("--status").stdout, "the status does not name it")
    study.file.write_text(study.file.read_text().replace(rule, ""))
    check(" waiting " in study.run("--status").stdout, "without the rule the run is to go on")


def never_mixes_configurations(lamina) -> None:
    study = Study(lamina, "mixed")
    check(study.run("--jobs", "2").returncode == 0, "the first sweep failed")
    before = (study.out / "sweep.json").read_text(), (study.out / "configs/short-block-s1.yaml").read_text()
    base = study.folder / "base.yaml"
    for change, key in ((("lr: 1.0e-2", "lr: 2.0e-2"), "train.optimizer.lr: 0.02 (was 0.01)"),
                        (("num_steps: 12", "num_steps: 13"), "train.num_steps: 13 (was 12)"),
                        (("hidden_size: 32", "hidden_size: 48"), "model.hidden_size: 48 found, expected 32")):
        base.write_text(EXPERIMENT.replace(*change))
        refused = study.run()
        check(refused.returncode == 1 and key in refused.stderr and "short-standard-s1" in refused.stderr,
              f"{key}: {refused.returncode} {refused.stderr}")
    check(before == ((study.out / "sweep.json").read_text(), (study.out / "configs/short-block-s1.yaml").read_text()),
          "a refused sweep wrote something")
    base.write_text(EXPERIMENT.replace("interval: 1, peak", "interval: 2, peak").replace("num_threads: 1", "num_threads: 2"))
    check(study.run().returncode == 0, "a change of logging and threads was refused")


def bad_sweeps_write_nothing(lamina) -> None:
    crowded = Study(lamina, "crowded", SWEEP, EXPERIMENT.replace("num_threads: 1", "num_threads: 5000"))
    warned = crowded.run("--dry-run", "--jobs", "2")
    check(warned.returncode == 0 and "2 runs at a time with 5000 threads each on" in warned.stderr, warned.stderr)
    study = Study(lamina, "bad", SWEEP.replace("residual:\n", "model.hidden_sise: [32, 48]\n  residual:\n"))
    for arguments, sweep, message in (
            ((), study.file.read_text(), "sweep.yaml:8: model.hidden_sise: unknown key, did you mean hidden_size?"),
            ((), SWEEP.replace("base.yaml", "other.yaml") + f"output_dir: {study.out}\n", "other.yaml: no such file"),
            ((), SWEEP + f"set: {{data.train.0.path: nowhere}}\noutput_dir: {study.out}\n", "nowhere: no such folder"),
            ((), SWEEP + f"ranks: 3\noutput_dir: {study.out}\n", "train.global_batch_size"),
            (("--jobs", "0"), SWEEP, "--jobs"),
            (("--jobs", "4096", "--bind"), SWEEP + f"output_dir: {study.out}\n", "--bind: found 4096 runs at a time on"),
            (("--slurm", "none.sbatch"), SWEEP, "none.sbatch")):
        study.file.write_text(sweep)
        refused = study.run(*arguments)
        check(refused.returncode == 1 and message in refused.stderr and len(refused.stderr.splitlines()) == 1,
              f"{message}: {refused.returncode} {refused.stderr}")
        check(not study.out.exists(), f"{message}: something was written")


def several_ranks(lamina, expected) -> None:
    sweep = SWEEP.replace("seeds: [1, 2]", "seeds: [1]").replace("  long: {train.num_steps: 16}\n", "")
    study = Study(lamina, "ranks", sweep + "ranks: 2\nset: {parallel.pipeline: 2}\n")
    done = study.run("--jobs", "2")
    check(done.returncode == 0 and "2 done" in done.stdout, done.stdout + done.stderr)
    for name in ("short-standard-s1", "short-block-s1"):
        rows = [(row["step"], row["loss"]) for row in metrics(study.out / name)]
        for (step, loss), (other_step, other, _) in zip(rows, expected[name], strict=True):
            check(step == other_step and abs(loss - other) <= 1e-5 * abs(other), f"{name}: step {step}: {loss} and {other}")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        lamina = Lamina(sys.argv[1], Path(folder))
        lamina.prepare()
        expected = runs_to_the_end_and_then_has_nothing_to_do(lamina)
        survives_stops_and_kills(lamina, expected)
        one_at_a_time_owns_the_folder(lamina)
        failures_are_told_and_do_not_stop_the_others(lamina)
        divergences_have_ended(lamina)
        chooses_by_successive_halving(lamina)
        stops_hopeless_runs(lamina)
        never_mixes_configurations(lamina)
        bad_sweeps_write_nothing(lamina)
        several_ranks(lamina, expected)
    print("sweep_test: passed")


if __name__ == "__main__":
    main()
