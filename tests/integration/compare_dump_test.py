#!/usr/bin/env python3
"""compare_dump.py judged itself: dumps made by the reference pass, and every kind of damage is found."""
import math
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy
import torch
import yaml

import compare_dump
from compare_dump import reference

LR, DECAY, CLIP = 3e-3, 0.1, 0.5


DEPTH_FACTOR = 0.25   # of the learning rate of depth queries and their norms


def make_dump(path: Path, config: reference.ModelConfig, precision: str = "fp32", clip: float = CLIP) -> None:
    dtype = "float64" if precision == "fp64" else "float32"
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(0, config.vocab_size, (2, 10), generator=generator)
    rounded = {n: torch.from_numpy(p.numpy().astype(dtype).astype("float64"))
               for n, p in reference.random_parameters(config, 3).items()}
    out, gradients = reference.loss_and_gradients(rounded, config, tokens[:, :-1], tokens[:, 1:])
    norm = math.sqrt(sum(g.norm().item() ** 2 for g in gradients.values()))
    scale = min(1.0, clip / norm) if clip > 0 else 1.0
    resolved = {
        "model": {**asdict(config), "vocab_size": 0},
        "data": {"seq_len": 9},
        "train": {"global_batch_size": 2, "precision": precision, "grad_clip": clip,
                  "optimizer": {"name": "adamw", "lr": LR, "weight_decay": DECAY, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8}},
    }
    if config.residual != "standard":
        resolved["train"]["optimizer"]["attn_res_lr_factor"] = DEPTH_FACTOR
    with h5py.File(path, "w") as file:
        file.attrs["config"] = yaml.safe_dump(resolved)
        file["tokens"], file["targets"] = tokens[:, :-1].numpy().astype("int32"), tokens[:, 1:].numpy().astype("int32")
        for name in ("loss", "aux_loss", "token_loss"):
            file[name] = out[name].detach().numpy().astype(dtype)
        for name, w in rounded.items():
            zeros = torch.zeros_like(w)
            lr = LR * (DEPTH_FACTOR if "_res_" in name else 1.0)
            after, _, _ = reference.adamw_update(w, gradients[name] * scale, zeros, zeros, 1, lr, weight_decay=DECAY)
            file["parameters/" + name] = w.numpy().astype(dtype)
            file["gradients/" + name] = gradients[name].numpy().astype(dtype)
            file["parameters_after/" + name] = after.numpy().astype(dtype)


def failing(path: Path, **options) -> list[str]:
    return [row.name for row in compare_dump.compare(str(path), **options) if not row.ok]


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(f"compare_dump_test: {message}")


def small(**changes) -> reference.ModelConfig:
    values = dict(vocab_size=29, hidden_size=12, num_hidden_layers=3, num_attention_heads=2, kv_lora_rank=5,
                  qk_nope_head_dim=4, qk_rope_head_dim=2, v_head_dim=3, intermediate_size=10)
    return reference.ModelConfig(**{**values, **changes})


def check_intact(folder: Path) -> None:
    for residual, size in (("standard", 2), ("full_attnres", 2), ("block_attnres", 1), ("block_attnres", 2)):
        for tied in (False, True):
            for rank in (None, 6):
                config = small(residual=residual, attn_res_block_size=size, tie_word_embeddings=tied, q_lora_rank=rank)
                path = folder / "intact.h5"
                for precision in ("fp32", "fp64"):
                    for clip in (CLIP, 0.0):
                        make_dump(path, config, precision, clip)
                        bad = failing(path)
                        expect(not bad, f"{residual} {size} tied={tied} q_lora={rank} {precision}: intact, but {bad}")


