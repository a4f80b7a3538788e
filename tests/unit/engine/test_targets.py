import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model
from torch import nn

import tiny
from benchmarks import families
from lorastudy.engine.peft_model import lora_config
from lorastudy.engine.targets import target_layers
from lorastudy.errors import ModelError
from lorastudy.suite.settings import Settings
from lorastudy.suite.targets import named_layers, peft_names, resolve_targets, role_of, targets_of

LEAVES = {
    "llama": {
        "q": {"q_proj"},
        "v": {"v_proj"},
        "qv": {"q_proj", "v_proj"},
        "qkvo": {"q_proj", "k_proj", "v_proj", "o_proj"},
        "mlp": {"gate_proj", "up_proj", "down_proj"},
    },
    "phi": {
        "q": {"q_proj"},
        "v": {"v_proj"},
        "qv": {"q_proj", "v_proj"},
        "qkvo": {"q_proj", "k_proj", "v_proj", "dense"},
        "mlp": {"fc1", "fc2"},
    },
    "gpt2": {
        "qv": {"attn.c_attn"},
        "qkvo": {"attn.c_attn", "attn.c_proj"},
        "mlp": {"mlp.c_fc", "mlp.c_proj"},
    },
}
LEAVES["qwen2"] = LEAVES["llama"]
NUM_LINEAR = {"llama": 7, "qwen2": 7, "phi": 6, "gpt2": 4}


@pytest.fixture(scope="module", params=tiny.ARCHITECTURES)
def architecture(request):
    return request.param


@pytest.fixture(scope="module")
def modules(architecture):
    return [layer.name for layer in target_layers(tiny.make_model(architecture))]


def resolve(modules, target_modules, layers=None):
    return resolve_targets(named_layers(modules), target_modules=target_modules, layers_to_transform=layers)


def test_presets_find_their_roles_in_both_layers(architecture, modules):
    for preset, leaves in LEAVES[architecture].items():
        chosen = resolve(modules, preset)
        assert {name for name in modules if any(name.endswith(f".{leaf}") for leaf in leaves)} == set(chosen)
        assert len(chosen) == 2 * len(leaves)
        assert [name for name in modules if name in chosen] == list(chosen)  # the model's order


def test_all_is_every_linear_layer_but_the_head(architecture, modules):
    assert resolve(modules, "all") == tuple(modules)
    assert len(modules) == 2 * NUM_LINEAR[architecture]
    assert not any("head" in name for name in modules)


def test_layers_are_counted_from_zero(modules):
    for layer in (0, 1):
        chosen = resolve(modules, "mlp", layers=[layer])
        assert chosen
        assert all(f".{layer}." in name for name in chosen)
    assert resolve(modules, "mlp", layers=[1, 0]) == resolve(modules, "mlp")
    with pytest.raises(ModelError, match=r"layers_to_transform: \[2, 7\]: this model's layers are 0 to 1"):
        resolve(modules, "mlp", layers=[1, 7, 2])


@pytest.mark.parametrize("preset", ["q", "v"])
def test_one_part_of_a_fused_layer_cannot_be_adapted(preset):
    modules = [layer.name for layer in target_layers(tiny.make_model("gpt2"))]
    with pytest.raises(
        ModelError, match=rf"{preset}: this model holds query, key and value in one layer \(c_attn\).*Use qv"
    ):
        resolve(modules, preset)


def test_a_name_that_is_not_there_is_answered_with_those_that_are():
    modules = [layer.name for layer in target_layers(tiny.make_model("llama"))]
    with pytest.raises(ModelError) as caught:
        resolve(modules, ("q_proj", "w_proj", "proj"))
    assert str(caught.value) == (
        "target_modules: w_proj, proj: not in this model. Its linear layers: down_proj, gate_proj, k_proj, o_proj, "
        "q_proj, up_proj, v_proj; presets: q, v, qv, qkvo, mlp, all"
    )


def test_a_role_that_is_not_there_is_answered_with_the_layers():
    with pytest.raises(ModelError, match="mlp: no such role among this model's linear layers: q_proj"):
        resolve(["model.layers.0.self_attn.q_proj"], "mlp")


def test_names_match_whole_parts_of_a_path_as_in_peft():
    modules = ["layers.1.q_proj", "layers.11.q_proj", "layers.1.my_q_proj"]
    assert resolve(modules, ("q_proj",)) == ("layers.1.q_proj", "layers.11.q_proj")
    assert resolve(modules, ("1.q_proj",)) == ("layers.1.q_proj",)
    assert resolve(modules, ("layers.1.my_q_proj",)) == ("layers.1.my_q_proj",)


@pytest.mark.parametrize(
    ("name", "role_preset"),
    [
        ("transformer.h.0.self_attention.query_key_value", "qv"),  # Falcon, BLOOM
        ("transformer.h.0.self_attention.dense", "qkvo"),
        ("transformer.h.0.mlp.dense_h_to_4h", "mlp"),
        ("gpt_neox.layers.0.attention.dense", "qkvo"),  # GPT-NeoX, Pythia
        ("gpt_neox.layers.0.mlp.dense_4h_to_h", "mlp"),
        ("model.layers.0.self_attn.qkv_proj", "qv"),  # Phi-3
        ("model.layers.0.mlp.gate_up_proj", "mlp"),
        ("model.decoder.layers.0.self_attn.out_proj", "qkvo"),  # OPT
        ("model.decoder.layers.0.fc1", "mlp"),
        ("transformer.h.0.attn.q_proj", "q"),  # GPT-J
        ("transformer.h.0.mlp.fc_in", "mlp"),
        ("transformer.blocks.0.attn.Wqkv", "qkvo"),  # MPT
        ("transformer.blocks.0.ffn.up_proj", "mlp"),
    ],
)
def test_the_habits_of_other_architectures(name, role_preset):
    block = [
        "a.self_attn.q_proj",
        "a.self_attn.k_proj",
        "a.self_attn.v_proj",
        "a.self_attn.o_proj",
        "a.mlp.up_proj",
    ]
    assert name in resolve([name, *block], role_preset)
    others = {"q": "v", "qv": "mlp", "qkvo": "mlp", "mlp": "qkvo"}
    assert name not in resolve([name, *block], others[role_preset])


