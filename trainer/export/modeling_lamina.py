"""Lamina's models for transformers: decoders with latent attention (MLA) or Kimi Delta Attention (KDA), dense or with experts, whose
residual stream is the standard one, Attention Residuals, or manifold-constrained hyper-connections.

    model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

Sources: Attention Residuals arXiv 2603.15031, Kimi Linear arXiv 2510.26692, router arXiv 2412.19437. There are no positions (NoPE), so
any length may be read. Norms, softmaxes, decays and states are float32 at least, whatever the dtype of the matrices.

Shapes: B batch, T tokens of this call, S tokens so far (cached and T), D hidden_size, H heads, K and V head dims of keys and values.
"""
import itertools
import math
from dataclasses import dataclass
from typing import Optional

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers import __version__ as transformers_version
from transformers.utils import ModelOutput

if tuple(int(part) for part in transformers_version.split(".")[:2]) < (5, 24):
    raise ImportError(f"transformers {transformers_version} found, expected 5.24 or newer: older ones hand caches on otherwise")


class LaminaConfig(PretrainedConfig):
    """The keys of config.json. Layers in linear_attn_config are counted from 1."""

    model_type = "lamina"
    keys_to_ignore_at_inference = ["cache"]

    def __init__(
        self,
        vocab_size=257,
        hidden_size=64,
        num_hidden_layers=4,
        rms_norm_eps=1e-5,
        initializer_range=0.02,
        residual="standard",  # standard | block_attnres | full_attnres | mhc
        attn_res_block_size=None,  # decoder layers per block
        num_residual_streams=None,  # of mhc
        num_attention_heads=4,
        q_lora_rank=None,
        kv_lora_rank=32,
        kv_a_layernorm_eps=1e-6,
        qk_nope_head_dim=16,
        qk_rope_head_dim=0,  # the part of the keys that heads share; not rotated
        v_head_dim=16,
        linear_attn_config=None,  # kda_layers, full_attn_layers, num_heads, head_dim, short_conv_kernel_size, gate_lower_bound
        intermediate_size=None,
        num_experts=0,
        first_k_dense_replace=0,  # the first layers keep the dense MLP
        num_experts_per_token=None,
        num_shared_experts=0,
        moe_intermediate_size=None,
        routed_scaling_factor=1.0,
        moe_renormalize=True,
        document_end_token_id=None,  # the token after which attention, states and convolutions begin anew; None: none does
        use_cache=True,
        **kwargs,
    ):
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, num_hidden_layers
        self.rms_norm_eps, self.initializer_range = rms_norm_eps, initializer_range
        self.residual, self.attn_res_block_size = residual, attn_res_block_size
        self.num_residual_streams = num_residual_streams
        self.num_attention_heads, self.q_lora_rank, self.kv_lora_rank = num_attention_heads, q_lora_rank, kv_lora_rank
        self.kv_a_layernorm_eps, self.v_head_dim = kv_a_layernorm_eps, v_head_dim
        self.qk_nope_head_dim, self.qk_rope_head_dim = qk_nope_head_dim, qk_rope_head_dim
        self.linear_attn_config = linear_attn_config or {}
        self.intermediate_size = intermediate_size
        self.num_experts, self.first_k_dense_replace = num_experts or 0, first_k_dense_replace
        self.num_experts_per_token, self.num_shared_experts = num_experts_per_token, num_shared_experts
        self.moe_intermediate_size, self.routed_scaling_factor = moe_intermediate_size, routed_scaling_factor
        self.moe_renormalize, self.document_end_token_id = moe_renormalize, document_end_token_id
        self.use_cache = use_cache
        # What this file computes, whatever config.json says.
        fixed = {"hidden_act": "silu", "mla_use_nope": True, "rope_scaling": None, "num_expert_group": 1, "topk_group": 1,
                 "moe_layer_freq": 1, "moe_router_activation_func": "sigmoid", "num_nextn_predict_layers": 0}
        for key, value in fixed.items():
            if kwargs.get(key, value) != value:
                raise ValueError(f"{key}: {kwargs[key]} found, expected {value}")
        if residual not in STREAMS:
            raise ValueError(f"residual: {residual} found, expected one of {', '.join(STREAMS)}")
        super().__init__(**kwargs)

    def is_linear(self, layer):
        return layer + 1 in self.linear_attn_config.get("kda_layers", [])

    def has_experts(self, layer):
        return self.num_experts > 0 and layer >= self.first_k_dense_replace


