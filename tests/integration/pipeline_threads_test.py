#!/usr/bin/env python3
"""The same layout as threads of one process and as processes gives the same bits; so does a second run.

    pipeline_threads_test.py LAMINA TRAIN_THREADS
"""
import subprocess
import sys
import tempfile
from pathlib import Path

from resume_test import assert_same_bits, expect
from training import Lamina, merged, metrics

STEPS = 4
BASE = {"train": {"num_steps": STEPS, "global_batch_size": 12, "micro_batch_size": 1, "optimizer": {"lr": 3e-3}},
        "logging": {"layer_stats_interval": 1}, "debug": {"dump_step": STEPS}}
LAYOUTS = [
    (2, {"pipeline": 2, "virtual_stages": 2, "schedule": "interleaved_1f1b", "split": [1, 2, 1, 1]},
     {"model": {"tie_word_embeddings": True}, "train": {"recompute": "selective"}}),
    (4, {"pipeline": 2, "virtual_stages": 2, "data": 2, "schedule": "zero_bubble", "block_transport": "full"},
     {"model": {"attn_res_block_size": 1}}),
    (3, {"pipeline": 3, "schedule": "1f1b"},
     {"model": {"residual": "full_attnres", "attn_res_block_size": None}, "train": {"recompute": "full"}}),
    (4, {"pipeline": 4, "schedule": "gpipe", "split": [0, 2, 2, 1]}, {"model": {"tie_word_embeddings": True}}),
]


def train_in_threads(program: str, lamina: Lamina, name: str, changes: dict, ranks: int) -> Path:
    done = subprocess.run([program, str(ranks), str(lamina.write_config(name, changes))], env=lamina.environment, check=False,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, cwd=lamina.folder)
    expect(done.returncode == 0, f"{name}: {ranks} threads ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return lamina.folder / name


def same_logs(one: Path, other: Path) -> None:
    expect((one / "layers.jsonl").read_text() == (other / "layers.jsonl").read_text(), f"layers.jsonl of {other} differs")
    for a, b in zip(metrics(one), metrics(other), strict=True):
        for key in ("step", "loss", "grad_norm", "lr", "tokens", "comm_bytes"):
            expect(a[key] == b[key], f"step {a['step']} of {other}: {key} is {b[key]}, expected {a[key]}")


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    program = str(Path(sys.argv[2]).resolve())
    with tempfile.TemporaryDirectory() as folder:
        lamina = Lamina(sys.argv[1], Path(folder))
        lamina.prepare()
        for number, (ranks, parallel, more) in enumerate(LAYOUTS):
            # Which product bf16 takes is measured at each run's start; two runs could choose differently.
            for precision, products in (("fp32", {}), ("bf16", {"bf16_products": "fp32"})):
                changes = merged(merged(BASE, more), {"parallel": parallel, "train": {"precision": precision, **products}})
                processes = lamina.train(f"processes-{number}-{precision}", changes, ranks)
                threads = train_in_threads(program, lamina, f"threads-{number}-{precision}", changes, ranks)
                assert_same_bits(processes / f"dump-step-{STEPS}.h5", threads / f"dump-step-{STEPS}.h5")
                same_logs(processes, threads)
                print(f"{parallel} {precision}: {ranks} threads give the bits of {ranks} processes", flush=True)


if __name__ == "__main__":
    main()
