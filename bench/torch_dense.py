#!/usr/bin/env python3
"""Lamina's dense benchmark models in PyTorch: torch.compile, scaled_dot_product_attention, fused AdamW.

    bench/torch_dense.py [--micro-batch 4] [--steps 7] [--eager]
        on a GPU: the model of bench_gpu_train in bf16 with fp32 masters; says which attention PyTorch chose
    bench/torch_dense.py --against build/bench/bench_train [--threads 1] [--steps 7] [--eager] [--standard]
        on the CPU: the fp32 model of bench_train with Block AttnRes, in turn with bench_train

Prints milliseconds per step, tokens/s and model FLOP/s, counted as Lamina counts them. With --against each round is one step of
both programs and large products of oneDNN by Lamina; times are CPU seconds (user and system, all threads), which a busy machine
changes less than the clock, and wall times stand beside them. With several threads on a busy machine set OMP_WAIT_POLICY=passive:
threads that spin while they wait for one another use CPU seconds."""
import argparse
import resource
import statistics
import subprocess
import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass
class Shape:
    hidden: int
    layers: int
    heads: int
    nope: int
    rope: int
    value: int
    rank: int
    width: int
    vocab: int
    length: int
    layers_per_block: int = 0  # of Block AttnRes; 0: the standard residual


GPU_SHAPE = Shape(2048, 18, 16, 128, 64, 128, 512, 5632, 32768, 4096)
CPU_SHAPE = Shape(512, 8, 8, 64, 32, 64, 128, 1408, 4096, 512, layers_per_block=2)


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs, bias=False)


