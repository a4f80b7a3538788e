"""PEFT's methods in our engines, against PEFT alone: its own configuration, its own optimizers, a plain loop.

`python -m benchmarks.methods` runs this file and keeps the errors for docs/methods.md.
"""

import json
from dataclasses import fields, replace

import pytest
import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    replace_lora_weights_loftq,
)
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer
from safetensors.torch import load_file

import tiny
from lorastudy.engine.arms import initial_lora_A, stream_seed
from lorastudy.engine.batch import assemble
from lorastudy.engine.loading import load_base
from lorastudy.engine.peft_model import LoadedAdapter
from lorastudy.engine.quantised import frozen_weight_OD
from lorastudy.engine.reference import ReferenceEngine
from lorastudy.errors import ModelError
from lorastudy.suite.methods import PLAIN, ArmMethod
from lorastudy.suite.settings import Settings
from lorastudy.suite.targets import resolve_targets
from parity.test_peft import losses_of_training, row_steps

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # PEFT warns that a trained table no longer shares its weights with the head.
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
]

#: A pattern for some of the attention's layers of each family.
SOME = r"\w+\.0\.\w+\.(q_proj|c_attn)"

#: Each method as a suite has it, and as a user of PEFT writes it.
METHODS = {
    "lora": (PLAIN, {}),
    "rslora": (PLAIN, {"use_rslora": True}),
    "dora": (ArmMethod(use_dora=True), {"use_dora": True}),
    "loraplus": (ArmMethod(loraplus_lr_ratio=16.0), {}),
    "lorafa": (ArmMethod(is_lorafa=True), {}),
    "dora and loraplus": (ArmMethod(use_dora=True, loraplus_lr_ratio=4.0), {"use_dora": True}),
    "gaussian": (ArmMethod(init_lora_weights="gaussian"), {"init_lora_weights": "gaussian"}),
    "orthogonal": (ArmMethod(init_lora_weights="orthogonal"), {"init_lora_weights": "orthogonal"}),
    "pissa": (ArmMethod(init_lora_weights="pissa"), {"init_lora_weights": "pissa"}),
    "pissa_niter_4": (ArmMethod(init_lora_weights="pissa_niter_4"), {"init_lora_weights": "pissa_niter_4"}),
    "rank_pattern": (
        ArmMethod(rank_pattern=((SOME, 8),), alpha_pattern=((SOME, 12.0),)),
        {"rank_pattern": {SOME: 8}, "alpha_pattern": {SOME: 12}},
    ),
    "dora and rank_pattern": (
        ArmMethod(use_dora=True, rank_pattern=((SOME, 2),)),
        {"use_dora": True, "rank_pattern": {SOME: 2}},
    ),
    "pissa and rank_pattern": (
        ArmMethod(init_lora_weights="pissa", rank_pattern=((SOME, 2),)),
        {"init_lora_weights": "pissa", "rank_pattern": {SOME: 2}},
    ),
    "olora": (ArmMethod(init_lora_weights="olora"), {"init_lora_weights": "olora"}),
    "bias all": (ArmMethod(bias="all"), {"bias": "all"}),
    "bias lora_only": (ArmMethod(bias="lora_only", use_dora=True), {"bias": "lora_only", "use_dora": True}),
    "modules_to_save": (ArmMethod(modules_to_save=("head", "table")), {"modules_to_save": ["head", "table"]}),
    "trainable_token_indices": (
        ArmMethod(trainable_token_indices=(3, 7, 9)),
        {"trainable_token_indices": [3, 7, 9]},
    ),
}

#: PEFT's other adapters, each with a size that fits the random models.
PEFT_TYPES = {
    "IA3": {}, "LOHA": {"r": 4}, "LOKR": {"r": 2, "decompose_both": True}, "VERA": {"r": 8}, "OFT": {"oft_block_size": 12},
    "HRA": {"r": 4}, "FOURIERFT": {"n_frequency": 64}, "RANDLORA": {"r": 4}, "C3A": {"block_size": 12}, "DELORA": {"r": 4},
}  # fmt: skip
METHODS |= {
    name: (ArmMethod(peft=(("peft_type", name), *options.items())), {"peft_type": name, **options})
    for name, options in PEFT_TYPES.items()
}

#: Those that PEFT has for layers that store inputs first, as GPT-2's do.
INPUTS_FIRST = {"IA3", "VERA", "FOURIERFT", "RANDLORA"}

#: What `modules_to_save` of the table above names in each family.
PARTS = {"head": "lm_head", "table": "embed_tokens"}


