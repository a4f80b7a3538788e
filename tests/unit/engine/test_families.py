"""In every family: what an arm adapts, and that the adapter that is saved is the one that was scored."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

import tiny
from benchmarks.families import (
    FAMILIES,
    RESULTS,
    TOLERANCE,
    base_of,
    batch_of,
    loss_of_saved,
    make_arm,
    make_model,
    make_rows,
    measure_cell,
)
from lorastudy.engine.adapters import CONFIG_FILE, WEIGHTS_FILE, check_saved, differences
from lorastudy.engine.batch import assemble
from lorastudy.engine.loading import load_base
from lorastudy.engine.packed import PackedEngine
from lorastudy.engine.padded_forward import label_logits
from lorastudy.engine.peft_model import check_wrapping, load_adapter
from lorastudy.engine.reference import ReferenceEngine
from lorastudy.errors import ModelError
from lorastudy.suite.settings import TARGET_PRESETS, Settings
from lorastudy.suite.targets import resolve_targets

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]

#: One of each kind: dense, fused, Conv1D, latent attention beside experts that take names, experts alone, experts whose
#: matrices are transposed, shared experts beside routed ones, a hybrid, a state space, names that are numbers.
KINDS = {
    ("llama", "all"): ("packed", {"q": 2, "k": 2, "v": 2, "o": 2, "mlp": 6}),
    ("gpt2", "qkvo"): ("packed", {"qkv": 2, "o": 2}),
    ("deepseek_v2", "qkvo"): ("packed", {"q": 4, "kv": 4, "o": 2}),
    ("deepseek_v2", "mlp"): ("reference", {"expert": 2}),
    ("mixtral", "all"): ("reference", {"q": 2, "k": 2, "v": 2, "o": 2, "expert": 4}),
    ("gpt_oss", "mlp"): ("reference", {"expert": 4}),
    ("qwen2_moe", "mlp"): ("reference", {"shared_expert": 6, "expert": 4}),
    ("qwen3_next", "qkvo"): ("reference", {"q": 1, "k": 1, "v": 1, "o": 1}),
    ("mamba", "all"): ("reference", {"mixer": 2}),
    ("ctrl", "all"): ("packed", {"q": 2, "k": 2, "v": 2, "o": 2, "mlp": 4}),
}


@pytest.mark.parametrize(("family", "preset"), KINDS)
def test_what_is_saved_is_what_was_scored(family, preset):
    engine, roles = KINDS[family, preset]
    cell = measure_cell(family, preset, model=make_model(family))
    assert cell.refused is None
    assert (cell.engine, cell.roles) == (engine, roles)
    assert abs(cell.scored - cell.before) > 10 * TOLERANCE  # an adapter that is lost would show
    assert cell.error <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_preset(family):
    model = make_model(family)
    cells = [measure_cell(family, preset, model=model) for preset in TARGET_PRESETS]
    assert any(cell.refused is None for cell in cells)
    for cell in cells:
        assert cell.refused is not None or cell.error <= TOLERANCE


def test_the_measurements_are_of_all_families_and_hold():
    measured = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert tuple(measured["families"]) == FAMILIES
    assert len(FAMILIES) >= 60
    for cells in measured["families"].values():
        assert [cell["preset"] for cell in cells] == list(TARGET_PRESETS)
        assert all((cell["error"] is None) == (cell["refused"] is not None) for cell in cells)
        assert all(cell["error"] is None or cell["error"] <= measured["tolerance"] for cell in cells)


def test_arms_with_and_without_experts_train_in_one_pack_as_alone(tmp_path):
    losses = []
    for presets in (("qkvo", "mlp", "all"), ("qkvo",), ("mlp",)):
        base = base_of(make_model("mixtral"), name="mixtral")
        arms = [
            replace(make_arm(targets(base, preset)), experiment_id=preset, r=2 if preset == "all" else 4)
            for preset in presets
        ]
        batch = batch_of(base, seed=1)
        with tiny.opened(ReferenceEngine(base, arms)) as engine:
            engine.train([[batch_of(base, seed=2)]] * 3, on_step=lambda _: None)
            scores = engine.score(batch).nll_KM.mean(dim=1).tolist()
            for number, arm in enumerate(engine.arms):
                engine.save_adapter(arm, tmp_path / str(number))
        for number, score in enumerate(scores):
            loaded = loss_of_saved(
                tmp_path / str(number), base_of(make_model("mixtral"), name="mixtral"), batch=batch
            )
            assert loaded == pytest.approx(score, abs=TOLERANCE)
        losses.append(dict(zip(presets, scores, strict=True)))
    together, *alone = losses
    for arm in alone:
        (name,) = arm
        assert together[name] == pytest.approx(arm[name], abs=1e-6)
    assert len({round(loss, 4) for loss in together.values()}) == 3


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_a_key_that_is_dropped_fails_the_arm(family, tmp_path):
    engine, arm = trained(family, "all")
    engine.save_adapter(arm, tmp_path)
    base = engine._base
    check_saved(arm, base=base, folder=tmp_path)
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    lost = sorted(tensors)[-1]
    kept = {key: value for key, value in tensors.items() if key != lost}
    (tmp_path / WEIGHTS_FILE).unlink()
    save_file(kept, tmp_path / WEIGHTS_FILE)
    with pytest.raises(ModelError, match=f"{lost} is missing"):
        check_saved(arm, base=base, folder=tmp_path)
    engine.close()


def test_a_module_that_is_wrongly_named_fails_the_arm(tmp_path):
    engine, arm = trained("ctrl", "all")
    engine.save_adapter(arm, tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text(encoding="utf-8"))
    config["target_modules"] = ["Wq", "Wk", "Wv", "dense", "0", "2"]  # `0` is the block `h.0`, too
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError, match=r"transformer\.h\.0 is named and not trained"):
        check_saved(arm, base=engine._base, folder=tmp_path)
    engine.close()


def test_peft_is_asked_before_training():
    base = base_of(make_model("deepseek_v2"), name="deepseek_v2")
    dense = [layer.name for layer in base.target_layers if layer.role == "mlp"]
    assert dense
    assert all(base.targets_by_name[name].left_out for name in dense)
    with pytest.raises(
        ModelError, match="PEFT does not wrap in DeepseekV2ForCausalLM what this arm would train"
    ):
        check_wrapping(base, make_arm(dense))
    for engine in (PackedEngine, ReferenceEngine):
        with pytest.raises(ModelError, match="PEFT does not wrap"):
            engine(base, [make_arm(dense)])
    mamba = base_of(make_model("mamba"), name="mamba")
    with pytest.raises(ModelError, match="incompatible with Mamba"):
        check_wrapping(mamba, make_arm(["backbone.layers.0.mixer.out_proj"]))


def test_embeddings_of_another_size_than_the_configuration_of_the_base_says_do_not_matter():
    base = base_of(make_model("deepseek_v2"), name="deepseek_v2")
    base.model.config.vocab_size = 64
    check_wrapping(base, make_arm(targets(base, "all")))


def test_differences_name_each_side():
    assert differences({"a": (1,), "b": (2,)}, {"b": (3,), "c": (4,)}) == [
        "a is not expected", "b has shape (2,) where (3,) is expected", "c is missing",
    ]  # fmt: skip


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi"])
def test_in_bf16_the_error_is_that_of_rounding(architecture, tmp_path):
    base, fresh = (tiny.make_base(architecture, dtype=torch.bfloat16, hidden_size=256) for _ in range(2))
    scored = train_score_save(PackedEngine(base, [careful(targets(base, "all"))]), folder=tmp_path)
    assert_within_rounding(scored, load_adapter(fresh, tmp_path))


def test_in_bf16_the_error_of_experts_is_that_of_rounding(tmp_path):
    base, fresh = (base_of(make_model("mixtral", dtype=torch.bfloat16), name="mixtral") for _ in range(2))
    scored = train_score_save(ReferenceEngine(base, [careful(targets(base, "all"))]), folder=tmp_path)
    assert_within_rounding(scored, load_adapter(fresh, tmp_path))


def test_in_4_bit_the_error_is_that_of_rounding(tmp_path):
    tiny.save_base(tmp_path / "base")
    settings = Settings(base_model=str(tmp_path / "base"), quantization="4bit")
    base = load_base(settings, device=tiny.CPU)
    engine = PackedEngine(base, [careful(targets(base, "all"))])
    scored = train_score_save(engine, folder=tmp_path / "adapter")
    loaded = load_adapter(load_base(settings, device=tiny.CPU), tmp_path / "adapter")
    assert_within_rounding(scored, loaded)


#: Rows that are scored.
ROWS = [row for seed in range(1, 9) for row in make_rows(seed)]


def careful(names):
    """An arm that moves as far as one that fine-tunes does: its part is small beside the base's."""
    return replace(make_arm(names), learning_rate=1e-3)


