"""Goldens of the engine's ops: crates/engine/tests/goldens/ops.safetensors and ops.json.

Inputs are random f32 numbers. Outputs and gradients are computed by autograd in float64 from those
f32 inputs and rounded once to f32: they are the truth, not another f32 implementation's rounding.
AdamW and clipping are the exception: they are torch's own f32 results, because their state is f32
by definition. Each float64 definition is compared with the transformers or torch function that it
restates before anything is written.

Usage: python goldens/ops.py
"""

import math

import torch
import torch.nn.functional as F

from common import ENGINE_GOLDENS, deterministic, generator, versions, write_json, write_tensors

from peft import LoraConfig
from peft.tuners.lora.layer import Embedding as PeftEmbedding
from peft.tuners.lora.layer import Linear as PeftLinear
from transformers import LlamaConfig, Phi3Config
from transformers.activations import ACT2FN
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm, eager_attention_forward
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding
from transformers.models.phi3.modeling_phi3 import apply_rotary_pos_emb as apply_partial_rotary_pos_emb

TENSORS: dict[str, torch.Tensor] = {}
CASES: list[dict] = []
IGNORED = -100


class Case:
    """One case of one op: records its tensors under `{op}.{case}.{name}` and its line in ops.json."""

    def __init__(self, op: str, case: str, seed: int, **params):
        self.op, self.case = op, case
        self.random = generator(seed)
        self.entry = {"op": op, "case": case, "params": params, "inputs": [], "outputs": [], "upstream": {}, "grads": {}}
        CASES.append(self.entry)

    def randn(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(*shape, generator=self.random) * scale

    def store(self, name: str, value: torch.Tensor) -> torch.Tensor:
        value = value.detach()
        if value.is_floating_point():
            value = value.to(torch.float32)
            assert torch.isfinite(value).all(), f"{self.op}.{self.case}.{name} is not finite"
        key = f"{self.op}.{self.case}.{name}"
        assert key not in TENSORS, key
        TENSORS[key] = value.clone()
        return value

    def input(self, name: str, value: torch.Tensor) -> torch.Tensor:
        self.entry["inputs"].append(name)
        return self.store(name, value)

    def output(self, name: str, value: torch.Tensor) -> None:
        self.entry["outputs"].append(name)
        self.store(name, value)

    def differentiate(self, function, inputs: dict[str, torch.Tensor], wanted: list[str], upstream=None) -> torch.Tensor:
        """Runs `function(**inputs)` in float64 and stores y, dy and d{name} for each wanted input."""
        doubles = {
            name: value.double().requires_grad_(name in wanted) if value.is_floating_point() else value
            for name, value in inputs.items()
        }
        y = function(**doubles)
        dy = self.randn(*y.shape) if upstream is None else torch.tensor(upstream)
        self.output("y", y)
        self.store("dy", dy)
        self.entry["upstream"] = {"y": "dy"}
        for name, grad in zip(wanted, torch.autograd.grad(y, [doubles[n] for n in wanted], dy.double())):
            self.store(f"d{name}", grad)
            self.entry["grads"][name] = f"d{name}"
        return y.detach()


def close(actual: torch.Tensor, expected: torch.Tensor, what: str, tolerance: float = 2e-5) -> None:
    error = (actual.double() - expected.double()).abs().max().item()
    scale = max(1.0, expected.abs().max().item())
    assert error <= tolerance * scale, f"{what}: {error} against the library's own function"


# --- normalisation, rotation, activation, lookup ------------------------------------------------


def rms_norm(x, weight, eps, offset):
    groups = x.unflatten(-1, (-1, weight.shape[0]))
    normed = groups * torch.rsqrt(groups.pow(2).mean(-1, keepdim=True) + eps)
    return ((offset + weight) * normed).flatten(-2)


def rms_norm_cases():
    table = [
        # name, n, columns, length of the weight, eps, scale of x, offset
        ("one_by_one", 1, 1, 1, 1e-5, 1.0, 0),
        ("odd", 5, 17, 17, 1e-6, 1.0, 0),
        ("wide", 3, 33, 33, 1e-5, 3.0, 0),
        ("tiny_values", 7, 5, 5, 1e-5, 1e-3, 0),  # eps decides the result
        ("large_values", 2, 65, 65, 1e-6, 1e3, 0),
        ("gemma", 5, 17, 17, 1e-6, 2.0, 1),
        ("by_head", 9, 21, 7, 1e-6, 1.0, 0),
        ("gemma_by_head", 33, 12, 3, 1e-6, 1.0, 1),
    ]
    for seed, (name, n, cols, d, eps, scale, offset) in enumerate(table, 100):
        case = Case("rms_norm", name, seed, n=n, d=cols, eps=eps, offset=offset)
        x = case.input("x", case.randn(n, cols, scale=scale))
        weight = case.input("weight", (1.0 - offset) + case.randn(d, scale=0.5))
        inputs = {"x": x, "weight": weight}
        y = case.differentiate(lambda x, weight: rms_norm(x, weight, eps, offset), inputs, ["x", "weight"])
        reference = (Gemma2RMSNorm if offset else LlamaRMSNorm)(d, eps)
        reference.weight.data = weight
        close(reference(x.view(n, -1, d)).flatten(-2), y, f"rms_norm.{name}")


def rope_angles(positions, head_dim, theta):
    """transformers' angles: inverse frequencies and their product with the position in f32."""
    inv_freq = 1.0 / (theta ** (torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim))
    return positions[:, None].float() * inv_freq


def rope(x, angles, scale):
    """Turns the first columns of each head, two for each angle, and leaves the others."""
    half = angles.shape[-1]
    angles = torch.cat((angles, angles), dim=-1)[:, None, :].to(x.dtype)
    x, rest = x[..., : 2 * half], x[..., 2 * half :]
    rotated = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return torch.cat((scale * (x * angles.cos() + rotated * angles.sin()), rest), dim=-1)


def rope_cases():
    documents = torch.cat([torch.arange(5), torch.arange(1), torch.arange(3)])
    table = [
        # name, positions, heads, head_dim, rotated columns of a head, theta, scale
        ("single", torch.tensor([0]), 1, 2, 2, 10000.0, 1),
        ("one_document", torch.arange(7), 3, 6, 6, 10000.0, 1),
        ("documents", documents, 4, 10, 10, 5000.0, 1),
        ("scattered", torch.tensor([3, 0, 301, 17, 17, 64]), 2, 12, 12, 100000.0, 1),
        ("far", torch.tensor([1023, 2047, 4095]), 5, 16, 16, 500000.0, 1),
        ("partial", documents, 3, 8, 6, 10000.0, 1),
        ("partial_scaled", torch.tensor([3, 0, 301, 17]), 3, 16, 4, 10000.0, 1.25),
    ]
    for seed, (name, positions, heads, head_dim, rotary, theta, scale) in enumerate(table, 200):
        n = len(positions)
        params = {"n": n, "heads": heads, "head_dim": head_dim, "rotary": rotary, "theta": theta, "scale": scale}
        case = Case("rope", name, seed, **params)
        x = case.input("x", case.randn(n, heads, head_dim))
        positions = case.input("positions", positions.to(torch.int64))
        angles = rope_angles(positions, rotary, theta)
        y = case.differentiate(lambda x: rope(x, angles, scale), {"x": x}, ["x"])
        share = {} if rotary == head_dim else {"partial_rotary_factor": rotary / head_dim}
        config = (LlamaConfig if rotary == head_dim else Phi3Config)(
            hidden_size=heads * head_dim,
            num_attention_heads=heads,
            head_dim=head_dim,
            pad_token_id=0,
            rope_parameters={"rope_type": "default", "rope_theta": theta, **share},
        )
        embedding = (LlamaRotaryEmbedding if rotary == head_dim else Phi3RotaryEmbedding)(config)
        embedding.attention_scaling = scale
        batch = x.transpose(0, 1)[None]
        cos, sin = embedding(batch, positions[None])
        apply = apply_rotary_pos_emb if rotary == head_dim else apply_partial_rotary_pos_emb
        close(apply(batch, batch, cos, sin)[0][0].transpose(0, 1), y, f"rope.{name}")


ACTIVATIONS = {
    "silu": F.silu,
    "gelu_pytorch_tanh": lambda g: 0.5 * g * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (g + 0.044715 * g**3))),
    "gelu": lambda g: 0.5 * g * (1.0 + torch.erf(g / math.sqrt(2.0))),
}


