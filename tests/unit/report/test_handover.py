"""Configurations for other programs parse there, and say what this study trained."""

import ast
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml
from peft import LoHaConfig, LoraConfig
from transformers import BitsAndBytesConfig, TrainingArguments

from lorastudy.report.handover import (
    TrainedArm,
    base_model_of,
    loading_code,
    targets_of,
    training_configuration,
)
from lorastudy.suite.settings import Settings


@pytest.fixture
def arm_of(tmp_path):
    def arm_of(**settings):
        return TrainedArm(
            settings=Settings(**{"base_model": "some/model", "dataset_path": "rows.jsonl", "lora_rank": 8} | settings),
            folder=tmp_path / "final_model", seed=3, num_steps=205, target_modules=("k_proj", "q_proj"),
            base_model="some/model",
        )  # fmt: skip

    return arm_of


def calls(code):
    """The arguments of each assigned call, by the function's name."""
    tree = ast.parse(code)
    made = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
    ]
    return {
        call.func.id: {each.arg: ast.literal_eval(each.value) for each in call.keywords if each.arg}
        for call in made
    }


def test_trl_gets_what_peft_and_transformers_accept(arm_of, tmp_path):
    arm = arm_of(
        lora_alpha="2r", use_rslora=True, lora_dropout=0.1, learning_rate=3e-4, lr_scheduler_type="cosine", warmup_ratio=0.03,
        max_steps=205, gradient_accumulation_steps=4, quantization="4bit", rank_pattern={"down_proj": 4},
        modules_to_save=("lm_head",), trainable_token_indices=(3, 7),
    )  # fmt: skip
    found = calls(training_configuration(arm, "trl"))
    config = LoraConfig(**found["LoraConfig"])
    assert (config.r, config.lora_alpha, config.use_rslora, config.lora_dropout) == (8, 16, True, 0.1)
    assert (config.bias, config.modules_to_save, config.trainable_token_indices) == (
        "none",
        ["lm_head"],
        [3, 7],
    )
    assert (config.target_modules, config.rank_pattern) == ({"k_proj", "q_proj"}, {"down_proj": 4})
    arguments = found["SFTConfig"]
    assert arguments.pop("max_length") == 512
    assert arguments.pop("completion_only_loss") is True
    assert arguments.pop("bf16") is True  # refused by transformers on a CPU
    taken = TrainingArguments(**{**arguments, "output_dir": str(tmp_path)})
    assert (taken.learning_rate, taken.lr_scheduler_type, taken.max_steps, taken.seed) == (
        3e-4,
        "cosine",
        205,
        3,
    )
    assert taken.warmup_steps == 7  # 205 * 0.03 = 6.15, rounded up
    assert (taken.per_device_train_batch_size, taken.gradient_accumulation_steps) == (4, 4)
    assert BitsAndBytesConfig(**found["BitsAndBytesConfig"]).load_in_4bit


@pytest.mark.parametrize("name", ["gradient_checkpointing", "activation_checkpointing"])
def test_trl_gets_checkpointing_under_the_name_that_it_has(arm_of, monkeypatch, name):
    """TRL's default is True, so a name that is ignored would turn it on."""
    config = type("SFTConfig", (), {name: True, "__init__": lambda self, **given: vars(self).update(given)})
    monkeypatch.setitem(sys.modules, "trl", SimpleNamespace(SFTConfig=config))
    found = {}
    exec(training_configuration(arm_of(max_steps=5), "trl"), found)
    assert getattr(found["args"], name) is False


def test_axolotl_reads_numbers_as_numbers(arm_of):
    """`1e-05` would be text in YAML 1.1, which axolotl reads."""
    read = yaml.safe_load(training_configuration(arm_of(learning_rate=1e-5, num_train_epochs=2.0), "axolotl"))
    assert (read["learning_rate"], read["adam_epsilon"]) == (1e-5, 1e-8)
    assert (read["adapter"], read["lora_r"], read["lora_target_modules"]) == ("lora", 8, ["k_proj", "q_proj"])
    assert (read["micro_batch_size"], read["num_epochs"], read["sequence_len"]) == (4, 2.0, 512)
    assert "max_steps" not in read
    assert read["bf16"] is True
    four_bits = yaml.safe_load(training_configuration(arm_of(quantization="4bit"), "axolotl"))
    assert (four_bits["adapter"], four_bits["load_in_4bit"]) == ("qlora", True)


