#!/usr/bin/env python3
"""Steps out of line: a batch of noise in orderly text is told, passed over, or gone back from, and each way ends with the bits of a run
that was told beforehand which batches to leave out; also when it is stopped on the way, and with two ranks.

    spikes_test.py LAMINA
"""
import json
import random
import sys
import tempfile
from pathlib import Path

import h5py

from resume_test import assert_same_bits, checkpoints
from training import Lamina, merged, metrics

STEPS = 64
SETTINGS = {"train": {"num_steps": STEPS, "optimizer": {"lr": 3e-3}, "grad_clip": 1.0}, "checkpoint": {"interval": 16, "keep": 0}}
TIMES = {"tokens_per_second", "interval_tokens_per_second", "mfu", "gflops", "peak_bytes", "time", "start"}


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(f"spikes_test: {message}")


def prepare(lamina: Lamina) -> None:
    """One sentence over and over, and in the middle a stretch of noise, about as long as a sequence."""
    noise = "".join(chr(c) for c in random.Random(5).choices(range(33, 126), k=30))
    source = lamina.folder / "text.txt"
    source.write_text("abcdefg " * 900 + noise + " abcdefg" * 900)
    done = lamina.run(["prepare", "--tokenizer", "bytes", "--output", str(lamina.tokens), str(source)])
    expect(done.returncode == 0, f"prepare: {done.stderr}")


def spikes(run: Path) -> list[dict]:
    path = run / "spikes.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def rows(run: Path) -> list[dict]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in metrics(run)]


def end(run: Path) -> Path:
    expect(checkpoints(run)[-1].name == f"step-{STEPS:08d}", f"{run.name}: the last checkpoint is {checkpoints(run)[-1].name}")
    return checkpoints(run)[-1] / "checkpoint.h5"


def same(a: Path, b: Path) -> None:
    expect(rows(a) == rows(b), f"the metrics of {a.name} and {b.name} differ")
    assert_same_bits(end(a), end(b))


def settings(action: str, **more: object) -> dict:
    return merged(SETTINGS, {"train": {"on_spike": action, **more}})


def warned(lamina: Lamina) -> int:
    """Nothing is done about it; all that differs from a run that doesn't look is the record. Returns the batch."""
    run = lamina.train("warn", settings("warn"))
    found = spikes(run)
    expect(len(found) >= 1 and all(s["action"] == "warn" and s["passed"] == "" for s in found), f"warn: {found}")
    expect(33 <= found[0]["step"] == found[0]["batch"] < STEPS, f"warn: {found}")
    losses = [row["loss"] for row in metrics(run)]
    step = found[0]["step"]
    expect(losses[step - 1] > 1.5 * losses[step - 2], f"no spike at step {step}: {losses[step - 3:step + 1]}")
    blind = lamina.train("blind", settings("warn", spike_threshold=0))
    expect(spikes(blind) == [], "threshold 0 finds a finite spike")
    same(run, blind)
    return step


def named(lamina: Lamina, batches: str) -> Path:
    """The run that leaves them out by name."""
    run = lamina.train(f"named-{batches}", settings("warn", skip_steps=batches, spike_threshold=0))
    expect(spikes(run) == [], "named batches are no spikes")
    return run


def order(lamina: Lamina) -> None:
    """Step 3 of a run without batches 2 and 3 takes what step 5 of the whole order takes."""
    with h5py.File(lamina.dump("whole", 5, SETTINGS)) as whole, \
            h5py.File(lamina.dump("holes", 3, settings("warn", skip_steps="2-3"))) as holes:
        expect((whole["tokens"][...] == holes["tokens"][...]).all(), "step 3 without batches 2 and 3 is not batch 5")
    expect([row.get("batch") for row in metrics(lamina.folder / "holes")] == [None, 4, 5], "the batches of steps 1 to 3")


