"""What is adapted in each family of transformers, and whether the adapter that is saved is the one that was scored.

    python -m benchmarks.families [FAMILY ...]     writes benchmarks/results/families.json (`docs/families.md` is made of it)

Each family is a random model of a few thousand weights. For each preset of `target_modules` an arm trains for a few
steps in the engine that `auto` takes, is scored and saved; PEFT loads what was saved onto a fresh copy of the model, and
scores the same rows.
"""

import argparse
import copy
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lorastudy.data.tokenise import TokenRow
from lorastudy.engine.arms import Engine, TrainingArm
from lorastudy.engine.attention import UnsupportedModelError
from lorastudy.engine.batch import Batch, assemble
from lorastudy.engine.loading import BaseModel
from lorastudy.engine.packed import PackedEngine
from lorastudy.engine.padded_forward import label_logits
from lorastudy.engine.peft_model import load_adapter
from lorastudy.engine.reference import ReferenceEngine
from lorastudy.engine.targets import linear_modules
from lorastudy.errors import ModelError
from lorastudy.suite.settings import TARGET_PRESETS
from lorastudy.suite.targets import count_by_role, left_out, resolve_targets

RESULTS = Path(__file__).parent / "results" / "families.json"
CPU = torch.device("cpu")
VOCAB = 96
#: Tokens of the rows that are trained and scored.
ROW_LENGTHS = (6, 9, 12)
#: Nats per token that rounding in fp32 explains.
TOLERANCE = 1e-5

#: The names that families give to the number of their layers.
_LAYERS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
#: Sizes by the names that families give them; a configuration takes those that it has.
_TINY: Mapping[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "lru_width"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "dff", "ffn_hidden_size"), 48),
    **dict.fromkeys(("num_attention_heads", "n_heads", "n_head", "num_heads"), 4),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("mamba_d_state", "state_size", "linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "linear_num_key_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "kv_lora_rank", "sliding_window"), 16),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
    "vocab_size": VOCAB, "num_key_value_heads": 2, "num_experts_per_tok": 2, "q_lora_rank": 12,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