def of_family(name, architecture):
    """The method with the modules that this family has, and PEFT's options; None if the family lacks what it trains."""
    method, options = METHODS[name]
    if architecture == "gpt2" and name in PEFT_TYPES.keys() - INPUTS_FIRST:
        return None
    if (architecture, name) in {("gpt2", "olora"), ("llama", "bias all"), ("llama", "bias lora_only")}:
        return None  # refused, as the tests below say
    parts = PARTS | ({"table": "wte"} if architecture == "gpt2" else {})
    if method.modules_to_save:
        named = tuple(sorted(parts[part] for part in method.modules_to_save))
        method, options = replace(method, modules_to_save=named), {"modules_to_save": list(named)}
    return method, options


#: Each method in each engine that trains it.
CASES = [
    (name, engine)
    for name, (method, _) in METHODS.items()
    for engine in tiny.ENGINES
    if engine == "reference" or method.only_in_reference is None
]


#: Methods of which `make test` tries one family, or none.
OF_ONE_FAMILY = {name: "gpt2" for name in METHODS if name.startswith(("bias", "modules", "trainable"))}
OF_ONE_FAMILY |= {"IA3": "gpt2", "LOHA": "qwen2", **dict.fromkeys(PEFT_TYPES.keys() - {"IA3", "LOHA"}, "")}

#: The cases in each family.
GRID = [
    pytest.param(
        family, *case, marks=[pytest.mark.slow] if family != OF_ONE_FAMILY.get(case[0], family) else []
    )
    for family in tiny.ARCHITECTURES
    for case in CASES
]


def make_arm(base, method, **values):
    return replace(tiny.make_arm(tiny.targets(base, "qkvo"), num_steps=8, **values), method=method)


