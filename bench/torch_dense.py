#!/usr/bin/env python3
"""The dense model of bench_gpu_train in PyTorch: torch.compile, scaled_dot_product_attention, bf16 with fp32 masters, fused AdamW.

    bench/torch_dense.py [--micro-batch 4] [--steps 7]

Prints one line: milliseconds per step, tokens/s and model TFLOP/s, counted as Lamina counts them."""
import argparse
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F

HIDDEN, LAYERS, HEADS, NOPE, ROPE, VALUE, RANK, WIDTH, VOCAB, LENGTH = 2048, 18, 16, 128, 64, 128, 512, 5632, 32768, 4096


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        linear = lambda i, o: nn.Linear(i, o, bias=False)
        self.norm1, self.norm2, self.norm_kv = (nn.RMSNorm(n, eps=1e-5) for n in (HIDDEN, HIDDEN, RANK))
        self.q, self.kv_a = linear(HIDDEN, HEADS * (NOPE + ROPE)), linear(HIDDEN, RANK + ROPE)
        self.kv_b, self.o = linear(RANK, HEADS * (NOPE + VALUE)), linear(HEADS * VALUE, HIDDEN)
        self.gate_up, self.down = linear(HIDDEN, 2 * WIDTH), linear(WIDTH, HIDDEN)

    def forward(self, x):
        batch, length, _ = x.shape
        h = self.norm1(x)
        q = self.q(h).view(batch, length, HEADS, NOPE + ROPE).transpose(1, 2)
        latent, shared = self.kv_a(h).split([RANK, ROPE], -1)
        nope, v = self.kv_b(self.norm_kv(latent)).view(batch, length, HEADS, NOPE + VALUE).transpose(1, 2).split([NOPE, VALUE], -1)
        k = torch.cat([nope, shared.unsqueeze(1).expand(-1, HEADS, -1, -1)], -1)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(a.transpose(1, 2).reshape(batch, length, HEADS * VALUE))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCAB, HIDDEN), nn.Linear(HIDDEN, VOCAB, bias=False)
        self.layers, self.norm = nn.ModuleList(Layer() for _ in range(LAYERS)), nn.RMSNorm(HIDDEN, eps=1e-5)

    def forward(self, tokens, targets):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1).float(), targets.flatten())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=7)
    options = parser.parse_args()
    torch.manual_seed(1)
    torch.set_float32_matmul_precision("high")
    model = Model().cuda().bfloat16()
    compiled = torch.compile(model)
    # Masters and moments in fp32, as Lamina keeps them.
    masters = [p.detach().float().clone().requires_grad_() for p in model.parameters()]
    optimizer = torch.optim.AdamW(masters, lr=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True)
    tokens = torch.randint(VOCAB, (options.micro_batch, LENGTH), device="cuda")
    targets = torch.randint(VOCAB, (options.micro_batch, LENGTH), device="cuda")

    def step():
        torch.cuda.synchronize()
        start = time.perf_counter()
        compiled(tokens, targets).backward()
        with torch.no_grad():
            for master, p in zip(masters, model.parameters()):
                master.grad = p.grad.float()
                p.grad = None
            torch.nn.utils.clip_grad_norm_(masters, 1.0, foreach=True)
            optimizer.step()
            torch._foreach_copy_(list(model.parameters()), masters)
        torch.cuda.synchronize()
        return time.perf_counter() - start

    for _ in range(3):
        step()
    seconds = statistics.median(step() for _ in range(options.steps))
    multiplied = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n)
    attention = 3 * LAYERS * HEADS * LENGTH * (NOPE + ROPE + VALUE)
    count = options.micro_batch * LENGTH
    flops = count * (6 * multiplied + attention) / seconds
    print(f"torch    {sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters: {1e3 * seconds:.1f} ms per step, "
          f"{count / seconds:.0f} tokens/s, {flops / 1e12:.1f} TFLOP/s (PyTorch {torch.__version__})")


if __name__ == "__main__":
    main()
