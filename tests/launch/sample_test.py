#!/usr/bin/env python3
"""`lamina sample` as a user runs it, on a model that has learnt one sentence by heart, so that the right text is known.

    sample_test.py LAMINA
"""
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SENTENCE = "café 世界. "
CONFIG = """
run: {name: test, output_dir: run, num_threads: 1}
model: {hidden_size: 64, num_hidden_layers: 2, mixers: [kda, mla], num_attention_heads: 2, kv_lora_rank: 32, qk_nope_head_dim: 32,
        v_head_dim: 32, linear_num_heads: 2, linear_head_dim: 32, intermediate_size: 128}
data: {seq_len: 64, train: [{path: tokens}]}
train: {num_steps: 80, global_batch_size: 8, micro_batch_size: 8, precision: fp32, optimizer: {name: muon, lr: 1.0e-2}}
logging: {layer_stats_interval: 0, peak_gflops: 1}
"""


def main() -> int:
    program, faults = str(Path(sys.argv[1]).resolve()), []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess:
            done = subprocess.run([program, *arguments], cwd=folder, capture_output=True, input=stdin, timeout=300, env=environment)
            done.stdout, done.stderr = done.stdout.decode("utf-8"), done.stderr.decode("utf-8")  # strictly: whole characters only
            return done

        def sample(*arguments: str, stdin: bytes = b"") -> str:
            done = run("sample", "--checkpoint", "run", *arguments, stdin=stdin)
            if done.returncode != 0:
                faults.append(f"sample {arguments}: exit {done.returncode}: {done.stderr}")
            return done.stdout

        def expect(what: str, found, expected) -> None:
            if found != expected:
                faults.append(f"{what}: found {found!r}, expected {expected!r}")

        def expect_refusal(what: str, arguments: list[str], *words: str) -> None:
            done = run("sample", "--checkpoint", "run", *arguments)
            said = (done.stdout + done.stderr).strip()
            if done.returncode == 0 or not all(word in said for word in words):
                faults.append(f"{what}: exit {done.returncode}, said {said!r}, expected {words}")

        (folder / "text.txt").write_text(SENTENCE * 4000, encoding="utf-8")
        (folder / "test.yaml").write_text(CONFIG)
        for command in (["prepare", "--tokenizer", "bytes", "--output", "tokens", "text.txt"], ["train", "test.yaml"]):
            done = run(*command)
            if done.returncode != 0:
                raise SystemExit(done.stdout + done.stderr)

        greedy = ("--temperature", "0", "--max-tokens", "60")
        continued = (SENTENCE * 10).encode()[3:63]
        right = continued.decode("utf-8", errors="ignore")  # the last character is cut
        plain = sample("--prompt", "caf", *greedy)
        expect("greedy", plain, "caf" + right + "\n")
        (folder / "prompt.txt").write_text("caf", encoding="utf-8")
        expect("prompt from a file", sample("--prompt-file", "prompt.txt", *greedy), plain)
        expect("prompt from standard input", sample("--prompt-file", "-", *greedy, stdin=b"caf"), plain)
        expect("stop text", sample("--prompt", "caf", "--stop", "never", "--stop", "界", *greedy), "café 世\n")

        lines = [json.loads(line) for line in sample("--prompt", "caf", "--json", "--likeliest", "2", *greedy).splitlines()]
        tokens, end = lines[:-1], lines[-1]
        expect("JSON: tokens", bytes(line["token"] for line in tokens), continued)
        expect("JSON: places", [line["index"] for line in tokens], list(range(60)))
        expect("JSON: text", "".join(line["text"] for line in tokens), plain[3:-1])
        expect("JSON: the whole text", (end["text"], end["num_tokens"], end["finish"]), (plain[3:-1], 60, "length"))
        expect("JSON: the likeliest is taken", [line["likeliest"][0]["token"] for line in tokens], [line["token"] for line in tokens])
        if not all(line["likeliest"][1]["logprob"] < line["logprob"] <= 0 for line in tokens):
            faults.append("JSON: log-probabilities out of order")
        if abs(end["logprob"] - math.fsum(line["logprob"] for line in tokens)) > 1e-6 or end["logprob"] < -6:
            faults.append(f"JSON: log-probability of the whole: {end['logprob']}")

        # Longer than any sequence of training: said, not cut.
        prompt = SENTENCE * 20
        long = run("sample", "--checkpoint", "run", "--prompt", prompt, "--temperature", "0", "--max-tokens", "15")
        if long.returncode != 0 or not long.stdout.startswith(prompt):
            faults.append(f"a long prompt: exit {long.returncode}, {long.stdout[-60:]!r} {long.stderr!r}")
        if "281 tokens" not in long.stderr or "64" not in long.stderr:
            faults.append(f"a long prompt: said {long.stderr!r}, expected 281 tokens and 64")
        if "64" in run("sample", "--checkpoint", "run", "--prompt", "caf", "--max-tokens", "5").stderr:
            faults.append("a short text: told that it is long")

        hot = ("--prompt", "caf", "--temperature", "3", "--top-p", "1", "--max-tokens", "30")
        first, again, other = sample(*hot), sample(*hot), sample(*hot, "--seed", "2")
        expect("same seed", again, first)
        if other == first:
            faults.append("another seed gave the same text")
        several = sample(*hot, "--num-samples", "3").split("--- ")[1:]
        expect("several samples", [part.split("\n", 1)[0] for part in several], ["1 of 3", "2 of 3", "3 of 3"])
        texts = [part.split("\n", 1)[1] for part in several]
        expect("the first of several", texts[0], first)
        expect("different samples", len(set(texts)), 3)

        expect_refusal("two prompts", ["--prompt", "a", "--prompt-file", "prompt.txt"], "--prompt-file")
        expect_refusal("no such file", ["--prompt-file", "gone.txt"], "gone.txt")
        expect_refusal("likeliest without JSON", ["--likeliest", "2"], "--json")
        expect_refusal("an empty stop", ["--stop", ""], "--stop")
        print(plain)
    for fault in faults:
        print(f"FAILED: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