def passed(lamina: Lamina, action: str, batch: int, ranks: int = 1) -> None:
    first = batch if action == "skip" else (batch - 1) // 16 * 16 + 1
    reference = named(lamina, f"{first}-{batch}" if first < batch else str(batch))
    run = lamina.train(f"{action}-{ranks}", settings(action), ranks)
    found = spikes(run)
    expect(len(found) == 1 and found[0]["action"] == action and found[0]["batch"] == batch and
           found[0]["passed"] == (f"{first}-{batch}" if first < batch else str(batch)), f"{action}: {found}")
    if ranks == 1:
        same(run, reference)
    # Stopped before the spike, after it and before the next checkpoint, and after that: the same bits each time.
    config = lamina.write_config(f"{action}-{ranks}-stopped", settings(action))
    for until in (batch - 2, batch + 1, 50, STEPS):
        done = lamina.run(["train", str(config), f"train.num_steps={until}"], ranks)
        expect(done.returncode == 0, f"{action} until {until}: {done.stderr}")
    stopped = lamina.folder / f"{action}-{ranks}-stopped"
    if action == "skip":  # a stop is a checkpoint, to which rewinding goes back
        same(stopped, run)


def across_stages(lamina: Lamina, batch: int) -> None:
    """Going back over the start of a stage, to a checkpoint of the one before: the batches that are passed over are those of the two stages,
    and what follows is the later stage's."""
    checkpoint = (batch - 1) // 16 * 16
    begin = checkpoint + 2  # of batches twice as long; the noise stays ahead, and before the next checkpoint
    staged = {"stages": [{"from_step": begin, "global_batch_size": 8, "lr_factor": 0.5}]}
    spike = begin + (batch - begin) // 2
    run = lamina.train("rewind-stages", {**settings("rewind"), **staged})
    found = spikes(run)
    expect(len(found) == 1 and found[0]["batch"] == spike > begin and found[0]["passed"] == f"{checkpoint + 1}-{spike}",
           f"across stages: {found}, expected batches {checkpoint + 1}-{spike}")
    expect([row["sequences"] for row in metrics(run)] == [4] * checkpoint + [8] * (STEPS - checkpoint), "across stages: the rows' sequences")
    same(run, lamina.train("named-stages", {**settings("warn", skip_steps=f"{checkpoint + 1}-{spike}", spike_threshold=0), **staged}))


def refused(lamina: Lamina, batch: int) -> None:
    """What has been trained on can't be left out any more."""
    config = lamina.write_config("skip-1", settings("skip", skip_steps="3", num_steps=STEPS + 1))
    done = lamina.run(["train", str(config)])
    expect(done.returncode == 1 and f"train.skip_steps: found 3, but step-{STEPS:08d} has trained on the batches up to {STEPS + 1} without "
           f"{batch}, expected later ones" in done.stderr, f"skip_steps of the past: {done.returncode} {done.stderr}")
    for text, part in (("5-3", "5-3"), ("0", "0"), ("x", "x"), ("4,,5", ""), ("7-", "7-")):
        done = lamina.run(["check", str(config), f"train.skip_steps={text}"])
        expect(done.returncode == 1 and f"train.skip_steps" in done.stderr and f"found `{part}`, expected steps" in done.stderr,
               f"skip_steps={text}: {done.stderr}")


def limited(lamina: Lamina) -> None:
    """Numbers that stay infinite end the run, and soon."""
    config = lamina.write_config("limit", settings("skip", max_spikes=4, optimizer={"lr": 1e30}))
    done = lamina.run(["train", str(config)])
    found = spikes(lamina.folder / "limit")
    expect(done.returncode == 76 and len(found) == 4 and "4 spikes within the 128 batches before were passed over" in done.stderr,
           f"limit: {done.returncode}, {len(found)} spikes: {done.stderr}")
    expect([s["batch"] for s in found] == list(range(found[0]["batch"], found[0]["batch"] + 4)) and
           {s["step"] for s in found} == {found[0]["step"]}, f"limit: {found}")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        lamina = Lamina(sys.argv[1], Path(folder))
        prepare(lamina)
        order(lamina)
        batch = warned(lamina)
        for action in ("skip", "rewind"):
            passed(lamina, action, batch)
        passed(lamina, "skip", batch, ranks=2)
        passed(lamina, "rewind", batch, ranks=2)
        across_stages(lamina, batch)
        refused(lamina, batch)
        limited(lamina)
    print(f"spikes: batch {batch} told, passed over and gone back from")


if __name__ == "__main__":
    main()
