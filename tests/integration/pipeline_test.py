#!/usr/bin/env python3
"""Trains the same models at pipeline layouts, by ranks that are processes, and expects of each run: the gradients of the
float64 reference and of one rank, the bytes on the hops that block_routes.py counts, and the layer statistics of one rank.

    pipeline_test.py LAMINA
"""
import json
import math
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import compare_dump
from compare_dump import Row
from run_dump_matrix import Matrix, difference, model
from training import BASE, Lamina, merged, metrics

import block_routes  # compare_dump put the folder of the references on the path

STEP = 3   # the first two updates move the depth queries away from zero, where every read is a mean


@dataclass
class Case:
    pipeline: int
    virtual: int
    data: int
    schedule: str
    residual: str = "block_attnres"
    block_size: int = 2
    layers: int = 5
    split: tuple[int, ...] | None = None   # None: auto
    transport: str = "cached"
    recompute: str = "none"
    precision: str = "fp32"
    microbatches: int = 4                  # per pipeline
    tied: bool = False
    q_lora_rank: int | None = None

    def ranks(self) -> int:
        return self.pipeline * self.data

    def name(self) -> str:
        parts = [f"{self.pipeline}x{self.virtual}x{self.data}", self.schedule, self.residual, f"b{self.block_size}",
                 f"m{self.microbatches}", self.transport, self.recompute, self.precision,
                 "split" + "-".join(map(str, self.split or ()))]
        return "_".join(parts) + ("_tied" if self.tied else "") + ("_qlora" if self.q_lora_rank else "")

    def one_rank(self) -> dict:
        # Micro-batches of two sequences, as many per pipeline as the case says.
        changes = {"train": {"precision": self.precision, "global_batch_size": 2 * self.microbatches * self.data,
                             "micro_batch_size": 2, "optimizer": {"lr": 1e-2}},
                   "logging": {"layer_stats_interval": 1}}
        return merged(changes, model(self.residual, self.block_size, self.layers, self.tied, self.q_lora_rank))

    def changes(self) -> dict:
        parallel = {"pipeline": self.pipeline, "virtual_stages": self.virtual, "data": self.data, "schedule": self.schedule}
        if self.residual != "standard":
            parallel["block_transport"] = self.transport
        if self.split is not None:
            parallel["split"] = list(self.split)
        return merged(self.one_rank(), {"parallel": parallel, "train": {"recompute": self.recompute}})


CASES = [
    Case(1, 2, 1, "interleaved_1f1b"),
    Case(1, 4, 1, "zero_bubble", residual="full_attnres", tied=True, recompute="selective"),
    Case(2, 1, 1, "1f1b", tied=True, split=(2, 3)),
    Case(2, 2, 1, "interleaved_1f1b", block_size=1, split=(0, 3, 1, 1), recompute="selective"),
    Case(2, 2, 1, "interleaved_1f1b", block_size=1, split=(0, 3, 1, 1), transport="full"),
    Case(2, 2, 1, "zero_bubble", precision="fp64", recompute="full", tied=True, microbatches=3),
    Case(2, 2, 1, "gpipe", precision="bf16", recompute="selective", block_size=1),
    Case(2, 3, 1, "gpipe", block_size=3, split=(1, 1, 1, 1, 1, 0), q_lora_rank=11, microbatches=2),
    Case(2, 1, 2, "gpipe", block_size=1, tied=True, q_lora_rank=11, microbatches=2),
    Case(2, 1, 2, "1f1b", residual="standard", recompute="full"),
    Case(2, 2, 2, "zero_bubble", tied=True, q_lora_rank=11, microbatches=2, split=(1, 2, 2, 0)),
    Case(2, 2, 2, "interleaved_1f1b", residual="full_attnres", recompute="full", microbatches=3),
    Case(3, 1, 1, "gpipe", residual="standard", tied=True, split=(1, 1, 3)),
    Case(3, 1, 1, "1f1b", residual="full_attnres", recompute="full", transport="full", microbatches=2),
    Case(3, 1, 1, "zero_bubble", block_size=3, split=(3, 1, 1)),
    Case(4, 1, 1, "1f1b", block_size=1, q_lora_rank=11, microbatches=6),
    Case(4, 1, 1, "zero_bubble", residual="full_attnres", tied=True, microbatches=3),
    Case(4, 2, 1, "interleaved_1f1b", block_size=1, layers=7, tied=True, microbatches=5),
]


def layers_per_chunk(case: Case, run: Path) -> list[int]:
    """The split that the run says it used."""
    if case.pipeline * case.virtual == 1:
        return [case.layers]
    return [int(n) for n in re.search(r"layers per chunk((?: \d+)+)", (run / "log.txt").read_text())[1].split()]


