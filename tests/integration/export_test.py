#!/usr/bin/env python3
"""`lamina export` and `lamina import` as a user runs them. The exported files are read by the format's own rules, with nothing of
Lamina: 8 bytes of length, a JSON header, bytes without gaps; and compared with the checkpoint as h5py sees it.

    export_test.py LAMINA
"""
import json
import re
import struct
import sys
import tempfile
from pathlib import Path

import h5py
import numpy

from training import Lamina, merged

MODELS = {
    "dense": {},
    "kimi": {"model": {"mixers": ["kda", "kda", "mla"], "linear_num_heads": 2, "linear_head_dim": 16, "num_experts": 4,
                       "num_experts_per_token": 2, "moe_intermediate_size": 20, "first_k_dense_replace": 1},
             "train": {"optimizer": {"name": "muon", "lr": 0.003}}},
    "kda alone": {"model": {"mixers": ["kda"], "linear_num_heads": 2, "linear_head_dim": 16,
                            **dict.fromkeys(("num_attention_heads", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))}},
}
STEPS = 2
ITEM_SIZES = {"F64": 8, "F32": 4, "BF16": 2, "I32": 4}


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(f"export_test: {message}")


def read_file(path: Path) -> dict[str, tuple[str, numpy.ndarray]]:
    """dtype and values of each tensor."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    expect(length <= 100_000_000 and length % 8 == 0, f"{path}: header of {length} bytes")
    text = content[8:8 + length].decode("utf-8")
    expect(text.startswith("{") and text.rstrip(" ").endswith("}"), f"{path}: the header is padded with something else")
    pairs = json.loads(text, object_pairs_hook=lambda items: items)
    header = json.loads(text)
    expect(len(pairs) == len(header), f"{path}: a name twice")
    data, at, tensors = content[8 + length:], 0, {}
    expect(all(isinstance(value, str) for value in header.pop("__metadata__", {}).values()), f"{path}: metadata")
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        size = ITEM_SIZES[entry["dtype"]]
        expect(set(entry) == {"dtype", "shape", "data_offsets"}, f"{path}: {name}: {entry}")
        expect(begin == at, f"{path}: {name}: begins at {begin}, expected {at}")
        expect(begin % size == 0 and (8 + length + begin) % size == 0, f"{path}: {name} is not aligned to {size}")
        expect(end - begin == size * int(numpy.prod(entry["shape"], dtype=numpy.int64)), f"{path}: {name}: length")
        if entry["dtype"] == "BF16":  # the upper half of a float
            bits = numpy.frombuffer(data[begin:end], "<u2").astype("<u4") << 16
            values = bits.view("<f4")
        else:
            values = numpy.frombuffer(data[begin:end], {"F32": "<f4", "F64": "<f8"}[entry["dtype"]])
        tensors[name] = (entry["dtype"], values.reshape(entry["shape"]))
        at = end
    expect(at == len(data), f"{path}: {len(data)} bytes of data, expected {at}")
    return tensors


def read_model(folder: Path) -> dict[str, tuple[str, numpy.ndarray]]:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    tensors, total = {}, 0
    files = sorted(set(index["weight_map"].values()))
    expect(files == [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))], f"{folder}: {files}")
    for file in files:
        found = read_file(folder / file)
        expect(all(index["weight_map"].get(name) == file for name in found), f"{folder}: {file} and the index differ")
        tensors.update(found)
    expect(tensors.keys() == index["weight_map"].keys(), f"{folder}: the index has other tensors")
    for dtype, values in tensors.values():
        total += ITEM_SIZES[dtype] * values.size
    expect(index["metadata"]["total_size"] == total, f"{folder}: total_size")
    expect(index["metadata"]["total_parameters"] == sum(v.size for _, v in tensors.values()), f"{folder}: total_parameters")
    return tensors


def stored(checkpoint: Path) -> dict[str, numpy.ndarray]:
    found: dict[str, numpy.ndarray] = {}
    with h5py.File(checkpoint / "checkpoint.h5", "r") as file:
        file["parameters"].visititems(
            lambda name, item: found.__setitem__(name, item[()]) if isinstance(item, h5py.Dataset) else None)
    return found


def rounded(values: numpy.ndarray) -> numpy.ndarray:
    """To bf16, to nearest, ties to even."""
    bits = values.astype("<f4").view("<u4").astype(numpy.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype("<u4").view("<f4").reshape(values.shape)


def compare(folder: Path, checkpoint: Path, dtype: str) -> None:
    tensors, expected = read_model(folder), stored(checkpoint)
    expect(tensors.keys() == expected.keys(), f"{folder}: {sorted(tensors.keys() ^ expected.keys())}")
    for name, (found_dtype, values) in tensors.items():
        exact = dtype == "fp32" or name.endswith(("A_log", "dt_bias"))
        expect(found_dtype == ("F32" if exact else "BF16"), f"{folder}: {name}: {found_dtype}")
        wanted = expected[name] if exact else rounded(expected[name])
        expect(values.shape == wanted.shape and values.tobytes() == wanted.astype("<f4").tobytes(), f"{folder}: {name} differs")


def same_files(a: Path, b: Path) -> None:
    """But for what README.md and origin.json say of where a model comes from."""
    names = sorted(path.name for path in a.iterdir())
    expect(names == sorted(path.name for path in b.iterdir()), f"{a} and {b}: other files")
    for name in (name for name in names if name not in ("README.md", "origin.json")):
        expect((a / name).read_bytes() == (b / name).read_bytes(), f"{a / name} and {b / name} differ")


def run(lamina: Lamina, *arguments: str, error: str = "") -> str:
    done = lamina.run(list(arguments), errors="replace")  # what an untrained model says need not be text
    if error:
        expect(done.returncode == 1 and error in done.stderr and len(done.stderr.strip().splitlines()) == 1,
               f"{arguments}: '{error}' is not the one line of {done.stderr}")
    else:
        expect(done.returncode == 0, f"{arguments}: {done.stderr}")
    return done.stdout


def there_and_back(lamina: Lamina, name: str, run_folder: Path, changes: dict) -> None:
    checkpoint = run_folder / "checkpoints" / f"step-{STEPS:08d}"
    for dtype in ("fp32", "bf16"):
        first, back, second = (lamina.folder / f"{name}-{dtype}-{part}" for part in ("first", "back", "second"))
        told = run(lamina, "export", "--checkpoint", str(run_folder), "--output", str(first), "--dtype", dtype,
                   "--max-shard-size", "2e-5")
        expect("Lamina's own" in told and "residual: block_attnres: kimi_linear has no Attention Residuals" in told, f"export: {told}")
        config = json.loads((first / "config.json").read_text())
        expect((config["model_type"], config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == ("lamina", 256, 256, None),
               f"config.json: {config}")
        expect(len(list(first.glob("model-*.safetensors"))) > 1, f"{first}: one shard")
        card = (first / "README.md").read_text()
        loss = json.loads((run_folder / "metrics.jsonl").read_text().splitlines()[STEPS - 1])["loss"]
        for part in (f"{STEPS} of {STEPS} steps, {4 * STEPS} sequences of 21 tokens", f"{loss:.4f} in step {STEPS}", "trust_remote_code=True", "| bytes |"):
            expect(part in card, f"README.md: '{part}' is not in {card}")
        for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "modeling_lamina.py"):
            expect((first / file).stat().st_size > 0, f"{first}: no {file}")
        compare(first, checkpoint, dtype)
        told_back = run(lamina, "import", "--from", str(first), "--output", str(back) + "/",
                        "--config", str(lamina.folder / f"{name}.yaml"))
        expect(told.splitlines()[-1] == told_back.splitlines()[-1], f"hashes: {told} {told_back}")
        run(lamina, "export", "--checkpoint", str(back), "--output", str(second), "--dtype", dtype, "--max-shard-size", "2e-5")
        same_files(first, second)
        expect("contents       parameters" in run(lamina, "inspect", str(back), "--verify"), "inspect: contents")
        if dtype == "fp32":  # exact: the same loss, the same text
            arguments = ["eval", str(lamina.write_config(f"{name}-eval", merged(changes, {"data": {"validation": {
                "path": str(lamina.tokens), "num_sequences": 4}}}))), "--allow-trained", "--checkpoint"]
            expect(run(lamina, *arguments, str(back)) == run(lamina, *arguments, str(checkpoint)), "eval differs")
            sample = ["sample", "--prompt", "the ", "--max-tokens", "12", "--seed", "3", "--checkpoint"]
            expect(run(lamina, *sample, str(back)) == run(lamina, *sample, str(checkpoint)), "sample differs")
            begins_from(lamina, f"{name}-begins", back, checkpoint, changes)


def in_few_bits(values: numpy.ndarray, bits: int, group: int) -> numpy.ndarray:
    """Of a matrix [out, in], float64: to the nearest of 2^bits - 1 multiples of each group's float32 scale, ties to even."""
    most, out = 2 ** (bits - 1) - 1, numpy.zeros(values.shape)
    for begin in range(0, values.shape[1], group):
        part = values[:, begin:begin + group].astype("f8")
        scale = (numpy.abs(part).max(axis=1, keepdims=True) / most).astype("f4").astype("f8")
        whole = numpy.rint(numpy.divide(part, scale, out=numpy.zeros_like(part), where=scale > 0))
        out[:, begin:begin + group] = numpy.clip(whole, -most, most) * scale
    return out


