"""Models that need more than the packed engine does are refused before training, and served by the reference."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoConfig,
    GptOssConfig,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen2Config,
)

import plain_flash
import tiny
from lorastudy.engine import attention, packed
from lorastudy.engine.attention import UnsupportedModelError
from lorastudy.engine.batch import assemble
from lorastudy.engine.choice import engine_factory
from lorastudy.engine.environment import is_out_of_memory
from lorastudy.engine.loading import BaseModel, load_base
from lorastudy.engine.self_check import attention_span, has_sliding_windows
from lorastudy.engine.targets import linear_modules
from lorastudy.errors import ModelError
from lorastudy.suite.settings import Settings

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip


def make_base(config, *, dtype=torch.float32, attention="sdpa"):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    model.requires_grad_(requires_grad=False).eval()
    return BaseModel(
        name="other", model=model, tokenizer=tiny.tokenizer(), device=tiny.CPU, dtype=dtype, eos_token_id=1,
        pad_token_id=0, linear_layers=linear_modules(model),
    )  # fmt: skip


def open_packed(base):
    return tiny.PackedEngine(base, [tiny.make_arm(tiny.targets(base, "q"))])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cap_on_the_logits_is_seen_in_every_precision(dtype):
    config = Gemma2Config(
        **SHAPE, attn_logit_softcapping=None, final_logit_softcapping=2.0, query_pre_attn_scalar=8
    )
    base = make_base(config, dtype=dtype, attention="eager")
    base.model.get_output_embeddings().weight.mul_(20)
    with pytest.raises(UnsupportedModelError, match="its logits are not its output head's"):
        open_packed(base)


def test_a_scale_on_the_logits_is_seen():
    with pytest.raises(UnsupportedModelError, match="its logits are not its output head's"):
        open_packed(make_base(CohereConfig(**{**SHAPE, "logit_scale": 0.0625})))


def test_a_cap_on_attention_is_seen():
    config = Gemma2Config(**SHAPE, final_logit_softcapping=None, query_pre_attn_scalar=8)
    with pytest.raises(UnsupportedModelError, match="its attention needs softcap"):
        open_packed(make_base(config, attention="eager"))


def test_a_model_without_sdpa_loads_and_is_trained_by_the_reference(tmp_path):
    """Gemma 2 caps its attention, which SDPA cannot do."""
    config = Gemma2Config(**SHAPE, query_pre_attn_scalar=8)
    make_base(config, attention="eager").model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    base = load_base(Settings(base_model=str(tmp_path), quantization="fp32"), device=tiny.CPU)
    assert choose("auto", base) == "reference"


def test_attention_sinks_are_seen():
    config = GptOssConfig(**SHAPE, num_local_experts=2, num_experts_per_tok=1, sliding_window=64)
    with pytest.raises(UnsupportedModelError, match="its attention needs s_aux"):
        open_packed(make_base(config, attention="eager"))


def test_a_window_shorter_than_the_probe_is_seen():
    with pytest.raises(UnsupportedModelError, match="sliding window of 4"):
        open_packed(make_base(MistralConfig(**SHAPE, sliding_window=4)))


def test_a_refused_model_is_given_back_as_it_was():
    base = make_base(CohereConfig(**{**SHAPE, "logit_scale": 0.0625}))
    types = [type(module) for module in base.model.modules()]
    with pytest.raises(UnsupportedModelError):
        open_packed(base)
    assert [type(module) for module in base.model.modules()] == types
    assert base.model.config._attn_implementation == "sdpa"


def test_no_memory_for_the_adapters_leaves_the_base_as_it_was(monkeypatch):
    base = tiny.make_base()

    def no_memory(*_, **__):
        raise MemoryError

    monkeypatch.setattr("lorastudy.engine.packed.make_buffers", no_memory)
    with pytest.raises(MemoryError):
        open_packed(base)
    assert type(base.model.model.layers[0].self_attn.q_proj) is nn.Linear
    assert base.model.config._attn_implementation == "sdpa"


def choose(name, base, *, longest_row=12, said=None):
    arm = tiny.make_arm(tiny.targets(base, "qkvo"))
    reasons = [] if said is None else said
    factory = engine_factory(
        name, base=base, settings=Settings(), probe=arm, longest_row=longest_row, on_fallback=reasons.append
    )
    with tiny.opened(factory([arm])) as engine:
        engine.train(tiny_steps(base), on_step=tiny.Log())
        return engine.name


def test_a_model_is_checked_once_for_all_engines_of_its_packs_which_compute_the_same(monkeypatch):
    base, num_checks = tiny.make_base(), []
    arm = tiny.make_arm(tiny.targets(base, "qkvo"))
    check = packed.check_supported
    monkeypatch.setattr(packed, "check_supported", lambda *_, **__: (num_checks.append(1), check(*_, **__)))
    factory = engine_factory(
        "packed", base=base, settings=Settings(), probe=arm, longest_row=12, on_fallback=pytest.fail
    )
    again = engine_factory(
        "packed",
        base=base,
        settings=Settings(),
        probe=replace(arm, r=3),
        longest_row=12,
        on_fallback=pytest.fail,
    )
    losses = []
    for make in (factory, again, partial(packed.PackedEngine, base)):
        log = tiny.Log()
        with tiny.opened(make([arm])) as engine:
            engine.train(tiny_steps(base), on_step=log)
            assert engine.checked == factory.checked
        losses.append(log.losses)
    assert len(num_checks) == 2  # for the factory, and for the engine that was made without it
    assert losses[0] == losses[1] == losses[2]
    engine_factory(
        "packed", base=base, settings=Settings(), probe=arm, longest_row=13, on_fallback=pytest.fail
    )
    assert len(num_checks) == 3  # a longer row is another question


def tiny_steps(base):
    return [[assemble([tiny.make_row(range(2, 12), prompt_tokens=3)], device=base.device)]]


def test_auto_takes_the_packed_engine_where_it_can_and_says_where_it_cannot():
    said = []
    assert choose("auto", tiny.make_base(), said=said) == "packed"
    assert said == []
    unsupported = make_base(CohereConfig(**{**SHAPE, "logit_scale": 0.0625}))
    assert choose("auto", unsupported, said=said) == "reference"
    assert said[0].startswith("CohereForCausalLM: its logits")
    assert choose("reference", tiny.make_base()) == "reference"
    with pytest.raises(ModelError, match=r"CohereForCausalLM.*set `engine: auto`"):
        choose("packed", unsupported)


SHORT_SIGHTED = {
    "mistral": MistralConfig(**SHAPE, sliding_window=16),
    "gemma3": Gemma3TextConfig(
        **SHAPE, sliding_window=16, layer_types=["sliding_attention", "full_attention"]
    ),
}


@pytest.mark.parametrize("name", SHORT_SIGHTED)
def test_rows_decide_whether_a_window_matters(name):
    """The probe's own rows have 3 to 7 tokens; a row of 17 does not fit a window of 16."""
    base, said = make_base(SHORT_SIGHTED[name]), []
    assert choose("auto", base, longest_row=16, said=said) == "packed"
    assert said == []
    assert choose("auto", base, longest_row=17, said=said) == "reference"
    assert "see 16 tokens at once" in said[0]
    assert "the longest row has 17" in said[0]