# ---------------------------------------------------------------- pieces


def wide(x):
    return x if x.dtype == torch.float64 else x.float()


class LaminaRMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        y = wide(x)
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps) * wide(self.weight)
        return y.to(x.dtype)


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs, bias=False)


@dataclass
class Tokens:
    """What a call knows of its tokens beside their values. A token reads its own document only."""

    real: Optional[torch.Tensor]  # [B, S] bool, false for padding, which stands before a text; None: all are
    documents: torch.Tensor  # [B, S], the number of each token's document
    num_past: int  # S - T
    mask: Optional[torch.Tensor]  # [B, 1, T, S] bool, what attention may read; None: everything up to itself


class LaminaCache:
    """What the layers keep of the tokens so far: MLA its latents, KDA its state and the tails of its convolutions."""

    is_compileable = False

    def __init__(self):
        self.layers = {}  # of each layer its tensors by name, the first axis being the batch
        self.documents = None  # [B, S]
        self.ended = None  # [B] bool: the last token ended its document

    def get_seq_length(self, layer_idx=0):
        return 0 if self.documents is None else self.documents.shape[1]

    def _apply(self, change):
        self.layers = {index: {name: change(x) for name, x in kept.items()} for index, kept in self.layers.items()}
        if self.documents is not None:
            self.documents, self.ended = change(self.documents), change(self.ended)

    def reorder_cache(self, beam_idx):
        self._apply(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_select_indices(self, indices):
        self._apply(lambda x: x[indices])

    def batch_repeat_interleave(self, repeats):
        self._apply(lambda x: x.repeat_interleave(repeats, 0))


# ---------------------------------------------------------------- attention


class LaminaAttention(nn.Module):
    """Multi-head latent attention without positions. The cache has the latents, from which each head's keys and values follow."""

    def __init__(self, config, index):
        super().__init__()
        self.index = index
        self.heads, self.rank = config.num_attention_heads, config.kv_lora_rank
        self.nope, self.shared, self.value = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        query = self.heads * (self.nope + self.shared)
        self.has_latent_queries = config.q_lora_rank is not None
        if self.has_latent_queries:
            self.q_a_proj = linear(config.hidden_size, config.q_lora_rank)
            self.q_a_layernorm = LaminaRMSNorm(config.q_lora_rank, config.rms_norm_eps)
            self.q_b_proj = linear(config.q_lora_rank, query)
        else:
            self.q_proj = linear(config.hidden_size, query)
        self.kv_a_proj_with_mqa = linear(config.hidden_size, self.rank + self.shared)
        self.kv_a_layernorm = LaminaRMSNorm(self.rank, config.kv_a_layernorm_eps)
        self.kv_b_proj = linear(self.rank, self.heads * (self.nope + self.value))
        self.o_proj = linear(self.heads * self.value, config.hidden_size)

    def forward(self, x, tokens, cache):
        B, T, _ = x.shape
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))) if self.has_latent_queries else self.q_proj(x)
        q = q.view(B, T, self.heads, self.nope + self.shared).transpose(1, 2)  # [B, H, T, K]
        latent, shared = self.kv_a_proj_with_mqa(x).split([self.rank, self.shared], -1)
        latent = self.kv_a_layernorm(latent)  # [B, S, rank], and the shared keys [B, S, shared]
        if cache is not None:
            kept = cache.layers.get(self.index)
            if kept is not None:
                latent, shared = torch.cat([kept["latent"], latent], 1), torch.cat([kept["shared"], shared], 1)
            cache.layers[self.index] = {"latent": latent, "shared": shared}
        read = self.read_latents if T == 1 and tokens.num_past > 0 else self.read_heads
        y = read(q, latent, shared, tokens.mask)  # [B, H, T, V]
        return self.o_proj(y.transpose(1, 2).reshape(B, T, self.heads * self.value))

    def read_heads(self, q, latent, shared, mask):
        """Keys and values of each head written out: cheaper for many tokens at once."""
        kv = self.kv_b_proj(latent).unflatten(-1, (self.heads, self.nope + self.value)).transpose(1, 2)
        k, v = kv.split([self.nope, self.value], -1)
        k = torch.cat([k, shared.unsqueeze(1).expand(-1, self.heads, -1, -1)], -1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)

    def read_latents(self, q, latent, shared, mask):
        """The same with kv_b_proj moved to the side of the queries and of the result: cheaper for one token."""
        to_keys, to_values = self.kv_b_proj.weight.view(self.heads, -1, self.rank).split([self.nope, self.value], 1)
        q, q_shared = q.split([self.nope, self.shared], -1)
        scores = wide((q @ to_keys) @ latent.unsqueeze(1).mT + q_shared @ shared.unsqueeze(1).mT)
        scores = scores / math.sqrt(self.nope + self.shared)
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        return (scores.softmax(-1).to(latent.dtype) @ latent.unsqueeze(1)) @ to_values.mT


