#!/usr/bin/env python3
"""What run.device: cuda, and --device cuda of what writes text, give where no GPU is usable: one line with the reason, exit 1, nothing
written; `lamina check` still checks.

    device_test.py LAMINA
"""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CONFIG = """
run: {name: test, output_dir: OUT, device: cuda, num_threads: 1}
model: {vocab_size: 257, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, kv_lora_rank: 8,
        qk_nope_head_dim: 8, qk_rope_head_dim: 4, v_head_dim: 8, intermediate_size: 32}
data: {seq_len: 16, train: [{path: TOKENS}]}
train: {num_steps: 2, global_batch_size: 2, micro_batch_size: 1, optimizer: {name: adamw, lr: 1.0e-3}}
"""


def main() -> int:
    program, faults = sys.argv[1], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def run(*arguments: str) -> subprocess.CompletedProcess:
            return subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True, timeout=120)

        def expect_reason(what: str, done: subprocess.CompletedProcess) -> list[str]:
            said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            if len(said) != 1 or not any(word in said[0] for word in ("no CUDA", "no NVIDIA driver", "no GPU", "driver")):
                faults.append(f"{what}: said {said}, expected one line with the reason")
            return said

        (folder / "text.txt").write_text("a few words to train on, again and again. " * 200)
        prepared = run("prepare", "--tokenizer", "bytes", "--output", "tokens", "text.txt")
        if prepared.returncode != 0:
            raise SystemExit(prepared.stdout + prepared.stderr)
        config = folder / "test.yaml"
        config.write_text(CONFIG.replace("OUT", str(folder / "run")).replace("TOKENS", str(folder / "tokens")))

        findings = json.loads(run("doctor", "--json", "--quick").stdout)["findings"]
        has_gpu = any(f["topic"].startswith("GPU ") or "GPU 0" in f["text"] for f in findings)
        trained = run("train", str(config))
        if has_gpu:
            print("a GPU is here: the refusal can't be seen")
            return 0 if trained.returncode == 0 else 1
        if trained.returncode != 1:
            faults.append(f"train: exit {trained.returncode}, expected 1: {trained.stdout}{trained.stderr}")
        said = expect_reason("train", trained)
        if (folder / "run").exists():
            faults.append(f"train: left {os.listdir(folder / 'run')}")
        checked = run("check", str(config))
        if "device" not in checked.stdout:
            faults.append(f"check: exit {checked.returncode}, no line on the device: {checked.stdout}{checked.stderr}")
        double = run("check", str(config), "train.precision=fp64")
        if double.returncode != 1 or "fp64" not in double.stdout + double.stderr:
            faults.append(f"check with fp64: exit {double.returncode}: {double.stdout}{double.stderr}")
        on_cpu = run("train", str(config), "run.device=cpu")
        if on_cpu.returncode != 0:
            faults.append(f"train on the CPU: exit {on_cpu.returncode}: {on_cpu.stdout}{on_cpu.stderr}")
        writers = {"sample": ("sample", "--checkpoint", "run", "--prompt", "a", "--max-tokens", "1"), "serve": ("serve", "run", "--port", "0")}
        for what, command in writers.items():
            refused = run(*command, "--device", "cuda")
            expect_reason(f"{what} --device cuda", refused)
            if refused.returncode != 1 or "--device cpu" not in refused.stderr:
                faults.append(f"{what} --device cuda: exit {refused.returncode}: {refused.stdout}{refused.stderr}")
        by_itself = run(*writers["sample"])
        if by_itself.returncode != 0 or by_itself.stdout != run(*writers["sample"], "--device", "cpu").stdout:
            faults.append(f"sample: exit {by_itself.returncode}: {by_itself.stdout}{by_itself.stderr}")
        print("\n".join(said))
    for fault in faults:
        print(f"FAILED: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
