#!/usr/bin/env python3
"""Trains tiny models of every kind and compares their step dumps with the float64 reference.

    run_dump_matrix.py LAMINA [PART...]       PART: fp32 fp64 bf16 zero_queries batches ranks kimi expert_ranks,
                                              and where there is a GPU: cuda
"""
import math
import sys
import tempfile
import traceback
from pathlib import Path

import h5py
import numpy

import compare_dump
from training import Lamina, merged, metrics

LR = 0.03   # after two steps of this size no parameter is at a special point: depth queries start at zero
SCHEMES = [("standard", 2), ("full_attnres", 2), ("block_attnres", 1), ("block_attnres", 2), ("block_attnres", 3)]
MHC = ("mhc", 2)   # where one or two models tell


def model(residual: str, block_size: int, layers: int = 5, tied: bool = False, q_lora_rank: int | None = None) -> dict:
    changes = {"model": {"residual": residual, "num_hidden_layers": layers,
                         "attn_res_block_size": block_size if residual == "block_attnres" else None,
                         "tie_word_embeddings": tied, "q_lora_rank": q_lora_rank}}
    if residual in ("full_attnres", "block_attnres"):   # depth queries as far from zero as everything else is from where it began
        changes["train"] = {"optimizer": {"attn_res_lr_factor": 1.0}}
    return changes