def gated_cases():
    table = [("one", (1, 1), 1.0), ("odd", (5, 17), 1.0), ("wide", (3, 129), 2.0), ("extreme", (7, 33), 40.0)]
    for first, (activation, function) in zip((300, 310, 320), ACTIVATIONS.items()):
        for seed, (name, shape, scale) in enumerate(table, first):
            case = Case("gated", f"{activation}_{name}", seed, n=shape[0], d=shape[1], activation=activation)
            gate = case.input("gate", case.randn(*shape, scale=scale))
            up = case.input("up", case.randn(*shape))
            y = case.differentiate(lambda gate, up: function(gate) * up, {"gate": gate, "up": up}, ["gate", "up"])
            close(ACT2FN[activation](gate) * up, y, f"gated.{activation}_{name}")


def embedding_cases():
    table = [
        ("one", 3, 5, [1]),
        ("repeated", 7, 5, [2, 2, 0, 6, 2, 0, 5]),
        ("all_same", 5, 17, [4] * 33),
        ("odd", 33, 3, [0, 32, 17, 17, 1, 9, 32, 0, 31]),
    ]
    for seed, (name, vocab, d, ids) in enumerate(table, 400):
        case = Case("embedding", name, seed, vocab=vocab, d=d, n=len(ids))
        ids = case.input("ids", torch.tensor(ids, dtype=torch.int64))
        table_ = case.input("table", case.randn(vocab, d))
        case.differentiate(lambda ids, table: F.embedding(ids, table), {"ids": ids, "table": table_}, ["table"])