def test_llamafactory_gets_names_with_commas_and_whole_alpha(arm_of):
    read = yaml.safe_load(
        training_configuration(arm_of(init_lora_weights="pissa", max_steps=50), "llamafactory")
    )
    assert (read["lora_target"], read["lora_alpha"], read["pissa_init"]) == ("k_proj,q_proj", 32, True)
    assert (read["finetuning_type"], read["max_steps"], read["dataset"]) == ("lora", 50, "rows")
    text = training_configuration(arm_of(lora_alpha=2.5), "llamafactory")
    assert "# lora_alpha is a whole number here; the arm has 2.5" in text


@pytest.mark.parametrize("trainer", ["trl", "axolotl", "llamafactory"])
def test_what_a_program_has_no_key_for_is_named(arm_of, trainer):
    text = training_configuration(arm_of(method="lorafa", layers_to_transform=[0, 2]), trainer)
    assert "# no key here for method: lorafa" in text
    assert "layers_to_transform: 0, 2" in text
    patterns = training_configuration(arm_of(rank_pattern={"q_proj": 4}), trainer)
    assert ("# no key here for rank_pattern" in patterns) == (trainer != "trl")


@pytest.mark.parametrize("trainer", ["trl", "axolotl", "llamafactory"])
def test_full_fine_tuning_has_no_adapter(arm_of, trainer):
    text = training_configuration(arm_of(method="full"), trainer)
    assert "lora_r" not in text
    assert "LoraConfig" not in text


def test_code_that_loads_parses_and_names_the_folder(arm_of):
    found = loading_code(arm_of(lora_rank=12))
    assert list(found) == ["with PEFT", "merged into the base, after that", "with vLLM"]
    for code in found.values():
        ast.parse(code)
    assert str(arm_of().folder) in found["with PEFT"]
    assert "max_lora_rank=16" in found["with vLLM"]  # the next one that vLLM takes
    assert (
        "max_lora_rank=32" in loading_code(arm_of(lora_rank=12, init_lora_weights="pissa"))["with vLLM"]
    )  # saved at twice the rank
    assert "with vLLM" not in loading_code(arm_of(use_dora=True))
    assert "PeftModel" not in "".join(loading_code(arm_of(method="full")).values())


def test_the_layers_are_those_of_the_saved_adapter_and_the_lab_is_a_folder(tmp_path):
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"target_modules": ["a", "b"], "target_parameters": ["experts.down_proj"]}),
        encoding="utf-8",
    )
    assert targets_of(tmp_path) == (("a", "b"), ("experts.down_proj",))
    assert targets_of(tmp_path / "model") == ((), ())
    assert base_model_of(Settings(base_model="lab"), lab_folder=tmp_path) == str(tmp_path)
    assert base_model_of(Settings(base_model="some/model"), lab_folder=tmp_path) == "some/model"


def test_weights_of_experts_stand_apart_from_layers(arm_of):
    arm = replace(arm_of(), target_parameters=("mlp.experts.down_proj",))
    config = LoraConfig(**calls(training_configuration(arm, "trl"))["LoraConfig"])
    assert (config.target_modules, config.target_parameters) == (
        {"k_proj", "q_proj"},
        ["mlp.experts.down_proj"],
    )
    read = yaml.safe_load(training_configuration(arm, "axolotl"))
    assert (read["lora_target_modules"], read["lora_target_parameters"]) == (
        ["k_proj", "q_proj"],
        ["mlp.experts.down_proj"],
    )
    text = training_configuration(arm, "llamafactory")
    assert 'no key here for target_parameters: ["mlp.experts.down_proj"]' in text
    assert yaml.safe_load(text)["lora_target"] == "k_proj,q_proj"