class ShortConvolution(nn.Module):
    """Causal convolution of each channel over the tokens of a document, then SiLU. The last tap is the current token."""

    def __init__(self, channels, taps):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, 1, taps))

    def forward(self, x, tail, documents):
        """x [B, T, C], tail [B, taps - 1, C] before it, documents [B, taps - 1 + T]. The result, and the tail for the next call."""
        T, taps = x.shape[1], self.weight.shape[-1]
        x = torch.cat([tail, x], 1)
        own = documents[:, taps - 1:]
        y = 0
        for tap in range(taps):
            same = (documents[:, tap:tap + T] == own).unsqueeze(-1)
            y = y + wide(x[:, tap:tap + T]) * same * wide(self.weight[:, 0, tap])
        return F.silu(y), x[:, T:]


def delta_rule(q, k, v, g, beta, state, documents, carried, chunk=32):
    """S_t = (I - beta_t k_t k_t^T) Diag(exp g_t) S_(t-1) + beta_t k_t v_t^T, o_t = S_t^T q_t, chunk by chunk.

    q, k, g [B, H, T, K], v [B, H, T, V], beta [B, H, T], state [B, H, K, V] of the document `carried` [B]; documents [B, T].
    Returns o [B, H, T, V] and the state of the last token's document. Within a chunk, with G the running sum of g,
    S_t = exp(G_t) S_0 + sum_(j <= t) exp(G_t - G_j) k_j r_j^T, where r solves a triangular system.
    """
    outputs = []
    for begin in range(0, q.shape[2], chunk):
        part = slice(begin, begin + chunk)
        Q, K, G, b = q[:, :, part], k[:, :, part], g[:, :, part].cumsum(-2), beta[:, :, part].unsqueeze(-1)
        document = documents[:, part]
        C = document.shape[1]
        same = (document.unsqueeze(2) == document.unsqueeze(1)).unsqueeze(1)  # [B, 1, C, C]
        before = torch.ones(C, C, dtype=torch.bool, device=q.device).tril()
        decay = (G.unsqueeze(3) - G.unsqueeze(2)).masked_fill(~before.unsqueeze(-1), 0).exp()  # never of a positive number
        decay = decay * (same & before).unsqueeze(-1)
        of_keys = torch.einsum("bhik,bhjk,bhijk->bhij", K, K, decay).tril(-1)
        of_queries = torch.einsum("bhik,bhjk,bhijk->bhij", Q, K, decay)
        reach = G.exp() * (document == carried.unsqueeze(1))[:, None, :, None]  # of S_0 at each token
        system = torch.eye(C, dtype=q.dtype, device=q.device) + b * of_keys
        r = torch.linalg.solve_triangular(system, b * (v[:, :, part] - (K * reach) @ state), upper=False, unitriangular=True)
        outputs.append((Q * reach) @ state + of_queries @ r)
        state = reach[:, :, -1].unsqueeze(-1) * state + (K * decay[:, :, -1]).mT @ r
        carried = document[:, -1]
    return torch.cat(outputs, 2), state