# --- attention ----------------------------------------------------------------------------------


def visible_keys(cu_seqlens, window):
    """[query, key]: earlier keys of the same document, and the query's own, within the window."""
    n = int(cu_seqlens[-1])
    document = torch.bucketize(torch.arange(n), cu_seqlens[1:], right=True)
    distance = torch.arange(n)[:, None] - torch.arange(n)[None, :]
    visible = (document[:, None] == document[None, :]) & (distance >= 0)
    return visible if window is None else visible & (distance < window)


def attention(q, k, v, visible, scale, softcap):
    """Query head h reads key head h // (hq // hkv)."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = torch.einsum("ihd,jhd->hij", q, k) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
    return torch.einsum("hij,jhd->ihd", weights, v)


def check_attention(name, y, q, k, v, visible, bounds, scale, softcap):
    """By torch's own function where there is neither window nor cap, and by Gemma 2's always."""
    if softcap is None and visible.sum() == visible_keys(bounds, None).sum():
        for start, end in zip(bounds[:-1], bounds[1:]):
            parts = [t[start:end].double().transpose(0, 1)[None] for t in (q, k, v)]
            reference = F.scaled_dot_product_attention(*parts, is_causal=True, enable_gqa=True, scale=scale)
            close(reference[0].transpose(0, 1), y[start:end], f"attention.{name}")
    module = torch.nn.Module()
    module.num_key_value_groups = q.shape[1] // k.shape[1]
    mask = torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, torch.finfo(torch.float64).min)
    parts = [t.double().transpose(0, 1)[None] for t in (q, k, v)]
    reference, _ = eager_attention_forward(module, *parts, mask, scaling=scale, softcap=softcap)
    close(reference[0], y, f"attention.{name} by Gemma 2")


def attention_cases():
    table = [
        # name, query heads, key heads, head_dim, document lengths, window, scale of q, soft cap, scale of q·k
        ("one_token", 1, 1, 3, [1], None, 1.0, None, None),
        ("mha_3", 3, 3, 5, [7], None, 1.0, None, None),
        ("gqa_4_2", 4, 2, 8, [17], None, 1.0, None, None),
        ("gqa_6_2_documents", 6, 2, 6, [5, 1, 3], None, 1.0, None, None),
        ("gqa_9_3_documents", 9, 3, 4, [17, 1, 33, 2], None, 1.0, None, None),
        ("long", 2, 1, 7, [197], None, 1.0, None, None),
        ("long_documents", 3, 3, 5, [129, 3, 65], None, 1.0, None, None),
        ("sharp", 3, 1, 7, [31, 9], None, 30.0, None, None),
        ("window", 4, 2, 6, [50, 9], 7, 1.0, None, None),
        ("window_of_one", 2, 2, 4, [5, 3], 1, 1.0, None, None),
        ("window_long", 2, 1, 4, [151], 67, 1.0, None, None),
        ("softcap", 4, 2, 6, [17, 1, 9], None, 1.0, 0.8, None),
        ("softcap_sharp", 2, 1, 6, [33], None, 30.0, 5.0, 0.3),
        ("softcap_window", 4, 2, 6, [50, 9], 7, 3.0, 2.0, 1.0),
        ("softcap_window_long", 2, 1, 4, [151], 67, 2.0, 50.0, 0.7),
    ]
    for seed, (name, hq, hkv, hd, lengths, window, spread, softcap, scale) in enumerate(table, 500):
        n, scale = sum(lengths), scale or hd**-0.5
        params = {"n": n, "heads": hq, "kv_heads": hkv, "head_dim": hd, "window": window, "softcap": softcap}
        case = Case("attention", name, seed, **params, scale=scale)
        inputs = {
            "q": case.input("q", case.randn(n, hq, hd, scale=spread)),
            "k": case.input("k", case.randn(n, hkv, hd)),
            "v": case.input("v", case.randn(n, hkv, hd)),
        }
        bounds = torch.tensor([0, *lengths]).cumsum(0)
        cu_seqlens = case.input("cu_seqlens", bounds.to(torch.int32))
        visible = visible_keys(cu_seqlens, window)
        y = case.differentiate(lambda q, k, v: attention(q, k, v, visible, scale, softcap), inputs, ["q", "k", "v"])
        check_attention(name, y, *inputs.values(), visible, bounds, scale, softcap)


# --- linear layers ------------------------------------------------------------------------------


def linear_cases():
    table = [("one", 1, 1, 1, False), ("odd", 5, 17, 7, False), ("bias", 3, 7, 33, True), ("tall", 65, 5, 3, True)]
    for seed, (name, n, inputs_, outputs, bias) in enumerate(table, 600):
        case = Case("linear", name, seed, n=n, inputs=inputs_, outputs=outputs, bias=bias)
        tensors = {"x": case.input("x", case.randn(n, inputs_)), "w": case.input("w", case.randn(outputs, inputs_))}
        if bias:
            tensors["b"] = case.input("b", case.randn(outputs))
        case.differentiate(lambda x, w, b=None: F.linear(x, w, b), tensors, list(tensors))


def lora_linear(x, w, a, b, scale, bias=None, mask=None):
    dropped = x if mask is None else x * mask
    return F.linear(x, w, bias) + scale * F.linear(F.linear(dropped, a), b)


def lora_linear_cases():
    table = [
        # name, n, in, out, rank, scale, bias, dropout
        ("one", 1, 1, 1, 1, 2.0, False, 0.0),
        ("odd", 5, 17, 7, 3, 2.0, False, 0.0),
        ("bias", 3, 7, 33, 5, 7.0 / 3.0, True, 0.0),
        ("dropout", 17, 9, 5, 3, 0.5, False, 0.25),
        ("dropout_bias", 7, 33, 17, 4, 8.0 / math.sqrt(4), True, 0.5),
        ("rank_above_width", 5, 3, 5, 7, 1.0, False, 0.0),
    ]
    for seed, (name, n, inputs_, outputs, rank, scale, bias, p) in enumerate(table, 700):
        params = {"n": n, "inputs": inputs_, "outputs": outputs, "rank": rank, "scale": scale, "bias": bias, "dropout": p}
        case = Case("lora_linear", name, seed, **params)
        tensors = {
            "x": case.input("x", case.randn(n, inputs_)),
            "w": case.input("w", case.randn(outputs, inputs_)),
            "a": case.input("a", case.randn(rank, inputs_)),
            "b": case.input("b", case.randn(outputs, rank)),
        }
        if bias:
            tensors["bias"] = case.input("bias", case.randn(outputs))
        if p > 0:
            keep = torch.rand(n, inputs_, generator=case.random) >= p
            tensors["mask"] = case.input("mask", keep.float() / (1.0 - p))
        case.differentiate(lambda **t: lora_linear(scale=scale, **t), tensors, ["x", "a", "b"])


class MaskDropout(torch.nn.Module):
    """A dropout layer with a given mask, for PEFT's layers."""

    def __init__(self, mask):
        super().__init__()
        self.mask = mask

    def forward(self, x):
        return x * self.mask


