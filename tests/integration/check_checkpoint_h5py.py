#!/usr/bin/env python3
"""Reads checkpoints as an outsider would, with h5py: whole tensors by name, whatever wrote them, equal to the step dump.

    check_checkpoint_h5py.py LAMINA [RANKS..]     default: 1 2
"""
import json
import os
import sys
import tempfile
from pathlib import Path

import h5py
import numpy
import yaml

from training import Lamina

STEPS = 3


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(f"check_checkpoint_h5py: {message}")


def tensors(group: h5py.Group) -> dict[str, numpy.ndarray]:
    found = {}
    group.visititems(lambda name, item: found.__setitem__(name, item[()]) if isinstance(item, h5py.Dataset) else None)
    return found


def check_tensors(checkpoint: Path, dump: Path) -> None:
    with h5py.File(checkpoint / "checkpoint.h5", "r") as file, h5py.File(dump, "r") as expected:
        stored, wanted = tensors(file["parameters"]), tensors(expected["parameters_after"])
        expect(stored.keys() == wanted.keys(), f"parameters differ: {sorted(stored.keys() ^ wanted.keys())}")
        for name, value in wanted.items():
            expect(stored[name].shape == value.shape, f"{name}: {stored[name].shape} found, {value.shape} expected")
            expect(stored[name].dtype == value.dtype, f"{name}: {stored[name].dtype} found, {value.dtype} expected")
            expect(stored[name].tobytes() == value.tobytes(), f"{name} differs from the step dump")
        for moment in ("m", "v"):
            state = tensors(file[f"optimizer/{moment}"])
            expect(bool(state), f"optimizer/{moment} is empty")
            for name, value in state.items():
                expect(name in wanted and value.shape == wanted[name].shape, f"optimizer/{moment}/{name}: {value.shape}")
                expect(bool(numpy.isfinite(value).all()), f"optimizer/{moment}/{name} is not finite")
        expect(all((value >= 0).all() for value in tensors(file["optimizer/v"]).values()), "a negative second moment")


def check_attributes(checkpoint: Path, ranks: int, config: dict) -> None:
    with h5py.File(checkpoint / "checkpoint.h5", "r") as file:
        attributes = dict(file.attrs)
    stored = yaml.safe_load(attributes["config"])
    expect(attributes["step"] == STEPS, f"step {attributes['step']}")
    expect(attributes["format_version"] == 1, f"format {attributes['format_version']}")
    expect(attributes["world_size"] == ranks, f"world_size {attributes['world_size']}")
    expect(stored["model"]["hidden_size"] == config["model"]["hidden_size"], "another configuration is stored")
    expect(attributes["sequences_consumed"] == STEPS * config["train"]["global_batch_size"], "sequences_consumed")
    expect(int(attributes["seed"]) == config["run"]["seed"], f"seed {attributes['seed']}")
    expect(bool(attributes["sampler_fingerprint"]), "no sampler fingerprint")


def check_table(checkpoint: Path, ranks: int) -> None:
    """The table's offsets are those of the bytes: a reader needs no HDF5 library."""
    with h5py.File(checkpoint / "checkpoint.h5", "r") as file:
        table = json.loads(bytes(file["table"][()]))
        expect(len(table["shards"]) == ranks, f"{len(table['shards'])} shards of {ranks} ranks")
        for shard in table["shards"]:
            path = checkpoint / shard["name"]
            content = path.read_bytes()
            expect(len(content) == shard["num_bytes"], f"{path}: {len(content)} bytes found, {shard['num_bytes']} expected")
            for piece in shard["pieces"]:
                whole = file[piece["tensor"]][()].reshape(-1)[piece["begin"]:piece["end"]].tobytes()
                found = content[piece["offset"]:piece["offset"] + len(whole)]
                expect(found == whole, f"{path}: {piece['tensor']} is not at byte {piece['offset']}")


def check_inspect(lamina: Lamina, run: Path, checkpoint: Path) -> None:
    for path in (run, run / "checkpoints", checkpoint):
        done = lamina.run(["inspect", str(path), "--tensors", "--verify"])
        expect(done.returncode == 0, f"lamina inspect {path}: {done.stderr}")
        for part in (str(checkpoint), f"step           {STEPS}", "parameters/", "fp32", "hidden_size", "whole          yes"):
            expect(part in done.stdout, f"lamina inspect {path} does not say '{part}':\n{done.stdout}")
    shard = checkpoint / "shard-00000.h5"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    expect(lamina.run(["inspect", str(checkpoint)]).returncode == 0, "the quick look reads contents")
    damaged = [("a flipped bit", ["--verify"], shard.name), ("a short file", [], shard.name), ("no marker", [], "COMMITTED")]
    for what, options, file in damaged:
        if what == "a short file":
            os.truncate(shard, 100)
        if what == "no marker":
            (checkpoint / "COMMITTED").unlink()
        done = lamina.run(["inspect", str(checkpoint), *options])
        expect(done.returncode == 1, f"{what}: lamina inspect ended with {done.returncode}")
        expect(file in done.stderr and len(done.stderr.strip().splitlines()) == 1, f"{what}: {done.stderr}")
    for path in (lamina.folder / "nowhere", lamina.folder):
        done = lamina.run(["inspect", str(path)])
        expect(done.returncode == 1 and str(path) in done.stderr, f"lamina inspect {path}: {done.returncode} {done.stderr}")


def main() -> None:
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        lamina = Lamina(sys.argv[1], Path(folder))
        lamina.prepare()
        for ranks in [int(text) for text in sys.argv[2:]] or [1, 2]:
            changes = {"train": {"num_steps": STEPS}, "checkpoint": {"interval": 1, "keep": 2}, "debug": {"dump_step": STEPS}}
            run = lamina.train(f"ranks-{ranks}", changes, ranks)
            kept = sorted(path.name for path in (run / "checkpoints").iterdir())
            expect(kept == [f"step-{step:08d}" for step in (STEPS - 1, STEPS)], f"keep: 2 left {kept}")
            checkpoint = run / "checkpoints" / kept[-1]
            check_tensors(checkpoint, run / f"dump-step-{STEPS}.h5")
            check_attributes(checkpoint, ranks, yaml.safe_load((lamina.folder / f"ranks-{ranks}.yaml").read_text()))
            check_table(checkpoint, ranks)
            check_inspect(lamina, run, checkpoint)
            print(f"checkpoint of {ranks} rank(s): readable by name, in place, equal to the step dump", flush=True)


if __name__ == "__main__":
    main()
