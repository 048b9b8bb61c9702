#!/usr/bin/env python3
"""Compares a step dump with the float64 reference: loss, every gradient, and the parameters after the update.

    compare_dump.py DUMP.h5 [--lr LR] [--gradients-only] [--precision fp32|bf16|fp64]

The reference starts from the dump's own parameters and tokens, so that only the step itself is judged. The update is
judged for the first step (AdamW's averages start at zero); --lr is the learning rate of that step, by default
train.optimizer.lr. Prints a table, worst first, and exits 1 when a tolerance is exceeded.
"""
import argparse
import fnmatch
import math
import re
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import h5py
import numpy
import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "reference"))
import reference  # noqa: E402


@dataclass
class Tolerance:
    """Norm of the difference over norm of the reference value."""
    gradient: float
    loss: float
    parameter: float
    vector: float   # parameters_after of vectors
    muon: float     # parameters_after of matrices under Muon


# fp64 runs differ from the reference by the order of sums only. fp32 likewise, with 6e-8 per rounding and sums of some
# hundred terms. bf16 rounds every activation by up to 2^-9 of its size; a gradient passes through some tens of such
# roundings of random sign, hence ten steps of 2^-8, or what PyTorch's own bf16 runs of the reference lose if that is more;
# the loss is a mean over tokens, where they average out. A bf16 dump holds matrices as the forward pass uses them, rounded
# from fp32 masters before and after the update: twice 2^-9. Vectors are fp32 there too. No limit is finer than the dtype in
# which a value is stored in the dump.
TOLERANCES = {
    "fp64": Tolerance(gradient=1e-10, loss=1e-10, parameter=1e-10, vector=1e-10, muon=1e-9),
    "fp32": Tolerance(gradient=1e-5, loss=1e-6, parameter=1e-6, vector=1e-6, muon=1e-5),
    # Five iterations with coefficients up to 4.8 on operands of 2^-9: what an update loses, times its share of the weight.
    "bf16": Tolerance(gradient=10 * 2.0**-8, loss=2.0**-8, parameter=2.0**-8, vector=1e-6, muon=10 * 2.0**-8),
}


@dataclass
class Row:
    name: str
    error: float
    limit: float

    @property
    def ok(self) -> bool:
        return self.error <= self.limit   # false for NaN


def relative(ours: torch.Tensor, theirs: torch.Tensor, floor: float = 0.0) -> float:
    difference, size = (ours - theirs).norm().item(), max(theirs.norm().item(), floor)
    if difference == 0.0:
        return 0.0
    return difference / size if size > 0.0 else math.inf


def resolution(data: h5py.Dataset) -> float:
    """What rounding to the stored dtype may change, relative."""
    return float(numpy.finfo(data.dtype).eps)


class Dump:
    """A step dump, read whole, in float64."""

    def __init__(self, path: str):
        with h5py.File(path, "r") as file:
            text = file.attrs["config"]
            self.config = yaml.safe_load(text.decode() if isinstance(text, bytes) else text)
            self.tokens = torch.from_numpy(file["tokens"][()].astype("int64"))
            self.targets = torch.from_numpy(file["targets"][()].astype("int64"))
            self.token_loss = torch.from_numpy(file["token_loss"][()].astype("float64"))
            self.loss, self.aux_loss = (torch.tensor(file[name][()].item(), dtype=torch.float64) for name in ("loss", "aux_loss"))
            self.loss_resolution, self.token_loss_resolution = (resolution(file[name]) for name in ("loss", "token_loss"))
            self.parameters = self.group(file, "parameters")
            self.gradients = self.group(file, "gradients")
            self.parameters_after = self.group(file, "parameters_after")

    @staticmethod
    def group(file: h5py.File, name: str) -> dict[str, torch.Tensor]:
        return {key: torch.from_numpy(data[()].astype("float64")) for key, data in file[name].items()}


def model_config(resolved: dict, parameters: dict[str, torch.Tensor]) -> reference.ModelConfig:
    known = {field.name for field in fields(reference.ModelConfig)}
    model = {key: value for key, value in resolved["model"].items() if key in known and value is not None}
    config = reference.ModelConfig(**model)
    # A vocabulary size of 0 stands for the tokenizer's, which only the parameters tell.
    config.vocab_size = parameters["model.embed_tokens.weight"].shape[0]
    config.q_lora_rank = model.get("q_lora_rank") or None
    return config


def check_names(dump: Dump, config: reference.ModelConfig) -> list[str]:
    """Every tensor is there, in every group, with the exported shape; and no other."""
    faults = []
    shapes = reference.parameter_shapes(config)
    for label in ("parameters", "gradients", "parameters_after"):
        group = getattr(dump, label)
        faults += [f"/{label}/{name} is missing" for name in shapes if name not in group]
        faults += [f"/{label}/{name} is not a tensor of this model" for name in group if name not in shapes]
        faults += [f"/{label}/{name} has shape {tuple(group[name].shape)}, expected {shape}"
                   for name, shape in shapes.items() if name in group and tuple(group[name].shape) != tuple(shape)]
    batch = (dump.config["train"]["global_batch_size"], dump.config["data"]["seq_len"])
    for label in ("tokens", "targets", "token_loss"):
        if tuple(getattr(dump, label).shape) != batch:
            faults.append(f"/{label} has shape {tuple(getattr(dump, label).shape)}, expected {batch}")
    return faults


