"""The table of families.py: every model family with its features on, and what must be visible in the numbers.

`config` is transformers 5's; `old` says how the released checkpoints spell the same thing (see `Case.old_config`).
"""

from dataclasses import dataclass, field
from pathlib import Path

from common import ROOT

FAMILY_GOLDENS = ROOT / "crates/model/tests/goldens/families"
FAMILY_RUNS = ROOT / "crates/train/tests/goldens/families"
VOCAB = 48
PAD, BOS, EOS = 0, 1, 2
LONG, SHORT = 36, 10  # tokens of the two documents
FUSED = ["qkv_proj", "gate_up_proj", "o_proj", "down_proj"]


@dataclass
class Case:
    name: str
    model_type: str
    config: dict
    old: dict = field(default_factory=dict)  # fields only the released files have, whatever they mean
    dropped: tuple[str, ...] = ()  # fields that the released files leave to the default
    old_first: bool = True  # is config.json in the old spelling? The other is config.v5.json or config.v4.json
    # What must show: a name, the config.json fields to change, and the documents whose logits change by it.
    visible: list[tuple[str, dict, tuple[int, ...]]] = field(default_factory=list)
    run: bool = False  # five LoRA and five DoRA steps
    targets: list[str] | None = None  # None is PEFT's all-linear
    pad_in_text: bool = False  # the padding token occurs inside the documents
    gguf: bool = False

    @property
    def folder(self) -> Path:
        return FAMILY_GOLDENS / self.name


def sizes(layers=2, heads=4, kv=2, hidden=16, inner=20, **more) -> dict:
    return dict(
        vocab_size=VOCAB, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv, max_position_embeddings=128, rms_norm_eps=1e-5,
        pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS, **more,
    )  # fmt: skip


def rope(theta, kind="default", **more) -> dict:
    return {"rope_parameters": {"rope_theta": theta, "rope_type": kind} | more}


def plain(theta) -> dict:
    """The change that turns a scaled rotary embedding into a plain one."""
    return rope(theta)


BOTH, FIRST, SECOND = (0, 1), (0,), (1,)
# Half the rotary dimension of a head of 8, and of a head of 8 with three quarters rotated.
SHORT_4, LONG_4 = [1.0, 1.1, 1.3, 1.5], [1.2, 2.0, 3.5, 6.0]
SHORT_3, LONG_3 = [1.0, 1.2, 1.4], [1.0, 2.5, 5.0]

LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
YARN = dict(factor=4.0, original_max_position_embeddings=64)
MSCALE = YARN | dict(mscale=0.9, mscale_all_dim=0.4, beta_fast=4.0, beta_slow=0.5, truncate=False)

