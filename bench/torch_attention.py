#!/usr/bin/env python3
"""Causal attention by each backend of PyTorch's scaled_dot_product_attention at the shapes of bench_gpu_ops: forward and backward, ms.

    bench/torch_attention.py [--tokens 4096]        needs torch; 32 heads with keys of 192 and values of 128

A backend that refuses values narrower than keys gets them widened with zeros, and its line says so. The last line is the quickest."""
import argparse
import statistics
import warnings

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

HEADS, KEY, VALUE = 32, 192, 128
BACKENDS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION")


def milliseconds(call):
    for _ in range(3):
        call()
    times = []
    for _ in range(9):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def measure(backend, tokens, width):
    """Forward and backward of one backend, with values of `width`."""
    torch.manual_seed(1)
    q, k, v = (torch.randn(1, HEADS, tokens, size, device="cuda", dtype=torch.bfloat16, requires_grad=True) for size in (KEY, KEY, width))
    with sdpa_kernel([backend]):
        forward = milliseconds(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        d_out = torch.randn_like(out)
        backward = milliseconds(lambda: torch.autograd.grad(out, (q, k, v), d_out, retain_graph=True))
    return forward, backward


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    options = parser.parse_args()
    warnings.simplefilter("ignore")   # why a backend refuses stands in the error as well
    found = {}
    for name in BACKENDS:
        backend = getattr(SDPBackend, name, None)
        reason = "this PyTorch does not have it"
        for width in (VALUE, KEY) if backend is not None else ():
            try:
                forward, backward = measure(backend, options.tokens, width)
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                continue
            found[name] = (forward, backward)
            widened = "" if width == VALUE else f", values widened to {width}"
            print(f"{name.lower():<20} forward {forward:.4f} ms, backward {backward:.4f} ms{widened}", flush=True)
            break
        if name not in found:
            print(f"{name.lower():<20} refused: {reason}", flush=True)
    if not found:
        raise SystemExit("torch_attention.py: no backend takes this")
    best = min(found, key=lambda name: sum(found[name]))
    print(f"torch_attention_forward_backward_ms {sum(found[best]):.4f}   # {best.lower()}, PyTorch {torch.__version__}")


if __name__ == "__main__":
    main()
