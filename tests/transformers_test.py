#!/usr/bin/env python3
"""Loads exported models in the real transformers. Not part of ctest: needs the network, or transformers 5.24.0 with torch.

    transformers_test.py LAMINA [VENV]

VENV is a virtual environment with both; without it one is made in a temporary folder (pip install transformers==5.24.0 torch).
Run it with a Python that has h5py, torch and yaml, as for the integration tests.

Models that `lamina export` writes as kimi_linear: every tensor has its place, the logits are those of the float64 reference and the
losses of single tokens those of a step dump within 1e-5 of the largest in fp32, and greedy generation is the same with and without the cache.
Models that it writes as its own architecture: transformers refuses them.
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent / "integration"))
import numpy  # noqa: E402
import torch  # noqa: E402
from compare_dump import Dump, model_config, reference  # noqa: E402
from training import Lamina, merged  # noqa: E402

TRANSFORMERS = "5.24.0"
TOLERANCE = 1e-5
STEP = 3   # that is dumped; the checkpoint before it is exported

STANDARD = {"residual": "standard", "attn_res_block_size": None}
KDA = {"mixers": ["kda", "kda", "kda", "mla"], "linear_num_heads": 2, "linear_head_dim": 16}
EXPERTS = {"num_experts": 6, "num_experts_per_token": 2, "moe_intermediate_size": 20, "routed_scaling_factor": 2.446}
KIMI = {**STANDARD, **KDA, **EXPERTS}
LATENT_QUERIES = {"q_lora_rank": 9, "rms_norm_eps": 1e-6}

RIGHT = {
    "kimi": KIMI,
    "kimi-tied": {**KIMI, "tie_word_embeddings": True},
    "kimi-dense": {**STANDARD, **KDA},
    "kimi-eps": {**KIMI, "rms_norm_eps": 1e-3},
    "kimi-latent-queries": {**KIMI, **LATENT_QUERIES},
    "kimi-all-experts": {**KIMI, "first_k_dense_replace": 0, "intermediate_size": None},
    "kimi-not-normalised": {**KIMI, "moe_renormalize": False},
    "kimi-one-choice": {**KIMI, "num_experts_per_token": 1, "num_shared_experts": 2},
    "kimi-wide-vocabulary": {**KIMI, "vocab_size": 320},
    "kimi-short-convolution": {**KIMI, "short_conv_kernel_size": 2},
    "mla": {**STANDARD, **EXPERTS},
    "mla-dense": STANDARD,
    "mla-dense-tied": {**STANDARD, "tie_word_embeddings": True},
    "mla-no-shared-keys": {**STANDARD, "qk_rope_head_dim": 0},
    "mla-no-shared-expert": {**STANDARD, **EXPERTS, "num_shared_experts": 0},
    "mla-latent-queries-tied": {**STANDARD, **LATENT_QUERIES, "tie_word_embeddings": True},
}
# The reason that `lamina export` gives.
OWN = {
    "block": ({"residual": "block_attnres"}, "residual: block_attnres"),
    "full": ({"residual": "full_attnres", "attn_res_block_size": None}, "residual: full_attnres"),
    "block-kimi-tied": ({**KDA, **EXPERTS, "tie_word_embeddings": True}, "residual: block_attnres"),
    "bounded-gate": ({**KIMI, "gate_lower_bound": -5}, "gate_lower_bound: -5"),
    "other-kv-eps": ({**STANDARD, "kv_a_layernorm_eps": 1e-5}, "kv_a_layernorm_eps: 1e-05"),
    "latent-queries": ({**STANDARD, "q_lora_rank": 9}, "rms_norm_eps: 1e-05"),
    "one-expert": ({**STANDARD, **EXPERTS, "num_experts": 1, "num_experts_per_token": 1}, "num_experts: 1"),
}

# Runs inside the virtual environment: the logits of each folder's model for its tokens, or why it was not loaded.
READER = r"""
import json, sys, warnings
import numpy, torch, transformers
transformers.logging.set_verbosity_error()
out = {"version": transformers.__version__}
for folder in sys.argv[1:]:
    try:
        model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    except Exception as error:
        out[folder] = {"error": f"{type(error).__name__}: {error}"}
        continue
    model.eval()
    found = {"class": type(model).__name__, "pad": model.config.pad_token_id, "bos": model.config.bos_token_id,
             "eos": model.config.eos_token_id, "info": {key: sorted(map(str, value)) for key, value in info.items() if value}}
    out[folder] = found
    try:
        tokens = torch.from_numpy(numpy.load(folder + "/tokens.npy"))
        with torch.no_grad():
            numpy.save(folder + "/logits.npy", model(tokens).logits.numpy())
            for cache in (True, False):
                made = model.generate(tokens[:1, :9], max_new_tokens=32, do_sample=False, use_cache=cache, eos_token_id=-1)
                found[f"cache {cache}"] = made[0].tolist()
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}"
print(json.dumps(out))
"""


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(f"transformers_test: {message}")


def make_environment(folder: Path) -> Path:
    environment = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    subprocess.run([str(environment / "bin" / "pip"), "install", "-q", f"transformers=={TRANSFORMERS}", "torch"], check=True)
    return environment


def read(environment: Path, folders: list[Path]) -> dict:
    done = subprocess.run([str(environment / "bin" / "python"), "-c", READER, *map(str, folders)], check=False, capture_output=True,
                          text=True)
    expect(done.returncode == 0, f"the reader failed:\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def export(lamina: Lamina, name: str, model: dict, dtype: str = "fp32") -> tuple[Path, str, Dump]:
    """The model before step STEP, what export said, and that step's dump."""
    run = lamina.folder / name
    if not run.exists():
        lamina.train(name, {"model": model, "train": {"num_steps": STEP}, "checkpoint": {"interval": STEP - 1, "keep": 0},
                            "debug": {"dump_step": STEP}})
    folder = lamina.folder / f"{name}-{dtype}"
    done = lamina.run(["export", "--checkpoint", str(run / "checkpoints" / f"step-{STEP - 1:08d}"), "--output", str(folder), "--dtype", dtype])
    expect(done.returncode == 0, f"{name}: {done.stderr}")
    dump = Dump(str(run / f"dump-step-{STEP}.h5"))
    numpy.save(folder / "tokens.npy", dump.tokens.numpy())
    return folder, done.stdout, dump


