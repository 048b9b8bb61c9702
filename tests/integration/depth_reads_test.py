#!/usr/bin/env python3
"""What runs say about their depth reads, and what `lamina eval --ablate-sources` finds, against the float64 reference.

    depth_reads_test.py LAMINA
"""
import json
import math
import re
import sys
import tempfile
from pathlib import Path

import torch

import compare_dump
import reference
from training import Lamina, merged, text

RESIDUALS = {"full": {"residual": "full_attnres", "attn_res_block_size": None, "num_hidden_layers": 3},
             "block": {"residual": "block_attnres", "attn_res_block_size": 2, "num_hidden_layers": 5},
             "one block": {"residual": "block_attnres", "attn_res_block_size": 4, "num_hidden_layers": 3}}
TRAIN = {"precision": "fp64", "num_steps": 4, "global_batch_size": 4, "micro_batch_size": 2,
         "optimizer": {"lr": 0.03, "attn_res_lr_factor": 0.7}}
SEQ_LEN, NUM_SEQUENCES = 21, 6


class Faults:
    def __init__(self):
        self.found, self.checks = [], 0

    def close(self, what: str, ours: float, theirs: float, limit: float = 1e-9) -> None:
        self.checks += 1
        if not abs(ours - theirs) <= limit * max(1.0, abs(theirs)):
            self.found.append(f"{what}: {ours}, the reference has {theirs}")

    def equal(self, what: str, ours, theirs) -> None:
        self.checks += 1
        if ours != theirs:
            self.found.append(f"{what}: {ours}, expected {theirs}")


def pairs(values: list):
    return [(a, b) for i, a in enumerate(values) for b in values[i + 1:]]