def compare_gradients(dump: Dump, config: reference.ModelConfig, tolerance: Tolerance) -> list[Row]:
    out, gradients = reference.loss_and_gradients(dump.parameters, config, dump.tokens, dump.targets)
    out = {key: out[key].detach() for key in ("loss", "aux_loss", "token_loss")}
    total = math.sqrt(sum(g.norm().item() ** 2 for g in gradients.values()))
    # Against rounding noise of a tensor whose true gradient vanishes: nothing is judged finer than this share of the
    # global norm, which is what the clipping and the update see.
    floor = total * tolerance.gradient * 1e-3
    scalar = max(tolerance.loss, dump.loss_resolution)
    rows = [Row("loss", relative(dump.loss, out["loss"]), scalar),
            Row("aux_loss", relative(dump.aux_loss, out["aux_loss"]), scalar),
            Row("token_loss", relative(dump.token_loss, out["token_loss"]),
                max(10 * tolerance.loss, dump.token_loss_resolution))]   # one by one they don't average out
    limit = {name: tolerance.gradient for name in gradients}
    precision = dump.config["train"]["precision"]
    if tolerance is TOLERANCES["bf16"] or ("kda" in config.mixers and precision != "fp64"):
        # Two roundings of the same sums: what PyTorch's lose at this point says what size those of this tensor have.
        dtype = torch.bfloat16 if tolerance is TOLERANCES["bf16"] else torch.float32
        # A few numbers may all be right by chance: of small tensors, those of all layers say it.
        def judged_together(name: str) -> str:
            return re.sub(r"layers\.\d+\.", "", name) if gradients[name].numel() < 64 else name

        largest: dict[str, float] = {}
        for name, error in rounding_errors(dump, config, gradients, floor, dtype).items():
            largest[judged_together(name)] = max(error, largest.get(judged_together(name), 0.0))
        limit = {name: max(tolerance.gradient, 2 * largest[judged_together(name)]) for name in gradients}
    rows += [Row(f"gradients/{name}", relative(dump.gradients[name], g, size_before_sums(name, gradients, floor)), limit[name])
             for name, g in gradients.items()]
    return rows


def size_before_sums(name: str, gradients: dict[str, torch.Tensor], floor: float) -> float:
    """A_log's gradient adds up over the channels of a head what dt_bias's is per channel (exactly so while the gate is
    nearly closed), with both signs: its rounding is of the size of those, however small the sum happens to be."""
    if not name.endswith("A_log"):
        return floor
    return max(floor, gradients[name.replace("A_log", "dt_bias")].norm().item())


def rounding_errors(dump: Dump, config: reference.ModelConfig, gradients: dict[str, torch.Tensor], floor: float,
                    dtype: torch.dtype, runs: int = 5) -> dict[str, float]:
    """What a dtype costs at this point: the error of each tensor when PyTorch runs the reference itself in it. Where a sum cancels,
    the roundings of one run may happen to cancel, too: the worst of several, each but the first after every weight was moved by
    up to half its last place."""
    generator = torch.Generator().manual_seed(1)
    worst = dict.fromkeys(gradients, 0.0)
    for run in range(runs):
        rounded = {}
        for name, w in dump.parameters.items():
            move = torch.rand(w.shape, generator=generator, dtype=w.dtype) - 0.5 if run > 0 else 0.0
            rounded[name] = (w * (1 + torch.finfo(dtype).eps * move)).to(dtype)
        _, theirs = reference.loss_and_gradients(rounded, config, dump.tokens, dump.targets)
        for name, g in gradients.items():
            worst[name] = max(worst[name], relative(theirs[name].double(), g, size_before_sums(name, gradients, floor)))
    return worst


BIAS = ".gate.e_score_correction_bias"
VECTORS = ("_res_proj.weight", "_mhc.weight")   # of two axes, but kept and updated as vectors are


def is_linear(name: str, w: torch.Tensor) -> bool:
    """A unit of Muon: the matrix of a linear layer, as the exported names tell it."""
    return w.dim() == 2 and name not in ("model.embed_tokens.weight", "lm_head.weight") and not name.endswith(VECTORS)


def groups_of(optimizer: dict, attn_res: bool) -> list[dict]:
    """Those that the program puts first, then the configuration's."""
    factor = {"lr_factor": optimizer["attn_res_lr_factor"]} if attn_res else {}
    return [{"pattern": f"*_res_{part}.weight", **factor} for part in ("proj", "norm")] + (optimizer.get("groups") or [])