def train_score_save(engine, *, folder):
    with tiny.opened(engine):
        engine.train([[batch_of(engine._base, seed=20)]] * 3, on_step=lambda _: None)
        batch = assemble(ROWS, device=tiny.CPU)
        scored = engine.score(batch).nll_KM[0]
        engine.save_adapter(engine.arms[0], folder)
    return by_row(scored, batch)


def by_row(nll_M, batch):
    return torch.stack([nll_M[batch.label_row_M == row].mean() for row in range(len(ROWS))])


@torch.no_grad()
def assert_within_rounding(scored, model):
    """The losses of rows as stored are as near as PEFT's, within a factor of two, to those of the same weights in fp32.

    Two of PEFT's own forwards that differ in batch are no measure of rounding: on a CPU whose products take each row by
    itself they are equal, and another order of operations is not.
    """
    batch = assemble(ROWS, device=tiny.CPU)

    def row_losses():
        logits = label_logits(model, batch).float()
        return by_row(functional.cross_entropy(logits, batch.targets_M, reduction="none"), batch)

    peft = row_losses()
    in_fp32(model)
    exact = row_losses()
    rounding = (peft - exact).abs().max().item()
    assert rounding > 0
    assert (scored - exact).abs().max().item() <= 2 * rounding


def in_fp32(model):
    """Change the model: the same numbers, held and multiplied in fp32. Quantised weights stay, and become fp32 in use."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for tensor in tensors.values():
                if tensor is not None and tensor.is_floating_point():
                    tensor.data = tensor.data.float()
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = torch.float32


def targets(base, preset):
    return resolve_targets(base.target_layers, target_modules=preset, layers_to_transform=None)


def trained(family, preset):
    base = base_of(make_model(family), name=family)
    arm = make_arm(targets(base, preset))
    engine = (ReferenceEngine if family == "mixtral" else PackedEngine)(base, [arm])
    engine.train([[batch_of(base, seed=2)]] * 2, on_step=lambda _: None)
    return engine, arm
