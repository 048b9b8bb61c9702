#!/usr/bin/env python3
"""`lamina sample` against transformers' generate(), one token at a time, on the same exported model and the same cores.

    bench/transformers_generate.py build/lamina [--tokens 128] [--prompt 32] [--rounds 5] [--threads 1] [--dtype fp32|bf16]
        in an environment with torch and transformers 5.24 or newer

The model has hidden 512, 8 layers (3 KDA : 1 MLA), SwiGLU 1,408, bytes as tokens; one training step makes it. Two of them: with the
standard residual, which is transformers' built-in kimi_linear, and with Block AttnRes in blocks of 3, which is the code in the exported
folder. Both programs take the likeliest token with their caches; how many of these are the same is printed.

Time is taken of `lamina serve`, which writes with the code of `lamina sample` and stays loaded from round to round. A round is each program
once with one and once with 1 + TOKENS tokens, in turn; the difference is the time of TOKENS tokens, without loading and prompt. Times are CPU
seconds (user and system, all threads), which a busy machine changes less than the clock. Printed are milliseconds per token and the ratio,
medians over the rounds."""
import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import tempfile
import urllib.request
from pathlib import Path

import torch

CONFIG = """
run: {{name: bench, seed: 1, output_dir: {name}, num_threads: {threads}}}
model: {{hidden_size: 512, num_hidden_layers: 8, mixers: [kda, kda, kda, mla], {residual}, num_attention_heads: 8, kv_lora_rank: 128,
        qk_nope_head_dim: 64, qk_rope_head_dim: 32, v_head_dim: 64, linear_num_heads: 8, linear_head_dim: 64, intermediate_size: 1408}}
data: {{seq_len: 64, train: [{{path: tokens}}]}}
train: {{num_steps: 1, global_batch_size: 4, micro_batch_size: 4, precision: {precision}, optimizer: {{lr: 1.0e-3}}}}
logging: {{layer_stats_interval: 0, peak_gflops: 1}}
"""
MODELS = {"kimi_linear (built in)": ("standard", "residual: standard"),
          "Block AttnRes (the folder's code)": ("block", "residual: block_attnres, attn_res_block_size: 3")}
TEXT = "Each token reads every weight once, and that is what it costs. "


def own_cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Lamina:
    def __init__(self, program, folder, threads):
        self.program, self.folder, self.threads = str(Path(program).resolve()), folder, str(threads)
        self.environment = {**os.environ, "OMP_NUM_THREADS": self.threads, "OMP_WAIT_POLICY": "passive"}

    def run(self, *arguments):
        done = subprocess.run([self.program, *arguments], cwd=self.folder, env=self.environment, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode != 0:
            raise SystemExit(f"lamina {' '.join(arguments)}: {done.stderr}")
        return done.stdout

    def tokens_of(self, checkpoint, prompt, count):
        said = self.run("sample", "--checkpoint", checkpoint, "--prompt", prompt, "--max-tokens", str(count), "--temperature", "0", "--json",
                        "--threads", self.threads)
        return [line["token"] for line in map(json.loads, said.splitlines()) if "token" in line]


class Server:
    """`lamina serve` of a checkpoint."""

    def __init__(self, lamina, checkpoint):
        self.process = subprocess.Popen([lamina.program, "serve", checkpoint, "--port", "0", "--threads", lamina.threads], cwd=lamina.folder,
                                        env=lamina.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for line in self.process.stdout:
            if found := re.search(r"http://[0-9.]+:[0-9]+", line):
                self.address = found.group()
                return
        raise SystemExit("lamina serve has ended")

    def cpu(self):
        words = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def generate(self, prompt, tokens):
        """CPU seconds for as many tokens."""
        body = json.dumps({"model": "bench", "prompt": prompt, "max_tokens": tokens, "temperature": 0}).encode()
        request = urllib.request.Request(self.address + "/v1/completions", body, {"Content-Type": "application/json"})
        start = self.cpu()
        with urllib.request.urlopen(request) as answer:
            written = json.load(answer)["usage"]["completion_tokens"]
        if written != tokens:
            raise SystemExit(f"lamina serve wrote {written} tokens, expected {tokens}")
        return self.cpu() - start

    def close(self):
        self.process.terminate()
        self.process.wait()


class Transformers:
    def __init__(self, folder, dtype, is_own):
        import transformers
        transformers.utils.logging.disable_progress_bar()
        self.version = transformers.__version__
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=is_own)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=is_own).eval()

    def generate(self, prompt, tokens):
        inputs = self.tokenizer(prompt, return_tensors="pt")
        start = own_cpu()
        with torch.inference_mode():
            made = self.model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
        return own_cpu() - start, made[0, inputs["input_ids"].shape[1]:].tolist()


def compare(lamina, label, name, residual, options):
    precision = options.dtype
    (lamina.folder / f"{name}.yaml").write_text(CONFIG.format(name=name, residual=residual, threads=options.threads, precision=precision))
    lamina.run("train", f"{name}.yaml")
    lamina.run("export", "--checkpoint", name, "--output", f"{name}-exported", "--dtype", precision)
    theirs = Transformers(str(lamina.folder / f"{name}-exported"), torch.float32 if precision == "fp32" else torch.bfloat16, name != "standard")
    prompt = (TEXT * (1 + options.prompt // len(TEXT)))[:options.prompt]
    counts, ours, rounds = (1, 1 + options.tokens), Server(lamina, name), []
    for _ in range(options.rounds + 1):
        used = [ours.generate(prompt, count) for count in counts]
        made = [theirs.generate(prompt, count) for count in counts]
        rounds.append(((used[1] - used[0]) / options.tokens, (made[1][0] - made[0][0]) / options.tokens))
    ours.close()
    rounds = rounds[1:]   # the first one loads code
    a, b = lamina.tokens_of(name, prompt, counts[1]), made[1][1]
    if not len(a) == len(b) == counts[1]:
        raise SystemExit(f"{label}: {len(a)} and {len(b)} tokens, expected {counts[1]} of each")
    same = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), counts[1])
    print(f"{label:<34} lamina {1e3 * statistics.median(o for o, _ in rounds):7.2f} ms per token, transformers {theirs.version} "
          f"{1e3 * statistics.median(t for _, t in rounds):7.2f}: {statistics.median(t / o for o, t in rounds):.2f} times; "
          f"the first {same} of {counts[1]} tokens are the same", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lamina")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--prompt", type=int, default=32, help="bytes of the prompt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.dtype}, {options.threads} thread(s), CPU seconds")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_HOME"] = folder   # before the import: the exported folder's code is copied there
        lamina = Lamina(options.lamina, Path(folder), options.threads)
        (lamina.folder / "text.txt").write_text(TEXT * 200)
        lamina.run("prepare", "--tokenizer", "bytes", "--output", "tokens", "text.txt")
        for label, (name, residual) in MODELS.items():
            compare(lamina, label, name, residual, options)


if __name__ == "__main__":
    main()
