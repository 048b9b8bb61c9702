#!/usr/bin/env python3
"""`lamina plan` and `lamina check` as a user runs them: what they print, and how they fail.

    plan_test.py LAMINA ROOT
"""
import re
import subprocess
import sys
import tempfile
from pathlib import Path

TINY = "model.vocab_size=259"


def main() -> int:
    program, root = sys.argv[1], Path(sys.argv[2])
    faults: list[str] = []

    def lamina(*arguments: str) -> subprocess.CompletedProcess:
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True, timeout=300)
            left = list(Path(folder).iterdir())
            if left:
                faults.append(f"{arguments}: left {left}")
            return done

    def expect(name: str, done: subprocess.CompletedProcess, code: int, output: str = "", error: str = "") -> None:
        if done.returncode != code:
            faults.append(f"{name}: exit {done.returncode}, expected {code}: {done.stderr}")
        if output and not re.search(output, done.stdout):
            faults.append(f"{name}: /{output}/ is not in the output: {done.stdout}")
        if error and not re.search(error, done.stderr):
            faults.append(f"{name}: /{error}/ is not in the message: {done.stderr}")
        if code != 0 and len(done.stderr.strip().splitlines()) != 1:
            faults.append(f"{name}: the reason is not one line: {done.stderr}")

    tiny, large = str(root / "configs/tiny.yaml"), str(root / "configs/kimi_linear_48b.yaml")
    expect("help", lamina("plan", "--help"), 0, r"Examples:\n +lamina plan")
    expect("no data is read", lamina("plan", tiny, TINY), 0, r"device +this machine's processor, measured: [\d.e+-]+ TFLOP/s(.|\n)*memory +fits: ")
    expect("a processor is shared out", lamina("plan", tiny, TINY, "--ranks", "4"), 0, r"device +one of 4 ranks on this machine's processor, measured: ")
    expect("what is told", lamina("plan", tiny, TINY, "--device-tflops", "0.5", "--memory-gib", "8", "--memory-bandwidth", "20", "--bandwidth", "1",
                                  "--node-bandwidth", "10"), 0, r"device +as told: 0\.5 TFLOP/s, 8 GiB at 20 GB/s; 10 GB/s inside a node of 8, 1 GB/s between")
    h200, layout = str(root / "configs/devices/h200.yaml"), ("--ranks", "64", "parallel.expert=8")
    expect("a device file", lamina("plan", large, *layout, "--device", h200), 0,
           r"device +NVIDIA H200 SXM: 791\.6 TFLOP/s, 133 GiB at 4320 GB/s; 360 GB/s inside a node of 8, 45 GB/s between nodes\n"
           r" +of +TFLOP/s 989\.5 \(datasheet\) x 0\.8 \(assumed\), (.|\n)*memory +fits: [\d.]+ of 133 GiB")
    expect("a device file, and what is told", lamina("plan", tiny, TINY, "--device", h200, "--memory-gib", "40"), 0,
           r"device +NVIDIA H200 SXM, and as told: 791\.6 TFLOP/s, 40 GiB")
    operations = lamina("plan", large, *layout, "--device", h200, "--operations")
    expect("operations", operations, 0, r"operations +PREDICTED, not measured: (.|\n)*bounds it +.+, \w+: [\d.]+ % of the sum, by \w+\nnot in it")
    times = [float(time) for time in re.findall(r"([\d.]+) +[\d.]+%$", operations.stdout, re.MULTILINE)]
    if len(times) < 50 or abs(sum(times[:-1]) - times[-1]) > 1e-3 * len(times):
        faults.append(f"operations: the times add up to {sum(times[:-1])}, the table's sum is {times[-1:]}: {operations.stdout}")
    expect("operations without a device", lamina("plan", large, *layout, "--operations"), 1, error=r"--operations requires --device")
    expect("two tables", lamina("plan", large, *layout, "--device", h200, "--operations", "--schedules"), 1, error=r"--operations")
    expect("no such device", lamina("plan", tiny, TINY, "--device", "mine.yaml"), 1, error=r"mine\.yaml")
    expect("a device's file is none of an experiment", lamina("plan", tiny, TINY, "--device", tiny), 1, error=r"tiny\.yaml:\d+: \w+: unknown key")
    expect("mhc is not for GPUs", lamina("plan", tiny, TINY, "--device", h200, "model.residual=mhc"), 1,
           error=r"model\.residual: found mhc with --device .*h200\.yaml, expected standard, full_attnres or block_attnres")
    expect("a rate of bf16", lamina("plan", tiny, TINY, "--device", h200, "train.precision=fp32"), 1,
           error=r"train\.precision: found fp32 with --device .*h200\.yaml, expected bf16")
    expect("the tokenizer's vocabulary", lamina("plan", tiny), 1, error=r"data/english")
    expect("1,024 ranks", lamina("plan", large, "--ranks", "1024", "parallel.expert=8"), 0,
           r"device +an H100 SXM as its data sheet has it: 989\.5 TFLOP/s, 80 GiB(.|\n)*layouts +\d+ possible on 1024")
    expect("too small", lamina("plan", large, "--ranks", "8", "parallel.expert=2"), 0,
           r"memory +DOES NOT FIT: [\d.]+ of 80 GiB(.|\n)*, 0 fit; those that need least")
    expect("larger devices", lamina("plan", large, "--ranks", "8", "parallel.expert=2", "--memory-gib", "139"), 0,
           r", [1-9]\d* fit; the quickest")
    expect("an impossible layout has its reason, and the possible ones",
           lamina("plan", tiny, TINY, "--ranks", "3", "parallel.pipeline=2"), 1, r"layouts +\d+ possible on 3 ranks",
           r"parallel\.pipeline: found 2 with 3 ranks, expected a divisor")
    expect("no other layouts", lamina("plan", tiny, TINY, "--layouts", "0"), 0, r"fits: [^\n]*\n\Z")
    expect("schedules", lamina("plan", large, "--ranks", "64", "parallel.expert=8", "--schedules"), 0,
           r"gpipe +cached(.|\n)*interleaved_1f1b +full(.|\n)*zero_bubble +cached")
    expect("a bad number", lamina("plan", tiny, TINY, "--memory-gib", "-1"), 1, error=r"memory-gib")
    expect("an unknown option", lamina("plan", tiny, "--rank", "3"), 1, error=r"did you mean --ranks\?")

    expect("check: the 48B model is trainable, its data is not here", lamina("check", large, "--ranks", "64"), 1,
           error=r"data/pretraining: ")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "text").write_text("a few words " * 2000)
        prepared = subprocess.run([program, "prepare", "--tokenizer", "bytes", "--output", "tokens", "text"], cwd=folder, capture_output=True, text=True)
        done = subprocess.run([program, "check", tiny, "data.train=[{path: tokens}]", "data.validation=null", "train.num_steps=50"], cwd=folder,
                              capture_output=True, text=True)
        expect("check: memory, epochs and a schedule that is cut", done, 0,
               r"note +train\.lr_schedule does not fit (.|\n)*memory +0\.\d GiB on the fullest rank \(lamina plan\)\n(.|\n)*epochs of tokens; MANY: ")
        done = subprocess.run([program, "check", tiny, "data.train=[{path: tokens}]", "data.validation=null", "model.hidden_size=65536",
                               "model.intermediate_size=262144"], cwd=folder, capture_output=True, text=True)
        expect("check: too large for this machine", done, 0, r"memory +\d+\.\d GiB on the fullest rank \(lamina plan\); NOT ENOUGH here: this machine has ")
    expect("check: ranks", lamina("check", tiny, TINY, "--ranks", "6", "parallel.pipeline=4"), 1,
           error=r"parallel\.pipeline: found 4 with 6 ranks, expected a divisor .* the nearest are 4 and 8")
    expect("check: batch", lamina("check", tiny, TINY, "--ranks", "6", "parallel.pipeline=2"), 1,
           error=r"expected a multiple of 12: .* micro_batch_size \(4\) x data \(3\)")
    expect("check: chunks", lamina("check", tiny, TINY, "--ranks", "4", "parallel.pipeline=4", "parallel.virtual_stages=3"),
           1, error=r"= 12 chunks, expected at most 10")
    expect("check: split", lamina("check", tiny, TINY, "--ranks", "2", "parallel.pipeline=2", "parallel.split=[4,5]"), 1,
           error=r"parallel\.split\[1\]: found 5, expected at most 4")
    for fault in faults:
        print(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