def setting(groups: list[dict], name: str, key: str, default):
    """What the last group that matches and gives the key says."""
    given = [group[key] for group in groups if key in group and fnmatch.fnmatchcase(name, group["pattern"])]
    return given[-1] if given else default


def expert_counts(dump: Dump, config: reference.ModelConfig) -> dict[str, torch.Tensor]:
    """Tokens of the step that chose each expert, per selection bias."""
    counts, moe = {}, reference.moe

    def counting(x, p, m, c):
        y, chosen, balance = moe(x, p, m, c)
        counts[m + "gate.e_score_correction_bias"] = torch.bincount(chosen.flatten(), minlength=c.num_experts).double()
        return y, chosen, balance

    reference.moe = counting
    try:
        with torch.no_grad():
            reference.forward(dump.parameters, config, dump.tokens, dump.targets)
    finally:
        reference.moe = moe
    return counts


def updated_bias(bias: torch.Tensor, counts: torch.Tensor, rate: float) -> torch.Tensor:
    """Moonlight's rule, of zero mean."""
    sign = torch.sign(counts.mean() - counts)
    return bias + rate * (sign - sign.mean())


def compare_update(dump: Dump, config: reference.ModelConfig, tolerance: Tolerance, lr: float) -> list[Row]:
    """The optimizer from the dump's own gradients: the gradients are judged elsewhere, and at the first step the direction
    is nearly their sign, which has no relative accuracy to compare where a gradient is close to zero."""
    train = dump.config["train"]
    optimizer = train["optimizer"]
    clip = train["grad_clip"]
    norm = math.sqrt(sum(g.norm().item() ** 2 for g in dump.gradients.values()))
    scale = min(1.0, clip / norm) if clip > 0 else 1.0
    counts = expert_counts(dump, config) if config.num_experts else {}
    groups = groups_of(optimizer, config.has_depth_reads)
    rows = []
    for name, w in dump.parameters.items():
        zeros, gradient = torch.zeros_like(w), dump.gradients[name] * scale
        decay = setting(groups, name, "weight_decay",
                        0.0 if name.endswith(("A_log", "dt_bias", "_mhc.bias", "_mhc.alpha")) else optimizer["weight_decay"])
        rule = setting(groups, name, "rule", "muon" if optimizer["name"] == "muon" and is_linear(name, w) else "adamw")
        rate = lr * setting(groups, name, "lr_factor", 1.0)
        limit = tolerance.parameter if w.dim() == 2 and not name.endswith(VECTORS) else tolerance.vector
        if name.endswith(BIAS):
            if train["precision"] == "bf16":
                continue   # which expert a token chooses may hang on a rounding
            expected = updated_bias(w, counts[name], train["router_bias_rate"])
        elif rule == "muon":
            expected, _ = reference.muon_update(w, gradient, zeros, rate, momentum=optimizer["momentum"], weight_decay=decay)
            limit = tolerance.muon
        else:
            expected, _, _ = reference.adamw_update(
                w, gradient, zeros, zeros, step=1, lr=rate, beta1=optimizer["beta1"], beta2=optimizer["beta2"],
                eps=optimizer["eps"], weight_decay=decay)
        rows.append(Row(f"parameters_after/{name}", relative(dump.parameters_after[name], expected), limit))
    return rows


def compare(path: str, lr: float | None = None, gradients_only: bool = False, precision: str | None = None) -> list[Row]:
    dump = Dump(path)
    config = model_config(dump.config, dump.parameters)
    faults = check_names(dump, config)
    if faults:
        return [Row(fault, math.inf, 0.0) for fault in faults]
    tolerance = TOLERANCES[precision or dump.config["train"]["precision"]]
    rows = compare_gradients(dump, config, tolerance)
    if not gradients_only:
        rows += compare_update(dump, config, tolerance, dump.config["train"]["optimizer"]["lr"] if lr is None else lr)
    return rows


def report(rows: list[Row], num_rows: int = 10) -> str:
    rank = sorted(rows, key=lambda row: (row.ok, -row.error / row.limit if row.limit > 0 else -math.inf))
    failed = sum(not row.ok for row in rows)
    shown = rank[:max(num_rows, failed)]
    width = max(len(row.name) for row in shown)
    lines = [f"{row.name:{width}s}  {row.error:9.2e}  limit {row.limit:7.1e}  {'ok' if row.ok else 'FAILED'}" for row in shown]
    if len(rank) > len(shown):
        lines.append(f"({len(rank) - len(shown)} more, all closer to the reference)")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dump")
    parser.add_argument("--lr", type=float, help="learning rate of the dumped step")
    parser.add_argument("--gradients-only", action="store_true", help="for steps after the first")
    parser.add_argument("--precision", choices=TOLERANCES, help="tolerances of; default: the run's precision")
    parser.add_argument("--rows", type=int, default=10, help="rows of the table that pass")
    arguments = parser.parse_args()
    rows = compare(arguments.dump, arguments.lr, arguments.gradients_only, arguments.precision)
    print(report(rows, arguments.rows))
    return 0 if all(row.ok for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