def in_bf16(values: numpy.ndarray) -> numpy.ndarray:
    """float64 at once, which rounding to float32 before would not always give."""
    mantissa, exponent = numpy.frexp(values)
    return numpy.ldexp(numpy.rint(mantissa * 256), exponent - 8)


KEPT = r"embed_tokens|lm_head|norm|conv1d|A_log|dt_bias|\.gate\.|\.[fg]_[ab]_proj|\.b_proj"


def quantized(lamina: Lamina, name: str, run_folder: Path) -> None:
    """Each rounded tensor equals the formula's, all others are what they were."""
    exact = stored(run_folder / "checkpoints" / f"step-{STEPS:08d}")
    matrices = {tensor for tensor in exact if not re.search(KEPT + "|_res_proj", tensor)}
    queries = {tensor for tensor in exact if tensor.endswith("_res_proj.weight")}
    learnt = {query for query in queries if numpy.any(exact[query])}   # the first read has one source, so its query stays zero
    expect(len(matrices) > 20 and (len(queries), len(learnt)) == (11, 10), f"{len(matrices)} matrices, {queries}, learnt {learnt}")
    cases = ((8, 128, "fp32", matrices, []), (4, 16, "bf16", matrices, ["--group-size", "16"]),
             (4, 32, "fp32", matrices | queries, ["--group-size", "32", "--quantize-depth-queries"]))
    for bits, group, dtype, chosen, more in cases:
        folder, back = (lamina.folder / f"{name}-int{bits}-{dtype}{part}" for part in ("", "-back"))
        told = run(lamina, "export", "--checkpoint", str(run_folder), "--output", str(folder), "--dtype", dtype,
                   "--quantize", f"int{bits}", *more)
        how = f"int{bits}, to nearest, a scale per {group} input channels"
        expect(f"rounded        {len(chosen)} tensors: {how}; written in {dtype}" in told, told)
        for tensor, (_, values) in read_model(folder).items():
            wanted = in_few_bits(exact[tensor], bits, group) if tensor in chosen else exact[tensor].astype("f8")
            if dtype == "bf16" and not tensor.endswith(("A_log", "dt_bias")):
                wanted = in_bf16(wanted)
            expect(numpy.array_equal(values, wanted.astype("f4")), f"{folder}: {tensor} by {numpy.abs(values - wanted).max()}")
            if tensor in chosen & (matrices | learnt):
                expect(not numpy.array_equal(values, exact[tensor]), f"{folder}: {tensor} was not rounded")
        kinds = {re.sub(r"\.\d+\.", ".*.", tensor) for tensor in chosen}
        row = next(line for line in (folder / "README.md").read_text().splitlines() if line.startswith("| rounded weights |"))
        expect(how in row and "not as packed integers" in row and set(re.findall("`(.*?)`", row)) == kinds, row)
        # What is made of it says so too.
        run(lamina, "import", "--from", str(folder), "--output", str(back))
        expect(how in run(lamina, "inspect", str(back)), "inspect: not how its weights were rounded")
        run(lamina, "export", "--checkpoint", str(back), "--output", f"{back}-again", "--dtype", dtype)
        same_files(folder, Path(f"{back}-again"))
        expect(how in (Path(f"{back}-again") / "README.md").read_text(), "README.md: not how its weights were rounded")
    out = lamina.folder / "refused"
    for more, error in ((["--quantize", "int3"], "int3"), (["--group-size", "8"], "--quantize"),
                        (["--quantize-depth-queries"], "--quantize"), (["--quantize", "int4", "--group-size", "0"], "--group-size")):
        done = lamina.run(["export", "--checkpoint", str(run_folder), "--output", str(out), *more])
        expect(done.returncode != 0 and error in done.stderr and not out.exists(), f"{more}: {done.returncode}, {done.stderr}")


