#!/usr/bin/env python3
"""`lamina fit` as a user runs it: on a sweep's folder of real runs with planted losses, on the paper's table, and on what it refuses.

    fit_test.py LAMINA ROOT
"""
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HIDDEN_SIZES = {"s1": 16, "s2": 32, "s3": 64, "s4": 96}
NUM_STEPS = 4
LAWS = {"standard": (2.0, 0.06), "block_attnres": (1.9, 0.061)}  # A and alpha, C in PFLOP/s-days
PFLOPS_DAY = 8.64e19


def loss(variant: str, compute: float) -> float:
    a, alpha = LAWS[variant]
    return a * (compute / PFLOPS_DAY) ** -alpha


def main() -> int:
    program, root = sys.argv[1], Path(sys.argv[2])
    faults: list[str] = []
    work = Path(tempfile.mkdtemp())

    def lamina(*arguments: object) -> subprocess.CompletedProcess:
        return subprocess.run([program, *map(str, arguments)], cwd=work, capture_output=True, text=True, timeout=120)

    def expect(name: str, done: subprocess.CompletedProcess, code: int, output: str = "", error: str = "") -> None:
        if done.returncode != code:
            faults.append(f"{name}: exit {done.returncode}, expected {code}: {done.stderr}")
        if output and not re.search(output, done.stdout):
            faults.append(f"{name}: /{output}/ is not in the output: {done.stdout}")
        if error and not re.search(error, done.stderr):
            faults.append(f"{name}: /{error}/ is not in the message: {done.stderr}")
        if code != 0 and len(done.stderr.strip().splitlines()) != 1:
            faults.append(f"{name}: the reason is not one line: {done.stderr}")

    def check(name: str, holds: bool, found: object) -> None:
        if not holds:
            faults.append(f"{name}: found {found}")

    try:
        (work / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 400)
        expect("prepare", lamina("prepare", "--tokenizer", "bytes", "--output", "data", "text.txt"), 0)
        sweep = work / "sweep"
        flops_per_token = train_sizes(lamina, expect, root, work)
        make_sweep(work, sweep, flops_per_token)
        refusals(lamina, expect, check, sweep)

        done = lamina("fit", sweep)
        expect("fit", done, 0, r"24 of 2 variants, validation_loss(.|\n)*variants together(.|\n)*Gain over standard", "")
        fit = json.loads((sweep / "fit.json").read_text())
        check("points", len(fit["points"]) == 24, len(fit["points"]))
        for point in fit["points"]:
            # Counted by the trainer itself, from its rate: gflops over tokens per second.
            counted = flops_per_token[point["size"], point["variant"]] * point["tokens"]
            check("compute", abs(point["compute"] / counted - 1) < 1e-9, (point, counted))
        for variant in fit["variants"]:
            a, alpha = LAWS[variant["variant"]]
            law = variant["power"]
            check("alpha within its interval", law["alpha"]["low"] <= alpha <= law["alpha"]["high"], law["alpha"])
            check("A within its interval", law["a"]["low"] <= a <= law["a"]["high"], law["a"])
            check("alpha is known", law["alpha"]["high"] - law["alpha"]["low"] < 0.01, law["alpha"])
            check("40 points with bands", len(law["curve"]) == 40 and "low" in law["curve"][0], law["curve"][:1])
        gain = fit["gains"][0]
        check("the largest compute", gain["compute"] == max(p["compute"] for p in fit["points"]), gain)
        a, alpha = LAWS["standard"]
        needed = PFLOPS_DAY * (loss("block_attnres", gain["compute"]) / a) ** (-1 / alpha) / gain["compute"]
        check("the planted gain within its interval", gain["gain"]["low"] <= needed <= gain["gain"]["high"], (gain, needed))
        expect("the same once more", lamina("fit", sweep), 0)
        check("the same file", json.loads((sweep / "fit.json").read_text()) == fit, "another fit.json")

        # The planted rows of training have 0.5 more; the last two of four steps are equal.
        expect("of training", lamina("fit", sweep, "--metric", "loss", "--window", 2, "--output", "other.json"), 0)
        other = json.loads((work / "other.json").read_text())
        for one, two in zip(fit["points"], other["points"]):
            check("the mean of the last two", abs(two["loss"] - one["loss"] - 0.5) < 1e-12, (one, two))
        unfinished(lamina, expect, check, sweep)

        # The table of the paper.
        expect("table", lamina("fit", "--table", root / "docs/examples/attnres_table2.csv", "--at", "5.6 PFLOP/s-days"), 0,
               r"baseline +5 +1 +1\.883 +0\.0563(.|\n)*block_attnres +5 +1 +1\.863 +0\.0579(.|\n)*block_attnres +power +1\.278")
        left = {path.name for path in work.iterdir()}
        check("nothing else is written", left == {"text.txt", "data", "sweep", "other.json", "real"}, left)
    finally:
        shutil.rmtree(work)
    for fault in faults:
        print(fault)
    return 1 if faults else 0


