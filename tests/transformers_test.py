#!/usr/bin/env python3
"""Loads exported models in the real transformers. Not part of ctest: needs the network, or transformers 5.24.0 with torch.

    transformers_test.py LAMINA [VENV]

VENV is a virtual environment with both; without it one is made in a temporary folder (pip install transformers==5.24.0 torch).
Run it with a Python that has h5py, torch and yaml, as for the integration tests.

Every tensor has its place, the logits are those of the float64 reference and the losses of single tokens those of a step dump within
1e-5 of the largest in fp32, and 64 greedily generated tokens are the same with and without the cache. Models that `lamina export` writes
as kimi_linear load as they are; those of Lamina's own architecture with trust_remote_code, and without it transformers refuses them.
What transformers saves of either is imported again. A quantized export has the loss there that `lamina eval` finds of its import. AutoTokenizer gives the tokens of `lamina prepare`. Nothing asks the network.
"""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent / "integration"))
import h5py  # noqa: E402
import numpy  # noqa: E402
import torch  # noqa: E402
from compare_dump import Dump, model_config, reference  # noqa: E402
from training import Lamina, text  # noqa: E402

TRANSFORMERS = "5.24.0"
TOLERANCE = 1e-5
STEP = 3   # that is dumped; the checkpoint before it is exported

STANDARD = {"residual": "standard", "attn_res_block_size": None}
KDA = {"mixers": ["kda", "kda", "kda", "mla"], "linear_num_heads": 2, "linear_head_dim": 16}
EXPERTS = {"num_experts": 6, "num_experts_per_token": 2, "moe_intermediate_size": 20, "routed_scaling_factor": 2.446}
KIMI = {**STANDARD, **KDA, **EXPERTS}
LATENT_QUERIES = {"q_lora_rank": 9, "rms_norm_eps": 1e-6}

NO_MLA = {"mixers": ["kda"], **dict.fromkeys(("num_attention_heads", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))}

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
BLOCK, FULL = {"residual": "block_attnres"}, {"residual": "full_attnres", "attn_res_block_size": None}
WORDS = {"document_mask": True, "train": [{"path": "words"}]}
BOUNDED = {"gate_lower_bound": -5}
# With the reason that `lamina export` gives. "data" are keys of that section.
OWN = {
    "block": (BLOCK, "residual: block_attnres"),
    "block-experts": ({**BLOCK, **EXPERTS, "q_lora_rank": 9}, "residual: block_attnres"),
    "block-kimi-tied": ({**BLOCK, **KDA, **EXPERTS, "tie_word_embeddings": True}, "residual: block_attnres"),
    "documents-standard": ({**KIMI, "data": WORDS}, "document_mask: true"),
    "block-kimi-bounded": ({**BLOCK, **KDA, **EXPERTS, **BOUNDED}, "residual: block_attnres"),
    "kda-alone": ({**KIMI, **NO_MLA}, "mixers: kda"),
    "block-kda-alone": ({**BLOCK, **KDA, **EXPERTS, **NO_MLA}, "residual: block_attnres"),
    "block-kda-dense-bounded": ({**BLOCK, **KDA, **BOUNDED, "mixers": ["mla", "kda"]}, "residual: block_attnres"),
    "full": (FULL, "residual: full_attnres"),
    "full-tied-latent-queries": ({**FULL, "tie_word_embeddings": True, "q_lora_rank": 9}, "residual: full_attnres"),
    "full-kimi": ({**FULL, **KDA, **EXPERTS}, "residual: full_attnres"),
    "full-kimi-dense-bounded": ({**FULL, **KDA, **BOUNDED, "q_lora_rank": 9}, "residual: full_attnres"),
    "mhc-kimi": ({**FULL, **KDA, **EXPERTS, "residual": "mhc", "num_residual_streams": 3}, "residual: mhc"),
    "bounded": ({**KIMI, **BOUNDED}, "gate_lower_bound: -5"),
    "bounded-tied-dense": ({**STANDARD, **KDA, **BOUNDED, "tie_word_embeddings": True}, "gate_lower_bound: -5"),
    "other-kv-eps": ({**STANDARD, "kv_a_layernorm_eps": 1e-5}, "kv_a_layernorm_eps: 1e-05"),
    "latent-queries": ({**STANDARD, "q_lora_rank": 9}, "rms_norm_eps: 1e-05"),
    "one-expert": ({**STANDARD, **EXPERTS, "num_experts": 1, "num_experts_per_token": 1}, "num_experts: 1"),
    "documents": ({**BLOCK, **KDA, **EXPERTS, "data": WORDS}, "residual: block_attnres"),
}

