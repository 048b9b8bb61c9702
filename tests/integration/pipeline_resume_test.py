#!/usr/bin/env python3
"""A run that moves from layout to layout, a checkpoint between each, ends where an undisturbed run of one rank ends. A
pipeline that is killed and resumed on its own layout gives the bits of one that was never disturbed.

    pipeline_resume_test.py LAMINA
"""
import random
import sys
import tempfile
from pathlib import Path

import h5py

import compare_dump
from resume_test import checkpoints, expect, kill_and_resume
from run_dump_matrix import Matrix, difference
from training import Lamina, merged, metrics

STEPS_EACH = 2


def layout(pipeline: int, virtual: int, data: int, **more) -> tuple[int, dict]:
    return pipeline * data, {"parallel": {"pipeline": pipeline, "virtual_stages": virtual, "data": data, **more}}


JOURNEYS = [
    [layout(2, 2, 1), layout(1, 1, 1), layout(1, 1, 2), layout(3, 1, 1, schedule="1f1b"),
     layout(2, 1, 2, schedule="zero_bubble")],
    [layout(4, 1, 1, split=[0, 2, 3, 0]), layout(2, 2, 2, schedule="zero_bubble", block_transport="full"), layout(1, 3, 1),
     layout(3, 2, 1, schedule="gpipe"), layout(1, 1, 3), layout(2, 1, 1, split=[4, 1])],
]
MODELS = [
    {"model": {"tie_word_embeddings": True}},
    {"model": {"tie_word_embeddings": False, "attn_res_block_size": 1, "q_lora_rank": 11}},
    {"model": {"tie_word_embeddings": True, "residual": "full_attnres", "attn_res_block_size": None},
     "train": {"precision": "fp64"}},
]


def experiment(more: dict, steps: int, dump: bool) -> dict:
    return merged({"train": {"num_steps": steps, "global_batch_size": 12, "micro_batch_size": 1, "optimizer": {"lr": 1e-3}},
                   "debug": {"dump_step": steps if dump else 0}}, more)


def travel(lamina: Lamina, matrix: Matrix, number: int, journey: list, more: dict) -> None:
    steps, name = STEPS_EACH * len(journey), f"journey-{number}"
    whole = lamina.train(f"whole-{number}", experiment(more, steps, True))
    run = lamina.folder / name
    for stop, (ranks, parallel) in enumerate(journey, 1):
        reached = STEPS_EACH * stop
        lamina.train(name, merged(experiment(more, reached, reached == steps), parallel), ranks)
        newest = checkpoints(run)[-1]
        expect(newest.name == f"step-{reached:08d}", f"{name}: {newest.name} after {reached} steps")
        resumed = (run / "log.txt").read_text().count("resumed from")
        expect(resumed == stop - 1, f"{name}: resumed {resumed} times before stop {stop}")
    # Sums over sequences in another order: a rounding per update and parameter.
    precise = more.get("train", {}).get("precision") == "fp64"
    rows = difference(whole / f"dump-step-{steps}.h5", run / f"dump-step-{steps}.h5", loss=1e-12 if precise else 1e-6,
                      gradient=1e-10 if precise else 1e-5)
    ours, theirs = metrics(run), metrics(whole)
    expect([row["step"] for row in ours] == list(range(1, steps + 1)), f"steps of {name}: {[row['step'] for row in ours]}")
    rows += [compare_dump.Row(f"metrics {key} of step {a['step']}", abs(a[key] - b[key]) / b[key], 1e-10 if precise else 1e-5)
             for a, b in zip(ours, theirs, strict=True) for key in ("loss", "grad_norm", "tokens")]
    with h5py.File(run / f"dump-step-{steps}.h5", "r") as file:
        moved = sum(float(abs(file["parameters_after"][key][()] - file["parameters"][key][()]).sum()) for key in file["parameters"])
    expect(moved > 0, f"{name}: nothing was trained in the last step")
    route = " -> ".join("x".join(str(p["parallel"][key]) for key in ("pipeline", "virtual_stages", "data")) for _, p in journey)
    matrix.judge(f"{route} {more}", rows)


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        lamina = Lamina(sys.argv[1], Path(folder))
        lamina.prepare()
        matrix = Matrix(lamina)
        pairs = [(JOURNEYS[0], MODELS[0]), (JOURNEYS[0], MODELS[2]), (JOURNEYS[1], MODELS[1]), (JOURNEYS[1], MODELS[0])]
        for number, (journey, more) in enumerate(pairs):
            travel(lamina, matrix, number, journey, more)
        randomly = random.Random(21)
        tied = {"model": {"tie_word_embeddings": True}}
        for ranks, parallel in (layout(2, 2, 1, schedule="zero_bubble"), layout(2, 1, 2)):
            kill_and_resume(lamina, ranks, randomly, merged(tied, parallel), max_kills=4)
        print(f"{matrix.passed} journeys passed, {len(matrix.failed)} failed")
        return 1 if matrix.failed or matrix.passed != len(pairs) else 0


if __name__ == "__main__":
    sys.exit(main())
