#!/usr/bin/env python3
"""`lamina verify` as a user runs it, on tokens made from a text: what it prints, and how it fails.

    verify_test.py LAMINA ROOT
"""
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

# configs/tiny.yaml, made small; five layers, so that chunks are uneven and blocks of two cross them.
SMALL = ["model.hidden_size=32", "model.num_hidden_layers=5", "model.kv_lora_rank=10", "model.qk_nope_head_dim=6",
         "model.qk_rope_head_dim=5", "model.v_head_dim=7", "model.intermediate_size=44", "model.initializer_range=0.15",
         "data.seq_len=21", "data.train=[{path: tokens}]", "data.validation=null", "train.global_batch_size=8",
         "train.micro_batch_size=2", "run.num_threads=1"]

# The same as a Kimi Linear: both mixers, four experts from the second layer on, documents apart.
KIMI = [*SMALL, "model.mixers=[kda, mla]", "model.linear_num_heads=2", "model.linear_head_dim=16", "model.num_experts=4",
        "model.num_experts_per_token=2", "model.moe_intermediate_size=12", "model.aux_loss_alpha=0.01",
        "data.document_mask=true", "train.micro_batch_size=1"]


def main() -> int:
    program, config = str(Path(sys.argv[1]).resolve()), str(Path(sys.argv[2]).resolve() / "configs/tiny.yaml")
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as folder:

        def lamina(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
            return subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True, timeout=120,
                                  env={**os.environ, **variables})

        def verify(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
            return lamina("verify", config, *SMALL, *arguments, **variables)

        def expect(name: str, done: subprocess.CompletedProcess, code: int, output: str = "", error: str = "") -> None:
            if done.returncode != code:
                faults.append(f"{name}: exit {done.returncode}, expected {code}: {done.stderr}")
            if output and not re.search(output, done.stdout):
                faults.append(f"{name}: /{output}/ is not in the output: {done.stdout}")
            if error and not re.search(error, done.stderr):
                faults.append(f"{name}: /{error}/ is not in the messages: {done.stderr}")
            reasons = [line for line in done.stderr.splitlines() if " E " in line]
            if len(reasons) != (1 if code else 0):
                faults.append(f"{name}: {len(reasons)} reasons: {done.stderr}")

        Path(folder, "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 200)
        expect("prepare", lamina("prepare", "--tokenizer", "bytes", "--output", "tokens", "text.txt"), 0)
        before = sorted(Path(folder).iterdir())
        row = r" +\d+ +\d\.\d{6} +\d\.\de[-+]\d\d +\d\.\de-\d\d +(?P<sent>\d+)/(?P=sent) +(?P<held>\d+)/(?P=held) +ok "
        expect("help", lamina("verify", "--help"), 0, r"Examples:\n +lamina verify")
        expect("good layouts", verify("--layouts", "2x2x1,2x1x2:full:recompute=selective,4x1x1:zero_bubble:split=0/3/1/1"), 0,
               rf"precision   fp32 instead of the configuration's bf16(.|\n)*\n2x2x1{row}(.|\n)*", r"I 3/3 4x1x1:zero_bubble")
        expect("double precision", verify("--layouts", "2x2x2:zero_bubble", "--precision", "fp64"), 0,
               rf"precision   fp64, the reference loops: slow(.|\n)*at most 1e-12 pass(.|\n)*\n2x2x2:zero_bubble{row}")
        expect("bf16", verify("--layouts", "2x2x1", "--precision", "bf16"), 0, r"whose rounding hides small faults")
        expect("all of one rank", verify("--layouts", "all", "--max-ranks", "1"), 0, rf"\n1x4x1:interleaved_1f1b{row}")
        routed = row.replace(" +ok ", r"  +(?P<rows>[1-9]\d+)/(?P=rows)  ok ")
        expect("ranks for the experts", lamina("verify", config, *KIMI, "--precision", "fp64", "--layouts", "1x1x2:expert=2,2x2x2:expert=2"), 0,
               rf"held/bound +rows sent/routed +verdict(.|\n)*\n1x1x2:expert=2{routed}(.|\n)*\n2x2x2:expert=2 ")
        expect("all has them", lamina("verify", config, *KIMI, "--layouts", "all", "--max-ranks", "2", "--tolerance", "1"), 0,
               r"\n1x2x2:gpipe:expert=1 .* 0/0  ok (.|\n)*\n1x2x2:gpipe:expert=2 ")
        expect("ranks that don't divide the experts", lamina("verify", config, *KIMI, "--layouts", "1x1x8:expert=8"), 1,
               error=r"1x1x8:expert=8: refused: parallel.expert: found 8, expected a divisor of model.num_experts \(4\)")
        expect("ranks for no experts", verify("--layouts", "1x1x2:expert=2"), 1, error=r"no effect with model.num_experts: 0")
        expect("past the tolerance", verify("--layouts", "1x1x1,2x2x1,1x1x2", "--tolerance", "1e-30"), 1,
               r"\n1x1x1 +1 .* ok +none, all are equal\n2x2x1 .* FAILED +(lm_head|model\.)",
               r"error: 2x2x1: the gradient of (lm_head|model\.)\S+ differs from one rank's by .* at most 1e-30 \(and 1 more")
        expect("a refused layout", verify("--layouts", "1x1x1,1x1x3"), 1, r"\n1x1x3 +3 refused: train\.global_batch_size",
               r"error: 1x1x3: refused: train\.global_batch_size: found 8, expected a multiple of 6")
        expect("a layout that is none", verify("--layouts", "2x2"), 1, error=r"--layouts: found '2x2', expected all or PIPE")
        expect("no layouts", verify(), 1, error=r"--layouts is required")
        expect("a bad precision", verify("--layouts", "1x1x1", "--precision", "fp16"), 1, error=r"precision")
        expect("step 0", verify("--layouts", "1x1x1", "--step", "0"), 1, error=r"step")
        expect("no such checkpoint", verify("--layouts", "1x1x1", "--checkpoint", "none"), 1, error=r"none: no such folder")
        expect("under mpirun", verify("--layouts", "1x1x1", OMPI_COMM_WORLD_RANK="0", OMPI_COMM_WORLD_SIZE="2"), 1,
               error=r"lamina verify: found 2 ranks, expected one process")
        if sorted(Path(folder).iterdir()) != before:
            faults.append(f"left {sorted(Path(folder).iterdir())}")
        expect("train", lamina("train", config, *SMALL, "run.output_dir=run", "train.num_steps=3", "checkpoint.interval=0",
                               "train.lr_schedule=null", "train.precision=bf16"), 0)
        expect("a checkpoint", verify("--layouts", "2x2x1", "--checkpoint", "run", "--step", "4"), 0,
               rf"parameters  run\ndata        step 4: 8 sequences of 21 tokens\n(.|\n)*\n2x2x1{row}")
    for fault in faults:
        print(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
