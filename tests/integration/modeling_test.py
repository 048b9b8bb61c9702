#!/usr/bin/env python3
"""The modelling file that `lamina export` writes for other programs, with PyTorch alone: what it takes from transformers is replaced by
a few lines here (tests/transformers_test.py has the real one). In float64, for every kind of model: the logits of the reference; the
same with a cache, whatever the pieces; the same for prompts of different lengths in one batch, padded on the left; and documents apart.
"""
import importlib.util
import itertools
import math
import sys
import types
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT / "tests" / "reference"))
import reference  # noqa: E402

TOLERANCE = 1e-10
BOUND = -5.0


class Config:
    use_cache = True
    tie_word_embeddings = False

    def __init__(self, **keys):
        self.__dict__.update(keys)


class Model(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config

    def post_init(self):
        pass


@dataclass
class Output:
    pass


def attention(q, k, v, attn_mask=None, is_causal=False):
    """As of PyTorch 2."""
    if is_causal:
        attn_mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
    score = q @ k.mT / math.sqrt(q.shape[-1])
    return score.masked_fill(~attn_mask, -math.inf).softmax(-1) @ v


def load() -> types.ModuleType:
    transformers, utils = types.ModuleType("transformers"), types.ModuleType("transformers.utils")
    transformers.__version__ = "5.24.0"
    transformers.PretrainedConfig, transformers.PreTrainedModel, transformers.GenerationMixin = Config, Model, object
    utils.ModelOutput = Output
    torch.nn.functional.scaled_dot_product_attention = attention
    hidden = {name: sys.modules.get(name) for name in ("transformers", "transformers.utils")}
    sys.modules.update({"transformers": transformers, "transformers.utils": utils})
    spec = importlib.util.spec_from_file_location("modeling_lamina", ROOT / "trainer" / "export" / "modeling_lamina.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["modeling_lamina"] = module   # dataclasses look their annotations up there
    spec.loader.exec_module(module)
    for name, value in hidden.items():
        if value is None:
            del sys.modules[name]
        else:
            sys.modules[name] = value
    return module


lamina = load()


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(f"modeling_test: {message}")


def config_of(c: reference.ModelConfig, **more) -> object:
    keys = asdict(c)
    mixers = [c.mixer(layer) for layer in range(c.num_hidden_layers)]
    linear = {"kda_layers": [i + 1 for i, mixer in enumerate(mixers) if mixer == "kda"],
              "full_attn_layers": [i + 1 for i, mixer in enumerate(mixers) if mixer == "mla"]}
    if linear["kda_layers"]:
        linear.update(num_heads=c.linear_num_heads, head_dim=c.linear_head_dim, short_conv_kernel_size=c.short_conv_kernel_size,
                      gate_lower_bound=c.gate_lower_bound)
    for key in ("mixers", "linear_num_heads", "linear_head_dim", "short_conv_kernel_size", "gate_lower_bound", "aux_loss_alpha"):
        del keys[key]
    return lamina.LaminaConfig(**keys, linear_attn_config=linear, **more)


def model_of(c: reference.ModelConfig, parameters: reference.Params, **more) -> torch.nn.Module:
    model = lamina.LaminaForCausalLM(config_of(c, **more)).double().eval()
    state = dict(parameters)
    if c.tie_word_embeddings:   # as exported
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)   # every tensor, no other
    return model


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


def in_pieces(model: torch.nn.Module, tokens: torch.Tensor, lengths: list[int], mask: torch.Tensor | None = None) -> torch.Tensor:
    cache, at, logits = None, 0, []
    for length in lengths:
        output = model(tokens[:, at:at + length], cache=cache, use_cache=True, attention_mask=None if mask is None else mask[:, :at + length])
        cache, at = output.cache, at + length
        logits.append(output.logits)
    expect(at == tokens.shape[1] and cache.get_seq_length() == at, f"{cache.get_seq_length()} tokens in the cache, expected {at}")
    return torch.cat(logits, 1)


def check(name: str, c: reference.ModelConfig, seed: int) -> None:
    parameters = reference.random_parameters(c, seed)
    model, T = model_of(c, parameters), 45   # more than a chunk
    tokens = torch.randint(0, c.vocab_size, (2, T), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        whole = model(tokens, use_cache=False).logits
        found = {"logits": far(whole, reference.forward(parameters, c, tokens, tokens)["logits"]),
                 "token by token": far(in_pieces(model, tokens, [1] * T), whole),
                 "in pieces": far(in_pieces(model, tokens, [7, 1, 1, 2, 33, 1]), whole),
                 "the last logits": far(model(tokens, logits_to_keep=3).logits, whole[:, -3:])}
        # Padding on the left of the second prompt, with a token that would be seen.
        padded = torch.cat([torch.full((2, 6), 3), tokens], 1)
        padded[0, 6:] = tokens[0]
        padded[0, :6] = torch.arange(6)
        mask = torch.ones(2, T + 6, dtype=torch.long)
        mask[1, :6] = 0
        found["padded"] = max(far(model(padded, attention_mask=mask).logits[1, 6:], whole[1]),
                              far(in_pieces(model, padded, [20, 1, 1, T - 16], mask)[1, 6:], whole[1]))
        found["beside padding"] = far(model(padded, attention_mask=mask).logits[0], model(padded[:1]).logits[0])
        # Documents apart: each as if it were alone. The end token belongs to the document that it ends.
        apart = model_of(c, parameters, document_end_token_id=5)
        text = tokens.clone()
        text[text == 5] = 6
        text[:, [0, 13, 14, 31]] = 5
        pieces = [slice(0, 1), slice(1, 14), slice(14, 15), slice(15, 32), slice(32, T)]
        alone = torch.cat([model(text[:, piece]).logits for piece in pieces], 1)
        found["documents"] = max(far(apart(text).logits, alone), far(in_pieces(apart, text, [3, 10, 1, 1, 1, 20, 1, 8]), alone))
    worst = max(found, key=found.get)
    expect(found[worst] < TOLERANCE and all(map(math.isfinite, found.values())), f"{name}: {found}")
    print(f"{name}: {found[worst]:.1e} ({worst})", flush=True)


def refusals() -> None:
    c = reference.ModelConfig(residual="standard")
    for keys, error in (({"hidden_act": "gelu"}, "hidden_act: gelu found, expected silu"), ({"num_expert_group": 2}, "num_expert_group"),
                        ({"residual": "hyper"}, "residual: hyper found")):
        try:
            lamina.LaminaConfig(**{**{"residual": "standard"}, **keys})
        except ValueError as caught:
            expect(error in str(caught), f"{keys}: {caught}")
        else:
            expect(False, f"{keys}: taken")
    model, tokens = model_of(c, reference.random_parameters(c, 1)), torch.zeros(1, 3, dtype=torch.long)
    for arguments, error in (({"output_hidden_states": True}, "output_hidden_states"), ({"past_key_values": object()}, "past_key_values"),
                             ({"cache": object()}, "expected a LaminaCache"), ({"attention_mask": tokens[:, 1:]}, "attention_mask: shape")):
        try:
            model(tokens, **arguments)
        except (TypeError, ValueError) as caught:
            expect(error in str(caught), f"{arguments}: {caught}")
        else:
            expect(False, f"{arguments}: taken")


def main() -> None:
    residuals = {"standard": {"residual": "standard"}, "block": {"residual": "block_attnres", "attn_res_block_size": 2},
                 "full": {"residual": "full_attnres"}}
    mixers = {"mla": {}, "hybrid": {"mixers": ["kda", "mla", "kda"]}}
    mlps = {"dense": {}, "experts": {"num_experts": 6, "num_experts_per_token": 2, "routed_scaling_factor": 2.4}}
    sizes = {"hidden_size": 24, "num_hidden_layers": 5, "num_attention_heads": 2, "kv_lora_rank": 10, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4,
             "v_head_dim": 5, "linear_num_heads": 2, "linear_head_dim": 8, "intermediate_size": 20, "moe_intermediate_size": 12, "vocab_size": 50}
    others = itertools.cycle([{}, {"tie_word_embeddings": True}, {"gate_lower_bound": BOUND}, {"q_lora_rank": 7}, {"short_conv_kernel_size": 1},
                              {"qk_rope_head_dim": 0, "num_shared_experts": 0}, {"moe_renormalize": False, "rms_norm_eps": 1e-3}])
    seed = 0
    for (r, residual), (m, mixer), (l, mlp) in itertools.product(residuals.items(), mixers.items(), mlps.items()):
        for _ in range(2):
            seed += 1
            other = next(others)
            check(f"{r} {m} {l} {' '.join(map(str, other.items()))}", reference.ModelConfig(**{**sizes, **residual, **mixer, **mlp, **other}), seed)
    for n, more in ((4, {"tie_word_embeddings": True}), (3, {**mixers["hybrid"], **mlps["experts"]}), (2, {"rms_norm_eps": 1e-3})):
        check(f"mhc, {n} streams", reference.ModelConfig(**{**sizes, "residual": "mhc", "num_residual_streams": n, **more}), seed + n)
    refusals()


if __name__ == "__main__":
    main()