class LaminaDeltaAttention(nn.Module):
    """Kimi Delta Attention: one matrix per head, which decays channel by channel and is corrected by each token."""

    def __init__(self, config, index):
        super().__init__()
        linear_config = config.linear_attn_config
        self.index = index
        self.heads, self.size = linear_config["num_heads"], linear_config["head_dim"]
        self.lower_bound = linear_config.get("gate_lower_bound")
        D, width, self.taps = config.hidden_size, self.heads * self.size, linear_config["short_conv_kernel_size"]
        for name in "qkv":
            self.add_module(f"{name}_proj", linear(D, width))
            self.add_module(f"{name}_conv1d", ShortConvolution(width, self.taps))
        self.A_log = nn.Parameter(torch.zeros(1, 1, self.heads, 1))
        self.dt_bias = nn.Parameter(torch.zeros(width))
        self.f_a_proj, self.f_b_proj = linear(D, self.size), linear(self.size, width)
        self.b_proj = linear(D, self.heads)
        self.g_a_proj, self.g_b_proj = linear(D, self.size), linear(self.size, width)
        self.o_norm = LaminaRMSNorm(self.size, config.rms_norm_eps)
        self.o_proj = linear(width, D)

    def log_decay(self, x):
        """[B, T, H, K], below zero. Softplus, or bounded by gate_lower_bound."""
        f = (wide(self.f_b_proj(self.f_a_proj(x))) + wide(self.dt_bias)).unflatten(-1, (self.heads, self.size))
        rate = wide(self.A_log).view(self.heads, 1).exp()
        return -rate * F.softplus(f, threshold=50) if self.lower_bound is None else self.lower_bound * torch.sigmoid(rate * f)

    def forward(self, x, tokens, cache):
        B, T, _ = x.shape
        kept = cache.layers.get(self.index) if cache is not None else None
        real = None if tokens.real is None else tokens.real[:, tokens.num_past:]
        if real is not None:
            x = x * real.unsqueeze(-1)  # padding is as nothing before the first token
        documents = tokens.documents[:, tokens.num_past:]
        # Of the tokens before these; before the first one there are zeros.
        around = F.pad(tokens.documents, (self.taps - 1, 0))[:, tokens.num_past:]
        now, heads = {}, []
        for name in "qkv":
            y = getattr(self, f"{name}_proj")(x)
            tail = y.new_zeros(B, self.taps - 1, y.shape[-1]) if kept is None else kept[name]
            y, now[name] = getattr(self, f"{name}_conv1d")(y, tail, around)
            heads.append(y.unflatten(-1, (self.heads, self.size)).transpose(1, 2))
        q, k, v = heads
        q, k = (y * torch.rsqrt(y.pow(2).sum(-1, keepdim=True) + 1e-6) for y in (q, k))
        g, beta = self.log_decay(x), torch.sigmoid(wide(self.b_proj(x)))
        if kept is None:
            state, carried = v.new_zeros(B, self.heads, self.size, self.size), documents[:, 0]
        else:
            state, carried = kept["state"], tokens.documents[:, tokens.num_past - 1]
        o, now["state"] = delta_rule(q * self.size**-0.5, k, v, g.transpose(1, 2), beta.transpose(1, 2), state, documents, carried)
        if cache is not None:
            cache.layers[self.index] = now
        gate = torch.sigmoid(wide(self.g_b_proj(self.g_a_proj(x)))).unflatten(-1, (self.heads, self.size))
        return self.o_proj((self.o_norm(o.transpose(1, 2)) * gate).flatten(2).to(x.dtype))