# Runs inside the virtual environment: the logits of each folder's model for its tokens, or why it was not loaded. Without trust first.
READER = r"""
import json, sys, warnings
import numpy, torch, transformers
transformers.logging.set_verbosity_error()
out = {"version": transformers.__version__}
for folder in sys.argv[1:]:
    own = json.load(open(folder + "/config.json"))["model_type"] == "lamina"
    refused = None
    if own:
        try:
            transformers.AutoModelForCausalLM.from_pretrained(folder)
        except Exception as error:
            refused = f"{type(error).__name__}: {error}"
    try:
        model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True,
                                                                        trust_remote_code=own)
    except Exception as error:
        out[folder] = {"error": f"{type(error).__name__}: {error}", "refused": refused}
        continue
    model.eval()
    found = {"refused": refused, "class": type(model).__name__, "pad": model.config.pad_token_id, "bos": model.config.bos_token_id,
             "eos": model.config.eos_token_id, "info": {key: sorted(map(str, value)) for key, value in info.items() if value}}
    out[folder] = found
    try:
        tokens = torch.from_numpy(numpy.load(folder + "/tokens.npy"))
        with torch.no_grad():
            numpy.save(folder + "/logits.npy", model(tokens).logits.numpy())
            for cache in (True, False):
                made = model.generate(tokens[:1, :9], max_new_tokens=64, do_sample=False, use_cache=cache, eos_token_id=-1)
                found[f"cache {cache}"] = made[0].tolist()
            # Two prompts of different lengths in one batch, padded on the left.
            mask = torch.ones(2, 9, dtype=torch.long)
            mask[1, :4] = 0
            both = torch.stack([tokens[0, :9], torch.cat([torch.zeros(4, dtype=torch.long), tokens[0, :5]])])
            made = model.generate(both, attention_mask=mask, max_new_tokens=16, do_sample=False, eos_token_id=-1)
            short = model.generate(tokens[:1, :5], max_new_tokens=16, do_sample=False, eos_token_id=-1)
            for original in (True, False):
                model.save_pretrained(f"{folder}/saved-{original}", save_original_format=original)
            found["padded"] = [made[0].tolist() == found["cache True"][:25], made[1, 4:].tolist() == short[0].tolist()]
        if own:   # beams change places in the cache; and it can be trained on
            beams = [model.generate(tokens[:1, :9], max_new_tokens=12, num_beams=3, use_cache=cache, eos_token_id=-1).tolist() for cache in (True, False)]
            loss = model(tokens, labels=tokens).loss
            loss.backward()
            expected = torch.nn.functional.cross_entropy(model(tokens).logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
            without = [name for name, parameter in model.named_parameters() if parameter.grad is None and ".experts." not in name]
            found["more"] = {"beams": beams[0] == beams[1], "loss": abs(loss.item() - expected.item()) < 1e-5, "gradients": not without}
            # Two documents packed into a row: refused, or apart where a token ends the first.
            row, positions = torch.full((1, 9), 97), torch.cat([torch.arange(4), torch.arange(5)]).unsqueeze(0)
            try:
                model(row, position_ids=positions)
                found["more"]["packed"] = False
            except ValueError as error:
                found["more"]["packed"] = "position_ids" in str(error)
            if model.config.document_end_token_id is not None:
                row[0, 3] = model.config.document_end_token_id
                apart = model(row, position_ids=positions).logits[:, 4:] - model(row[:, 4:]).logits
                found["more"]["apart"] = apart.abs().max().item() < 1e-3
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}"
print("\n" + json.dumps(out))  # the question whether to trust leaves a line open
"""

