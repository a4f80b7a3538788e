"""Over many families: the engine that a plan foresees is the one that a run takes, and memory is predicted or one sentence says why not."""

import gc
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    DeepseekV2Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoConfig,
    GptOssConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    MptConfig,
    OPTConfig,
)

import tiny
from lorastudy.engine import meter
from lorastudy.engine.batch import assemble
from lorastudy.engine.choice import engine_factory
from lorastudy.engine.fake_model import counted_arm
from lorastudy.engine.loading import BaseModel, num_embeddings, num_positions
from lorastudy.engine.memory_trace import rows_of
from lorastudy.engine.planning import answer
from lorastudy.engine.targets import linear_modules
from lorastudy.planning.memory import ArmSize, Device, ModelShape, Prediction, predict
from lorastudy.protocol.jobs import (
    CountedArm,
    Footprint,
    FootprintQuestion,
    MicroBatch,
    ModelQuestion,
    Precision,
    as_json,
)
from lorastudy.suite.settings import Settings

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = MicroBatch(row_lengths=(9, 20, 31), num_labels=30)
#: Of the measured peak. The reference engine's kernels (oneDNN, index_put) hold a little that fake tensors do not show.
TOLERANCE = 0.03

_SHAPE = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 1,
}  # fmt: skip
_OLD = {"vocab_size": 128, "hidden_size": 64, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
FAMILIES: dict[str, tuple[str, Any]] = {
    "llama": ("packed", LlamaConfig(**_SHAPE)),
    "opt": ("packed", OPTConfig(**_OLD, word_embed_proj_dim=64, ffn_dim=96, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64)),
    "mistral": ("packed", MistralConfig(**_SHAPE, sliding_window=32)),
    "mistral, rows beyond its window": ("reference", MistralConfig(**_SHAPE, sliding_window=16)),
    "gemma3, rows beyond its window": ("reference", Gemma3TextConfig(**_SHAPE, sliding_window=16)),
    "gemma2": ("reference", Gemma2Config(**_SHAPE, query_pre_attn_scalar=16)),
    "gpt_oss": ("reference", GptOssConfig(**_SHAPE, num_local_experts=4, num_experts_per_tok=2, sliding_window=64)),
    "bloom": ("reference", BloomConfig(**_OLD, n_layer=2, n_head=4)),
    "mpt": ("reference", MptConfig(vocab_size=128, d_model=64, n_heads=4, n_layers=2, expansion_ratio=2, max_seq_len=64)),
    "gpt_neo": ("reference", GPTNeoConfig(**_OLD, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=64, max_position_embeddings=64)),
    "cohere": ("reference", CohereConfig(**_SHAPE, logit_scale=0.0625)),
    "mixtral": ("packed", MixtralConfig(**_SHAPE, num_local_experts=4, num_experts_per_tok=2)),
    "deepseek_v2": ("packed", DeepseekV2Config(**{**_SHAPE, "num_key_value_heads": 4, "head_dim": 8}, moe_intermediate_size=48, n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2, q_lora_rank=24, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=16, v_head_dim=16, first_k_dense_replace=1, n_group=1, topk_group=1)),
    "mamba": ("reference", MambaConfig(**_OLD, num_hidden_layers=2, state_size=4)),
}  # fmt: skip
#: One of each kind: packed, a window that rows exceed, soft caps, sinks beside experts, position biases, experts on the packed
#: engine, latent attention, a state space. `make slow` takes the others.
REPRESENTATIVES = {
    "llama", "mistral, rows beyond its window", "gemma2", "gpt_oss", "bloom", "mixtral", "deepseek_v2", "mamba",
}  # fmt: skip
NAMES = [name if name in REPRESENTATIVES else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
#: Beside it, of a recurrence that runs in plain PyTorch: what it writes in place is counted as if it were new.
RECURRENT_TOLERANCE = 0.1


def make_base(config: Any) -> BaseModel:
    """With weights wide enough that caps, windows and borders of rows matter, as in a trained model."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    model.requires_grad_(requires_grad=False).eval()
    return BaseModel(
        name="family", model=model, tokenizer=tiny.tokenizer(), device=tiny.CPU, dtype=torch.float32, eos_token_id=1,
        pad_token_id=0, linear_layers=linear_modules(model),
    )  # fmt: skip


def ask(*questions: Any) -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = answer([as_json(question) for question in questions])["answers"]
    for each in answers:
        assert "Traceback" not in str(each)
        assert 'File "' not in str(each)
        assert "\n" not in each.get("problem", "")
    return answers


def foreseen(folder: Path) -> tuple[str, ModelShape]:
    (answered,) = ask(ModelQuestion(folder=str(folder)))
    shape = ModelShape.from_json(answered)
    is_short_sighted = shape.attention_span is not None and max(ROWS.row_lengths) > shape.attention_span
    return "reference" if shape.packed_problem or is_short_sighted else "packed", shape


def asked_of(folder: Path, *, engine: Any, leaf: str, num_arms: int) -> FootprintQuestion:
    return FootprintQuestion(
        engine=engine, device_kind="cpu", folder=str(folder), precision=Precision(quantization="fp32"),
        arms=(CountedArm(r=4, targets=((leaf,), None)),) * num_arms, gradient_checkpointing=False,
        row_lengths=ROWS.row_lengths, num_labels=ROWS.num_labels,
    )  # fmt: skip


def predicted(folder: Path, shape: ModelShape, *, engine: Any, leaf: str, num_arms: int) -> Prediction | str:
    question = asked_of(folder, engine=engine, leaf=leaf, num_arms=num_arms)
    (answered,) = ask(question)
    if "problem" in answered:
        return str(answered["problem"])
    names = tuple(name for name in shape.layers_by_name() if name.rpartition(".")[2] == leaf)
    return predict(
        shape, [ArmSize(r=4, module_names=names)] * num_arms, precision=question.precision,
        footprint=Footprint.from_json(answered), device=Device(kind="cpu"),
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_knows_the_engine_and_the_memory_of_a_run(name: str, tmp_path: Path) -> None:
    engine, config = FAMILIES[name]
    config.save_pretrained(tmp_path)
    base = make_base(AutoConfig.from_pretrained(tmp_path))
    adaptable = tuple(
        layer.name for layer in base.target_layers if layer.left_out is None and not layer.is_parameter
    )
    leaf = adaptable[0].rpartition(".")[2]
    names = tuple(each for each in adaptable if each.rpartition(".")[2] == leaf)
    arm = counted_arm(0, names, r=4, dropout=False)
    said: list[str] = []
    make_engine = engine_factory(
        "auto", base=base, settings=Settings(), probe=counted_arm(0, adaptable, r=1, dropout=False),
        longest_row=max(ROWS.row_lengths), on_fallback=said.append,
    )  # fmt: skip
    planned, shape = foreseen(tmp_path)
    assert (make_engine.name, planned) == (engine, engine), (said, shape.packed_problem)
    prediction = predicted(tmp_path, shape, engine=planned, leaf=leaf, num_arms=1)
    assert isinstance(prediction, Prediction), prediction
    tensors = assemble(rows_of(ROWS, num_ids=128), device=tiny.CPU)
    gc.collect()
    before = meter.live_bytes() - sum(
        tensor.nbytes for tensor in [*base.model.parameters(), *base.model.buffers()]
    )
    with tiny.opened(make_engine([arm])) as opened:
        ready = meter.live_bytes() - before
        peak = ready + meter.peak_growth(lambda: opened.train([[tensors]] * 2, on_step=lambda _: None))
    assert prediction.terms.total == pytest.approx(
        peak, rel=RECURRENT_TOLERANCE if name == "mamba" else TOLERANCE
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_models_embeddings_are_as_many_as_its_configuration_says(name: str) -> None:
    """And where it says how many positions there are, a row of so many can be run."""
    base = make_base(FAMILIES[name][1])
    assert base.model.get_input_embeddings().weight.shape[0] == num_embeddings(base.model.config)
    limit = num_positions(base.model.config)
    run = partial(base.model, use_cache=False)
    assert run(input_ids=torch.ones(1, limit or 80, dtype=torch.long)).logits.isfinite().all()


@pytest.mark.parametrize("name", ["opt", "gpt_neo", "mpt"])
def test_a_row_beyond_the_positions_could_not_be_run(name: str) -> None:
    base = make_base(FAMILIES[name][1])
    limit = num_positions(base.model.config)
    assert limit == 64
    with pytest.raises((IndexError, RuntimeError)):
        base.model(input_ids=torch.ones(1, limit + 1, dtype=torch.long), use_cache=False)


def test_a_question_without_an_answer_keeps_nobody_from_the_others(tmp_path: Path) -> None:
    """One arm names a layer that the model does not have; and a model that is none says so in one sentence."""
    FAMILIES["llama"][1].save_pretrained(tmp_path / "model")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "config.json").write_text('{"model_type": "t5"}')
    good, bad = (
        asked_of(tmp_path / "model", engine="packed", leaf=leaf, num_arms=1)
        for leaf in ("q_proj", "no_such_layer")
    )
    no_layer, counted, no_model = ask(bad, good, ModelQuestion(folder=str(tmp_path / "none")))
    assert no_layer["problem"].startswith("target_modules: no_such_layer: not in this model")
    assert counted["total_bytes"] > 0
    assert "cannot be built as a causal language model" in no_model["problem"]
