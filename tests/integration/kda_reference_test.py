#!/usr/bin/env python3
"""Kimi Delta Attention against kda_ref.py's token recurrence and its adjoint, in float64, in every regime.

    kda_reference_test.py KDA_CASE

Relative RMS errors: the reference in fp64 1e-11; fp32 2e-5; bf16 1e-2, or 2e-2 where keys are nearly equal and beta is near 1.
"""
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "reference"))
import kda_ref  # noqa: E402

torch.set_num_threads(1)
RESULTS = ("o", "final_state", "dq", "dk", "dv", "dg", "dbeta", "d_initial_state")


def inputs(shape, gate: str, beta_mode: str, keys: str, seed: int) -> dict[str, torch.Tensor]:
    """[batch, heads, tokens, width], exact in the dtypes that the program reads them into."""
    batch, tokens, heads, d_k, d_v = shape
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *s: torch.randn(*s, dtype=torch.float64, generator=generator)
    uniform = lambda *s: torch.rand(*s, dtype=torch.float64, generator=generator)
    normalize = lambda x: torch.nn.functional.normalize(x, dim=-1)
    q, k = normalize(normal(batch, heads, tokens, d_k)), normal(batch, heads, tokens, d_k)
    if keys == "equal":
        k = 0.1 * k + normal(batch, heads, 1, d_k)
    k, v = normalize(k), normal(batch, heads, tokens, d_v)
    key = (batch, heads, tokens, d_k)
    if gate == "mild":
        g = -0.1 * uniform(*key)
    elif gate == "softplus":  # the initialisation of a_log and dt_bias, random projections
        rate = 1 + 15 * uniform(heads, 1, 1)
        dt = torch.exp(uniform(heads, 1, d_k) * math.log(100) + math.log(0.001))
        g = -rate * torch.nn.functional.softplus(normal(*key) + dt + torch.log(-torch.expm1(-dt)))
    elif gate == "bounded":
        g = -5 * torch.sigmoid(4 * normal(*key))
    elif gate == "extreme":
        g = -40 * uniform(*key) ** 4
        g[:, :, ::7] = -40
    else:
        g = torch.zeros(*key, dtype=torch.float64)
    beta = torch.sigmoid(normal(batch, heads, tokens)) if beta_mode == "sigmoid" else torch.full(key[:3], 0.999, dtype=torch.float64)
    coarse = {"q": q, "k": k, "v": v, "d_o": normal(batch, heads, tokens, d_v)}
    fine = {"g": g, "beta": beta, "initial_state": 0.3 * normal(batch, heads, d_k, d_v), "d_final_state": normal(batch, heads, d_k, d_v)}
    return {n: x.bfloat16().double() for n, x in coarse.items()} | {n: x.float().double() for n, x in fine.items()}


def expected(x: dict[str, torch.Tensor], scale: float, cuts: list[int]) -> dict[str, torch.Tensor]:
    """Documents [cuts[i], cuts[i + 1]) are separate runs; the first begins with the initial state, the last ends in the final one."""
    parts = []
    for i, (begin, end) in enumerate(zip(cuts, cuts[1:])):
        operands = [x[n][:, :, begin:end] for n in ("q", "k", "v", "g", "beta")]
        first = x["initial_state"] if i == 0 else torch.zeros_like(x["initial_state"])
        last = x["d_final_state"] if i == len(cuts) - 2 else torch.zeros_like(x["d_final_state"])
        o, state = kda_ref.naive_fwd(*operands, scale=scale, S0=first)
        parts.append((o, state, *kda_ref.naive_bwd(*operands, x["d_o"][:, :, begin:end], last, scale=scale, S0=first)))
    columns = list(zip(*parts))
    joined = {n: torch.cat(columns[i], 2) for n, i in (("o", 0), ("dq", 2), ("dk", 3), ("dv", 4), ("dg", 5), ("dbeta", 6))}
    return joined | {"final_state": parts[-1][1], "d_initial_state": parts[0][7]}


def check(program: str, shape, gate: str, beta_mode: str, keys: str, cuts: list[int], seed: int) -> list[str]:
    batch, tokens, heads, d_k, d_v = shape
    x, scale = inputs(shape, gate, beta_mode, keys, seed), d_k ** -0.5
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "shape").write_text(f"{batch} {tokens} {heads} {d_k} {d_v} {scale!r}\n")
        for n, value in x.items():  # tokens before heads, but for the states
            (value if "state" in n else value.transpose(1, 2)).contiguous().numpy().tofile(folder / n)
        if len(cuts) > 2:
            starts = numpy.concatenate([numpy.full(end - begin, begin, "int32") for begin, end in zip(cuts, cuts[1:])])
            numpy.tile(starts, (batch, 1)).tofile(folder / "document_starts")
        subprocess.run([program, name], check=True)
        got = {(n, d): numpy.fromfile(folder / f"{n}.{d}") for n in RESULTS for d in ("fp64", "fp32", "bf16")}
    bounds = {"fp64": 1e-11, "fp32": 2e-5, "bf16": 2e-2 if keys == "equal" else 1e-2}
    failures = []
    for n, want in expected(x, scale, cuts).items():
        want = (want if "state" in n else want.transpose(1, 2)).contiguous().numpy().ravel()
        for d, bound in bounds.items():
            error = numpy.linalg.norm(got[n, d] - want) / max(numpy.linalg.norm(want), 1e-30)
            if not error <= bound:  # NaN too
                failures.append(f"{n} {d}: error {error:.2e}, expected at most {bound:.0e} ({shape}, gate {gate}, beta {beta_mode}, keys {keys}, cuts {cuts})")
    return failures


def main() -> int:
    program, failures, seed = sys.argv[1], [], 0
    cases = [((1, tokens, 2, 32, 48), gate, beta, keys, [0, tokens])
             for gate in ("mild", "softplus", "bounded", "extreme", "zero")
             for beta, keys in (("sigmoid", "random"), ("sigmoid", "equal"), ("one", "equal"))
             for tokens in (1, 63, 64, 65, 200)]
    cases += [((1, 256, 1, 128, 128), gate, "sigmoid", "random", [0, 256]) for gate in ("softplus", "bounded")]
    cases += [((2, 150, 2, 16, 16), gate, "sigmoid", "random", [0, 3, 70, 134, 150]) for gate in ("softplus", "bounded")]
    cases += [((1, 40, 2, 12, 9), "softplus", "sigmoid", "random", [0, 40])]  # the reference serves other head sizes
    for case in cases:
        seed += 1
        failures += check(program, *case, seed)
    print("\n".join(failures) or f"{len(cases)} cases equal the recurrence")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