_LATENT = {"num_key_value_heads": 4}
_LINEAR_FIRST = {"layer_types": ["linear_attention", "full_attention"]}
_CONV_FIRST = {"layer_types": ["conv", "full_attention"]}
#: What a family needs besides; None takes a size away that its configuration does not let one set.
_OWN: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa"), _LATENT),
    **dict.fromkeys(("longcat_flash", "minicpm3", "youtu"), _LATENT),
    **dict.fromkeys(("minimax", "olmo_hybrid", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"), _LINEAR_FIRST),
    "bamba": {"attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 8},
    "falcon": {"head_dim": None, "num_kv_heads": 2},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 16},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": _CONV_FIRST,
    "lfm2_moe": {**_CONV_FIRST, "num_dense_layers": 1},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1},
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention", "moe", "mlp"], "num_hidden_layers": 4, "n_groups": 2,
        "moe_shared_expert_intermediate_size": 24, "moe_latent_size": None,
    },
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "xlstm": {"v_head_dim": None},
    "zamba2": {
        "num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "mamba"], "hybrid_layer_ids": [1],
        "layer_types": ["mamba", "hybrid", "mamba"],
    },
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
#: By transformers' `model_type`.
FAMILIES: tuple[str, ...] = (
    "afmoe", "apertus", "arcee", "aria_text", "bamba", "beam", "biogpt", "bitnet", "bloom", "codegen", "cohere", "cohere2",
    "cohere2_moe", "ctrl", "cwm", "deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v4", "diffllama", "doge", "dots1",
    "ernie4_5", "ernie4_5_moe", "exaone4", "exaone_moe", "falcon", "falcon_h1", "falcon_mamba", "flex_olmo", "gemma",
    "gemma2", "gemma3_text", "glm", "glm4", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "gpt2", "gpt_bigcode", "gpt_neo",
    "gpt_neox", "gpt_neox_japanese", "gpt_oss", "gptj", "granite", "granitemoe", "granitemoehybrid", "granitemoeshared",
    "helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "jamba", "jetmoe", "lfm2", "lfm2_moe", "llama", "llama4_text",
    "longcat_flash", "mamba", "mamba2", "mimo_v2_flash", "minicpm3", "minimax", "minimax_m2", "ministral", "ministral3",
    "mistral", "mixtral", "modernbert-decoder", "moshi", "mpt", "nanochat", "nemotron", "nemotron_h", "olmo", "olmo2",
    "olmo3", "olmo_hybrid", "olmoe", "openai-gpt", "opt", "persimmon", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe",
    "qwen3", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_moe", "qwen3_next", "recurrent_gemma", "rwkv", "seed_oss",
    "smollm3", "solar_open", "stablelm", "starcoder2", "vaultgemma", "xglm", "xlstm", "youtu", "zamba2", "zaya",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One family and preset. Where it is refused, the message stands in `refused` and nothing was trained."""

    family: str
    preset: str
    engine: str | None = None
    roles: Mapping[str, int] = field(default_factory=dict)
    left_out: Sequence[str] = ()
    scored: float | None = None
    """Nats per token with the adapter, as the engine scored it; `before` is without."""
    before: float | None = None
    error: float | None = None
    """Of the loss of the saved adapter, loaded by PEFT, in nats per token."""
    refused: str | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all families, or anew those that are named; what was measured before stays in the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.families")
    parser.add_argument("families", nargs="*", metavar="FAMILY")
    chosen = parser.parse_args(arguments).families or FAMILIES
    measured: dict[str, list[dict[str, Any]]] = {}
    if RESULTS.exists() and chosen is not FAMILIES:
        measured = json.loads(RESULTS.read_text(encoding="utf-8"))["families"]
    for family in chosen:
        cells = measure(family)
        measured[family] = [asdict(cell) for cell in cells]
        print(f"{family}: {'; '.join(map(_in_words, cells))}", flush=True)
        body = {
            "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
            "tolerance": TOLERANCE,
            "families": {name: measured[name] for name in FAMILIES if name in measured},
        }
        RESULTS.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    errors = [cell["error"] for cells in measured.values() for cell in cells if cell["error"] is not None]
    return int(not max(errors) <= TOLERANCE)


def measure(family: str, *, presets: Sequence[str] = TARGET_PRESETS) -> list[Cell]:
    """One cell for each preset, over copies of one model."""
    model = make_model(family)
    return [measure_cell(family, preset, model=model) for preset in presets]


def measure_cell(family: str, preset: str, *, model: PreTrainedModel) -> Cell:
    """Train, score, save, load with PEFT and score again."""
    base = base_of(copy.deepcopy(model), name=family)
    layers = base.target_layers
    try:
        names = resolve_targets(layers, target_modules=preset, layers_to_transform=None)
        engine = _engine(base, make_arm(names))
    except ModelError as error:
        return Cell(family=family, preset=preset, refused=str(error))
    with tempfile.TemporaryDirectory() as folder:
        batch = batch_of(base, seed=1)
        before = engine.score(batch).nll_KM.mean().item()
        engine.train([[batch_of(base, seed=2)]] * engine.arms[0].num_steps, on_step=lambda _: None)
        scored = engine.score(batch).nll_KM.mean().item()
        engine.save_adapter(engine.arms[0], Path(folder))
        engine.close()
        loaded = loss_of_saved(Path(folder), base_of(copy.deepcopy(model), name=family), batch=batch)
    return Cell(
        family=family,
        preset=preset,
        engine=engine.name,
        roles=count_by_role(names, layers=layers),
        left_out=left_out(names, layers=layers, target_modules=preset),
        scored=scored,
        before=before,
        error=abs(loaded - scored),
    )


@torch.no_grad()
def loss_of_saved(folder: Path, base: BaseModel, *, batch: Batch) -> float:
    """Nats per token of the adapter in a folder, as PEFT loads it."""
    logits_MV = label_logits(load_adapter(base, folder), batch)
    return F.cross_entropy(logits_MV, batch.targets_M).item()


def _engine(base: BaseModel, arm: TrainingArm) -> Engine:
    """What `auto` takes, after the checks that a run makes on its longest row."""
    try:
        return PackedEngine(base, [arm], longest_row=max(ROW_LENGTHS))
    except UnsupportedModelError:
        return ReferenceEngine(base, [arm])


def make_model(family: str, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random model of the family, with weights wide enough that adapters matter to its logits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config_of(family), dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data.mul_(3)
    return model.to(dtype).requires_grad_(requires_grad=False).eval()


def config_of(family: str, *, num_layers: int = 2) -> Any:
    """The family's configuration at tiny sizes. Some families ignore `num_layers`."""
    usual = AutoConfig.for_model(family)
    tiny = {**_TINY, **dict.fromkeys(_LAYERS, num_layers)}
    sizes = {key: value for key, value in tiny.items() if _has(usual, key)} | dict(_OWN.get(family, {}))
    return AutoConfig.for_model(family, **{key: value for key, value in sizes.items() if value is not None})


def _has(config: Any, key: str) -> bool:
    try:
        return hasattr(config, key)
    except ValueError:  # of a size that differs from layer to layer
        return True


def base_of(model: PreTrainedModel, *, name: str) -> BaseModel:
    """The model as engines take it; without a tokenizer, which nothing here asks for."""
    nothing: Any = None
    return BaseModel(
        name=name, model=model, tokenizer=nothing, device=CPU, dtype=model.dtype, eos_token_id=1, pad_token_id=0,
        linear_layers=linear_modules(model),
    )  # fmt: skip


def make_arm(names: Sequence[str], *, r: int = 4, num_steps: int = 3) -> TrainingArm:
    """An arm that moves far in a few steps, so that a part of it that is lost shows."""
    return TrainingArm(
        experiment_id="a", seed=0, r=r, lora_alpha=2.0 * r, use_rslora=False, scaling=2.0, lora_dropout=0.0,
        module_names=tuple(names), learning_rate=2e-2, lr_scheduler_type="constant", num_warmup_steps=0,
        num_steps=num_steps, weight_decay=0.0, max_grad_norm=0.0, adam_beta1=0.9, adam_beta2=0.999, adam_epsilon=1e-8,
    )  # fmt: skip


def batch_of(base: BaseModel, *, seed: int) -> Batch:
    """Three rows of unequal length."""
    return assemble(make_rows(seed), device=base.device)


def make_rows(seed: int) -> list[TokenRow]:
    """Rows all of whose tokens but the first are labels."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(2, VOCAB, (length,), generator=generator).tolist() for length in ROW_LENGTHS]
    return [
        TokenRow(input_ids=tuple(ids), labels=tuple(ids), prompt_ids=(), prompt_text="", reference="")
        for ids in rows
    ]


def _in_words(cell: Cell) -> str:
    if cell.refused is not None:
        return f"{cell.preset} refused"
    return f"{cell.preset} {cell.engine} {cell.scored:.4f} (from {cell.before:.4f}) error {cell.error:.1e}"


if __name__ == "__main__":
    sys.exit(main())