def damage(path: Path, dataset: str, relative: float) -> None:
    """Moves one element by `relative` of the tensor's norm; of one where the tensor is zero, as the gradients of the
    first sublayer's depth query and norm are, which weigh a single source."""
    with h5py.File(path, "r+") as file:
        values = file[dataset][()]
        flat = numpy.array(values, dtype="float64").reshape(-1)
        flat[flat.size // 2] += relative * (numpy.linalg.norm(flat) or 1.0)
        file[dataset][...] = flat.reshape(values.shape).astype(file[dataset].dtype)


def check_damage(folder: Path) -> None:
    path = folder / "damaged.h5"
    config = small()
    for label, limit in (("gradients", 1e-5), ("parameters_after", 1e-6)):
        for name in reference.parameter_shapes(config):
            make_dump(path, config)
            damage(path, f"{label}/{name}", 2 * limit)
            bad = failing(path)
            # A wrong gradient also moves the expected update of its own tensor.
            expect(f"{label}/{name}" in bad and all(name in b for b in bad), f"{label}/{name} damaged, found {bad}")
            expect(compare_dump.report(compare_dump.compare(str(path))).split()[0].endswith(name), "worst is not first")
            if label == "parameters_after":
                expect(not failing(path, gradients_only=True), "--gradients-only looked at the update")
    for name in ("loss", "token_loss"):
        make_dump(path, config)
        damage(path, name, 2e-5)
        expect(failing(path) == [name], f"{name} damaged, found {failing(path)}")
    make_dump(path, config, "fp64")
    damage(path, "gradients/model.norm.weight", 1e-9)
    expect(failing(path, gradients_only=True) == ["gradients/model.norm.weight"], "fp64 is not judged finer than fp32")
    make_dump(path, config)
    damage(path, "gradients/model.norm.weight", float("nan"))
    expect("gradients/model.norm.weight" in failing(path), "NaN passed")


def check_wrong_shape_and_names(folder: Path) -> None:
    path = folder / "damaged.h5"
    config = small()
    for change, expected in (
        (lambda file: file.__delitem__("gradients/lm_head.weight"), "/gradients/lm_head.weight is missing"),
        (lambda file: file.create_dataset("parameters/other", data=[1.0]), "/parameters/other is not a tensor"),
        (lambda file: (file.__delitem__("parameters_after/model.norm.weight"),
                       file.create_dataset("parameters_after/model.norm.weight", data=[1.0])),
         "/parameters_after/model.norm.weight has shape (1,)"),
        (lambda file: (file.__delitem__("tokens"), file.create_dataset("tokens", data=[[1]])), "/tokens has shape (1, 1)"),
    ):
        make_dump(path, config)
        with h5py.File(path, "r+") as file:
            change(file)
        bad = failing(path)
        expect(len(bad) == 1 and bad[0].startswith(expected), f"expected {expected!r}, found {bad}")


def check_settings_matter(folder: Path) -> None:
    """The model and the optimizer that the dump names are the ones it's judged by."""
    path = folder / "settings.h5"
    make_dump(path, small())
    expect(failing(path, lr=2 * LR) != [], "another learning rate passed")
    for section, key, value in (("model", "attn_res_block_size", 1), ("model", "residual", "full_attnres"),
                                ("model", "rms_norm_eps", 1e-2), ("train", "grad_clip", 0.0)):
        make_dump(path, small())
        with h5py.File(path, "r+") as file:
            resolved = yaml.safe_load(file.attrs["config"])
            resolved[section][key] = value
            file.attrs["config"] = yaml.safe_dump(resolved)
        # Scaling every gradient alike moves AdamW's first step only through epsilon, which small gradients show.
        expect(failing(path) != [], f"{section}.{key}: {value} passed")
    make_dump(path, small())
    with h5py.File(path, "r+") as file:
        resolved = yaml.safe_load(file.attrs["config"])
        resolved["train"]["optimizer"]["attn_res_lr_factor"] = 2 * DEPTH_FACTOR
        file.attrs["config"] = yaml.safe_dump(resolved)
    bad = failing(path)
    expect(bad != [] and all(name.startswith("parameters_after/") and "_res_" in name for name in bad), f"another depth factor: found {bad}")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for check in (check_intact, check_damage, check_wrong_shape_and_names, check_settings_matter):
            check(Path(folder))
            print(f"{check.__name__}: passed")


if __name__ == "__main__":
    sys.exit(main())