@pytest.mark.parametrize("name", SHORT_SIGHTED)
def test_on_a_gpu_rows_may_be_longer_than_a_sliding_window_but_not_than_a_chunk(name, monkeypatch):
    """The model's own attention has the window too, and a row of 17 tokens is compared with it."""
    monkeypatch.setattr(attention, "has_windows", lambda *_: True)
    monkeypatch.setattr(attention, "takes_all_rows", lambda *_: True)
    plain_flash.take_its_place(monkeypatch)
    base, said = make_base(SHORT_SIGHTED[name]), []
    slides = has_sliding_windows(base.model.config)
    assert choose("auto", base, longest_row=17, said=said) == ("packed" if slides else "reference"), said


@pytest.mark.parametrize(
    ("config", "span"),
    [
        (MistralConfig(sliding_window=8), 8),
        (MistralConfig(sliding_window=None), None),
        (Qwen2Config(sliding_window=8), None),  # `use_sliding_window` is off
        (Qwen2Config(sliding_window=8, use_sliding_window=True, max_window_layers=1), 8),
        (Gemma3TextConfig(sliding_window=8, layer_types=["full_attention"] * 26), None),
        (Llama4TextConfig(attention_chunk_size=8), 8),
        (GPTNeoConfig(window_size=8), 8),
        (GPTNeoConfig(window_size=8, attention_types=[[["global"], 24]]), None),
        (LlamaConfig(), None),
    ],
)
def test_how_far_a_model_sees(config, span):
    assert attention_span(config) == span


@pytest.mark.parametrize(
    "config",
    [
        GPTNeoConfig(
            vocab_size=64, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global"], 2]], bos_token_id=1,
            eos_token_id=1, max_position_embeddings=64,
        ),
        BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4),
        MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4, pad_token_id=0),
    ],
    ids=lambda config: config.model_type,
)  # fmt: skip
def test_rows_that_would_feel_each_other_go_to_the_reference_however_small_the_weights(config):
    """Random weights of the usual spread mix tokens so little that the logits agree within the tolerance."""
    base, said = make_base(config, attention="eager"), []
    arm = tiny.make_arm([next(name for name in base.linear_layers)])
    factory = engine_factory(
        "auto", base=base, settings=Settings(), probe=arm, longest_row=8, on_fallback=said.append
    )
    assert factory.name == "reference"
    assert "layers use the attention" in said[0] or "rows laid end to end" in said[0] or "differs" in said[0]