def train_sizes(lamina, expect, root: Path, work: Path) -> dict:
    """One short run of each size and variant; FLOPs per token as the trainer counts them."""
    flops = {}
    for size, hidden in HIDDEN_SIZES.items():
        for variant in LAWS:
            folder = work / "real" / f"{size}-{variant}"
            block_size = 1 if variant == "block_attnres" else "null"
            expect("train", lamina(
                "train", root / "configs/tiny.yaml", f"run.output_dir={folder}", "run.name=fit", "data.train.0.path=data",
                "data.validation.path=data", "data.validation.num_sequences=2", "data.seq_len=32", "model.num_hidden_layers=2",
                f"model.attn_res_block_size={block_size}", f"model.residual={variant}", f"model.hidden_size={hidden}", f"train.num_steps={NUM_STEPS}", "train.global_batch_size=2",
                "train.micro_batch_size=2", "train.lr_schedule.warmup_steps=1", "train.lr_schedule.decay_steps=1"), 0)
            row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
            flops[size, variant] = row["gflops"] * 1e9 / row["tokens_per_second"]
    return flops


def make_sweep(work: Path, sweep: Path, flops_per_token: dict) -> None:
    """Three seeds of each, with planted losses: a copy of the real run's configuration and rows."""
    noise = random.Random(3)  # how often intervals hold the truth is measured in tests/launch/study
    shared = {(size, seed): noise.gauss(0, 0.001) for size in HIDDEN_SIZES for seed in (1, 2, 3)}
    runs = []
    for size in HIDDEN_SIZES:
        for variant in LAWS:
            for seed in (1, 2, 3):
                real, name = work / "real" / f"{size}-{variant}", f"{size}-{variant}-{seed}"
                (sweep / name).mkdir(parents=True)
                config = (real / "config.yaml").read_text()
                (sweep / name / "config.yaml").write_text(re.sub(r"(?m)^  seed: \d+$", f"  seed: {seed}", config, count=1))
                rows = [json.loads(line) for line in (real / "metrics.jsonl").read_text().splitlines()]
                planted = loss(variant, flops_per_token[size, variant] * rows[-1]["tokens"])
                planted *= 1 + shared[size, seed] + noise.gauss(0, 0.0005)
                for row in rows:
                    row["loss"] = planted + (0.5 if row["step"] > NUM_STEPS - 2 else 2)
                rows[-1]["validation_loss"] = planted
                (sweep / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
                runs.append({"name": name, "size": size, "variant": variant, "seed": seed})
    (sweep / "sweep.json").write_text(json.dumps({"name": "ladder", "runs": runs}))


def refusals(lamina, expect, check, sweep: Path) -> None:
    expect("help", lamina("fit", "--help"), 0, r"Examples:\n +lamina fit runs/ladder")
    expect("no argument", lamina("fit"), 1, error=r"found neither a sweep's folder nor --table")
    expect("both", lamina("fit", sweep, "--table", "x.csv"), 1, error=r"found a sweep's folder and --table")
    expect("no such folder", lamina("fit", "nowhere"), 1, error=r"nowhere: not a sweep's folder: found no sweep\.json")
    expect("no such table", lamina("fit", "--table", "nowhere.csv"), 1, error=r"nowhere\.csv")
    expect("baseline", lamina("fit", sweep, "--baseline", "standrad"), 1, error=r"unknown variant 'standrad', did you mean standard\?")
    expect("compute", lamina("fit", sweep, "--at", "5 days"), 1, error=r"--at: found '5 days', expected a positive number of FLOP")
    expect("metric", lamina("fit", sweep, "--metric", "accuracy"), 1, error=r"--metric: accuracy not in")
    expect("option", lamina("fit", sweep, "--basline", "x"), 1, error=r"did you mean --baseline\?")
    rows = sweep / "s2-standard-2" / "metrics.jsonl"
    good = rows.read_text()
    rows.write_text(re.sub(r'"validation_loss": [\d.]+', '"validation_loss": -1', good))
    expect("a negative loss", lamina("fit", sweep), 1, error=r"s2-standard-2/metrics\.jsonl: found a loss that is no positive number")
    rows.write_text(re.sub(r'"validation_loss": [\d.]+', '"other": 1', good))
    expect("no validation", lamina("fit", sweep), 1, error=r"s2-standard-2/metrics\.jsonl: found no validation_loss at the last step")
    rows.write_text("broken\n" + good)
    expect("a broken row", lamina("fit", sweep), 1, error=r"s2-standard-2/metrics\.jsonl:1: found 'broken'")
    rows.write_text(good)
    check("nothing is written on failure", not (sweep / "fit.json").exists(), "fit.json")


def unfinished(lamina, expect, check, sweep: Path) -> None:
    diverged = sweep / "s2-standard-2" / "metrics.jsonl"   # by its last row, as of an older program
    good = diverged.read_text()
    diverged.write_text(re.sub(r'"validation_loss": [\d.]+', '"validation_loss": null', good))
    note = sweep / "s3-standard-1" / "diverged.json"       # by its own note
    note.write_text('{"step": 3, "reason": "step 3: loss nan"}\n')
    done = lamina("fit", sweep, "--resamples", 0)
    expect("diverged runs are left out", done, 0, error=rf"s2-standard-2 is left out: diverged at step {NUM_STEPS}")
    check("by both signs", "s3-standard-1 is left out: diverged at step 3" in done.stderr, done.stderr)
    diverged.write_text(good)
    note.unlink()
    rows = sweep / "s4-standard-3" / "metrics.jsonl"
    rows.write_text("".join(line + "\n" for line in rows.read_text().splitlines()[:2]))
    shutil.rmtree(sweep / "s3-block_attnres-1")
    done = lamina("fit", sweep, "--resamples", 100)
    expect("unfinished runs are left out", done, 0, r"22 of 2 variants(.|\n)*variants apart where their seeds do not match",
           rf"s4-standard-3 is left out: at step 2 of {NUM_STEPS}")
    check("and those that never began", "s3-block_attnres-1 is left out: not started" in done.stderr, done.stderr)
    before = (sweep / "fit.json").read_text()
    for size in ("s2", "s3"):
        for seed in (1, 2, 3):
            shutil.rmtree(sweep / f"{size}-standard-{seed}")
    done = lamina("fit", sweep)
    check("too few", done.returncode == 1 and
          "variant 'standard': found 2 different value(s) of compute, expected at least 3" in done.stderr, done.stderr)
    check("the last good file stays", (sweep / "fit.json").read_text() == before, "another fit.json")
    for run in sweep.glob("s*-*"):
        shutil.rmtree(run)
    done = lamina("fit", sweep)
    check("none finished", done.returncode == 1 and "found no finished run of 24" in done.stderr, done.stderr)


if __name__ == "__main__":
    sys.exit(main())
