#!/usr/bin/env python3
"""One run whose mixture, batch, length and rate change: killed at random and resumed it has the bits of a run that was never disturbed, and
any layout has one rank's losses. What is to come may change, what has begun may not.

    stages_test.py LAMINA
"""
import random
import sys
import tempfile
from pathlib import Path

import h5py

from resume_test import STEPS, changes, checkpoints, expect, kill_and_resume
from training import Lamina, merged, metrics

KILLS = 10
EXPERTS = {"num_experts": 4, "num_experts_per_token": 2, "moe_intermediate_size": 12, "mixers": ["mla", "kda"], "linear_num_heads": 2,
           "linear_head_dim": 8, "num_hidden_layers": 3}


def experiment(lamina: Lamina) -> dict:
    """Batches of 4, 8 and 12 sequences of 21; from step 14 on of 8, mostly of the other source; from 22 on of 42 tokens,
    from 31 on of 7."""
    return {"data": {"train": [{"path": str(lamina.tokens), "weight": 3}, {"path": str(lamina.folder / "more"), "weight": 1}]},
            "train": {"global_batch_size": 12, "micro_batch_size": 2, "batch_ramp": {"from": 4, "steps": 9, "increment": 4}},
            "stages": [{"from_step": 14, "global_batch_size": 8, "weights": [1, 4]},
                       {"from_step": 22, "seq_len": 42, "global_batch_size": 4, "lr_factor": 0.5},
                       {"from_step": 31, "seq_len": 7, "micro_batch_size": 4, "global_batch_size": 16, "weights": [1, 1]}]}


def shape_of(step: int) -> tuple[int, int]:
    """Sequences and their length, in words of the experiment."""
    if step < 14:
        return 4 + 4 * ((step - 1) * 2 // 9) if step <= 9 else 12, 21
    return (8, 21) if step < 22 else (4, 42) if step < 31 else (16, 7)


def prepare_more(lamina: Lamina) -> None:
    source = lamina.folder / "more.txt"
    source.write_text("".join(f"{n} and {n} make {2 * n}, {n} times {n} makes {n * n}\n" for n in range(1, 300)))
    done = lamina.run(["prepare", "--tokenizer", "bytes", "--output", str(lamina.folder / "more"), str(source)])
    expect(done.returncode == 0, f"prepare: {done.stderr}")


def rows_say_it(run: Path) -> None:
    """The rows' batches, lengths, tokens and rates are those of the file."""
    tokens = 0
    for row in metrics(run):
        sequences, length = shape_of(row["step"])
        tokens += sequences * length
        expect((row["sequences"], row["seq_len"], row["tokens"]) == (sequences, length, tokens), f"step {row['step']}: {row}")
        expect(abs(row["lr"] - 3e-3 * (1 if row["step"] < 22 else 0.5)) < 1e-12, f"step {row['step']}: rate {row['lr']}")


def layouts_agree(lamina: Lamina) -> None:
    exact = merged(experiment(lamina), {"train": {"num_steps": STEPS, "precision": "fp64", "optimizer": {"lr": 3e-3}}, "model": EXPERTS,
                                        "logging": {"layer_stats_interval": 7}})
    one = metrics(lamina.train("exact-one", exact))
    pipeline = {"pipeline": 2, "virtual_stages": 2, "schedule": "zero_bubble"}
    for name, parallel in (("data", {"expert": 2}), ("pipeline", pipeline)):
        rows = metrics(lamina.train(f"exact-{name}", merged(exact, {"parallel": parallel}), ranks=2))
        for key in ("loss", "grad_norm"):
            worst = max(abs(a[key] - b[key]) / abs(a[key]) for a, b in zip(one, rows, strict=True))
            expect(worst < 1e-9, f"{name}: '{key}' differs from one rank's by {worst}")
        expect([row["tokens"] for row in rows] == [row["tokens"] for row in one], f"{name}: tokens")


def batches_are_passed_over(lamina: Lamina) -> None:
    """A stage is a stretch of the order of batches: step 13 of a run without batches 13 to 23 takes batch 24, as step 24 of
    the whole order does."""
    with h5py.File(lamina.dump("order", 24, experiment(lamina))) as whole, \
            h5py.File(lamina.dump("holes", 13, merged(experiment(lamina), {"train": {"skip_steps": "13-23"}}))) as holes:
        expect(whole["tokens"].shape == (4, 42) and (whole["tokens"][...] == holes["tokens"][...]).all(), "step 13 is not batch 24")
    last = metrics(lamina.folder / "holes")[-1]
    expect(last["batch"] == 24 and last["tokens"] == sum(a * b for a, b in map(shape_of, range(1, 13))) + 4 * 42, f"holes: {last}")


def later_stages_change(lamina: Lamina) -> None:
    first = merged(merged(changes(STEPS, dump=False), experiment(lamina)), {"checkpoint": {"interval": 5}})
    run = lamina.train("changed", first, overrides=("train.num_steps=20",))
    config = lamina.write_config("changed", first)
    done = lamina.run(["train", str(config), "stages.0.weights=[4, 1]", "train.num_steps=20"])
    expect(done.returncode == 1 and "stages[0].weights: [4, 1] found, expected [1, 4]: the run has come to batch 20, and stages that "
           "have begun stay as they are" in done.stderr, f"a stage that has begun: {done.returncode} {done.stderr}")
    done = lamina.run(["train", str(config), "stages.1.seq_len=84", "train.num_steps=25"])
    expect(done.returncode == 1 and "data.piece_len: 42 keeps the text's order so far" in done.stderr, f"longer pieces: {done.stderr}")
    done = lamina.run(["train", str(config), "stages.1.seq_len=84", "data.piece_len=42", "stages.1.from_step=24", "train.num_steps=25"])
    expect(done.returncode == 0 and "the run goes on with stages[1].seq_len: 84 (was 42)" in done.stderr and
           "step 24: stage 5 of 6: 4 x 84 tokens per step" in done.stderr, f"a stage that is to come: {done.returncode} {done.stderr}")
    expect([row["seq_len"] for row in metrics(run)][20:] == [21, 21, 21, 84, 84], "the changed stage's steps")
    expect(checkpoints(run)[-1].name == "step-00000025", "the changed run's end")


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        lamina = Lamina(sys.argv[1], Path(folder))
        lamina.prepare()
        prepare_more(lamina)
        randomly = random.Random(33)
        for ranks, parallel, kills in ((1, {}, KILLS), (2, {"data": 2}, 3), (2, {"pipeline": 2, "virtual_stages": 2}, 3)):
            steps = sorted(randomly.sample(range(2, STEPS - 2), kills))
            rows_say_it(kill_and_resume(lamina, ranks, randomly, merged(experiment(lamina), {"parallel": parallel}), kills, steps))
        layouts_agree(lamina)
        batches_are_passed_over(lamina)
        later_stages_change(lamina)
    print("stages: the same bits however often they were interrupted, the same losses at any layout")


if __name__ == "__main__":
    main()