# The tokens of each folder's texts, and what becomes of them. Without trust: a tokenizer needs no code.
TOKENS = r"""
import json, sys
import transformers
transformers.logging.set_verbosity_error()
out = {}
for folder in sys.argv[1:]:
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        ids = [tokenizer(text).input_ids for text in json.load(open(folder + "/texts.json"))]
        out[folder] = {"ids": ids, "back": [tokenizer.decode(one[1:]) for one in ids], "length": len(tokenizer),
                       "special": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]}
    except Exception as error:
        out[folder] = {"error": f"{type(error).__name__}: {error}"}
print("\n" + json.dumps(out))
"""
TEXTS = ["the quick brown fox", "  two spaces\n\n\ttab \r\n \u2713 \u4f60\u597d \U0001f600 end ", "</s> <0x41> <s> <unk> <|end_of_document|>",
         "x", " ", "\n", "\u2581 \u0120\u00e9", "don't stop; it's 12,345.67 o'clock!", text(1500)]


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(f"transformers_test: {message}")


def make_environment(folder: Path) -> Path:
    environment = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    subprocess.run([str(environment / "bin" / "pip"), "install", "-q", f"transformers=={TRANSFORMERS}", "torch"], check=True)
    return environment


def read(environment: Path, folders: list[Path], program: str = READER) -> dict:
    with tempfile.TemporaryDirectory() as home:   # of the code that it copies out of the folders
        done = subprocess.run([str(environment / "bin" / "python"), "-c", program, *map(str, folders)], check=False, capture_output=True,
                              text=True, stdin=subprocess.DEVNULL, env={**os.environ, "HF_HOME": home, "HF_HUB_OFFLINE": "1"})
    expect(done.returncode == 0, f"the reader failed:\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def export(lamina: Lamina, name: str, model: dict, dtype: str = "fp32") -> tuple[Path, str, Dump]:
    """The model before step STEP, what export said, and that step's dump."""
    run = lamina.folder / name
    if not run.exists():
        model = dict(model)
        lamina.train(name, {"data": model.pop("data", {}), "model": model, "train": {"num_steps": STEP}, "checkpoint": {"interval": STEP - 1, "keep": 0},
                            "debug": {"dump_step": STEP}})
    folder = lamina.folder / f"{name}-{dtype}"
    done = lamina.run(["export", "--checkpoint", str(run / "checkpoints" / f"step-{STEP - 1:08d}"), "--output", str(folder), "--dtype", dtype])
    expect(done.returncode == 0, f"{name}: {done.stderr}")
    dump = Dump(str(run / f"dump-step-{STEP}.h5"))
    numpy.save(folder / "tokens.npy", dump.tokens.numpy())
    return folder, done.stdout, dump


def reference_logits(dump: Dump, config, dtype) -> torch.Tensor:
    """With document_mask, of each document as if it were alone."""
    parameters = {key: value.to(dtype) for key, value in dump.parameters.items()}
    if not dump.config["data"].get("document_mask"):
        return reference.forward(parameters, config, dump.tokens, dump.targets)["logits"].double()
    rows = []
    for tokens in dump.tokens:
        ends = [0, *(i + 1 for i, token in enumerate(tokens[:-1].tolist()) if token == 256), len(tokens)]
        expect(len(ends) > 2 or len(rows) > 0, "no document ends in the batch")
        rows.append(torch.cat([reference.forward(parameters, config, tokens[None, a:b], tokens[None, a:b])["logits"][0].double()
                               for a, b in zip(ends, ends[1:])]))
    return torch.stack(rows)


def hash_in(said: str) -> str:
    return next(line for line in said.splitlines() if line.startswith("hash "))


def check_right(lamina: Lamina, name: str, exported: tuple[Path, str, Dump], found: dict, architecture: str) -> None:
    folder, said, dump = exported
    expect("error" not in found, f"{name}: {found}")
    # A shared expert of width 0 has matrices there, without elements.
    missing = [key for key in found["info"].pop("missing_keys", []) if not (name == "mla-no-shared-expert" and ".shared_experts." in key)]
    expect(found["class"] == architecture and not found["info"] and not missing, f"{name}: {found}, {missing}")
    expect((found["bos"], found["eos"], found["pad"]) == (256, 256, None), f"{name}: {found}")
    logits = torch.from_numpy(numpy.load(folder / "logits.npy").astype("float64"))
    config = model_config(dump.config, dump.parameters)
    ours = reference_logits(dump, config, torch.float64)
    of_rounding = (reference_logits(dump, config, torch.float32) - ours).abs().max().item()
    largest = ours.abs().max().item()
    token_loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), dump.targets.flatten(), reduction="none")
    of_logits = (logits - ours).abs().max().item()
    of_losses = (token_loss - dump.token_loss.flatten()).abs().max().item()
    expect(found["cache True"] == found["cache False"], f"{name}: with the cache {found['cache True']}, without {found['cache False']}")
    for original in (True, False):   # what transformers saves is imported as what was exported, whatever names it has
        back = folder.parent / f"{folder.name}-{original}-imported"
        imported = run(lamina, "import", "--from", str(folder / f"saved-{original}"), "--output", str(back))
        expect(hash_in(imported) == hash_in(said), f"{name}: saved by transformers, imported as {imported}, was {said}")
    expect(all(found.get("more", {}).values()), f"{name}: {found.get('more')}")
    expect(found["padded"] == [True, True], f"{name}: padded prompts {found['padded']}")
    print(f"{name}: logits differ by at most {of_logits:.1e} (largest {largest:.1f}; the reference in fp32: {of_rounding:.1e}), losses by {of_losses:.1e}; "
          f"mean loss {token_loss.mean().item():.6f}, ours {dump.token_loss.mean().item():.6f}", flush=True)
    limit = TOLERANCE * max(largest, 1.0)
    expect(of_logits < limit and of_losses < limit, f"{name}: expected less than {limit:.1e}")


