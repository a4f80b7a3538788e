"""Models that need more than the packed engine does are refused before training, and served by the reference."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GptOssConfig, MistralConfig

import tiny
from lorastudy.engine.attention import UnsupportedModelError
from lorastudy.engine.batch import assemble
from lorastudy.engine.choice import engine_factory
from lorastudy.engine.loading import BaseModel, load_base
from lorastudy.engine.targets import linear_modules
from lorastudy.errors import ModelError
from lorastudy.spec.settings import Settings

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

    monkeypatch.setattr("lorastudy.engine.packed.make_bank", no_memory)
    with pytest.raises(MemoryError):
        open_packed(base)
    assert type(base.model.model.layers[0].self_attn.q_proj) is nn.Linear
    assert base.model.config._attn_implementation == "sdpa"


def choose(name, base):
    arm = tiny.make_arm(tiny.targets(base, "q"))
    factory = engine_factory(name, base=base, settings=Settings(), probe=arm)
    with tiny.opened(factory([arm])) as engine:
        engine.train(tiny_steps(base), on_step=tiny.Log())
        return engine.name


def tiny_steps(base):
    return [[assemble([tiny.make_row(range(2, 12), prompt_tokens=3)], device=base.device)]]


def test_auto_takes_the_packed_engine_where_it_can_and_says_where_it_cannot(capsys):
    assert choose("auto", tiny.make_base()) == "packed"
    assert capsys.readouterr().err == ""
    unsupported = make_base(CohereConfig(**{**SHAPE, "logit_scale": 0.0625}))
    assert choose("auto", unsupported) == "reference"
    assert "engine: reference, since CohereForCausalLM" in capsys.readouterr().err
    assert choose("reference", tiny.make_base()) == "reference"
    with pytest.raises(ModelError, match="CohereForCausalLM"):
        choose("packed", unsupported)