def begins_from(lamina: Lamina, name: str, imported: Path, checkpoint: Path, changes: dict) -> None:
    """A new run starts from the imported parameters, at any number of ranks; without them it does not start."""
    source = merged(changes, {"checkpoint": {"init_from": str(imported)}, "train": {"precision": "fp32"}})
    expected = stored(checkpoint)
    for ranks in (1, 2):
        with h5py.File(lamina.dump(f"{name}-{ranks}", 1, source, ranks), "r") as file:
            expect(set(file["parameters"]) == set(expected), "init_from: other tensors")
            for tensor, values in expected.items():
                expect(numpy.array_equal(file["parameters"][tensor][()].reshape(values.shape), values), f"init_from: {tensor}")
    missing = lamina.write_config(f"{name}-missing", merged(changes, {"checkpoint": {"init_from": str(lamina.folder / "none")}}))
    done = lamina.run(["train", str(missing)])
    expect(done.returncode == 1 and "none: no such folder, expected a checkpoint or a run folder" in done.stderr, done.stderr)


def bad_input(lamina: Lamina, run_folder: Path) -> None:
    good = lamina.folder / "good"
    run(lamina, "export", "--checkpoint", str(run_folder), "--output", str(good))
    shard = good / "model-00001-of-00001.safetensors"
    whole, out = shard.read_bytes(), lamina.folder / "out"
    (length,) = struct.unpack("<Q", whole[:8])
    header = whole[8:8 + length]

    def refuse(content: bytes | None, error: str) -> None:
        shard.unlink()
        if content is not None:
            shard.write_bytes(content)
        run(lamina, "import", "--from", str(good), "--output", str(out), error=error)
        expect(not out.exists() and not list(lamina.folder.glob("out*")), f"{error}: left {list(lamina.folder.glob('out*'))}")
        shard.write_bytes(whole)

    def with_header(change) -> bytes:
        entries = json.loads(header)
        change(entries)
        text = json.dumps(entries).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text + whole[8 + length:]

    norm = "model.norm.weight"
    refuse(None, f"{shard.name}: can't open")
    refuse(whole[:-3], "bytes of data found, expected")
    refuse(whole[:40], "announced in a file of 40")
    refuse(with_header(lambda h: h[norm].update(data_offsets=[0, h[norm]["data_offsets"][1] - h[norm]["data_offsets"][0]])),
           "tensors overlap")
    refuse(with_header(lambda h: h[norm].update(shape=[6, 6])), "tensor model.norm.weight: shape [6, 6] found, expected [36]")
    refuse(with_header(lambda h: h.update({"model.norm.height": h.pop(norm)})), "tensor model.norm.weight is not in")
    refuse(with_header(lambda h: h[norm].update(dtype="F16")), 'dtype "F16" found')
    (good / "model.safetensors").write_bytes(whole)  # of another save into the same folder
    refuse(whole, "model.safetensors: found beside model.safetensors.index.json, which does not name it")
    (good / "model.safetensors").unlink()
    run(lamina, "export", "--checkpoint", str(run_folder), "--output", str(good), error="exists, expected a new folder")
    run(lamina, "export", "--checkpoint", str(lamina.folder / "nowhere"), "--output", str(out), error="no such folder")
    run(lamina, "import", "--from", str(lamina.folder), "--output", str(out), error="config.json")
    run(lamina, "import", "--from", str(good), "--output", str(out), "train.num_steps=3", error="needs --config")
    run(lamina, "import", "--from", str(good), "--output", str(out), "--config", str(lamina.folder / "dense.yaml"),
        "model.rms_norm_eps=1e-3", error="config.json: model.rms_norm_eps: 1.0e-05 found, expected 0.001")
    for command in ("export", "import"):
        expect("Examples:" in run(lamina, command, "--help"), f"{command} --help")


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        lamina = Lamina(sys.argv[1], Path(folder))
        lamina.prepare()
        for name, model in MODELS.items():
            changes = merged(model, {"train": {"num_steps": STEPS}})
            run_folder = lamina.train(name, changes)
            there_and_back(lamina, name, run_folder, changes)
            # One step on other layouts, whose checkpoints are cut otherwise, from parameters that are the same.
            layouts = [("pipeline", {"parallel": {"pipeline": 2}}), ("data", {})]
            if name == "kimi":
                layouts.append(("expert", {"parallel": {"expert": 2}}))
            start = {"train": {"num_steps": 1, "lr_schedule": {"name": "constant"}, "optimizer": {"lr": 1e-30}}}
            exported = []
            for layout, parallel in [("one", {}), *layouts]:
                run_folder_of = lamina.train(f"{name}-{layout}", merged(merged(model, start), parallel), 1 if layout == "one" else 2)
                exported.append(lamina.folder / f"{name}-{layout}-exported")
                run(lamina, "export", "--checkpoint", str(run_folder_of), "--output", str(exported[-1]), "--dtype", "bf16")
            for other in exported[1:]:
                same_files(exported[0], other)
            print(f"{name}: exported, read by the format's rules, imported and exported again; {len(exported)} layouts alike", flush=True)
        quantized(lamina, "kimi", lamina.folder / "kimi")
        print("quantized: the formula's values, the other tensors as they were")
        bad_input(lamina, lamina.folder / "dense")
        print("bad input is refused with its reason")


if __name__ == "__main__":
    main()