def check_tokenizers(lamina: Lamina, environment: Path) -> None:
    """AutoTokenizer gives the tokens of `lamina prepare`, after the one that ends a document, and decodes them to the text."""
    folders, expected = {}, {}
    source = lamina.folder / "text.txt"
    for kind in ("bytes", "bpe", "unigram"):
        tokens, spec = lamina.folder / f"tokens-{kind}", "bytes"
        if kind != "bytes":
            spec = f"sentencepiece:{lamina.folder / kind}.model"
            letters = lamina.folder / "letters.txt"   # in which the names of bytes are spelt
            letters.write_text("<0x0123456789ABCDEF> " * 50)
            run(lamina, "tokenizer", "--vocab-size", "340", "--model-type", kind, "--output", spec.split(":")[1], str(source), str(letters))
        files = []
        for i, sample in enumerate(TEXTS):
            files.append(lamina.folder / f"sample-{i}.txt")
            files[-1].write_bytes(sample.encode())
        run(lamina, "prepare", "--tokenizer", spec, "--output", str(tokens), str(source))
        run(lamina, "prepare", "--tokenizer", spec, "--output", str(tokens) + "-samples", *map(str, files))
        with h5py.File(f"{tokens}-samples/tokens.h5", "r") as file:
            starts, ids = [*file["document_starts"][()].tolist(), len(file["tokens"])], file["tokens"][()].tolist()
        expected[kind] = [ids[begin:end] for begin, end in zip(starts, starts[1:])]
        trained = lamina.train(f"tokenizer-{kind}", {"data": {"train": [{"path": str(tokens)}]}})
        shutil.rmtree(tokens)   # the checkpoint has it
        folders[kind] = lamina.folder / f"tokenizer-{kind}-exported"
        said = run(lamina, "export", "--checkpoint", str(trained), "--output", str(folders[kind]))
        expect("tokenizer  " not in said, f"{kind}: {said}")
        (folders[kind] / "texts.json").write_text(json.dumps(TEXTS))
    found = read(environment, list(folders.values()), TOKENS)
    for kind, folder in folders.items():
        result = found[str(folder)]
        expect("error" not in result, f"{kind}: {result}")
        end = expected[kind][0][-1]
        for sample, ours, theirs, back in zip(TEXTS, expected[kind], result["ids"], result["back"]):
            expect(theirs == [end, *ours[:-1]] and ours[-1] == end, f"{kind}: {sample[:60]!r}: {theirs[:20]}, ours {ours[:20]}")
            expect(back == sample.replace("\u2581", "\u2581" if kind == "bytes" else " "), f"{kind}: {sample[:60]!r} comes back as {back[:60]!r}")
        expect(result["special"] == [end, end, None], f"{kind}: {result['special']}")
        print(f"tokenizer {kind}: {sum(map(len, expected[kind]))} tokens of {len(TEXTS)} texts are the same", flush=True)