def peft_alone(architecture, base, arm, options):
    """The arm as a user of PEFT makes it. Its initial weights come from the same seed."""
    if "peft_type" in options:
        return peft_type_alone(architecture, arm, dict(options))
    config = LoraConfig(
        r=arm.r, lora_alpha=int(arm.lora_alpha), lora_dropout=arm.lora_dropout, target_modules=list(arm.module_names),
        fan_in_fan_out=architecture == "gpt2", task_type="CAUSAL_LM", **{"use_rslora": arm.use_rslora, **options},
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(stream_seed("initial weights", arm.seed))
        model = get_peft_model(tiny.make_model(architecture), config)
    if "init_lora_weights" not in options:
        for name in arm.module_names:
            width = base.targets_by_name[name].in_features
            weight = model.base_model.model.get_submodule(name).lora_A["default"].weight
            own = replace(arm, r=weight.shape[0])
            weight.data = initial_lora_A(own, module_name=name, in_features=width)
    return model


def peft_type_alone(architecture, arm, options):
    """Another of PEFT's adapters, as a user of PEFT makes it from the same seed."""
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[options.pop("peft_type")]
    known = {field.name for field in fields(kind)}
    options |= {"fan_in_fan_out": architecture == "gpt2"} if "fan_in_fan_out" in known else {}
    options |= {"feedforward_modules": []} if "feedforward_modules" in known else {}
    with torch.random.fork_rng():
        torch.manual_seed(stream_seed("initial weights", arm.seed))
        return get_peft_model(
            tiny.make_model(architecture),
            kind(target_modules=list(arm.module_names), task_type="CAUSAL_LM", **options),
        )


def train_alone(model, arm, steps):
    model.eval()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    constants = {"betas": (arm.adam_beta1, arm.adam_beta2), "eps": arm.adam_epsilon}
    if arm.method.is_lorafa:
        optimizer = create_lorafa_optimizer(
            model, r=arm.r, lora_alpha=int(arm.lora_alpha), lr=arm.learning_rate, weight_decay=arm.weight_decay
        )  # fmt: skip
    elif arm.method.loraplus_lr_ratio is not None:
        optimizer = create_loraplus_optimizer(
            model, torch.optim.AdamW, lr=arm.learning_rate, loraplus_lr_ratio=arm.method.loraplus_lr_ratio,
            loraplus_weight_decay=arm.weight_decay, **constants,
        )  # fmt: skip
    else:
        optimizer = torch.optim.AdamW(
            parameters, lr=arm.learning_rate, weight_decay=arm.weight_decay, **constants
        )
    return losses_of_training(model, arm, steps, optimizer=optimizer)


def test_olora_on_layers_that_store_inputs_first_is_refused_since_peft_takes_its_factors_from_the_wrong_side():
    base = tiny.make_base("gpt2")
    with pytest.raises(ModelError, match="PEFT does not wrap in GPT2LMHeadModel what this arm would train"):
        ReferenceEngine(base, [make_arm(base, ArmMethod(init_lora_weights="olora"))])


@pytest.mark.parametrize(
    ("method", "refusal"),
    [
        (ArmMethod(bias="all"), "bias: all: LlamaForCausalLM has no such biases; remove it"),
        (ArmMethod(bias="lora_only"), "bias: lora_only: LlamaForCausalLM has no such biases; remove it"),
        (
            ArmMethod(trainable_token_indices=(5, 128)),
            "trainable_token_indices: 128: the model has embeddings of 0 to 127",
        ),
        (ArmMethod(modules_to_save=("lm_heat",)), r"modules_to_save: lm_heat: .* \(did you mean lm_head\?\)"),
        (ArmMethod(modules_to_save=("head",)), "modules_to_save: head: not in this model"),
        (ArmMethod(modules_to_save=("norm",)), "PEFT takes .*layernorm for it, too; give a longer name"),
        (
            ArmMethod(modules_to_save=("self_attn",)),
            "modules_to_save: self_attn: the arm adapts model.layers.0.self_attn.q_proj",
        ),
        (
            ArmMethod(modules_to_save=("embed_tokens",), trainable_token_indices=(5,)),
            "modules_to_save: embed_tokens: trains all embeddings, and trainable_token_indices some",
        ),
    ],
)
def test_what_the_model_does_not_have_to_train_is_refused(method, refusal):
    base = tiny.make_base()
    with pytest.raises(ModelError, match=refusal):
        ReferenceEngine(base, [make_arm(base, method)])


@pytest.mark.parametrize("name", ["bias all", "modules_to_save", "trainable_token_indices", "IA3", "VERA"])
def test_a_saved_adapter_is_scored_with_what_trained_beside_it_and_leaves_the_base_as_it_was(name, tmp_path):
    base = tiny.make_base("qwen2")
    arm = make_arm(base, of_family(name, "qwen2")[0])
    steps = tiny.make_steps(4)
    with tiny.opened(ReferenceEngine(base, [arm])) as engine:
        engine.train(steps, on_step=tiny.Log())
        engine.save_adapter(arm, tmp_path / "saved")
        scores = engine.score(steps[0][0]).nll_KM
        answers = engine.generate([[5, 6, 7]], max_new_tokens=4)
    with tiny.opened(LoadedAdapter(base, tmp_path / "saved")) as loaded:
        assert torch.equal(loaded.score(steps[0][0]).nll_KM, scores)
        assert loaded.generate([[5, 6, 7]], max_new_tokens=4) == answers
    untouched = tiny.make_model("qwen2")
    for (key, value), (other, expected) in zip(
        base.model.state_dict().items(), untouched.state_dict().items(), strict=True
    ):
        assert key == other
        assert torch.equal(value, expected)
    assert not any(weight.requires_grad for weight in base.model.parameters())
    other = tiny.make_base("llama" if name == "bias all" else "qwen2", hidden_size=32)
    with pytest.raises(ModelError, match=r"made for another base model|does not fit"):
        LoadedAdapter(other, tmp_path / "saved")


def test_loftq_starts_as_pefts_own_function_and_closer_to_the_weights_before_quantisation(
    tmp_path, monkeypatch
):
    folder = tiny.save_base(tmp_path / "base")
    base = load_base(
        Settings.model_validate({"base_model": str(folder), "quantization": "4bit"}), device=tiny.CPU
    )
    arm = make_arm(base, ArmMethod(init_lora_weights="loftq"), lora_alpha=4.0)
    steps = tiny.make_steps(3)
    with tiny.opened(ReferenceEngine(base, [arm])) as engine:
        engine.save_adapter(arm, tmp_path / "initial")
        engine.train(steps, on_step=tiny.Log())
        engine.save_adapter(arm, tmp_path / "trained")
        scores = engine.score(steps[0][0]).nll_KM
    with tiny.opened(LoadedAdapter(base, tmp_path / "trained")) as loaded:
        assert torch.equal(loaded.score(steps[0][0]).nll_KM, scores)
    plain = LoraConfig(
        r=4, lora_alpha=4, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM"
    )
    model = get_peft_model(base.model, plain)
    to = torch.Tensor.to

    def on_cpu(tensor, *args, **kwargs):  # PEFT's function computes on "cuda"
        return to(tensor, *args, **{**kwargs, **({"device": "cpu"} if "device" in kwargs else {})})

    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "to", on_cpu)
        replace_lora_weights_loftq(model, model_path=str(folder))
    theirs = get_peft_model_state_dict(model)
    model.unload()
    ours = load_file(tmp_path / "initial" / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    assert max((ours[key] - theirs[key]).abs().max() for key in ours) <= 1e-6
    weights = load_file(folder / "model.safetensors")
    for name in arm.module_names:
        lost = weights[f"{name}.weight"] - frozen_weight_OD(base.linear_layers[name], dtype=torch.float32)
        lora_A, lora_B = (ours[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
        assert (lost - lora_B @ lora_A).norm() < 0.9 * lost.norm()


@pytest.mark.parametrize(("architecture", "name", "engine_name"), GRID)
def test_a_method_equals_peft_alone(architecture, name, engine_name, tmp_path, record_property):
    found = of_family(name, architecture)
    if found is None:
        return
    method, options = found
    base = tiny.make_base(architecture)
    arm = make_arm(base, method, use_rslora=name in {"rslora", "dora"})
    steps, log = row_steps(), tiny.Log()
    ids = torch.tensor([tiny.make_rows(1, seed=9)[0].input_ids])
    with tiny.opened(tiny.ENGINES[engine_name](base, [arm])) as engine:
        batches = [[assemble(rows, device=tiny.CPU) for rows in micro_batches] for micro_batches in steps]
        engine.train(batches, on_step=log)
        with torch.no_grad():
            base.model.set_attn_implementation(
                "sdpa"
            )  # the packed engine's attention takes its own batches only
            logits = base.model(ids).logits
        engine.save_adapter(arm, tmp_path / "ours")

    model = peft_alone(architecture, base, arm, options)
    losses = train_alone(model, arm, steps)
    assert len(losses) == arm.num_steps
    loss_error = tiny.largest_relative(log.losses["a"], losses)
    assert loss_error <= 1e-5
    with torch.no_grad():
        torch.testing.assert_close(logits, model(ids).logits, rtol=0, atol=1e-4)

    # What a user loads is what was trained, on the base as its folder has it.
    loaded = PeftModel.from_pretrained(tiny.make_model(architecture).eval(), str(tmp_path / "ours"))
    with torch.no_grad():
        saved_error = (loaded(ids).logits - logits).abs().max().item()
        assert saved_error <= (1e-5 if method.peft else 1e-4)
        untrained = loaded.unload()(ids).logits
    assert (logits - untrained).abs().max() > (
        1e-4 if method.peft else 1e-3
    )  # VeRA moves little in so few steps
    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    num_saved_rank = config.get("r")
    assert method.peft or num_saved_rank == arm.r * (2 if method.changes_base else 1)
    assert torch.equal(base.model(ids).logits, tiny.make_model(architecture).eval()(ids).logits)
    measured = {
        "loss_error": loss_error,
        "saved_error": saved_error,
        "num_saved_rank": num_saved_rank,
        "rank": num_saved_rank if method.peft else arm.r,
    }
    record_property("parity", {"method": name, "engine": engine_name, "family": architecture, **measured})


@pytest.mark.parametrize("engine_of", tiny.ENGINES.values(), ids=list(tiny.ENGINES))
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_loraplus_in_a_pack_with_other_arms_equals_peft_alone(architecture, engine_of):
    base = tiny.make_base(architecture)
    plain = tiny.make_arm(tiny.targets(base, "all"), name="plain", r=8)
    arm = make_arm(base, ArmMethod(loraplus_lr_ratio=16.0), lora_dropout=0.0, weight_decay=0.1)
    other = make_arm(base, ArmMethod(loraplus_lr_ratio=4.0), name="other", seed=1, r=2)
    steps, log = row_steps(), tiny.Log()
    ids = torch.tensor([tiny.make_rows(1, seed=9)[0].input_ids])
    with tiny.opened(engine_of(base, [plain, arm, other])) as engine:
        batches = [[assemble(rows, device=tiny.CPU) for rows in micro_batches] for micro_batches in steps]
        engine.train(batches, on_step=log)
    for own in (arm, other):
        model = peft_alone(architecture, base, own, {})
        losses = train_alone(model, own, steps)
        assert tiny.largest_relative(log.losses[own.experiment_id], losses) <= 1e-5
        assert (model(ids).logits - base.model(ids).logits).abs().max() > 1e-2


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if OF_ONE_FAMILY.get(name) != "" else [pytest.mark.slow])
        for name in METHODS
    ],
)
def test_a_resumed_method_has_the_bits_of_an_uninterrupted_one(name, tmp_path):
    family = "qwen2" if "bias" in name else "llama"
    base = tiny.make_base(family)
    arm = make_arm(base, of_family(name, family)[0], lora_dropout=0.1)
    steps, whole, log = tiny.make_steps(8, accumulation=2), tiny.Log(), tiny.Log()
    with tiny.opened(ReferenceEngine(base, [arm])) as engine:
        engine.train(steps, on_step=whole)
        engine.save_adapter(arm, tmp_path / "whole")
    with tiny.opened(ReferenceEngine(base, [arm])) as engine:
        engine.train(steps[:3], on_step=log)
        state = engine.state()
    with tiny.opened(ReferenceEngine(base, [arm])) as engine:
        engine.restore(state)
        engine.train(steps[engine.num_steps_done :], on_step=log)
        engine.save_adapter(arm, tmp_path / "resumed")
        scores = engine.score(steps[0][0]).nll_KM
    with tiny.opened(ReferenceEngine(base, [arm])) as engine:
        engine.load_adapter(arm, tmp_path / "resumed")
        assert torch.equal(engine.score(steps[0][0]).nll_KM, scores)
    assert log.losses == whole.losses
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "resumed" / file).read_bytes()


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("name", ["pissa_niter_4", "olora"])
def test_a_saved_adapter_loads_to_its_bits_where_another_initial_adapter_was_drawn(
    architecture, name, tmp_path
):
    if (architecture, name) == ("gpt2", "olora"):
        return  # refused, as the first test says
    base = tiny.make_base(architecture)
    arm = make_arm(base, METHODS[name][0])
    steps = tiny.make_steps(4)
    with tiny.opened(ReferenceEngine(base, [arm])) as engine:
        engine.train(steps, on_step=tiny.Log())
        engine.save_adapter(arm, tmp_path / "saved")
        scores = engine.score(steps[0][0]).nll_KM
    other = replace(arm, seed=arm.seed + 1)
    with tiny.opened(ReferenceEngine(base, [other])) as engine:
        assert not torch.equal(engine.score(steps[0][0]).nll_KM, scores)
        engine.load_adapter(other, tmp_path / "saved")
        assert torch.equal(engine.score(steps[0][0]).nll_KM, scores)
        engine.save_adapter(other, tmp_path / "again")
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "saved" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