def check_rows(faults: Faults, name: str, dump_path: Path) -> None:
    """layers.jsonl of the dumped step."""
    dump = compare_dump.Dump(str(dump_path))
    config = compare_dump.model_config(dump.config, dump.parameters)
    seen, read = [], reference.attn_res

    def keeping(sources, *rest):
        seen.append(sources)
        return read(sources, *rest)

    reference.attn_res = keeping
    try:
        with torch.no_grad():
            trace = reference.forward(dump.parameters, config, dump.tokens, dump.targets)["trace"]
    finally:
        reference.attn_res = read
    rows = [json.loads(line) for line in (dump_path.parent / "layers.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["step"] == TRAIN["num_steps"]]
    faults.equal(f"{name}: rows", len(rows), len(trace))
    for site, (row, expected) in enumerate(zip(rows, trace)):
        where, w = f"{name}: {row['layer']} {row['sublayer']}", expected["weights"]
        faults.equal(f"{where}: sources", len(row["depth_weights"]), len(w))
        for j, weight in enumerate(row["depth_weights"]):
            faults.close(f"{where} depth_weights[{j}]", weight, w[j].mean().item())
        faults.close(f"{where} depth_entropy", row["depth_entropy"], torch.special.entr(w).sum(0).mean().item())
        faults.close(f"{where} depth_largest", row["depth_largest"], w.amax(0).mean().item())
        kind = {"mixer": f"layers.{row['layer']}.self_attention", "mlp": f"layers.{row['layer']}.mlp", "output": "output_attn"}
        query = f"model.{kind[row['sublayer']]}_res_proj.weight"
        before, after = dump.parameters[query], dump.parameters_after[query]
        faults.close(f"{where} query_norm", row["query_norm"], before.norm().item())
        faults.close(f"{where} query_update", row["query_update"], (after - before).norm().item())
        if site > 0:
            faults.equal(f"{where}: moves", row["query_update"] > 0, True)
        faults.equal(f"{where}: has cosines", "source_cosines" in row, site + 1 == len(rows))
    cosines = [torch.nn.functional.cosine_similarity(a, b, dim=-1).mean().item() for a, b in pairs(seen[-1])]
    faults.equal(f"{name}: cosines", len(rows[-1]["source_cosines"]), len(cosines))
    for i, (ours, theirs) in enumerate(zip(rows[-1]["source_cosines"], cosines)):
        faults.close(f"{name} source_cosines[{i}]", ours, theirs)


def losses_without(dump: compare_dump.Dump, tokens, targets) -> list[float]:
    """The loss, then that without each source, from parameters after the dumped step."""
    config = compare_dump.model_config(dump.config, dump.parameters)
    layers, read = config.num_hidden_layers, reference.attn_res
    per_block = 1 if config.residual == "full_attnres" else 2 * config.attn_res_block_size   # sublayers
    num_blocks = math.ceil(2 * layers / per_block)

    def loss(ablated: int | None) -> float:
        site = 0

        def ablating(sources, *rest):
            nonlocal site
            is_output = site == 2 * layers
            closed = min(site, 2 * layers - 1) // per_block + 1   # the open sum comes after them
            finished = closed + 1 if is_output else closed          # the last block is the output's open sum
            kept = [v for j, v in enumerate(sources) if j != ablated or j >= finished or (j == 0 and closed == 1)]
            site += 1
            return read(kept, *rest)

        reference.attn_res = ablating
        try:
            with torch.no_grad():
                return reference.forward(dump.parameters_after, config, tokens, targets)["loss"].item()
        finally:
            reference.attn_res = read

    return [loss(ablated) for ablated in [None, *range(num_blocks + 1)]]


def check_ablation(faults: Faults, name: str, lamina: Lamina, dump_path: Path) -> None:
    held_out = lamina.folder / "held_out.txt"
    arguments = ["eval", f"{dump_path.parent}.yaml", "--checkpoint", str(dump_path.parent), "--ablate-sources", "--write-text",
                 str(held_out)]
    done = lamina.run(arguments)
    faults.equal(f"{name}: lamina eval", (done.returncode, done.stderr.count("error")), (0, 0))
    whole, found = text().encode(), held_out.read_bytes()
    faults.equal(f"{name}: evaluated bytes", len(found), SEQ_LEN * NUM_SEQUENCES)
    begin = whole.rindex(found) - 1   # of the first token; the text holds the targets
    stream = torch.tensor(list(whole[begin:begin + len(found) + 1]))
    tokens, targets = (part.reshape(NUM_SEQUENCES, SEQ_LEN) for part in (stream[:-1], stream[1:]))
    expected = losses_without(compare_dump.Dump(str(dump_path)), tokens, targets)
    for ranks, layout in ((1, []), (2, ["parallel.pipeline=2"]), (2, [])):
        done = lamina.run(arguments + layout, ranks)
        ours = [float(loss) for loss in re.findall(r"^(?:loss|without .* loss) ([0-9.]+)", done.stdout, re.MULTILINE)]
        faults.equal(f"{name}, {ranks} ranks: losses of {done.stdout}{done.stderr}", len(ours), len(expected))
        for source, (loss, theirs) in enumerate(zip(ours, expected)):
            faults.close(f"{name}, {ranks} ranks: loss without source {source - 1}", loss, theirs, 2e-6)
        rises = [float(rise) for rise in re.findall(r"^without .*, ([-+][0-9.]+)$", done.stdout, re.MULTILINE)]
        for rise, loss in zip(rises, ours[1:]):
            faults.close(f"{name}: rise", rise, loss - ours[0], 2e-6)
    without = expected[2:] if name == "one block" else expected[1:]   # where every read keeps the embedding
    faults.equal(f"{name}: each source matters", min(abs(loss - expected[0]) for loss in without) > 1e-5, True)


def main() -> int:
    faults = Faults()
    with tempfile.TemporaryDirectory() as folder:
        lamina = Lamina(sys.argv[1], Path(folder))
        lamina.prepare()
        data = {"validation": {"path": str(lamina.tokens), "num_sequences": NUM_SEQUENCES}}
        base = {"data": data, "train": TRAIN, "logging": {"layer_stats_interval": 2}}
        for name, residual in RESIDUALS.items():
            dump = lamina.dump(name.replace(" ", "-"), TRAIN["num_steps"], merged({"model": residual}, base))
            check_rows(faults, name, dump)
            check_ablation(faults, name, lamina, dump)
        sharded = lamina.dump("sharded", TRAIN["num_steps"], merged({"model": RESIDUALS["block"]}, base), ranks=2)
        check_rows(faults, "two data-parallel ranks", sharded)
        standard = {"residual": "standard", "attn_res_block_size": None}
        path = lamina.write_config("standard", merged({"model": standard}, merged(base, {"train": {"optimizer": {
            "attn_res_lr_factor": None}}})))
        done = lamina.run(["eval", str(path), "--checkpoint", str(lamina.folder / "block"), "--ablate-sources"])
        faults.equal("standard residual", (done.returncode != 0, "--ablate-sources: found model.residual: standard" in done.stderr),
                     (True, True))
    print("\n".join(faults.found) or f"{faults.checks} checks passed")
    return 1 if faults.found else 0


if __name__ == "__main__":
    sys.exit(main())