MLA_KEYS = ("num_attention_heads", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")

# A small Kimi Linear: both mixers, dense and mixture layers. Smaller steps and weights than the dense models': after two large
# steps some activations are so small that float32 itself (PyTorch's too) is off by 2e-5.
KIMI = {"model": {"hidden_size": 52, "initializer_range": 0.08, "mixers": ["kda", "kda", "mla"], "linear_num_heads": 2,
                  "linear_head_dim": 16, "num_experts": 6, "num_experts_per_token": 2, "moe_intermediate_size": 20,
                  "first_k_dense_replace": 1, "routed_scaling_factor": 1.3, "aux_loss_alpha": 0.05},
        "train": {"optimizer": {"name": "muon", "lr": 0.003}}}


def name_of(residual: str, block_size: int, layers: int, tied: bool, q_lora_rank: int | None) -> str:
    size = block_size if residual == "block_attnres" else ""
    return f"{residual}{size}-{layers}{'-tied' if tied else ''}{'-qlora' if q_lora_rank else ''}"


class Matrix:
    def __init__(self, lamina: Lamina):
        self.lamina, self.failed, self.passed = lamina, [], 0

    def judge(self, name: str, rows: list[compare_dump.Row]) -> None:
        bad = [row for row in rows if not row.ok]
        worst = max(rows, key=lambda row: row.error / row.limit if row.limit else (math.inf if row.error else 0.0))
        print(f"{name:44s} {'FAILED' if bad else 'ok':6s} worst {worst.error:8.1e} of {worst.limit:7.1e}  {worst.name}", flush=True)
        if bad:
            self.failed.append(name)
            print(compare_dump.report(rows, 0))
        else:
            self.passed += 1

    def step(self, name: str, step: int, changes: dict, gradients_only: bool) -> None:
        """One dump against the reference, and its gradient norm against the logged one."""
        dump = self.lamina.dump(f"{name}-step{step}", step, changes)
        rows = compare_dump.compare(str(dump), gradients_only=gradients_only)
        with h5py.File(dump, "r") as file:
            norm = math.sqrt(sum(float(numpy.square(g[()].astype("float64")).sum()) for g in file["gradients"].values()))
            loss = float(file["loss"][()])
        last = metrics(dump.parent)[-1]
        rows.append(compare_dump.Row("metrics grad_norm", abs(last["grad_norm"] - norm) / norm, 1e-5))
        rows.append(compare_dump.Row("metrics loss", abs(last["loss"] - loss) / loss, 1e-6))
        self.judge(f"{name} step {step}", rows)

    def both_steps(self, name: str, changes: dict) -> None:
        self.step(name, 1, changes, gradients_only=False)   # AdamW starts from zeros
        self.step(name, 3, changes, gradients_only=True)    # nonzero depth queries

    def fp32(self) -> None:
        for residual, size in SCHEMES:
            for layers in (5, 7):
                for tied in (False, True):
                    for rank in (None, 11):
                        self.both_steps(name_of(residual, size, layers, tied, rank), model(residual, size, layers, tied, rank))
        self.step("no-clipping", 1, {"train": {"grad_clip": 0.0}}, gradients_only=False)
        self.step("one-layer", 3, model("block_attnres", 2, layers=1), gradients_only=True)
        self.step("block-as-deep-as-the-model", 3, model("block_attnres", 5), gradients_only=True)
        self.step("no-shared-key", 3, {"model": {"qk_rope_head_dim": 0}}, gradients_only=True)
        self.step("recompute-full", 3, {"train": {"recompute": "full"}}, gradients_only=True)
        self.step("recompute-selective", 3, {"train": {"recompute": "selective"}}, gradients_only=True)

    def other_precision(self, precision: str) -> None:
        for residual, size in SCHEMES:
            for tied, rank in ((False, None), (True, 11)):
                changes = merged(model(residual, size, 5, tied, rank), {"train": {"precision": precision}})
                self.both_steps(f"{precision}-{name_of(residual, size, 5, tied, rank)}", changes)

    def fp64(self) -> None:
        self.other_precision("fp64")
        # The gradients of how nearly equal streams are mixed are what is left of much larger sums: three numbers of which single precision,
        # PyTorch's too, has four digits. tests/core/ops compares the single-precision kernels.
        exact = {"train": {"precision": "fp64"}}
        for tied, rank in ((False, None), (True, 11)):
            self.both_steps(f"fp64-{name_of(*MHC, 5, tied, rank)}", merged(model(*MHC, 5, tied, rank), exact))
        self.both_steps("fp64-mhc, 3 streams", merged(merged(model(*MHC), exact),
                                                      {"model": {"num_residual_streams": 3}, "train": {"recompute": "full"}}))
        self.both_steps("fp64-kimi-mhc", merged(merged(model(*MHC), exact), KIMI))

    def bf16(self) -> None:
        self.other_precision("bf16")

    def zero_queries(self) -> None:
        """At the first step every depth query is zero: each read is the mean of what the standard residual sums, and
        norms don't see the scale (their epsilon aside, which is made small). The streams of mHC are equal and sum alike.
        Loss and shared gradients are equal."""
        tiny = {"model": {"rms_norm_eps": 1e-12, "kv_a_layernorm_eps": 1e-12}}
        for tied, rank in ((False, None), (True, 11)):
            plain = self.lamina.dump(f"zero-standard-{tied}", 1, merged(model("standard", 2, 5, tied, rank), tiny))
            for residual, size in SCHEMES[1:] + [MHC]:
                name = f"zero-queries-{name_of(residual, size, 5, tied, rank)}"
                other = self.lamina.dump(name, 1, merged(model(residual, size, 5, tied, rank), tiny))
                self.judge(name, difference(plain, other, loss=1e-6, gradient=1e-5, shared=True))

    def batches(self) -> None:
        """The micro-batch size only groups the sequences, and recomputation repeats the same operations."""
        changes = {"train": {"micro_batch_size": 1}}
        one = self.lamina.dump("micro-1", 3, changes)
        for size in (2, 4):
            other = self.lamina.dump(f"micro-{size}", 3, merged(changes, {"train": {"micro_batch_size": size}}))
            self.judge(f"micro-batches of {size}", difference(one, other, loss=1e-6, gradient=1e-5))
        for mode in ("selective", "full"):
            other = self.lamina.dump(f"recompute-{mode}", 3, merged(changes, {"train": {"recompute": mode}}))
            self.judge(f"recompute {mode}, bit for bit", difference(one, other, loss=0.0, gradient=0.0))

    def ranks(self) -> None:
        for precision, loss, gradient in (("fp32", 1e-6, 1e-5), ("fp64", 1e-12, 1e-10)):
            changes = {"train": {"precision": precision, "global_batch_size": 12, "micro_batch_size": 1,
                                 "optimizer": {"lr": 1e-3}}}
            one = self.lamina.dump(f"{precision}-ranks-1", 6, changes)
            for ranks in (2, 3, 4):
                name = f"{precision}-ranks-{ranks}"
                other = self.lamina.dump(name, 6, changes, ranks)
                rows = difference(one, other, loss=max(loss, 1e-7), gradient=gradient)
                ours, theirs = metrics(other.parent), metrics(one.parent)
                rows.append(compare_dump.Row("number of metrics rows", abs(len(ours) - len(theirs)), 0))
                rows += [compare_dump.Row(f"metrics loss of step {a['step']}", abs(a["loss"] - b["loss"]) / b["loss"], loss)
                         for a, b in zip(ours, theirs)]
                self.judge(name, rows)


    def kimi(self) -> None:
        for residual, size in SCHEMES:
            changes = merged(model(residual, size), KIMI)   # this way round a None still removes a key
            self.both_steps(f"kimi-{name_of(residual, size, 5, False, None)}", changes)
        variants = {"kda alone": {"model": {"mixers": ["kda"], **dict.fromkeys(MLA_KEYS)}},
                    "bounded gate": {"model": {"gate_lower_bound": -5.0}},
                    "adamw": {"train": {"optimizer": {"name": "adamw"}}},
                    "groups": {"train": {"optimizer": {
                        "name": "muon", "lr": 0.003, "attn_res_lr_factor": 0.1, "groups": [
                            {"pattern": "*norm.weight", "weight_decay": 0.0},
                            {"pattern": "lm_head.weight", "rule": "muon", "lr_factor": 0.5},
                            {"pattern": "model.layers.[1-2].*", "lr_factor": 0.25, "rule": "adamw"},
                            {"pattern": "*.w2.weight", "rule": "muon"}]}}},
                    "no shared expert": {"model": {"num_shared_experts": 0}},
                    "two shared experts, weights as they are": {"model": {"num_shared_experts": 2, "moe_renormalize": False}},
                    "all experts": {"model": {"num_experts_per_token": 6, "aux_loss_alpha": 0.0}},
                    "every layer a mixture": {"model": {"first_k_dense_replace": 0, "intermediate_size": None}},
                    "two taps, tied, q_lora": {"model": {"short_conv_kernel_size": 2, "tie_word_embeddings": True, "q_lora_rank": 11}},
                    "recompute-full": {"train": {"recompute": "full"}},
                    "recompute-selective": {"train": {"recompute": "selective"}}}
        for name, changes in variants.items():
            self.both_steps(f"kimi {name}", merged(changes, {key: {k: v for k, v in KIMI[key].items() if k not in changes.get(key, {})}
                                                             for key in KIMI}))
        self.both_steps("kimi fp64", merged(KIMI, {"train": {"precision": "fp64"}}))
        # Which expert a token chooses may hang on a rounding in bf16, and then gradients differ: every token has them all.
        self.both_steps("kimi bf16", merged(KIMI, {"model": {"num_experts_per_token": 6}, "train": {"precision": "bf16"}}))

    def cuda(self) -> None:
        """The same on a GPU, or on the emulated one; ranks are processes that share it."""
        self.lamina.device = "cuda"
        for residual, size in SCHEMES[:1] + SCHEMES[-2:]:
            self.step(f"cuda {residual}-{size}", 3, model(residual, size, 3, True, 11), gradients_only=True)
            self.step(f"cuda kimi {residual}-{size}", 3, merged(model(residual, size, 4), KIMI), gradients_only=True)
        self.step("cuda kimi recompute", 3, merged(KIMI, {"train": {"recompute": "full"}}), gradients_only=True)
        self.step("cuda bf16", 1, merged(model("block_attnres", 2, 4), {"train": {"precision": "bf16"}}), gradients_only=True)
        self.step("cuda kimi bf16", 1, merged(KIMI, {"model": {"num_experts_per_token": 6}, "train": {"precision": "bf16"}}),
                  gradients_only=True)
        changes = merged(KIMI, {"train": {"global_batch_size": 8, "micro_batch_size": 1,
                                          "optimizer": {"name": "muon", "lr": 1e-4}}})
        one = self.lamina.dump("cuda-1", 3, changes)
        layout = {"parallel": {"pipeline": 2, "expert": 1, "virtual_stages": 2}}
        other = self.lamina.dump("cuda-2", 3, merged(changes, layout), 2)
        self.judge("cuda, 2 processes, pipeline 2 x 2", difference(one, other, loss=1e-6, gradient=1e-5))
        other = self.lamina.dump("cuda-experts", 3, merged(changes, {"parallel": {"expert": 2}}), 2)
        self.judge("cuda, 2 processes, expert 2", difference(one, other, loss=1e-6, gradient=1e-5))
        self.lamina.device = "cpu"

    def expert_ranks(self) -> None:
        """Data and expert ranks train the model of one rank."""
        for precision, loss, gradient in (("fp32", 1e-6, 1e-5), ("fp64", 1e-12, 1e-10)):
            changes = merged(KIMI, {"train": {"precision": precision, "global_batch_size": 8, "micro_batch_size": 1,
                                              "optimizer": {"name": "muon", "lr": 1e-4}}})
            one = self.lamina.dump(f"{precision}-experts-1", 3, changes)
            for ranks, expert, pipeline in ((2, 1, 1), (2, 2, 1), (4, 2, 1), (4, 2, 2)):
                name = f"{precision}-experts-{ranks}-{expert}-{pipeline}"
                layout = {"parallel": {"expert": expert, "pipeline": pipeline}}
                other = self.lamina.dump(name, 3, merged(changes, layout), ranks)
                self.judge(f"{precision}, {ranks} ranks, expert {expert}, pipeline {pipeline}",
                           difference(one, other, loss=max(loss, 1e-7), gradient=gradient))


def difference(one: Path, other: Path, loss: float, gradient: float, shared: bool = False) -> list[compare_dump.Row]:
    """Rows of what two dumps must have in common; `shared`: only the tensors that both have."""
    a, b = compare_dump.Dump(str(one)), compare_dump.Dump(str(other))
    rows = [compare_dump.Row("tokens", 0.0 if a.tokens.equal(b.tokens) and a.targets.equal(b.targets) else math.inf, 0.0),
            compare_dump.Row("loss", compare_dump.relative(b.loss, a.loss), loss)]
    floor = 1e-3 * gradient * math.sqrt(sum(g.norm().item() ** 2 for g in a.gradients.values()))
    for group in ("parameters",) if shared else ("parameters", "gradients", "parameters_after"):
        ours, theirs = getattr(b, group), getattr(a, group)
        if not shared and ours.keys() != theirs.keys():
            rows.append(compare_dump.Row(f"names of /{group}", math.inf, 0.0))
        limit = 0.0 if shared else gradient   # initial parameters are a function of seed, name and index only
        size = compare_dump.size_before_sums if group == "gradients" else lambda name, gradients, least: least
        rows += [compare_dump.Row(f"{group}/{name}", compare_dump.relative(ours[name], theirs[name], size(name, theirs, floor)), limit)
                 for name in theirs if name in ours]
    if shared:
        rows += [compare_dump.Row(f"gradients/{name}", compare_dump.relative(b.gradients[name], g, floor), gradient)
                 for name, g in a.gradients.items()]
    return rows


def main() -> int:
    parts = ["fp32", "fp64", "bf16", "zero_queries", "batches", "ranks", "kimi", "expert_ranks"]
    optional = ["cuda"]
    if len(sys.argv) < 2 or any(part not in parts + optional for part in sys.argv[2:]):
        print(__doc__, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        lamina = Lamina(sys.argv[1], Path(folder))
        lamina.prepare()
        matrix = Matrix(lamina)
        for part in sys.argv[2:] or parts:
            try:
                getattr(matrix, part)()
            except Exception:   # the other parts are still worth knowing
                matrix.failed.append(part)
                traceback.print_exc()
        print(f"{matrix.passed} dumps passed, {len(matrix.failed)} failed: {' '.join(matrix.failed) or 'none'}")
        return 1 if matrix.failed or matrix.passed == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
