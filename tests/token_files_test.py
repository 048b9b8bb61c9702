#!/usr/bin/env python3
"""Token files of the real writers, used in place: NumPy's, and Megatron's IndexedDatasetBuilder. Not part of ctest: needs the network,
or both.

    token_files_test.py LAMINA [VENV]

VENV is a virtual environment with numpy, torch and megatron-core; without it one is made in a temporary folder (pip install numpy torch
megatron-core==0.16.1). A folder of shards trains as the same tokens in one file do, to the last bit, and a run goes on from the one to the
other.
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent / "integration"))
from training import Lamina, metrics, text  # noqa: E402

# Runs inside the virtual environment: documents (lists of ids) to shards of each kind.
WRITER = r"""
import json, sys
from pathlib import Path
import numpy
import torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
folder, documents = Path(sys.argv[1]), json.loads(Path(sys.argv[1], "documents.json").read_text())
tokens = numpy.concatenate([numpy.array(d, numpy.uint16) for d in documents])
numpy.save(folder / "whole.npy", tokens)
for kind in ("npy", "flat", "megatron"):
    (folder / kind).mkdir()
for i, part in enumerate(numpy.array_split(tokens, 7)):   # not at the ends of documents
    numpy.save(folder / "npy" / f"shard-{i}.npy", part)
    part.tofile(folder / "flat" / f"shard-{i}.bin")
for i in range(4):
    path = str(folder / "megatron" / f"shard-{i}_text_document")
    builder = IndexedDatasetBuilder(path + ".bin", dtype=numpy.uint16)
    for document in documents[i * len(documents) // 4:(i + 1) * len(documents) // 4]:
        builder.add_item(torch.tensor(document))
        builder.end_document()
    builder.finalize(path + ".idx")
"""
CHANGES = {"train": {"num_steps": 6}, "checkpoint": {"interval": 3}}


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(f"token_files_test: {message}")


def losses(run: Path) -> list:
    return [(row["step"], row["loss"], row["grad_norm"]) for row in metrics(run)]


def source(folder: Path) -> dict:
    return {**CHANGES, "data": {"train": [{"path": str(folder), "weight": 1.0}]}}


def test(lamina: Lamina, python: str) -> None:
    words = text(60_000).encode()
    documents = [[*words[i:i + 997], 256] for i in range(0, len(words), 997)]
    (lamina.folder / "documents.json").write_text(json.dumps(documents))
    subprocess.run([python, "-c", WRITER, str(lamina.folder)], check=True)

    def prepare(name: str, *arguments: str) -> Path:
        folder = lamina.folder / f"tokens-{name}"
        done = lamina.run(["prepare", "--in-place", "--output", str(folder), *arguments])
        expect(done.returncode == 0, f"{name}: {done.stderr}")
        expect(f"{sum(map(len, documents))} tokens in {len(documents)} documents" in done.stdout, f"{name}: {done.stdout}")
        return folder

    whole = prepare("whole", "whole.npy")
    folders = {"npy": prepare("npy", "npy"), "flat": prepare("flat", "--token-type", "u16", "flat"),
               "megatron": prepare("megatron", "megatron")}
    expected = losses(lamina.train("run-whole", source(whole)))
    for name, folder in folders.items():
        found = losses(lamina.train(f"run-{name}", source(folder)))
        expect(found == expected, f"{name}: {found}, expected {expected}")
    # Stopped half-way on the shards, and on with the one file.
    half = lamina.train("run-half", {**source(folders["npy"]), "train": {"num_steps": 3}})
    lamina.train("run-half", source(whole))
    expect(losses(half) == expected, f"on with the one file: {losses(half)}, expected {expected}")

    # A shard in the middle that changes at its place, of the same length, between two starts.
    shard = lamina.folder / "npy" / "shard-3.npy"
    data = bytearray(shard.read_bytes())
    data[-200] ^= 1
    shard.write_bytes(data)
    changed = lamina.write_config("run-changed", {**source(folders["npy"]), "train": {"num_steps": 2000}})
    done = lamina.run(["train", str(changed)])
    expect(done.returncode == 1 and "changed since it was prepared" in done.stderr, f"a changed shard: {done.returncode}: {done.stderr[-500:]}")


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="lamina-tokens-") as name:
        if len(sys.argv) > 2:
            environment = Path(sys.argv[2])
        else:
            environment = Path(name) / "venv"
            subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
            subprocess.run([str(environment / "bin" / "pip"), "install", "-q", "numpy", "torch", "megatron-core==0.16.1"], check=True)
        test(Lamina(sys.argv[1], Path(name)), str(environment / "bin" / "python"))
    print("token_files_test: passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