def peft_config(rank, alpha, rslora, dora):
    return LoraConfig(r=rank, lora_alpha=alpha, use_rslora=rslora, use_dora=dora, init_lora_weights=False)


def peft_linear(w, bias, rank, alpha, rslora, mask):
    """PEFT's DoRA layer over a given weight, in float64, with its parameters unset."""
    base = torch.nn.Linear(w.shape[1], w.shape[0], bias=bias is not None, dtype=torch.float64)
    base.weight.data = w.double()
    if bias is not None:
        base.bias.data = bias.double()
    config = peft_config(rank, alpha, rslora, True)
    layer = PeftLinear(base, "default", config, r=rank, lora_alpha=alpha).double().train()
    if mask is not None:
        layer.lora_dropout["default"] = MaskDropout(mask.double())
    return layer


def in_layer(layer, names):
    """`function(x, a, b, m)` that runs a PEFT layer with these values in the place of its parameters."""

    def call(x, **parameters):
        named = {names[name]: value for name, value in parameters.items()}
        return torch.func.functional_call(layer, named, (x,))

    return call


LINEAR_NAMES = {
    "a": "lora_A.default.weight",
    "b": "lora_B.default.weight",
    "m": "lora_magnitude_vector.default.weight",
    "bias": "base_layer.bias",
}


