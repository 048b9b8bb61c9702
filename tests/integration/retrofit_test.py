#!/usr/bin/env python3
"""A model with the standard residual goes on with Attention Residuals, through checkpoint.init_from and through `lamina import`: the
queries begin at zero, so the first step has the standard residual's loss and the same gradients of all parameters that both have.

    retrofit_test.py LAMINA
"""
import sys
import tempfile
from pathlib import Path

import h5py
import numpy

from run_dump_matrix import difference
from training import Lamina

# Norms don't see the scale of what they read, their epsilon aside, which is made small.
KIMI = {"model": {"hidden_size": 52, "rms_norm_eps": 1e-15, "mixers": ["kda", "mla"], "linear_num_heads": 2, "linear_head_dim": 16, "num_experts": 4,
                  "num_experts_per_token": 2, "moe_intermediate_size": 20, "initializer_range": 0.08},
        "train": {"num_steps": 4, "optimizer": {"lr": 0.003}}}
# In fp32 without KDA, the gradients of whose decays lose more than others' to rounding.
MLA = {"model": {**KIMI["model"], "mixers": None, "linear_num_heads": None, "linear_head_dim": None}, "train": KIMI["train"]}
STANDARD = {"model": {"residual": "standard", "attn_res_block_size": None}}
BLOCK, FULL = {"model": {"residual": "block_attnres", "attn_res_block_size": 2}}, {"model": {"residual": "full_attnres", "attn_res_block_size": None}}
LAYERS = 5
NEW = 4 * LAYERS + 2


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(f"retrofit_test: {message}")


def combined(*changes: dict) -> dict:
    """All of them; None stays, for write_config to remove the key by."""
    out: dict = {}
    for change in changes:
        for key, value in change.items():
            out[key] = combined(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


def judge(name: str, rows) -> None:
    bad = [row for row in rows if not row.ok]
    worst = max(rows, key=lambda row: row.error / row.limit if row.limit else row.error)
    expect(not bad, f"{name}: " + "; ".join(f"{row.name}: {row.error:.1e}, expected {row.limit:.1e}" for row in bad[:4]))
    print(f"{name}: {len(rows)} values as with the standard residual, worst {worst.error:.1e} ({worst.name})", flush=True)


def new_values(dump: Path) -> None:
    with h5py.File(dump, "r") as file:
        new = {name: file["parameters"][name][()] for name in file["parameters"] if "_res_" in name}
        moved = {name: file["parameters_after"][name][()] for name in new if name.endswith("_res_proj.weight")}
    expect(len(new) == NEW, f"{dump}: {len(new)} depth reads' tensors, expected {NEW}")
    for name, values in new.items():
        expect(numpy.all(values == (0.0 if name.endswith("_proj.weight") else 1.0)), f"{dump}: {name} is {values.ravel()[:4]}")
    expect(sum(bool(numpy.any(values)) for values in moved.values()) > LAYERS, f"{dump}: the queries do not learn")


def run(lamina: Lamina, *arguments: str, error: str = "") -> str:
    done = lamina.run(list(arguments))
    expect(done.returncode == (1 if error else 0) and error in done.stderr, f"{arguments}: {done.returncode}: {done.stderr}")
    return done.stdout + done.stderr


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        lamina = Lamina(sys.argv[1], Path(folder))
        lamina.prepare()
        said = f"{NEW} tensors of Attention Residuals: queries zero, norms one"
        for precision, base, loss, gradient in (("fp32", MLA, 1e-6, 1e-5), ("fp64", KIMI, 1e-12, 1e-10)):
            base = combined(base, {"train": {"precision": precision}})
            trained = str(lamina.train(f"{precision}-trained", combined(base, STANDARD)))
            start = combined(base, {"checkpoint": {"init_from": trained}, "train": {"num_steps": 1}})
            plain = lamina.dump(f"{precision}-standard", 1, combined(start, STANDARD))
            for name, residual, ranks in (("block", BLOCK, 1), ("full", FULL, 1), ("block-pipeline", combined(BLOCK, {"parallel": {"pipeline": 2}}), 2)):
                dump = lamina.dump(f"{precision}-{name}", 1, combined(start, residual), ranks)
                judge(f"{precision} {name}", difference(plain, dump, loss=loss, gradient=gradient, shared=True))
                new_values(dump)
                log = (dump.parent / "log.txt").read_text()
                expect(said in log, f"{name}: the log does not say what is new: {log}")
        trained, exported = str(lamina.folder / "fp32-trained"), str(lamina.folder / "exported")
        run(lamina, "export", "--checkpoint", trained, "--output", exported, "--dtype", "fp32")
        expect(said in run(lamina, "check", str(lamina.folder / "fp32-block.yaml"), "run.output_dir=" + str(lamina.folder / "none")), "check")

        # The same through import, whose checkpoint is then a whole model with Attention Residuals.
        config = str(lamina.write_config("block", combined(MLA, BLOCK)))
        imported = str(lamina.folder / "imported")
        expect(f"new            {said}" in run(lamina, "import", "--from", exported, "--output", imported, "--config", config), "import")
        dump = lamina.dump("from-imported", 1, combined(MLA, BLOCK, {"checkpoint": {"init_from": imported}}))
        judge("imported block", difference(lamina.folder / "fp32-standard" / "dump-step-1.h5", dump, loss=1e-6, gradient=1e-5, shared=True))
        new_values(dump)
        expect("new:" not in (dump.parent / "log.txt").read_text(), "nothing is new for the imported model")

        # Nothing else may be missing, and an evaluation adds nothing.
        for change, key in (({"model": {"num_hidden_layers": 6}}, "model.num_hidden_layers"), ({"model": {"num_experts": 5}}, "model.num_experts"),
                            ({"model": {"q_lora_rank": 5}}, "model.q_lora_rank"), ({"model": {"tie_word_embeddings": True}}, "model.tie_word_embeddings")):
            other = str(lamina.write_config("other", combined(MLA, BLOCK, change, {"checkpoint": {"init_from": trained}})))
            run(lamina, "train", other, error=f"{key}: ")
            run(lamina, "import", "--from", exported, "--output", str(lamina.folder / "refused"), "--config", other, error=f"{key}: ")
        evaluated = {"data": {"validation": {"path": str(lamina.tokens), "num_sequences": 4}}}
        run(lamina, "eval", str(lamina.write_config("eval", combined(MLA, BLOCK, evaluated))), "--allow-trained", "--checkpoint", trained,
            error="model.residual: standard found, expected block_attnres")
        back = str(lamina.write_config("back", combined(MLA, STANDARD, {"checkpoint": {"init_from": imported}})))
        run(lamina, "train", back, error="model.residual: block_attnres found, expected standard")
        print("anything else is refused")


if __name__ == "__main__":
    main()