def check_right(name: str, folder: Path, dump: Dump, found: dict) -> None:
    expect("error" not in found, f"{name}: {found}")
    # A shared expert of width 0 has matrices there, without elements.
    missing = [key for key in found["info"].pop("missing_keys", []) if not (name == "mla-no-shared-expert" and ".shared_experts." in key)]
    expect(found["class"] == "KimiLinearForCausalLM" and not found["info"] and not missing, f"{name}: {found}, {missing}")
    expect((found["bos"], found["eos"], found["pad"]) == (256, 256, None), f"{name}: {found}")
    logits = torch.from_numpy(numpy.load(folder / "logits.npy").astype("float64"))
    config = model_config(dump.config, dump.parameters)
    ours = reference.forward(dump.parameters, config, dump.tokens, dump.targets)["logits"]
    rounded = reference.forward({key: value.float() for key, value in dump.parameters.items()}, config, dump.tokens, dump.targets)
    of_rounding = (rounded["logits"].double() - ours).abs().max().item()
    largest = ours.abs().max().item()
    token_loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), dump.targets.flatten(), reduction="none")
    of_logits = (logits - ours).abs().max().item()
    of_losses = (token_loss - dump.token_loss.flatten()).abs().max().item()
    expect(found["cache True"] == found["cache False"], f"{name}: with the cache {found['cache True']}, without {found['cache False']}")
    print(f"{name}: logits differ by at most {of_logits:.1e} (largest {largest:.1f}; the reference in fp32: {of_rounding:.1e}), losses by {of_losses:.1e}; "
          f"mean loss {token_loss.mean().item():.6f}, ours {dump.token_loss.mean().item():.6f}", flush=True)
    limit = TOLERANCE * max(largest, 1.0)
    expect(of_logits < limit and of_losses < limit, f"{name}: expected less than {limit:.1e}")


def main() -> None:
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(sys.argv[2]).resolve() if len(sys.argv) == 3 else make_environment(Path(folder))
        lamina = Lamina(sys.argv[1], Path(folder))
        lamina.prepare()
        right = {name: export(lamina, name, model) for name, model in RIGHT.items()}
        own = {name: export(lamina, name, model) for name, (model, _) in OWN.items()}
        rounded = {name: export(lamina, name, RIGHT[name], "bf16") for name in ("kimi", "mla-dense-tied")}
        found = read(environment, [exported[0] for group in (right, own, rounded) for exported in group.values()])
        print(f"transformers {found['version']}", flush=True)
        for name, (exported, said, dump) in right.items():
            expect("kimi_linear, which transformers has built in" in said, f"{name}: {said}")
            check_right(name, exported, dump, found[str(exported)])
        for name, (exported, said, _) in own.items():
            expect(f" {OWN[name][1]}: " in said and "Lamina's own" in said, f"{name}: {said}")
            error = found[str(exported)].get("error", "")
            expect("model type `lamina`" in error, f"{name}: {found[str(exported)]}")
            print(f"{name}: refused, model type `lamina`", flush=True)
        for name, (exported, _, _) in rounded.items():
            result = found[str(exported)]
            expect("error" not in result and not result["info"], f"{name} in bf16: {result}")


if __name__ == "__main__":
    main()