def test_another_adapter_of_peft_is_handed_over_by_its_own_class(arm_of):
    arm = arm_of(peft={"peft_type": "LOHA", "r": 4, "alpha": 16}, modules_to_save=("lm_head",))
    found = calls(training_configuration(arm, "trl"))
    assert "LoraConfig" not in found
    config = LoHaConfig(**found["LoHaConfig"])
    assert (config.r, config.alpha, config.target_modules) == (4, 16, {"k_proj", "q_proj"})
    assert config.modules_to_save == ["lm_head"]
    for trainer in ("axolotl", "llamafactory"):
        text = training_configuration(arm, trainer)
        assert 'no key here for peft: {"peft_type": "LOHA", "r": 4, "alpha": 16}' in text
        assert "lora_r" not in text
    assert "with vLLM" not in loading_code(arm)


#: For every setting that changes what is trained, values beside the default.
TRAINED = {
    "base_model": ("other/model",),
    "trust_remote_code": (True,),
    "dataset_path": ("other.jsonl",),
    "eval_fraction": (0.2,),
    "test_fraction": (0.2,),
    "max_train_samples": (7, 8),
    "max_seq_length": (64,),
    "prompt_format": ("chat", "alpaca", "plain"),
    "train_on_inputs": (True,),
    "group_by_length": (True,),
    "num_train_epochs": (2.0, 3.0),
    "max_steps": (7, 8),
    "per_device_train_batch_size": (2,),
    "gradient_accumulation_steps": (2,),
    "learning_rate": (1e-3,),
    "lr_scheduler_type": ("cosine", "constant", "inverse_sqrt"),
    "lr_scheduler_kwargs": ({"num_cycles": 1.5}, {"num_cycles": 2.5}),
    "warmup_ratio": (0.1, 0.2),
    "warmup_steps": (3, 4),
    "optim": ("adamw_8bit", "paged_adamw_8bit", "adafactor", "sgd"),
    "weight_decay": (0.1,),
    "max_grad_norm": (0.0,),
    "adam_beta1": (0.8,),
    "adam_beta2": (0.98,),
    "adam_epsilon": (1e-6,),
    "label_smoothing_factor": (0.1, 0.2),
    "neftune_noise_alpha": (5.0, 6.0),
    "lora_rank": (4,),
    "lora_alpha": (2.5, 2.25, "2r"),
    "use_rslora": (True,),
    "lora_dropout": (0.1,),
    "layers_to_transform": ([0], [1]),
    "method": ("lorafa", "full"),
    "use_dora": (True,),
    "loraplus_lr_ratio": (8.0, 16.0),
    "init_lora_weights": ("gaussian", "orthogonal", "pissa", "pissa_niter_4", "pissa_niter_16", "olora", "loftq"),
    "rank_pattern": ({"q_proj": 4}, {"q_proj": 2}),
    "alpha_pattern": ({"q_proj": 4.0}, {"q_proj": 2.0}),
    "bias": ("all", "lora_only"),
    "modules_to_save": (["lm_head"],),
    "trainable_token_indices": ([3], [4]),
    "peft": ({"peft_type": "LOHA", "r": 4}, {"peft_type": "LOHA", "r": 8}),
    "quantization": ("4bit", "8bit", "fp16", "fp32"),
    "bnb_4bit_quant_type": ("fp4",),
    "bnb_4bit_use_double_quant": (False,),
    "gradient_checkpointing": (True,),
    "data_seed": (0, 1),
    "select_checkpoint": ("best",),
    "early_stopping_patience": (2, 3),
    "early_stopping_threshold": (0.1, 0.2),
    "eval_steps": (5, 6),
}  # fmt: skip

#: The keys that a setting needs to have an effect.
NEEDED = {
    "lr_scheduler_kwargs": {"lr_scheduler_type": "cosine"},
    "bnb_4bit_quant_type": {"quantization": "4bit"},
    "bnb_4bit_use_double_quant": {"quantization": "4bit"},
    "eval_steps": {"select_checkpoint": "best"},
    "early_stopping_threshold": {"early_stopping_patience": 2},
}

#: Settings that need not be handed over, with the reason.
NOT_HANDED_OVER = {
    "target_modules": "the saved adapter names the layers",
    "exclude_modules": "the saved adapter names the layers",
    "engine": "both train the same",
    "deterministic": "the last bits",
    "max_arms_per_pack": "how arms train together",
    "checkpoint_steps": "for a training that stops",
    "checkpoint_minutes": "for a training that stops",
    **dict.fromkeys(
        (
            "eval_dataset_path", "test_dataset_path", "forgetting_dataset_path", "max_eval_samples",
            "max_generation_samples", "max_new_tokens", "exact_match_pattern",
        ),
        "scores alone",
    ),
}  # fmt: skip