CASES = [
    # --- Llama: one layer is enough for rotary embeddings ------------------------------------------
    Case(
        "llama3", "llama",
        sizes(heads=2, kv=1, hidden=24, head_dim=16, tie_word_embeddings=True) | rope(500.0, "llama3", **LLAMA3),
        old={"pretraining_tp": 1},
        visible=[
            ("scaling", plain(500.0), BOTH),
            ("low", rope(500.0, "llama3", **LLAMA3 | {"low_freq_factor": 2.0}), BOTH),
            ("high", rope(500.0, "llama3", **LLAMA3 | {"high_freq_factor": 8.0}), BOTH),
        ],
        run=True, gguf=True,
    ),
    Case(
        "llama-linear", "llama",
        sizes(1) | rope(10000.0, "linear", factor=2.5), old_first=False,
        visible=[("scaling", plain(10000.0), BOTH)],
    ),
    # Frequencies depend on the length beyond max_position_embeddings: of the longer document only.
    Case(
        "llama-dynamic", "llama",
        sizes(1) | {"max_position_embeddings": 24} | rope(10000.0, "dynamic", factor=2.0),
        visible=[("scaling", plain(10000.0), FIRST)],
    ),
    Case(
        "llama-yarn", "llama",
        sizes(1, heads=2, kv=1, head_dim=16) | {"max_position_embeddings": 256} | rope(100.0, "yarn", **YARN),
        visible=[
            ("scaling", plain(100.0), BOTH),
            ("attention factor", rope(100.0, "yarn", attention_factor=1.0, **YARN), BOTH),
        ],
        gguf=True,
    ),
    Case(
        "llama-yarn-mscale", "llama",
        sizes(1, heads=2, kv=1, head_dim=16) | {"max_position_embeddings": 256} | rope(100.0, "yarn", **MSCALE),
        visible=[
            ("mscale", rope(100.0, "yarn", **MSCALE | {"mscale": None}), BOTH),
            ("truncate", rope(100.0, "yarn", **MSCALE | {"truncate": True}), BOTH),
            ("betas", rope(100.0, "yarn", **MSCALE | {"beta_fast": None, "beta_slow": None}), BOTH),
        ],
    ),
    Case(
        "llama-yarn-attention-factor", "llama",
        sizes(1, heads=2, kv=1, head_dim=16) | {"max_position_embeddings": 256}
        | rope(100.0, "yarn", attention_factor=1.4, **YARN), old_first=False,
        visible=[("attention factor", rope(100.0, "yarn", **YARN), BOTH)],
    ),
    # --- Mistral -----------------------------------------------------------------------------------
    Case(
        "mistral-window", "mistral",
        sizes(sliding_window=7, tie_word_embeddings=False) | rope(10000.0),
        dropped=("head_dim", "attention_dropout", "pad_token_id"),
        visible=[("window", {"sliding_window": None}, BOTH), ("window by one", {"sliding_window": 8}, BOTH)],
        run=True,
    ),
    Case(
        "mistral-nemo", "mistral",
        sizes(head_dim=6, sliding_window=None, tie_word_embeddings=False) | rope(1000000.0),
        dropped=("pad_token_id",),
        visible=[("theta", rope(10000.0), BOTH)],
        run=True, gguf=True,
    ),
    # --- Gemma -------------------------------------------------------------------------------------
    Case(
        "gemma", "gemma",
        sizes(kv=1, head_dim=6, hidden_act="gelu_pytorch_tanh") | rope(10000.0),
        old={"hidden_act": "gelu"}, dropped=("tie_word_embeddings", "use_bidirectional_attention"),
        visible=[("tanh", {"hidden_act": "gelu_python"}, BOTH), ("gelu", {"hidden_act": "silu"}, BOTH)],
        run=True, gguf=True,
    ),
    Case(
        "gemma2", "gemma2",
        sizes(
            head_dim=6, hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=3, sliding_window=7,
            attn_logit_softcapping=1.5, final_logit_softcapping=3.0,
        ) | rope(10000.0),
        old={"hidden_act": "gelu_pytorch_tanh", "cache_implementation": "hybrid", "sliding_window_size": 7},
        dropped=("tie_word_embeddings", "use_bidirectional_attention", "layer_types"),
        visible=[
            ("window", {"sliding_window": 128}, BOTH),
            ("which layers", {"layer_types": ["full_attention", "sliding_attention"]}, BOTH),
            ("attention's cap", {"attn_logit_softcapping": None}, BOTH),
            ("final cap", {"final_logit_softcapping": None}, BOTH),
            ("scale", {"query_pre_attn_scalar": 6}, BOTH),
        ],
        run=True, gguf=True,
    ),
    Case(
        "gemma3", "gemma3_text",
        sizes(
            layers=3, kv=1, head_dim=6, hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=3,
            sliding_window=7, final_logit_softcapping=6.0,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
            rope_parameters={
                "full_attention": {"rope_theta": 1000.0, "rope_type": "linear", "factor": 8.0},
                "sliding_attention": {"rope_theta": 50.0, "rope_type": "default"},
            },
        ),
        old={
            "rope_theta": 1000.0, "rope_local_base_freq": 50.0, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window_pattern": 3, "cache_implementation": "hybrid",
        },
        dropped=("tie_word_embeddings", "use_bidirectional_attention", "layer_types", "_sliding_window_pattern"),
        visible=[
            ("window", {"sliding_window": 128}, BOTH),
            ("which layers", {"layer_types": ["sliding_attention", "full_attention", "full_attention"]}, BOTH),
            ("final cap", {"final_logit_softcapping": None}, BOTH),
            ("scale", {"query_pre_attn_scalar": 6}, BOTH),
            ("local base", {"rope_parameters": {
                "full_attention": {"rope_theta": 1000.0, "rope_type": "linear", "factor": 8.0},
                "sliding_attention": {"rope_theta": 1000.0, "rope_type": "default"}}}, BOTH),
            ("global scaling", {"rope_parameters": {
                "full_attention": {"rope_theta": 1000.0, "rope_type": "default"},
                "sliding_attention": {"rope_theta": 50.0, "rope_type": "default"}}}, BOTH),
        ],
        run=True, gguf=True,
    ),
    # --- Qwen --------------------------------------------------------------------------------------
    # The released files name a window that is switched off, and have more rows than the tokenizer has tokens.
    Case(
        "qwen2", "qwen2",
        sizes(use_sliding_window=False, max_window_layers=1, tie_word_embeddings=True)
        | {"vocab_size": VOCAB + 8} | rope(1000000.0),
        old={"sliding_window": 7}, dropped=("layer_types", "pad_token_id"),
        visible=[("theta", rope(10000.0), BOTH)],
        run=True, gguf=True,
    ),
    Case(
        "qwen2-window", "qwen2",
        sizes(use_sliding_window=True, sliding_window=6, max_window_layers=1, tie_word_embeddings=False)
        | rope(10000.0),
        dropped=("layer_types", "pad_token_id"), old_first=False,
        visible=[
            ("window", {"sliding_window": 128}, BOTH),
            ("which layers", {"layer_types": ["sliding_attention", "sliding_attention"]}, BOTH),
        ],
    ),
    Case(
        "qwen3", "qwen3",
        sizes(head_dim=8, attention_bias=True, tie_word_embeddings=True, max_window_layers=2) | rope(1000000.0),
        dropped=("layer_types", "pad_token_id"), old_first=False,
        visible=[("theta", rope(10000.0), BOTH)],
        run=True, gguf=True,
    ),
    # --- Phi ---------------------------------------------------------------------------------------
    Case(
        "phi3", "phi3",
        sizes(heads=2, kv=1, sliding_window=7, original_max_position_embeddings=128) | rope(10000.0),
        old={"auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "attention_bias": False},
        visible=[("window", {"sliding_window": None}, BOTH)],
        run=True, targets=FUSED, pad_in_text=True, gguf=True,
    ),
    Case(
        "phi3-longrope", "phi3",
        sizes(heads=2, kv=1, sliding_window=100, original_max_position_embeddings=16)
        | rope(10000.0, "longrope", short_factor=SHORT_4, long_factor=LONG_4),
        old={"auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "attention_bias": False},
        visible=[
            ("long", rope(10000.0, "longrope", short_factor=SHORT_4, long_factor=SHORT_4), FIRST),
            ("short", rope(10000.0, "longrope", short_factor=LONG_4, long_factor=LONG_4), SECOND),
            ("factor", rope(10000.0, "longrope", short_factor=SHORT_4, long_factor=LONG_4, attention_factor=1.0), BOTH),
        ],
        run=True, targets=FUSED, gguf=True,
    ),
    Case(
        "phi4-mini", "phi3",
        sizes(heads=2, kv=1, sliding_window=128, original_max_position_embeddings=16, tie_word_embeddings=True)
        | {"bos_token_id": PAD, "eos_token_id": PAD}
        | rope(10000.0, "longrope", short_factor=SHORT_3, long_factor=LONG_3, partial_rotary_factor=0.75),
        old={
            "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config", "AutoTokenizer": "Xenova/gpt-4o"},
            "attention_bias": False, "lm_head_bias": False, "mlp_bias": False, "full_attn_mod": 1,
            "interpolate_factor": 1,
        },
        visible=[
            ("partial", rope(10000.0, "longrope", short_factor=SHORT_4, long_factor=LONG_4), BOTH),
            ("long", rope(10000.0, "longrope", short_factor=SHORT_3, long_factor=SHORT_3,
                          partial_rotary_factor=0.75), FIRST),
        ],
        run=True, targets=FUSED, pad_in_text=True, gguf=True,
    ),
    Case(
        "phi4", "phi3",
        sizes(1, heads=2, kv=1, sliding_window=None, original_max_position_embeddings=128) | rope(250000.0),
        old={"attention_bias": False},
        visible=[("theta", rope(10000.0), BOTH)],
        targets=FUSED, gguf=True,
    ),
    # --- others ------------------------------------------------------------------------------------
    Case(
        "smollm3", "smollm3",
        # no_rope_layers says which layers do rotate; it wins over the interval, which would say 1, 1, 1.
        sizes(layers=3, no_rope_layers=[1, 0, 1], no_rope_layer_interval=4, tie_word_embeddings=True) | rope(5000.0),
        old={"pretraining_tp": 2, "max_window_layers": 28}, dropped=("layer_types",),
        visible=[
            ("layers without", {"no_rope_layers": [1, 1, 1]}, BOTH),
            ("which layers", {"no_rope_layers": [0, 1, 1]}, BOTH),
        ],
        run=True,
    ),
    Case(
        "olmo2", "olmo2", sizes(tie_word_embeddings=False) | rope(500000.0), old_first=False,
        visible=[("theta", rope(10000.0), BOTH)],
        run=True,
    ),
    Case(
        "granite", "granite",
        sizes(
            tie_word_embeddings=True, embedding_multiplier=3.0, attention_multiplier=0.3, residual_multiplier=0.22,
            logits_scaling=2.5,
        ) | rope(10000.0),
        visible=[
            ("embedding", {"embedding_multiplier": 1.0}, BOTH),
            ("attention", {"attention_multiplier": 0.5}, BOTH),
            ("residual", {"residual_multiplier": 1.0}, BOTH),
            ("logits", {"logits_scaling": 1.0}, BOTH),
        ],
        run=True,
    ),
]  # fmt: skip
