"""What the integration tests share: a token folder, experiment files, and runs of the program, on one rank or several."""
import copy
import json
import os
import subprocess
from pathlib import Path

import yaml

# Odd sizes, so that no kernel's vector width or block divides them all.
BASE = {
    "run": {"name": "test", "seed": 11, "num_threads": 1},
    "model": {"hidden_size": 36, "num_hidden_layers": 5, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
              "residual": "block_attnres", "attn_res_block_size": 2, "num_attention_heads": 3, "kv_lora_rank": 10,
              "qk_nope_head_dim": 6, "qk_rope_head_dim": 5, "v_head_dim": 7, "intermediate_size": 44,
              # Activations of order one: a tied model that starts near zero collapses in two large steps to a point where
              # float32 itself (PyTorch's too) loses four digits.
              "initializer_range": 0.15},
    "data": {"seq_len": 21, "train": [{"path": "", "weight": 1.0}]},
    "train": {"num_steps": 1, "global_batch_size": 4, "micro_batch_size": 2, "precision": "fp32", "grad_clip": 0.25,
              # An epsilon as large as the gradients makes the first step depend on their scale, hence on clipping.
              "optimizer": {"name": "adamw", "lr": 0.03, "eps": 1e-3},
              "lr_schedule": {"name": "constant"}},
}

WORDS = ("the quick brown fox jumps over a lazy dog while seven wizards mix vexing potions; "
         "in the beginning was the sum, and each layer added to it, and none of them knew what to forget. ").split(" ")


def text(num_words: int = 6000) -> str:
    """Words in an order that repeats late (a linear congruential walk), with line ends now and then."""
    out, state = [], 1
    for i in range(num_words):
        state = (state * 1103515245 + 12345) % 2**31
        out.append(WORDS[(state >> 16) % len(WORDS)] + ("\n" if i % 13 == 12 else " "))
    return "".join(out)


def merged(base: dict, changes: dict) -> dict:
    """A copy of `base` with nested `changes`; a value of None removes the key."""
    out = copy.deepcopy(base)
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(out.get(key), dict):
            out[key] = merged(out[key], value)
        elif value is None:
            out.pop(key, None)
        else:
            out[key] = copy.deepcopy(value)
    return out


class Lamina:
    def __init__(self, binary: str, folder: Path):
        self.binary, self.folder = str(Path(binary).resolve()), Path(folder)
        self.environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                            "OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_MCA_hwloc_base_binding_policy": "none",
                            "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
                            # the same for Open MPI 5, whose launcher is PRRTE
                            "PRTE_MCA_rmaps_default_mapping_policy": ":OVERSUBSCRIBE", "PRTE_MCA_hwloc_default_binding_policy": "none"}
        self.tokens = self.folder / "tokens"
        self.device = "cpu"

    def prepare(self) -> None:
        source = self.folder / "text.txt"
        source.write_text(text())
        done = self.run(["prepare", "--tokenizer", "bytes", "--output", str(self.tokens), str(source)])
        if done.returncode != 0:
            raise SystemExit(f"lamina prepare failed:\n{done.stdout}{done.stderr}")

    def command(self, arguments: list[str], ranks: int = 1) -> list[str]:
        launcher = ["mpirun", "-n", str(ranks)] if ranks > 1 else []
        return launcher + [self.binary] + arguments

    def run(self, arguments: list[str], ranks: int = 1, timeout: float = 300, **options) -> subprocess.CompletedProcess:
        return subprocess.run(self.command(arguments, ranks), env=self.environment, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=timeout, cwd=self.folder, check=False, **options)

    def write_config(self, name: str, changes: dict) -> Path:
        """The base experiment with changes, its run folder named after it."""
        config = merged(BASE, {"run": {"output_dir": str(self.folder / name), "device": self.device},
                               "data": {"train": [{"path": str(self.tokens), "weight": 1.0}]}})
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(merged(config, changes), sort_keys=False))
        return path

    def train(self, name: str, changes: dict, ranks: int = 1, overrides: tuple[str, ...] = ()) -> Path:
        """Runs to the end, and returns the run folder."""
        done = self.run(["train", str(self.write_config(name, changes)), *overrides], ranks)
        if done.returncode != 0:
            raise RuntimeError(f"{name}: lamina train on {ranks} ranks ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return self.folder / name

    def dump(self, name: str, step: int, changes: dict, ranks: int = 1) -> Path:
        """Runs up to `step`, and returns its dump."""
        run = self.train(name, merged(changes, {"train": {"num_steps": step}, "debug": {"dump_step": step}}), ranks)
        return run / f"dump-step-{step}.h5"


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
