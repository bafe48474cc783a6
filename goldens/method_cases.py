"""The table of methods.py: what each case trains, and how."""

from dataclasses import dataclass
from pathlib import Path

from common import ROOT

METHOD_GOLDENS = ROOT / "crates/train/tests/goldens/methods"
# The order in which a layer's projections run, and so in which they draw.
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass
class Case:
    name: str
    lora: dict | None = None  # LoraConfig's arguments; None trains weights of the base
    model: str = "gqa-untied"
    unfrozen: tuple[str, ...] = ()  # regexes of the base's weights that are trained
    random_b: bool = False  # B starts random, not zero
    batch: int = 3
    accumulation: int = 2
    lr: float = 1e-2
    schedule: str = "linear"
    warmup: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    plus_ratio: float | None = None  # LoRA+
    plus_embedding: float | None = None
    neftune: float = 0.0
    neftune_scale: str = "per_batch"
    seed: int = 42

    @property
    def folder(self) -> Path:
        return METHOD_GOLDENS / self.name

    @property
    def computed_start(self) -> bool:
        """A and B come from the base's weights, which lose them."""
        init = (self.lora or {}).get("init_lora_weights", True)
        return isinstance(init, str) and init.startswith(("pissa", "olora"))

    @property
    def dropout(self) -> float:
        return (self.lora or {}).get("lora_dropout", 0.0)

    @property
    def random(self) -> bool:
        return self.dropout > 0 or self.neftune > 0

    @property
    def shares_rows(self) -> bool:
        """Trained rows that embedding and head have in common."""
        rows = (self.lora or {}).get("trainable_token_indices")
        embedding, head = (rows.get("embed_tokens"), rows.get("lm_head")) if isinstance(rows, dict) else (rows, None)
        return self.model == "tied-bf16" and embedding is not None and head in (None, embedding)

    @property
    def breaks_tie(self) -> bool:
        """An adapter, or rows of its own, on one of two modules that share their weight."""
        lora = self.lora or {}
        changed = {"embed_tokens", "lm_head"} & set(lora.get("target_modules", []))
        rows = lora.get("trainable_token_indices") is not None and not self.shares_rows
        return self.model == "tied-bf16" and (bool(changed) or rows)


def lora(targets, r=2, alpha=3, **more) -> dict:
    return dict(r=r, lora_alpha=alpha, target_modules=targets, **more)