class Attention(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.s = s
        self.q, self.kv_a = linear(s.hidden, s.heads * (s.nope + s.rope)), linear(s.hidden, s.rank + s.rope)
        self.kv_b, self.o = linear(s.rank, s.heads * (s.nope + s.value)), linear(s.heads * s.value, s.hidden)
        self.norm_kv = nn.RMSNorm(s.rank, eps=1e-5)

    def forward(self, h):
        s, (batch, length, _) = self.s, h.shape
        q = self.q(h).view(batch, length, s.heads, s.nope + s.rope).transpose(1, 2)
        latent, shared = self.kv_a(h).split([s.rank, s.rope], -1)
        kv = self.kv_b(self.norm_kv(latent)).view(batch, length, s.heads, s.nope + s.value).transpose(1, 2)
        nope, v = kv.split([s.nope, s.value], -1)
        k = torch.cat([nope, shared.unsqueeze(1).expand(-1, s.heads, -1, -1)], -1)
        # The CPU's flash attention wants equal widths; zeros are quicker there than the other implementation.
        padding = s.nope + s.rope - s.value if h.device.type == "cpu" else 0
        a = F.scaled_dot_product_attention(q, k, F.pad(v, (0, padding)) if padding else v, is_causal=True)
        return self.o(a[..., :s.value].transpose(1, 2).reshape(batch, length, s.heads * s.value))


class Mlp(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.gate_up, self.down = linear(s.hidden, 2 * s.width), linear(s.width, s.hidden)

    def forward(self, h):
        gate, up = self.gate_up(h).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class DepthRead(nn.Module):
    """Softmax attention over the sources of Block AttnRes (arXiv 2603.15031). Nothing is stacked, so the compiler can fuse it."""

    def __init__(self, s):
        super().__init__()
        self.norm, self.query = nn.Parameter(torch.ones(s.hidden)), nn.Parameter(torch.zeros(s.hidden))

    def forward(self, sources):
        key = self.norm * self.query
        logits = [(v * key).sum(-1) * torch.rsqrt(v.square().mean(-1) + 1e-5) for v in sources]
        weights = torch.stack(logits).softmax(0)
        return sum(w.unsqueeze(-1) * v for w, v in zip(weights, sources))


class Model(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.s = s
        self.embed, self.head = nn.Embedding(s.vocab, s.hidden), linear(s.hidden, s.vocab)
        self.sublayers = nn.ModuleList(kind(s) for _ in range(s.layers) for kind in (Attention, Mlp))
        self.norms = nn.ModuleList(nn.RMSNorm(s.hidden, eps=1e-5) for _ in range(2 * s.layers + 1))
        self.reads = nn.ModuleList(DepthRead(s) for _ in range(2 * s.layers + 1) if s.layers_per_block)

    def hidden(self, x):
        if not self.s.layers_per_block:
            for norm, sublayer in zip(self.norms, self.sublayers):
                x = x + sublayer(norm(x))
            return x
        done, partial = [x], None
        for i, (read, norm, sublayer) in enumerate(zip(self.reads, self.norms, self.sublayers)):
            if i and i % (2 * self.s.layers_per_block) == 0:
                done, partial = done + [partial], None
            y = sublayer(norm(read(done if partial is None else done + [partial])))
            partial = y if partial is None else partial + y
        return self.reads[-1](done + [partial])

    def forward(self, tokens, targets):
        x = self.norms[-1](self.hidden(self.embed(tokens)))
        return F.cross_entropy(self.head(x).flatten(0, 1).float(), targets.flatten())


def model_flops(model, sequences):
    """As Lamina counts them: products with weights, and attention's under the causal mask."""
    s = model.s
    multiplied = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n)
    attention = 3 * s.layers * s.heads * s.length * (s.nope + s.rope + s.value)
    return sequences * s.length * (6 * multiplied + attention)


def optimizer_of(parameters):
    return torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True)


def attention_backend(s, batch):
    """What scaled_dot_product_attention chooses for the model's attention."""
    q, k, v = (torch.empty(batch, s.heads, s.length, size, device="cuda", dtype=torch.bfloat16, requires_grad=True)
               for size in (s.nope + s.rope, s.nope + s.rope, s.value))
    return torch.nn.attention.SDPBackend(torch._fused_sdp_choice(q, k, v, is_causal=True)).name.lower()


def on_gpu(options):
    torch.set_float32_matmul_precision("high")
    print(f"attention: {attention_backend(GPU_SHAPE, options.micro_batch)}", flush=True)
    model = Model(GPU_SHAPE).cuda().bfloat16()
    compiled = model if options.eager else torch.compile(model)
    # Masters and moments in fp32, as Lamina keeps them.
    masters = [p.detach().float().clone().requires_grad_() for p in model.parameters()]
    optimizer = optimizer_of(masters)
    tokens, targets = (torch.randint(GPU_SHAPE.vocab, (options.micro_batch, GPU_SHAPE.length), device="cuda") for _ in "xy")

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
    count, flops = options.micro_batch * GPU_SHAPE.length, model_flops(model, options.micro_batch) / seconds
    print(f"torch    {sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters: {1e3 * seconds:.1f} ms per step, "
          f"{count / seconds:.0f} tokens/s, {flops / 1e12:.1f} TFLOP/s "
          f"(PyTorch {torch.__version__}, {'eager' if options.eager else 'compiled'})")


class TorchOnCpu:
    """bench_train's step: two micro-batches, gradients summed, clipping, AdamW."""

    def __init__(self, options):
        shape = CPU_SHAPE
        if options.standard:
            shape = Shape(**{**shape.__dict__, "layers_per_block": 0})
        self.model = Model(shape)
        self.forward = self.model if options.eager else torch.compile(self.model)
        self.optimizer = optimizer_of(list(self.model.parameters()))
        size = (options.micro_batch, shape.length)
        self.batches = [[torch.randint(shape.vocab, size) for _ in "xy"] for _ in range(2)]
        self.tokens, self.flops = 2 * size[0] * size[1], model_flops(self.model, 2 * options.micro_batch)

    def step(self):
        def cpu():
            used = resource.getrusage(resource.RUSAGE_SELF)
            return used.ru_utime + used.ru_stime

        start, used = time.perf_counter(), cpu()
        self.optimizer.zero_grad(set_to_none=True)
        for tokens, targets in self.batches:
            (self.forward(tokens, targets) / len(self.batches)).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
        self.optimizer.step()
        return time.perf_counter() - start, cpu() - used


class Lamina:
    def __init__(self, program, threads):
        self.child = subprocess.Popen([program, "--threads", str(threads), "--only", "steps"], text=True,
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        _, tokens, _, flops, _ = self.child.stdout.readline().split()
        self.tokens, self.flops = int(tokens), int(flops)

    def ask(self, request):
        print(request, file=self.child.stdin, flush=True)
        return [float(word) for word in self.child.stdout.readline().split()]

    def step(self):
        return self.ask("step")


def in_turn(options):
    torch.set_num_threads(options.threads)
    other, lamina = TorchOnCpu(options), Lamina(options.against, options.threads)
    assert other.tokens == lamina.tokens, f"{other.tokens} tokens against {lamina.tokens}"
    assert abs(other.flops / lamina.flops - 1) < 0.01, f"{other.flops} FLOPs against {lamina.flops}"
    for _ in range(2):
        other.step()
    rounds = []
    for _ in range(options.steps):
        rounds.append((lamina.step(), other.step(), lamina.ask("rate")))
    ours, theirs, rates = ([[r[i][kind] for r in rounds] for kind in (0, 1)] for i in range(3))
    name = f"torch {torch.__version__} {'eager' if options.eager else 'compile'}{', standard residual' if options.standard else ''}"
    for kind, unit in ((1, "CPU s"), (0, "wall s")):
        rate = statistics.median(rates[kind])
        print(f"{options.threads} thread(s), {unit}: oneDNN's product {rate / 1e9:.1f} GFLOP/s")
        for label, times in (("lamina", ours[kind]), (name, theirs[kind])):
            time_ = statistics.median(times)
            print(f"  {label:<40} {time_:8.3f} per step (best {min(times):.3f}), {lamina.tokens / time_:6.0f} tokens/s, "
                  f"{lamina.flops / time_ / 1e9:6.1f} GFLOP/s, {lamina.flops / time_ / rate:.3f} of the product's rate")
        ratio = statistics.median(t / o for o, t in zip(ours[kind], theirs[kind]))
        print(f"  torch / lamina: {ratio:.3f} (median of rounds), {min(theirs[kind]) / min(ours[kind]):.3f} (best of each)", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--against", metavar="BENCH_TRAIN", help="on the CPU, in turn with this program")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--standard", action="store_true", help="PyTorch's model with the standard residual")
    options = parser.parse_args()
    torch.manual_seed(1)
    (in_turn if options.against else on_gpu)(options)


if __name__ == "__main__":
    main()
