#!/usr/bin/env python3
"""Kimi Delta Attention by flash-linear-attention's Triton kernels at the shapes of bench_gpu_ops: forward and backward, ms.

    bench/fla_kda.py [--tokens 4096]        needs torch and flash-linear-attention"""
import argparse
import statistics

import torch


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=4096)
    options = parser.parse_args()
    from fla.ops.kda import chunk_kda

    torch.manual_seed(1)
    shape = (1, options.tokens, 32, 128)
    normal = lambda: torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    unit = lambda x: torch.nn.functional.normalize(x.float(), dim=-1).to(torch.bfloat16)
    q, k, v = unit(normal()).requires_grad_(), unit(normal()).requires_grad_(), normal().requires_grad_()
    g = (-0.2 * torch.rand(shape, device="cuda")).requires_grad_()
    beta = torch.rand(shape[:3], device="cuda", dtype=torch.bfloat16).requires_grad_()
    d_o = normal()

    def once():
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        chunk_kda(q, k, v, g, beta, scale=128**-0.5)[0].backward(d_o)
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end)

    for _ in range(5):
        once()
    print(f"fla_kda_forward_backward_ms {statistics.median(once() for _ in range(15)):.4f}")


if __name__ == "__main__":
    main()