QV, ALL, SEVEN = ["q_proj", "v_proj"], "all-linear", PROJECTIONS
TIED = dict(model="tied-bf16")
PATTERNS = dict(
    use_rslora=True, rank_pattern={"q_proj": 3, r"layers\.1\.mlp\.down_proj": 4},
    alpha_pattern={"v_proj": 5, r"layers\.1\.mlp\.down_proj": 2},
)  # fmt: skip
CASES = [
    Case("gaussian", lora(QV, init_lora_weights="gaussian"), lr=2e-2),
    Case("orthogonal", lora(["q_proj", "down_proj"], r=4, alpha=6, init_lora_weights="orthogonal")),
    Case("bias-all", lora(["q_proj", "gate_proj"], bias="all"), weight_decay=0.1),
    Case("bias-lora-only", lora(["q_proj", "o_proj", "gate_proj"], bias="lora_only"), weight_decay=0.1),
    Case("save-head-norms", lora(["q_proj"], modules_to_save=["lm_head", "norm"]), weight_decay=0.1, lr=5e-3),
    Case("save-embedding-tied", lora(QV, modules_to_save=["embed_tokens"]), **TIED, lr=5e-3),
    Case("save-head-tied", lora(QV, modules_to_save=["lm_head"]), **TIED, lr=5e-3),
    Case("save-both-tied", lora(QV, modules_to_save=["embed_tokens", "lm_head"]), **TIED, lr=5e-3),
    Case("embedding-head", lora(["embed_tokens", "lm_head", "q_proj"])),
    Case("embedding-tied", lora(["embed_tokens"]), **TIED, lr=2e-2),
    Case("head-tied", lora(["lm_head"]), **TIED, lr=4e-2),
    Case("dora", lora(ALL, use_dora=True), weight_decay=0.1),
    Case("dora-dropout", lora(["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"], use_dora=True, lora_dropout=0.2)),
    Case("dora-embedding-head", lora(["embed_tokens", "lm_head"], use_dora=True)),
    Case("dora-embedding-tied", lora(["embed_tokens", "q_proj"], use_dora=True), **TIED),
    Case("dora-patterns", lora(SEVEN, use_dora=True, layers_to_transform=[0, 1], **PATTERNS), random_b=True),
    Case("dora-bias-all", lora(["q_proj", "up_proj"], use_dora=True, bias="all")),
    Case("pissa", lora(ALL, init_lora_weights="pissa"), lr=5e-3),
    Case("pissa-patterns", lora(SEVEN, init_lora_weights="pissa", layers_to_transform=[0, 1], **PATTERNS), lr=5e-3),
    Case("pissa-save", lora(QV, init_lora_weights="pissa", modules_to_save=["lm_head", "model.norm"], bias="lora_only"), lr=5e-3),
    Case("olora", lora(ALL, init_lora_weights="olora"), lr=5e-3),
    Case("dora-pissa", lora(ALL, init_lora_weights="pissa", use_dora=True, exclude_modules=["k_proj"]), lr=5e-3),
    Case("dora-olora", lora(["o_proj", "down_proj"], init_lora_weights="olora", use_dora=True), lr=5e-3),
    Case("dropout", lora(ALL, lora_dropout=0.1), model="mha-f16", lr=2e-2),
    Case("loraplus", lora(ALL), plus_ratio=16.0, weight_decay=0.1, lr=2e-3),
    Case(
        "loraplus-dora",
        lora(["embed_tokens", "q_proj", "down_proj"], use_dora=True, bias="lora_only", modules_to_save=["model.norm"]),
        plus_ratio=8.0, plus_embedding=8e-3, weight_decay=0.1, lr=3e-3, schedule="cosine",
    ),
    Case("neftune-batch", lora(QV), neftune=5.0, lr=2e-2),
    Case("neftune-sequence", lora(QV), neftune=5.0, neftune_scale="per_sequence", lr=2e-2),
    Case(
        "everything",
        lora(
            ALL, init_lora_weights="pissa", use_dora=True, lora_dropout=0.1, bias="all",
            modules_to_save=["model.norm"], **PATTERNS,
        ),
        plus_ratio=4.0, neftune=5.0, weight_decay=0.1, lr=2e-3, warmup=2, schedule="cosine",
    ),
    Case("tokens", lora(QV, trainable_token_indices=[274, 0, 261, 200, 2]), weight_decay=0.1, lr=2e-2),
    Case("tokens-head", lora(["q_proj", "embed_tokens"], trainable_token_indices={"lm_head": [2, 261]}), weight_decay=0.1, lr=2e-2),
    Case(
        "tokens-both",
        lora(ALL, use_dora=True, trainable_token_indices={"embed_tokens": [274, 261], "lm_head": [16, 274, 0]}, modules_to_save=["norm"]),
        lr=5e-3,
    ),
    Case("tokens-tied", lora(QV, trainable_token_indices=[274, 0, 261, 200, 2]), **TIED, weight_decay=0.1, lr=2e-2),
    Case("tokens-same-tied", lora(ALL, trainable_token_indices={"embed_tokens": [274, 2], "lm_head": [274, 2]}, ensure_weight_tying=True), **TIED),
    Case("tokens-apart-tied", lora(ALL, trainable_token_indices={"embed_tokens": [274, 2], "lm_head": [2, 274]}), **TIED),
    Case("tokens-head-tied", lora(QV, trainable_token_indices={"lm_head": [2, 261]}), **TIED, lr=4e-2),
    Case("tokens-lora-head-tied", lora(["lm_head", "v_proj"], trainable_token_indices=[274, 2, 16]), **TIED, lr=2e-2),
    Case("tokens-save-embedding-tied", lora(QV, modules_to_save=["embed_tokens"], trainable_token_indices={"lm_head": [2, 261]}), **TIED, lr=5e-3),
    Case(
        "tokens-everything",
        lora(
            ALL, init_lora_weights="pissa", use_dora=True, lora_dropout=0.1, bias="all", modules_to_save=["model.norm"],
            trainable_token_indices={"embed_tokens": [274, 261, 2], "lm_head": [2]}, **PATTERNS,
        ),
        plus_ratio=4.0, neftune=5.0, weight_decay=0.1, lr=2e-3, warmup=2, schedule="cosine",
    ),
    Case(
        "full-some",
        unfrozen=(r"^model\.layers\.1\.mlp\.(gate|down)_proj\.weight$", r"^model\.layers\.2\.self_attn\.q_proj\.bias$",
                  r"^model\.norm\.weight$", r"^lm_head\.weight$"),
        weight_decay=0.1, lr=5e-3,
    ),
]  # fmt: skip