@given(st.sets(st.integers(0, 13)).filter(len))
def test_the_names_given_to_peft_select_exactly_these(numbers):
    modules = [layer.name for layer in target_layers(_LLAMA)]
    chosen = [modules[number] for number in sorted(numbers)]
    assert list(resolve(modules, peft_names(chosen, modules=modules))) == chosen


_LLAMA = tiny.make_model("llama")


@pytest.mark.parametrize("target_modules", ["qv", "mlp", "all", "one layer"])
def test_peft_wraps_the_same_layers(architecture, target_modules):
    base = tiny.make_base(architecture)
    one_layer = (list(base.linear_layers)[-2],)
    names = one_layer if target_modules == "one layer" else tiny.targets(base, target_modules)
    model = get_peft_model(base.model, lora_config(tiny.make_arm(names), base=base))
    wrapped = {
        name.removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if isinstance(getattr(module, "base_layer", None), nn.Module)
    }
    assert wrapped == set(names)


@pytest.mark.parametrize(
    ("name", "owners", "role"),
    [
        ("model.layers.0.self_attn.q_a_proj", ["DeepseekV3Attention"], "q"),
        ("model.layers.0.self_attn.kv_a_proj_with_mqa", ["DeepseekV3Attention"], "kv"),
        ("model.layers.0.self_attn.gate_proj", ["AfmoeAttention"], "other"),
        ("model.layers.0.self_attn.indexer.wk", ["DeepseekV32Attention", "DeepseekV32Indexer"], "router"),
        ("model.layers.0.mamba.out_proj", ["BambaDecoderLayer", "BambaMixer"], "mixer"),
        ("model.layers.0.mixer.out_proj", ["NemotronHBlock", "NemotronHMamba2Mixer"], "mixer"),
        ("model.layers.0.mixer.o_proj", ["NemotronHBlock", "NemotronHAttention"], "o"),
        ("model.layers.0.self_attn.out_proj", ["MiniMaxDecoderLayer", "MiniMaxLightningAttention"], "mixer"),
        ("model.layers.0.linear_attn.q_proj", ["OlmoHybridGatedDeltaNet"], "mixer"),
        ("model.layers.0.conv.out_proj", ["Lfm2ShortConv"], "mixer"),
        ("model.layers.0.temporal_block.q_proj", ["RecurrentGemmaSdpaAttention"], "q"),
        ("model.layers.0.temporal_block.linear_out", ["RecurrentGemmaRecurrentBlock"], "mixer"),
        ("model.layers.0.mlp.shared_experts.up_proj", ["DeepseekV3MLP"], "shared_expert"),
        ("model.layers.0.mlp.shared_expert_gate", ["Qwen2MoeSparseMoeBlock"], "other"),
        ("model.layers.0.mlp.router.gate", ["AfmoeMoE", "AfmoeTokenChoiceRouter"], "router"),
        ("model.layers.0.block_sparse_moe.gate", [], "router"),
        ("lm_head.dense", ["ModernBertDecoderPredictionHead"], "other"),
        ("transformer.h.0.ffn.0", ["EncoderLayer", "Sequential"], "mlp"),
        ("model.layers.0.self_attn.q_proj.linear", ["MoshiAttention", "MoshiLinear"], "q"),
    ],
)
def test_a_role_is_told_from_the_path_and_from_the_classes_around(name, owners, role):
    assert role_of(name, owners=owners) == role


def test_a_regular_expression_selects_full_names():
    modules = [layer.name for layer in target_layers(_LLAMA)]
    chosen = resolve(modules, (r"model\.layers\.1\..*(q|v)_proj",))
    assert chosen == ("model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj")


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head", "model.embed_tokens"])
def test_embeddings_and_the_head_are_refused_with_the_reason(name):
    modules = [layer.name for layer in target_layers(_LLAMA)]
    with pytest.raises(ModelError, match="embeddings and the output head are not adapted here"):
        resolve(modules, ("q_proj", name))


def test_a_preset_that_would_miss_a_main_matrix_is_refused_with_the_list():
    attention = ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.strange"]
    with pytest.raises(
        ModelError,
        match=r"qkvo: this model has no layer that is known as k or kv or qkv; .*Its layers: q_proj, strange",
    ):
        resolve(attention, "qkvo")


def test_ctrl_has_layers_whose_last_name_is_that_of_a_block():
    modules = ["transformer.h.0", "transformer.h.0.ffn.0", "transformer.h.0.ffn.2"]
    assert peft_names(["transformer.h.0.ffn.0"], modules=modules) == ["transformer.h.0.ffn.0"]
    assert peft_names(["transformer.h.0.ffn.2"], modules=modules) == ["2"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"target_modules": "mlp", "lora_dropout": 0.1},
            "lora_dropout: 0.1: the arm adapts the weights of experts",
        ),
        (
            {"target_modules": "all", "engine": "packed"},
            "engine: packed: the arm adapts the weights of experts",
        ),
    ],
)
def test_what_experts_cannot_have_is_refused(settings, message):
    layers = target_layers(families.make_model("mixtral"))
    with pytest.raises(ModelError, match=message):
        targets_of(Settings(**settings), layers)
    assert targets_of(Settings(**settings | {"target_modules": "qkvo"}), layers)