def check_bytes(case: Case, run: Path) -> list[Row]:
    split = layers_per_chunk(case, run)
    hops = []
    if case.pipeline > 1:
        hops = block_routes.routes(case.layers, case.block_size, split, case.pipeline,
                                   "own" if case.transport == "cached" else "full", case.residual == "full_attnres")
        assert len(hops) == case.pipeline * case.virtual - 1
    summaries = 0 if case.residual == "standard" else sum(map(len, hops))
    size = {"fp64": 8, "fp32": 4, "bf16": 2}[case.precision]
    message = size * 2 * BASE["data"]["seq_len"] * BASE["model"]["hidden_size"]   # two sequences per micro-batch
    both_ways = 2 * case.microbatches * case.data * message
    rows = []
    if case.split is not None:
        rows.append(Row(f"split {split}", 0.0 if split == list(case.split) else math.inf, 0.0))
    for row in metrics(run):
        for key, expected in (("pipeline_hidden", len(hops) * both_ways), ("pipeline_blocks", summaries * both_ways)):
            found = row["comm_bytes"][key]
            rows.append(Row(f"comm_bytes.{key} of step {row['step']}: {found}, counted {expected}", abs(found - expected), 0.0))
    return rows


def check_bubble(case: Case, run: Path) -> list[Row]:
    rows = []
    for row in metrics(run):
        stats = row.get("pipeline")
        if case.pipeline == 1:
            sane = stats is None
        else:
            sane = (stats is not None and 0 <= stats["bubble"] < 1 and 0 <= stats["bubble_bound"] < 1
                    and 0 < stats["efficiency"] < math.inf)   # against mean costs: a lucky step may be above 1
        rows.append(Row(f"pipeline statistics of step {row['step']}: {stats}", 0.0 if sane else math.inf, 0.0))
    return rows


def check_layers(case: Case, run: Path, one: Path) -> list[Row]:
    """Norms of vectors that differ by a relative 1e-5 at most differ by no more."""
    limit = {"fp64": 1e-10, "fp32": 2e-5, "bf16": 8 * 2.0**-8}[case.precision]
    ours, theirs = ([json.loads(line) for line in (folder / "layers.jsonl").read_text().splitlines()] for folder in (run, one))
    rows = [Row(f"{len(ours)} rows in layers.jsonl, one rank has {len(theirs)}", abs(len(ours) - len(theirs)), 0.0)]
    for a, b in zip(ours, theirs):
        where = f"layers.jsonl: step {b['step']} layer {b['layer']} {b['sublayer']}"
        if a.keys() != b.keys() or any(a[key] != b[key] for key in ("step", "layer", "sublayer")):
            rows.append(Row(f"{where}: {a}", math.inf, 0.0))
            continue
        for key in b.keys() - {"step", "layer", "sublayer"}:
            pair = (a[key], b[key]) if isinstance(b[key], list) else ([a[key]], [b[key]])
            same = len(pair[0]) == len(pair[1])
            error = max(abs(x - y) for x, y in zip(*pair)) / max(map(abs, pair[1])) if same and any(pair[1]) else \
                (max(map(abs, pair[0]), default=0.0) if same else math.inf)
            rows.append(Row(f"{where} {key}", error, limit))
    return rows


def check_one_rank(case: Case, dump: Path, one: Path) -> list[Row]:
    loss, gradient = {"fp64": (1e-12, 1e-10), "fp32": (1e-6, 1e-5), "bf16": (2.0**-8, math.inf)}[case.precision]
    # In bf16 two updates drive runs apart by more than a step's own roundings; there the reference judges the gradients.
    rows = [row for row in difference(one, dump, loss=loss, gradient=gradient) if row.limit < math.inf]
    ours, theirs = metrics(dump.parent), metrics(one.parent)
    rows.append(Row("number of metrics rows", abs(len(ours) - len(theirs)), 0.0))
    rows += [Row(f"metrics {key} of step {a['step']}", abs(a[key] - b[key]) / b[key], 10 * loss if key == "grad_norm" else loss)
             for a, b in zip(ours, theirs) for key in ("loss", "grad_norm")]
    return rows


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        lamina = Lamina(sys.argv[1], Path(folder))
        lamina.prepare()
        matrix = Matrix(lamina)
        one_rank: dict[str, Path] = {}
        for case in CASES:
            key = json.dumps(case.one_rank(), sort_keys=True)
            if key not in one_rank:
                one_rank[key] = lamina.dump(f"one-rank-{len(one_rank)}", STEP, case.one_rank())
            one = one_rank[key]
            dump = lamina.dump(case.name(), STEP, case.changes(), case.ranks())
            matrix.judge(case.name(), compare_dump.compare(str(dump), gradients_only=True) + check_one_rank(case, dump, one)
                         + check_bytes(case, dump.parent) + check_bubble(case, dump.parent)
                         + check_layers(case, dump.parent, one.parent))
        print(f"{matrix.passed} layouts passed, {len(matrix.failed)} failed: {' '.join(matrix.failed) or 'none'}")
        return 1 if matrix.failed or matrix.passed != len(CASES) else 0


if __name__ == "__main__":
    sys.exit(main())