def check_quantized(lamina: Lamina, environment: Path, trained: Path) -> None:
    """The loss of a text, of two roundings and the exact weights."""
    sentence = text(60)[:300]
    (lamina.folder / "sentence.txt").write_text(sentence)
    tokens = numpy.array([[256, *sentence.encode()]])
    exports = {"exact": [], "int8": ["--quantize", "int8"], "int4": ["--quantize", "int4", "--group-size", "16", "--quantize-depth-queries"]}
    folders = {name: lamina.folder / f"quantized-{name}" for name in exports}
    for name, options in exports.items():
        run(lamina, "export", "--checkpoint", str(trained), "--output", str(folders[name]), "--dtype", "fp32", *options)
        numpy.save(folders[name] / "tokens.npy", tokens)
    found, losses = read(environment, list(folders.values())), []
    for name, folder in folders.items():
        expect("error" not in found[str(folder)], f"quantized: {name}: {found[str(folder)]}")
        logits = torch.from_numpy(numpy.load(folder / "logits.npy").astype("float64"))
        theirs = torch.nn.functional.cross_entropy(logits[0, :-1], torch.from_numpy(tokens[0, 1:])).item()
        run(lamina, "import", "--from", str(folder), "--output", f"{folder}-back")
        told = run(lamina, "eval", "--checkpoint", f"{folder}-back", "--text", "sentence.txt", "--context", "512", "train.precision=fp32")
        ours = float(re.search(r"^loss (\S+)$", told, re.MULTILINE).group(1))
        print(f"quantized: {name}: loss {theirs:.6f}, lamina eval {ours:.6f}", flush=True)
        expect(abs(ours - theirs) < TOLERANCE * max(1.0, theirs), f"quantized: {name}: lamina eval {told}, transformers {theirs}")
        losses.append(ours)
    expect(len({round(loss, 4) for loss in losses}) == 3, f"quantized: losses {losses} are no different")


def run(lamina: Lamina, *arguments: str) -> str:
    done = lamina.run(list(arguments))
    expect(done.returncode == 0, f"{arguments}: {done.stderr}")
    return done.stdout


def main() -> None:
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(sys.argv[2]).resolve() if len(sys.argv) == 3 else make_environment(Path(folder))
        lamina = Lamina(sys.argv[1], Path(folder))
        lamina.prepare()
        run(lamina, "prepare", "--document-separator", " ", "--output", str(lamina.folder / "words"), str(lamina.folder / "text.txt"))
        check_tokenizers(lamina, environment)
        right = {name: export(lamina, name, model) for name, model in RIGHT.items()}
        own = {name: export(lamina, name, model) for name, (model, _) in OWN.items()}
        check_quantized(lamina, environment, lamina.folder / "block-kimi-bounded")
        rounded = {name: export(lamina, name, RIGHT[name], "bf16") for name in ("kimi", "mla-dense-tied")}
        found = read(environment, [exported[0] for group in (right, own, rounded) for exported in group.values()])
        print(f"transformers {found['version']}", flush=True)
        for name, (exported, said, _) in right.items():
            expect("kimi_linear, which transformers has built in" in said, f"{name}: {said}")
            check_right(lamina, name, right[name], found[str(exported)], "KimiLinearForCausalLM")
        for name, (exported, said, _) in own.items():
            expect(f" {OWN[name][1]}: " in said and "Lamina's own" in said, f"{name}: {said}")
            refused = found[str(exported)]["refused"] or ""
            expect("trust_remote_code" in refused, f"{name}: without trust: {refused}")
            check_right(lamina, name, own[name], found[str(exported)], "LaminaForCausalLM")
        for name, (exported, _, _) in rounded.items():
            result = found[str(exported)]
            expect("error" not in result and not result["info"], f"{name} in bf16: {result}")


if __name__ == "__main__":
    main()