def dora_linear_cases():
    table = [
        # name, n, in, out, rank, alpha, rslora, bias, dropout
        ("one", 1, 1, 1, 1, 2, False, False, 0.0),
        ("odd", 5, 17, 7, 3, 7, False, False, 0.0),
        ("bias", 3, 7, 33, 5, 4, True, True, 0.0),
        ("dropout", 17, 9, 5, 3, 2, False, False, 0.25),
        ("dropout_bias", 7, 33, 17, 4, 8, True, True, 0.5),
        ("rank_above_width", 5, 3, 5, 7, 3, False, False, 0.0),
        ("blocks", 65, 5, 521, 2, 6, False, True, 0.1),
    ]
    for seed, (name, n, inputs_, outputs, rank, alpha, rslora, bias, p) in enumerate(table, 1100):
        scale = alpha / math.sqrt(rank) if rslora else alpha / rank
        params = {"n": n, "inputs": inputs_, "outputs": outputs, "rank": rank, "scale": scale, "bias": bias, "dropout": p}
        case = Case("dora_linear", name, seed, **params)
        x = case.input("x", case.randn(n, inputs_))
        w = case.input("w", case.randn(outputs, inputs_))
        trained = {"a": case.input("a", case.randn(rank, inputs_)), "b": case.input("b", case.randn(outputs, rank))}
        trained["m"] = case.input("m", case.randn(outputs))
        if bias:
            trained["bias"] = case.input("bias", case.randn(outputs, scale=3.0))
        mask = None
        if p > 0:
            keep = torch.rand(n, inputs_, generator=case.random) >= p
            mask = case.input("mask", keep.float() / (1.0 - p))
        layer = peft_linear(w, trained.get("bias"), rank, alpha, rslora, mask)
        assert layer.scaling["default"] == scale
        case.differentiate(in_layer(layer, LINEAR_NAMES), {"x": x, **trained}, ["x", *trained])
        norms = torch.linalg.norm(w.double() + scale * trained["b"].double() @ trained["a"].double(), dim=1)
        case.output("norms", norms)
        layer.load_state_dict({LINEAR_NAMES[k]: v.double() for k, v in trained.items()}, strict=False)
        magnitude = layer.lora_magnitude_vector["default"]
        factors = (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
        magnitude.update_layer(base_layer=layer.base_layer, lora_A=factors[0], lora_B=factors[1], scaling=scale)
        close(magnitude.weight, norms, f"dora_linear.{name} norms")


EMBEDDING_NAMES = {
    "a": "lora_embedding_A.default",
    "b": "lora_embedding_B.default",
    "m": "lora_magnitude_vector.default.weight",
}


class ScaledEmbedding(torch.nn.Embedding):
    """An embedding with a scale of the model's own, where PEFT looks for it (as Gemma's is)."""

    def __init__(self, table, scale):
        super().__init__(*table.shape, dtype=torch.float64)
        self.weight.data = table.double()
        self.embed_scale = torch.tensor(scale, dtype=torch.float64)

    def forward(self, ids):
        return super().forward(ids) * self.embed_scale


def adapted_embedding_cases():
    table = [
        # name, vocabulary, hidden, rank, alpha, rslora, dora, the model's scale, ids
        ("lora", 7, 5, 3, 7, False, False, 1.0, [2, 2, 0, 6, 2, 0, 5]),
        ("lora_scaled", 33, 3, 4, 6, True, False, math.sqrt(3), [0, 32, 17, 17, 1, 9]),
        ("dora", 7, 5, 3, 7, False, True, 1.0, [2, 2, 0, 6, 2, 0, 5]),
        ("dora_scaled", 33, 16, 4, 6, True, True, 4.0, [0, 32, 17, 17, 1, 9]),
        ("dora_blocks", 1031, 3, 2, 3, False, True, 1.0, [1030, 511, 512, 0, 1030]),
    ]
    for seed, (name, vocab, d, rank, alpha, rslora, dora, embed_scale, ids) in enumerate(table, 1200):
        scale = alpha / math.sqrt(rank) if rslora else alpha / rank
        case = Case("adapted_embedding", name, seed, vocab=vocab, d=d, scale=scale, embed_scale=embed_scale, dora=dora)
        ids = case.input("ids", torch.tensor(ids, dtype=torch.int64))
        weight = case.input("table", case.randn(vocab, d))
        trained = {"a": case.input("a", case.randn(rank, vocab)), "b": case.input("b", case.randn(d, rank))}
        if dora:
            trained["m"] = case.input("m", case.randn(d))
            norms = torch.linalg.norm(weight.double().T + scale * trained["b"].double() @ trained["a"].double(), dim=1)
            case.output("norms", norms)
        base = ScaledEmbedding(weight, embed_scale)
        config = peft_config(rank, alpha, rslora, dora)
        layer = PeftEmbedding(base, "default", config, r=rank, lora_alpha=alpha).double().train()
        assert layer.scaling["default"] == scale
        call = in_layer(layer, EMBEDDING_NAMES)
        case.differentiate(lambda ids, **t: call(ids, **t), {"ids": ids, **trained}, list(trained))


def adapted_linear_cross_entropy_cases():
    """A head with an adapter: PEFT's layer for DoRA, plain torch for LoRA."""
    table = [
        # name, n, d, vocabulary, rank, dora, dropout, upstream gradient
        ("lora", 7, 5, 33, 3, False, 0.0, 0.37),
        ("lora_dropout", 9, 7, 65, 2, False, 0.25, 1.0),
        ("dora", 7, 5, 33, 3, True, 0.0, 0.37),
        ("dora_dropout", 9, 7, 521, 2, True, 0.25, -1.5),
    ]
    for seed, (name, n, d, vocab, rank, dora, p, upstream) in enumerate(table, 1300):
        scale = 2 * rank / rank
        case = Case("adapted_linear_cross_entropy", name, seed, n=n, d=d, vocab=vocab, scale=scale, dora=dora, dropout=p)
        x = case.input("hidden", case.randn(n, d))
        head = case.input("head", case.randn(vocab, d))
        trained = {"a": case.input("a", case.randn(rank, d)), "b": case.input("b", case.randn(vocab, rank))}
        mask = None
        if dora:
            trained["m"] = case.input("m", case.randn(vocab))
        if p > 0:
            mask = case.input("mask", (torch.rand(n, d, generator=case.random) >= p).float() / (1.0 - p))
        targets = torch.randint(0, vocab, (n,), generator=case.random)
        targets[torch.rand(n, generator=case.random) < 0.3] = IGNORED
        case.input("targets", targets)
        case.entry["params"]["trained"] = int((targets != IGNORED).sum())
        layer = in_layer(peft_linear(head, None, rank, 2 * rank, False, mask), LINEAR_NAMES) if dora else None

        def loss(hidden, **factors):
            if dora:
                logits = layer(hidden, **factors)
            else:
                logits = lora_linear(hidden, head.double(), scale=scale, mask=mask, **factors)
            return F.cross_entropy(logits, targets, reduction="sum", ignore_index=IGNORED)

        case.differentiate(loss, {"hidden": x, **trained}, ["hidden", *trained], upstream=upstream)


def linear_cross_entropy_cases():
    table = [
        # name, n, d, vocab, share of ignored targets, upstream gradient, scale of hidden, scale of logits, their cap, and
        # label smoothing, where there is some
        ("one", 1, 3, 5, 0.0, 1.0, 1.0, 1, None),
        ("odd", 7, 5, 33, 0.3, 0.37, 1.0, 1, None),
        ("large_vocab", 17, 5, 1031, 0.25, 1.0 / 13.0, 1.0, 1, None),
        ("one_trained", 9, 7, 65, "all but one", 1.0, 1.0, 1, None),
        ("none_trained", 5, 3, 17, "all", 1.0, 1.0, 1, None),
        ("large_logits", 5, 17, 65, 0.2, -2.5, 30.0, 1, None),
        ("scaled", 7, 5, 33, 0.3, 0.37, 1.0, 0.0625, None),
        ("capped", 7, 5, 33, 0.3, 0.37, 2.0, 1, 3.0),
        ("scaled_capped", 17, 5, 1031, 0.25, -1.5, 10.0, 0.5, 30.0),
        ("smoothed", 17, 5, 1031, 0.25, 0.37, 3.0, 1, None, 0.1),
        ("smoothed_capped", 7, 5, 33, 0.3, -1.5, 2.0, 0.5, 3.0, 0.4),
    ]
    for seed, (name, n, d, vocab, ignored, upstream, spread, scale, softcap, *smoothing) in enumerate(table, 800):
        params = {"n": n, "d": d, "vocab": vocab, "scale": scale, "softcap": softcap}
        if smoothing:
            params["smoothing"] = smoothing[0]
        case = Case("linear_cross_entropy", name, seed, **params, ignore_index=IGNORED, reduction="sum")
        hidden = case.input("hidden", case.randn(n, d, scale=spread))
        head = case.input("head", case.randn(vocab, d))
        targets = torch.randint(0, vocab, (n,), generator=case.random)
        if ignored == "all":
            targets[:] = IGNORED
        elif ignored == "all but one":
            targets = torch.where(torch.arange(n) == 3, targets, IGNORED)
        else:
            targets[torch.rand(n, generator=case.random) < ignored] = IGNORED
        targets = case.input("targets", targets)
        case.entry["params"]["trained"] = int((targets != IGNORED).sum())

        def loss(hidden, head):
            logits = F.linear(hidden, head) * scale
            if softcap is not None:
                logits = softcap * torch.tanh(logits / softcap)
            return F.cross_entropy(
                logits, targets, reduction="sum", ignore_index=IGNORED, label_smoothing=sum(smoothing)
            )

        case.differentiate(loss, {"hidden": hidden, "head": head}, ["hidden", "head"], upstream=upstream)


# --- optimiser ----------------------------------------------------------------------------------


def adamw_cases():
    table = [
        # name, shape, learning rates of the five steps, betas, eps, weight decay, scale of gradients
        ("defaults", (5, 7), [1e-2] * 5, (0.9, 0.999), 1e-8, 0.0, 1.0),
        ("decay", (17,), [5e-3] * 5, (0.9, 0.95), 1e-6, 0.1, 0.3),
        ("changing_rate", (3, 11), [0.0, 1e-3, 2e-3, 1e-3, 5e-4], (0.8, 0.99), 1e-8, 0.01, 1.0),
        ("small_gradients", (33,), [1e-3] * 5, (0.9, 0.999), 1e-8, 0.0, 1e-8),  # eps decides the result
    ]
    for seed, (name, shape, rates, betas, eps, decay, scale) in enumerate(table, 900):
        case = Case("adamw", name, seed, lr=rates, beta1=betas[0], beta2=betas[1], eps=eps, weight_decay=decay)
        parameter = torch.nn.Parameter(case.input("param", case.randn(*shape)).clone())
        optimizer = torch.optim.AdamW([parameter], betas=betas, eps=eps, weight_decay=decay, foreach=False, fused=False)
        for step, rate in enumerate(rates, 1):
            grad = case.randn(*shape, scale=scale)
            grad.view(-1)[:: 5] = 0.0  # an unused embedding row has gradients that are exactly zero
            parameter.grad = case.input(f"grad{step}", grad).clone()
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            case.output(f"param{step}", parameter)
        case.output("exp_avg", optimizer.state[parameter]["exp_avg"])
        case.output("exp_avg_sq", optimizer.state[parameter]["exp_avg_sq"])


def clip_grad_norm_cases():
    shapes = [(5, 7), (33,), (3, 1)]
    for seed, (name, scale) in enumerate([("clips", 1.0), ("leaves", 0.01), ("zero", 0.0)], 1000):
        case = Case("clip_grad_norm", name, seed, max_norm=1.0, tensors=len(shapes))
        parameters = []
        for index, shape in enumerate(shapes):
            parameter = torch.nn.Parameter(torch.zeros(shape))
            parameter.grad = case.input(f"grad{index}", case.randn(*shape, scale=scale)).clone()
            parameters.append(parameter)
        case.output("total_norm", torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=False))
        for index, parameter in enumerate(parameters):
            case.output(f"clipped{index}", parameter.grad)


def main():
    deterministic()
    rms_norm_cases()
    rope_cases()
    gated_cases()
    embedding_cases()
    attention_cases()
    linear_cases()
    lora_linear_cases()
    dora_linear_cases()
    adapted_embedding_cases()
    linear_cross_entropy_cases()
    adapted_linear_cross_entropy_cases()
    adamw_cases()
    clip_grad_norm_cases()
    for entry in CASES:
        for name in entry["grads"].values():
            norm = TENSORS[f"{entry['op']}.{entry['case']}.{name}"].norm()
            # One token attends to itself with weight 1, whatever q and k are; so does a window of one.
            constant = entry["op"] == "attention" and name in ("dq", "dk") and entry["case"] in ("one_token", "window_of_one")
            assert norm > 0 or constant or entry["case"] == "none_trained", (entry["op"], entry["case"], name)
    write_tensors(ENGINE_GOLDENS / "ops.safetensors", TENSORS)
    document = {"versions": versions("torch", "transformers", "peft"), "cases": CASES}
    write_json(ENGINE_GOLDENS / "ops.json", document)
    print(f"{len(CASES)} cases, {len(TENSORS)} tensors")


if __name__ == "__main__":
    main()