# ---------------------------------------------------------------- MLP and experts


class LaminaMLP(nn.Module):
    def __init__(self, config, width):
        super().__init__()
        self.gate_proj, self.up_proj = linear(config.hidden_size, width), linear(config.hidden_size, width)
        self.down_proj = linear(width, config.hidden_size)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class LaminaExpert(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.w1, self.w3 = (linear(config.hidden_size, config.moe_intermediate_size) for _ in range(2))  # gate, up
        self.w2 = linear(config.moe_intermediate_size, config.hidden_size)  # down

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class LaminaRouter(nn.Module):
    """The bias helps to choose; the weights of the chosen ones are their sigmoid scores without it."""

    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(config.num_experts, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(config.num_experts))
        self.count, self.renormalize = config.num_experts_per_token, config.moe_renormalize
        self.scaling = config.routed_scaling_factor

    def forward(self, x):
        scores = torch.sigmoid(wide(x) @ wide(self.weight).T)
        chosen = (scores + wide(self.e_score_correction_bias)).topk(self.count, -1).indices
        weights = scores.gather(-1, chosen)
        if self.renormalize:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return chosen, weights * self.scaling


class LaminaExperts(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate = LaminaRouter(config)
        self.experts = nn.ModuleList(LaminaExpert(config) for _ in range(config.num_experts))
        self.has_shared = config.num_shared_experts > 0
        if self.has_shared:
            self.shared_experts = LaminaMLP(config, config.moe_intermediate_size * config.num_shared_experts)

    def forward(self, x):
        rows = x.reshape(-1, x.shape[-1])
        chosen, weights = self.gate(rows)
        y = torch.zeros_like(rows)
        for expert in chosen.unique().tolist():
            row, slot = (chosen == expert).nonzero(as_tuple=True)
            y = y.index_add(0, row, (self.experts[expert](rows[row]) * weights[row, slot].unsqueeze(-1)).to(y.dtype))
        if self.has_shared:
            y = y + self.shared_experts(rows)
        return y.view_as(x)


# ---------------------------------------------------------------- the residual stream


class StandardStream:
    """One sum, to which every sublayer adds."""

    def __init__(self, embedding, config):
        self.sum = embedding

    def begin_block(self):
        pass

    def read(self, module, site):
        return self.sum

    def write(self, output):
        self.sum = self.sum + output


class DepthStream:
    """Attention Residuals: a read is softmax attention over the embedding, the finished blocks and the open block's sum. Its query is
    a parameter, its keys are the normalised sources."""

    def __init__(self, embedding, config):
        self.finished, self.open = [embedding], None

    def begin_block(self):
        if self.open is not None:
            self.finished, self.open = self.finished + [self.open], None

    def read(self, module, site):
        norm, query = getattr(module, f"{site}_res_norm"), getattr(module, f"{site}_res_proj").weight
        sources = torch.stack(self.finished + ([] if self.open is None else [self.open]))  # [sources, B, T, D]
        weights = (wide(norm(sources)) @ wide(query).reshape(-1)).softmax(0)
        return (weights.unsqueeze(-1) * wide(sources)).sum(0).to(sources.dtype)

    def write(self, output):
        self.open = output if self.open is None else self.open + output


class MixedStreams:
    """Manifold-constrained hyper-connections (arXiv 2512.24880): n streams x. A sublayer reads H_pre x and leaves H_res x + H_post output.
    The model's end reads the mean."""

    def __init__(self, embedding, config):
        self.streams = embedding.unsqueeze(-2).expand(*embedding.shape[:-1], config.num_residual_streams, -1)

    def begin_block(self):
        pass

    def read(self, module, site):
        streams = wide(self.streams)
        if not hasattr(module, f"{site}_mhc"):
            return streams.mean(-2).to(self.streams.dtype)
        pre, self.post, self.mix = getattr(module, f"{site}_mhc")(streams)
        return (pre.unsqueeze(-1) * streams).sum(-2).to(self.streams.dtype)

    def write(self, output):
        streams = self.mix @ wide(self.streams) + self.post.unsqueeze(-1) * wide(output).unsqueeze(-2)
        self.streams = streams.to(self.streams.dtype)


class StreamMixing(nn.Module):
    """The coefficients of a sublayer from the streams before it. H_res is a convex combination of all permutations, in lexicographic
    order (arXiv 2601.05732): rows and columns add up to one."""

    def __init__(self, config, sublayer):
        super().__init__()
        n, self.eps, self.sublayer = config.num_residual_streams, config.rms_norm_eps, sublayer
        self.parts = [n, n, math.factorial(n)]  # of H_pre, H_post, H_res
        self.weight = nn.Parameter(torch.zeros(sum(self.parts), n * config.hidden_size))
        self.bias = nn.Parameter(torch.zeros(sum(self.parts)))
        self.alpha = nn.Parameter(torch.full((3,), 0.01))

    def forward(self, streams):  # [B, T, n, D]
        flat = streams.flatten(-2)
        z = flat @ wide(self.weight).T * torch.rsqrt(flat.pow(2).mean(-1, keepdim=True) + self.eps)
        alpha, bias = wide(self.alpha), wide(self.bias).split(self.parts)
        pre, post, res = (a * part + b for a, part, b in zip(alpha, z.split(self.parts, -1), bias))
        n = self.parts[0]
        orders = torch.tensor(list(itertools.permutations(range(n))), device=z.device)
        permutations = torch.eye(n, dtype=z.dtype, device=z.device)[orders]  # [n!, n, n]
        return torch.sigmoid(pre), 2 * torch.sigmoid(post), torch.einsum("...k,kij->...ij", res.softmax(-1), permutations)

    def initial_bias(self):
        """With it the model begins as the one with the standard residual."""
        n, bias = self.parts[0], torch.full_like(self.bias, -8.0)
        bias[:n] = math.log(0.25 / (n - 1) / (1 - 0.25 / (n - 1)))
        bias[self.sublayer % n] = math.log(3.0)
        bias[n : 2 * n + 1] = 0.0
        return bias


STREAMS = {"standard": StandardStream, "block_attnres": DepthStream, "full_attnres": DepthStream, "mhc": MixedStreams}


class DepthQuery(nn.Linear):
    """[1, D]. Zero at the start of training: a read is a mean then."""


def add_read(module, site, config, sublayer=None):
    """sublayer: None at the model's end."""
    if config.residual == "mhc" and sublayer is not None:
        module.add_module(f"{site}_mhc", StreamMixing(config, sublayer))
    if STREAMS[config.residual] is DepthStream:
        module.add_module(f"{site}_res_norm", LaminaRMSNorm(config.hidden_size, config.rms_norm_eps))
        module.add_module(f"{site}_res_proj", DepthQuery(config.hidden_size, 1, bias=False))


class LaminaLayer(nn.Module):
    def __init__(self, config, index):
        super().__init__()
        full = config.residual == "full_attnres"  # each sublayer is a block
        self.mixer_begins_block = full or (config.residual == "block_attnres" and index % config.attn_res_block_size == 0)
        self.mlp_begins_block = full
        add_read(self, "self_attention", config, 2 * index)
        add_read(self, "mlp", config, 2 * index + 1)
        self.input_layernorm = LaminaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = (LaminaDeltaAttention if config.is_linear(index) else LaminaAttention)(config, index)
        self.post_attention_layernorm = LaminaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.has_experts = config.has_experts(index)
        if self.has_experts:
            self.block_sparse_moe = LaminaExperts(config)
        else:
            self.mlp = LaminaMLP(config, config.intermediate_size)

    def forward(self, stream, tokens, cache):
        if self.mixer_begins_block:
            stream.begin_block()
        x = self.input_layernorm(stream.read(self, "self_attention"))
        stream.write(self.self_attn(x, tokens, cache))
        if self.mlp_begins_block:
            stream.begin_block()
        x = self.post_attention_layernorm(stream.read(self, "mlp"))
        stream.write(self.block_sparse_moe(x) if self.has_experts else self.mlp(x))


# ---------------------------------------------------------------- the model


@dataclass
class LaminaOutput(ModelOutput):
    last_hidden_state: Optional[torch.Tensor] = None
    cache: Optional[LaminaCache] = None


@dataclass
class LaminaCausalOutput(ModelOutput):
    loss: Optional[torch.Tensor] = None
    logits: Optional[torch.Tensor] = None
    cache: Optional[LaminaCache] = None


class LaminaPreTrainedModel(PreTrainedModel):
    config_class = LaminaConfig
    base_model_prefix = "model"
    _no_split_modules = ["LaminaLayer"]
    _is_stateful = True  # states can't go back: no assisted generation
    _keep_in_fp32_modules_strict = ["A_log", "dt_bias", "e_score_correction_bias"]

    def _init_weights(self, module):
        """Of what is not loaded."""
        from transformers import initialization as init

        if isinstance(module, DepthQuery):
            init.zeros_(module.weight)
            return
        if isinstance(module, StreamMixing):
            init.zeros_(module.weight)
            init.constant_(module.alpha, 0.01)
            init.copy_(module.bias, module.initial_bias())
            return
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, LaminaDeltaAttention):
            init.copy_(module.A_log, torch.empty_like(module.A_log).uniform_(1, 16).log())
            steps = torch.empty_like(module.dt_bias).uniform_(math.log(1e-3), math.log(1e-1)).exp()
            init.copy_(module.dt_bias, steps + torch.log(-torch.expm1(-steps)))  # softplus gives the steps
        elif isinstance(module, LaminaRouter):
            init.normal_(module.weight, mean=0.0, std=std)
            init.zeros_(module.e_score_correction_bias)
        elif isinstance(module, ShortConvolution):
            bound = module.weight.shape[-1] ** -0.5
            init.uniform_(module.weight, -bound, bound)

    @classmethod
    def _supports_default_dynamic_cache(cls):
        return False  # forward() makes a LaminaCache

    @staticmethod
    def _check_arguments(arguments):
        """position_ids say nothing without positions; the rest belongs to how others call models. What asks for more is refused."""
        for key in ("output_attentions", "output_hidden_states"):
            if arguments.get(key):
                raise ValueError(f"{key}: not available, expected false")
        known = {"output_attentions", "output_hidden_states", "position_ids", "num_items_in_batch"}
        if unknown := sorted(key for key in arguments if key not in known and arguments[key] is not None):
            raise TypeError(f"forward() got {unknown}, which this model doesn't have")


class LaminaModel(LaminaPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(LaminaLayer(config, index) for index in range(config.num_hidden_layers))
        add_read(self, "output_attn", config)
        self.norm = LaminaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, cache=None, inputs_embeds=None, use_cache=None, return_dict=None, **kwargs):
        """attention_mask [B, S]: 1 for tokens, 0 for padding on the left. cache: of the call for the tokens before, or None."""
        self._check_arguments(kwargs)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("expected one of input_ids and inputs_embeds")
        if cache is not None and not isinstance(cache, LaminaCache):
            raise TypeError(f"cache: a {type(cache).__name__} found, expected a LaminaCache")
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if cache is None and (self.config.use_cache if use_cache is None else use_cache):
            cache = LaminaCache()
        tokens = self._describe(input_ids, hidden, attention_mask, cache)
        self._check_positions(kwargs.get("position_ids"), tokens)
        stream = STREAMS[self.config.residual](hidden, self.config)
        for layer in self.layers:
            layer(stream, tokens, cache)
        hidden = self.norm(stream.read(self, "output_attn"))
        output = LaminaOutput(last_hidden_state=hidden, cache=cache)
        return output.to_tuple() if return_dict is False else output

    def _describe(self, input_ids, hidden, attention_mask, cache):
        B, T = hidden.shape[:2]
        past = cache.get_seq_length() if cache is not None else 0
        real = None
        if attention_mask is not None:
            if attention_mask.shape != (B, past + T):
                raise ValueError(f"attention_mask: shape {tuple(attention_mask.shape)} found, expected {(B, past + T)}")
            real = attention_mask.bool()
            if real.all():
                real = None
        documents = self._number_documents(input_ids, hidden, real, past, cache)
        has_ends = self.config.document_end_token_id is not None
        mask = None
        if real is not None or has_ends or (past > 0 and T > 1):
            at = torch.arange(past + T, device=hidden.device)
            mask = at <= at[past:].unsqueeze(1)
            if has_ends:
                mask = mask & (documents.unsqueeze(1) == documents[:, past:].unsqueeze(2))
            if real is not None:  # a padded token reads itself, so that its softmax is one of something
                mask = mask & (real.unsqueeze(1) | (at == at[past:].unsqueeze(1)))
            mask = mask.expand(B, T, past + T).unsqueeze(1)
        return Tokens(real, documents, past, mask)

    @staticmethod
    def _check_positions(position_ids, tokens):
        """Positions that begin again mark a packed document, which would read the one before it unless an end token stands between."""
        if position_ids is None or position_ids.shape[-1] < 2:
            return
        documents = tokens.documents[:, tokens.num_past:]
        again = (position_ids[..., 1:] <= position_ids[..., :-1]) & (documents[:, 1:] == documents[:, :-1])
        if tokens.real is not None:
            real = tokens.real[:, tokens.num_past:]
            again = again & real[:, 1:] & real[:, :-1]
        if again.any():
            raise ValueError("position_ids: begin again inside a row, expected one document a row: packed ones can't be kept apart here")

    def _number_documents(self, input_ids, hidden, real, past, cache):
        """[B, S]. A document ends with its end token."""
        B, T = hidden.shape[:2]
        end = self.config.document_end_token_id
        if end is None:
            ends = torch.zeros(B, T, dtype=torch.bool, device=hidden.device)
        elif input_ids is None:
            raise ValueError("inputs_embeds: this model was trained on documents apart and needs input_ids to find their ends")
        else:
            ends = input_ids == end
            ends = ends if real is None else ends & real[:, past:]
        documents = ends.cumsum(1) - ends.long()  # those that ended before
        if past > 0:
            documents = torch.cat([cache.documents, documents + (cache.documents[:, -1] + cache.ended.long()).unsqueeze(1)], 1)
        if cache is not None:
            cache.documents, cache.ended = documents, ends[:, -1]
        return documents


class LaminaForCausalLM(LaminaPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = LaminaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        cache=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        logits_to_keep=0,
        return_dict=None,
        **kwargs,
    ):
        """labels [B, T]: the input_ids, -100 where nothing is to be predicted; the loss has no balance loss of the experts in it.
        logits_to_keep: only those of the last so many tokens, or of these indices; 0: all."""
        output = self.model(input_ids, attention_mask, cache, inputs_embeds, use_cache, **kwargs)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(output.last_hidden_state[:, keep])
        loss = None
        if labels is not None:
            items = kwargs.get("num_items_in_batch")
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.vocab_size, num_items_in_batch=items)
        output = LaminaCausalOutput(loss=loss, logits=logits, cache=output.cache)
        return output.to_tuple() if return_dict is False else output