@pytest.mark.parametrize("name", ["pissa", "pissa_niter_4", "olora"])
def test_in_half_precision_a_saved_adapter_loads_to_its_bits_and_elsewhere_up_to_rounding(name, tmp_path):
    base = tiny.make_base(dtype=torch.bfloat16)
    arm = make_arm(base, METHODS[name][0])
    steps = tiny.make_steps(4)
    with tiny.opened(ReferenceEngine(base, [arm])) as engine:
        engine.train(steps, on_step=tiny.Log())
        engine.save_adapter(arm, tmp_path / "saved")
        scores = engine.score(steps[0][0]).nll_KM
    with tiny.opened(ReferenceEngine(base, [arm])) as engine:
        engine.load_adapter(arm, tmp_path / "saved")
        assert torch.equal(engine.score(steps[0][0]).nll_KM, scores)
    other = replace(arm, seed=arm.seed + 1)
    with tiny.opened(ReferenceEngine(base, [other])) as engine:
        engine.load_adapter(other, tmp_path / "saved")
        assert (engine.score(steps[0][0]).nll_KM - scores).abs().max() < 0.1


def test_dropout_acts_in_dora(tmp_path):
    base = tiny.make_base()
    losses = {}
    for dropout in (0.0, 0.5):
        log = tiny.Log()
        arm = make_arm(base, ArmMethod(use_dora=True), lora_dropout=dropout)
        with tiny.opened(ReferenceEngine(base, [arm])) as engine:
            engine.train(tiny.make_steps(4), on_step=log)
        losses[dropout] = log.losses["a"]
    assert losses[0.0][0] == losses[0.5][0]  # lora_B is zero in the first step
    assert losses[0.0][2] != losses[0.5][2]


@pytest.mark.parametrize("excluded", [("c_proj", "v_proj"), (r".*\.0\..*",), ("q_proj", "c_attn")])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_excluded_modules_are_those_that_peft_excludes(architecture, excluded):
    base = tiny.make_base(architecture)
    leaves = sorted({name.rpartition(".")[2] for name in tiny.targets(base, "all")})
    present = [name for name in excluded if "." in name or name in leaves]
    ours = resolve_targets(
        base.target_layers, target_modules=leaves, layers_to_transform=None, exclude_modules=present
    )
    # PEFT takes a list as names, and one text as a regular expression.
    theirs = present[0] if "." in present[0] else present
    model = get_peft_model(
        tiny.make_model(architecture),
        LoraConfig(target_modules=leaves, exclude_modules=theirs, fan_in_fan_out=architecture == "gpt2"),
    )
    assert set(ours) == set(model.targeted_module_names)
    assert 0 < len(ours) < len(tiny.targets(base, "all"))