def test_rows_that_feel_each_other_beside_the_attention_are_seen(monkeypatch):
    """A layer that adds a millionth of the token before it, across the border of rows."""
    base = make_base(LlamaConfig(**SHAPE))
    layer = base.model.model.layers[1]
    own = layer.mlp.forward
    monkeypatch.setattr(layer.mlp, "forward", lambda x: own(x + 1e-3 * x.roll(1, dims=1)), raising=False)
    with pytest.raises(UnsupportedModelError, match="feel each other"):
        tiny.PackedEngine(base, [tiny.make_arm(tiny.targets(base, "q"))], longest_row=12)


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), MemoryError(),
    RuntimeError("CUDA error: out of memory"), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `x`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
]  # fmt: skip


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: str(error)[:40])
def test_too_little_memory_is_no_reason_to_fall_back(error, monkeypatch):
    assert is_out_of_memory(error)
    base = tiny.make_base()

    def no_memory(*_, **__):
        raise error

    monkeypatch.setattr(base.model.model, "forward", no_memory)
    with pytest.raises(type(error)) as caught:
        choose("auto", base)
    assert caught.value is error


@pytest.mark.parametrize("num_before", range(1, 11))
def test_memory_may_run_out_at_any_forward_pass_of_the_check(num_before: int, monkeypatch):
    """The check runs short rows and the longest one, packed and alone, and the last MLP on fewer tokens."""
    base, calls = tiny.make_base(), []
    own = base.model.model.forward

    def failing(*args, **options):
        calls.append(options)
        if len(calls) > num_before:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return own(*args, **options)

    monkeypatch.setattr(base.model.model, "forward", failing)
    with pytest.raises(RuntimeError, match="ALLOC_FAILED"):
        choose("auto", base)


def test_an_operation_that_is_not_deterministic_is_no_reason_to_fall_back(monkeypatch):
    base = tiny.make_base()

    def refused(*_, **__):
        raise RuntimeError(
            "_histc_cuda does not have a deterministic implementation, but you set "
            "'torch.use_deterministic_algorithms(True)'."
        )

    monkeypatch.setattr(base.model.model, "forward", refused)
    with pytest.raises(RuntimeError, match="histc"):
        choose("auto", base)


def test_other_errors_are_no_lack_of_memory():
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    assert not is_out_of_memory(ValueError("CUDA error: out of memory"))


def failing_on(model, *, when):
    """The model's decoder raises where `when` holds for its inputs."""
    own = model.base_model.forward

    def forward(*args, **options):
        if when(options["input_ids"]):
            raise TypeError("a kernel that refuses these rows")
        return own(*args, **options)

    model.base_model.forward = forward


def test_an_error_that_only_long_rows_meet_is_a_reason_to_fall_back():
    base = make_base(LlamaConfig(**SHAPE))
    failing_on(base.model, when=lambda ids: ids.shape[1] > 20)
    said = []
    assert choose("auto", base, longest_row=30, said=said) == "reference"
    assert "a kernel that refuses these rows" in said[0]


def test_an_error_of_the_backward_pass_is_a_reason_to_fall_back(monkeypatch):
    base, said = make_base(LlamaConfig(**SHAPE)), []

    def refused(*_, **__):
        raise RuntimeError("no kernel for this backward pass")

    monkeypatch.setattr("lorastudy.engine.lora._PackedLora.backward", refused)
    assert choose("auto", base, said=said) == "reference"
    assert "no kernel for this backward pass" in said[0]


def test_a_model_that_mixes_the_arms_is_a_reason_to_fall_back():
    """Its first layer norm adds something to the second of several arms: one arm alone shows nothing."""
    base, said = make_base(LlamaConfig(**SHAPE)), []
    norm = base.model.base_model.norm
    own = type(norm).forward

    def forward(x):
        y = own(norm, x)
        return y if len(x) == 1 else torch.cat([y[:1], 2 * y[1:]])

    norm.forward = forward
    assert choose("auto", base, said=said) == "reference"
    assert "fresh arms side by side have different losses" in said[0]


@pytest.mark.parametrize("factor", [1.0, 6.0])
def test_outlier_columns_in_8_bit_are_no_reason_to_fall_back(factor, tmp_path):
    """LLM.int8() picks them over all rows of an arm, so another row may change a row by more than rounding."""
    folder = tiny.save_base(tmp_path / "model")
    base = load_base(Settings(base_model=str(folder), quantization="8bit"), device=tiny.CPU)
    for name, parameter in base.model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.data[:3] *= factor
    assert choose("auto", base, longest_row=32) == "packed"