def test_every_setting_is_handed_over_or_has_a_reason():
    assert set(TRAINED) | set(NOT_HANDED_OVER) == set(Settings.model_fields)
    assert not set(TRAINED) & set(NOT_HANDED_OVER)


@pytest.mark.parametrize("trainer", ["trl", "axolotl", "llamafactory"])
def test_a_setting_that_changes_the_training_is_written_or_named_as_lost(arm_of, trainer):
    """So two values of it never give one text: nobody trains another arm without a word."""
    for key, values in TRAINED.items():
        needed = NEEDED.get(key, {})
        arms = [arm_of(**needed), *(arm_of(**needed, **{key: value}) for value in values)]
        if key == "base_model":
            arms = [replace(arm, base_model=arm.settings.base_model) for arm in arms]
        texts = [training_configuration(arm, trainer) for arm in arms]
        assert len(set(texts)) == len(arms), key


@pytest.mark.parametrize(("trainer", "smoothing", "inputs", "grouping"), [
    ("trl", "label_smoothing_factor=0.1", "completion_only_loss=False", "**grouping"),
    ("axolotl", "# no key here for label_smoothing_factor: 0.1", "train_on_inputs: true", "group_by_length: true"),
    ("llamafactory", "label_smoothing_factor: 0.1", "train_on_prompt: true", 'train_sampling_strategy: "group_by_length"'),
])  # fmt: skip
def test_the_optimizer_and_the_loss_are_those_of_the_arm(arm_of, trainer, smoothing, inputs, grouping):
    text = training_configuration(
        arm_of(
            optim="adafactor", neftune_noise_alpha=5.0, label_smoothing_factor=0.1, train_on_inputs=True, group_by_length=True
        ),
        trainer,
    )  # fmt: skip
    assert smoothing in text
    assert inputs in text
    assert grouping in text
    if trainer != "trl":
        read = yaml.safe_load(text)
        assert (read["optimizer" if trainer == "axolotl" else "optim"], read["neftune_noise_alpha"]) == (
            "adafactor",
            5.0,
        )
        return
    arguments = calls(text)["SFTConfig"]
    assert (arguments["optim"], arguments["neftune_noise_alpha"], arguments["loss_type"]) == (
        "adafactor",
        5.0,
        "nll",
    )


@pytest.mark.parametrize("name", ["train_sampling_strategy", "group_by_length"])
def test_trl_gets_grouping_under_the_name_that_it_has(arm_of, monkeypatch, name):
    config = type("SFTConfig", (), {name: None, "__init__": lambda self, **given: vars(self).update(given)})
    monkeypatch.setitem(sys.modules, "trl", SimpleNamespace(SFTConfig=config))
    found = {}
    exec(training_configuration(arm_of(max_steps=5, group_by_length=True), "trl"), found)
    expected = {"train_sampling_strategy": "group_by_length", "group_by_length": True}
    assert {key: vars(found["args"]).get(key) for key in expected} == {
        key: value if key == name else None for key, value in expected.items()
    }


def test_pissa_and_stable_steps_are_written_where_llamafactory_has_other_defaults(arm_of):
    """It has PiSSA with 16 iterations, and a third of the steps as the stable ones."""
    settings = {"max_steps": 205, "lr_scheduler_type": "warmup_stable_decay", "warmup_steps": 5}
    read = yaml.safe_load(
        training_configuration(
            arm_of(init_lora_weights="pissa", lr_scheduler_kwargs={"num_decay_steps": 50}, **settings),
            "llamafactory",
        )
    )
    assert read["pissa_iter"] == -1
    assert read["lr_scheduler_kwargs"] == {"num_decay_steps": 50, "num_stable_steps": 150}  # 205 - 5 - 50


@pytest.mark.parametrize("trainer", ["axolotl", "llamafactory"])
def test_small_options_of_a_schedule_are_numbers(arm_of, trainer):
    arm = arm_of(lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr": 1e-6})
    assert yaml.safe_load(training_configuration(arm, trainer))["lr_scheduler_kwargs"] == {"min_lr": 1e-6}
