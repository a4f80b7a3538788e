"""Methods in suite files: two spellings are one experiment, contradictions are refused, and old ids stay as they were."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from lorastudy.errors import ModelError, SuiteFileError
from lorastudy.suite.experiment import Experiment, Sources, without_later
from lorastudy.suite.labels import arm_labels
from lorastudy.suite.methods import METHOD_KEYS, ArmMethod
from lorastudy.suite.peft_types import PEFT_TYPES
from lorastudy.suite.settings import Settings
from lorastudy.suite.suite import expand
from lorastudy.suite.suite_file import load_suite, suite_from_values, suite_yaml
from lorastudy.suite.targets import TargetLayer, adapter_size, named_layers, targets_of

Write = Callable[[str], Path]

HEAD = "dataset_path: rows.jsonl\n"


def experiments_of(path: Path) -> tuple[Experiment, ...]:
    return expand(load_suite(path), fingerprint_dataset=str, fingerprint_base=str)


@pytest.mark.parametrize(
    ("short", "own"),
    [
        ("method: rslora", "use_rslora: true"),
        ("method: dora", "use_dora: true"),
        ("method: loraplus", "loraplus_lr_ratio: 16"),
        ("method: pissa", "init_lora_weights: pissa"),
        ("method: olora", "init_lora_weights: olora"),
        ("method: lora", "lora_rank: 16"),
        ("{method: dora, use_dora: true}", "use_dora: true"),
        ("{method: loraplus, loraplus_lr_ratio: 4}", "loraplus_lr_ratio: 4"),
        ("{method: pissa, init_lora_weights: pissa_niter_4}", "init_lora_weights: pissa_niter_4"),
        ("{method: dora, use_rslora: true}", "{use_dora: true, use_rslora: true}"),
    ],
)
def test_two_spellings_are_one_experiment(write: Write, short: str, own: str) -> None:
    ids = {
        experiments_of(write(f"{HEAD}experiments:\n  - {entry}\n"))[0].id
        for entry in (
            f"{short}" if short.startswith("{") else f"{{{short}}}",
            own if own.startswith("{") else f"{{{own}}}",
        )
    }
    assert len(ids) == 1
    wrapped = [text if text.startswith("{") else f"{{{text}}}" for text in (short, own)]
    names = [text.replace("{", f"{{name: {name}, ", 1) for name, text in zip("ab", wrapped, strict=True)]
    path = write(f"{HEAD}experiments:\n  - {names[0]}\n  - {names[1]}\n")
    with pytest.raises(SuiteFileError, match="is the same experiment as"):
        experiments_of(path)


def test_an_optimizer_and_noise_are_part_of_an_arm_and_leave_old_ids_alone(write: Write) -> None:
    entries = "[{name: a}, {name: b, optim: adafactor}, {name: c, neftune_noise_alpha: 5}]"
    plain, adafactor, noisy = experiments_of(write(f"{HEAD}experiments: {entries}\n"))
    said = experiments_of(
        write(f"{HEAD}optim: adamw_torch\nneftune_noise_alpha: null\nexperiments: [{{name: a}}]\n")
    )
    assert said[0].id == plain.id
    assert (
        len({plain.id, adafactor.id, noisy.id})
        == len({plain.pack_key, adafactor.pack_key, noisy.pack_key})
        == 3
    )
    assert adafactor.settings.arm_method.title == "LoRA, Adafactor"
    assert noisy.settings.arm_method.title == "LoRA, NEFTune (alpha 5)"


def test_weights_of_the_base_that_train_too_are_part_of_an_arm_in_any_order(write: Write) -> None:
    entries = "[{name: a}, {name: b, bias: all}, {name: c, modules_to_save: [lm_head, embed_tokens]}, {name: d, trainable_token_indices: [9, 3]}]"
    plain, *others = experiments_of(write(f"{HEAD}experiments: {entries}\n"))
    assert len({plain.id, *(each.id for each in others)}) == len({each.pack_key for each in others}) + 1 == 4
    at_defaults = "{name: a, bias: none, modules_to_save: null, trainable_token_indices: null}"
    turned = "{name: c, modules_to_save: [embed_tokens, lm_head, lm_head]}"
    said, parts = experiments_of(write(f"{HEAD}experiments: [{at_defaults}, {turned}]\n"))
    assert (said.id, parts.id) == (plain.id, others[1].id)
    assert [each.settings.arm_method.title for each in others] == [
        "LoRA with trained biases", "LoRA with trained embed_tokens, lm_head", "LoRA with the embeddings of 2 tokens",
    ]  # fmt: skip
    labels = arm_labels({each.arm: each.settings for each in (plain, *others)})
    assert list(labels.values()) == [
        "LoRA", "LoRA with all biases", "LoRA with embed_tokens,lm_head", "LoRA with 2 embeddings",
    ]  # fmt: skip


def test_another_adapter_of_peft_is_one_experiment_however_it_is_written(write: Write) -> None:
    texts = (
        "experiments:\n  - {name: a, peft: {peft_type: LOHA, r: 4}}\n",
        "experiments:\n  - {name: a, peft: {r: 4, alpha: 8, peft_type: loha, rank_dropout: 0}}\n",
        "factors:\n  peft: [{peft_type: LOHA, r: 4, module_dropout: 0.0}]\n",
        "lora_rank: 32\nexperiments:\n  - {name: a, peft: {peft_type: LOHA, r: 4}}\n  - {name: b}\n",
    )
    ids = {experiments_of(write(f"{HEAD}{text}"))[0].id for text in texts}
    assert len(ids) == 1
    plain, loha, ia3 = experiments_of(
        write(f"{HEAD}factors:\n  peft: [{{}}, {{peft_type: LOHA, r: 4}}, {{peft_type: IA3}}]\n")
    )
    assert len({plain.id, loha.id, ia3.id, *ids}) == 3
    assert plain.id == experiments_of(write(f"{HEAD}experiments: [{{name: a}}]\n"))[0].id
    assert [each.arm for each in (plain, loha, ia3)] == ["custom_lora", "custom_loha-r-4", "custom_ia3"]
    labels = arm_labels({each.arm: each.settings for each in (plain, loha, ia3)})
    assert list(labels.values()) == ["LoRA", "LoHa (r 4)", "IA3"]
    kept = suite_yaml(load_suite(write(f"{HEAD}{texts[0]}")))
    assert experiments_of(write(kept))[0].id in ids


def test_keys_and_defaults_of_other_adapters_are_pefts() -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    for name, kind in PEFT_TYPES.items():
        config = PEFT_TYPE_TO_CONFIG_MAPPING[name]
        assert config.__name__ == kind.config
        theirs = {field.name: field.default for field in fields(config)}
        assert {key: theirs[key] for key in kind.keys} == dict(kind.keys)


def test_at_the_top_in_an_entry_and_under_factors_a_method_is_the_same(write: Write) -> None:
    texts = (
        f"{HEAD}method: dora\nexperiments:\n  - lora_rank: 16\n",
        f"{HEAD}experiments:\n  - method: dora\n",
        f"{HEAD}factors:\n  use_dora: [true]\n",
    )
    assert len({experiments_of(write(text))[0].id for text in texts}) == 1


def test_ids_from_before_there_were_methods_stay() -> None:
    """The id was computed by the commit before the first method (baa40a1)."""
    assert experiment_with(Settings(use_rslora=True)).id == "exp-bea269b8209812a5"


def test_arms_of_factors_are_named_by_their_method(write: Write) -> None:
    text = f"{HEAD}factors:\n  method: [lora, rslora, dora, loraplus, lorafa, pissa]\n"
    names = [experiment.arm for experiment in experiments_of(write(text))]
    assert names == [
        "custom_use_rslora-off_lora", "custom_use_rslora-on_lora", "custom_use_rslora-off_dora",
        "custom_use_rslora-off_loraplus16", "custom_use_rslora-off_lorafa", "custom_use_rslora-off_pissa",
    ]  # fmt: skip
    text = f"{HEAD}factors:\n  method: [lora, dora, loraplus]\n"
    assert [e.arm for e in experiments_of(write(text))] == ["custom_lora", "custom_dora", "custom_loraplus16"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("method: lora, use_dora: true", ":3:14: experiments[0].method: lora and use_dora: true contradict each other; remove one"),
        ("method: dora, use_dora: false", "dora and use_dora: false contradict each other"),
        ("method: rslora, use_rslora: false", "rslora and use_rslora: false contradict each other"),
        ("method: lora, loraplus_lr_ratio: 8", "lora and loraplus_lr_ratio: 8 contradict each other"),
        ("method: pissa, init_lora_weights: olora", "pissa and init_lora_weights: olora contradict each other"),
        ("method: lora, init_lora_weights: pissa", "lora and init_lora_weights: pissa contradict each other"),
        ("method: lorafa, use_dora: true", "lorafa and use_dora: true contradict each other"),
        ("method: pissa, quantization: 4bit", "these are quantised (quantization: 4bit); set quantization: bf16"),
        ("use_dora: true, quantization: 8bit", "set quantization: 4bit or bf16"),
        ("init_lora_weights: olora, use_dora: true", "DoRA's norms cannot be; remove one"),
        ("init_lora_weights: orthogonal, lora_rank: 3", "need an even rank, and lora_rank is 3"),
        ("use_dora: true, engine: packed", ":3:30: experiments[0].engine: packed does not train this arm: PEFT trains DoRA"),
        ("method: lorafa, adam_epsilon: 1e-7", "has no effect with method: lorafa, whose optimizer has 1e-06; remove it"),
        ("rank_pattern: {q_proj: 0}", "rank_pattern"),
        ("rank_pattern: 8", "must be a mapping, not 8"),
        ("rank_pattern: {'q_proj(': 8}", "is not a regular expression"),
        ("init_lora_weights: orthogonal, rank_pattern: {q_proj: 3}", "rank_pattern has 3; make it even"),
        ("method: pissa, use_rslora: true, alpha_pattern: {q_proj: 8}", "remove use_rslora or the patterns"),
        ("method: doora", "(did you mean dora?)"),
        ("init_lora_weights: false", "remove it"),
        ("init_lora_weights: pisa", "(did you mean pissa?)"),
        ("use_Dora: true", "unknown key (did you mean use_dora?)"),
        ("dora: true", "unknown key (did you mean use_dora?)"),
        ("loraplus_ratio: 4", "unknown key (did you mean loraplus_lr_ratio?)"),
        ("loraplus_lr_ratio: 0.5", "must be a number of at least 1"),
        ("init_lora_weights: loftq, quantization: bf16", "set quantization: 4bit, or another initialisation"),
        ("init_lora_weights: loftq, quantization: 4bit, use_dora: true", "another start than loftq's; remove one"),
        ("init_lora_weights: corda", "corda needs the covariance of each layer's inputs"),
        ("peft: {peft_type: LOHAA}", ":3:13: experiments[0].peft.peft_type: must be one of IA3, LOHA"),
        ("peft: {peft_type: LOHA, alhpa: 8}", ":3:30: experiments[0].peft.alhpa: LOHA has no such key (did you mean alpha?)"),
        ("peft: {peft_type: LOHA, r: big}", "experiments[0].peft.r: must be a whole number, not 'big'"),
        ("peft: {peft_type: IA3, target_modules: [q_proj]}", "is a key of the suite; write it beside peft"),
        ("peft: {r: 8}", "needs peft_type, one of IA3"),
        ("peft: {peft_type: LORA, r: 8}", "has keys of its own here, such as lora_rank; remove peft"),
        ("peft: {peft_type: PREFIX_TUNING}", "puts tokens of its own before each row"),
        ("peft: {peft_type: IA3}, lora_rank: 4", ":3:41: experiments[0].lora_rank: is a key of LoRA, and peft names another adapter"),
        ("peft: {peft_type: IA3}, method: dora", "experiments[0].method: is a key of LoRA"),
        ("peft: {peft_type: IA3}, method: full", "experiments[0].peft: is a key of adapters"),
        ("peft: {peft_type: LOHA}, quantization: 4bit", "PEFT has no LoHa for quantised layers (quantization: 4bit); set quantization: bf16"),
        ("peft: {peft_type: IA3}, engine: packed", "packed does not train this arm: PEFT trains IA3"),
        ("bias: lora", "(did you mean lora_only?)"),
        ("method: pissa, modules_to_save: [lm_head]", "starts from the frozen weights (pissa) is saved without it; remove one"),
        ("bias: all, quantization: fp16", "weights in fp16 cannot train under a loss scale; set quantization: bf16 or fp32"),
        ("method: full, bias: all", "is a key of adapters"),
        ("bias: all, engine: packed", "packed does not train this arm: PEFT trains LoRA with trained biases"),
        ("trainable_token_indices: [-1]", "trainable_token_indices"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_its_place_and_the_way_out(
    write: Write, entry: str, message: str
) -> None:
    with pytest.raises(SuiteFileError) as error:
        load_suite(write(f"{HEAD}experiments:\n  - {{{entry}}}\n"))
    assert message in str(error.value)
    assert "s.yaml:3:" in str(error.value)


def test_a_contradiction_across_levels_is_refused(write: Write) -> None:
    with pytest.raises(SuiteFileError, match="lora and use_dora: true contradict each other"):
        load_suite(write(f"{HEAD}use_dora: true\nexperiments:\n  - method: lora\n"))


def test_a_file_of_all_defaults_contradicts_no_method(write: Write, folder: Path) -> None:
    (folder / "configs").mkdir()
    (folder / "configs/default_config.yaml").write_text(
        "method: null\nuse_dora: false\nuse_rslora: false\nloraplus_lr_ratio: null\ninit_lora_weights: true\n"
    )
    text = f"{HEAD}factors:\n  method: [lora, rslora, dora, loraplus, pissa, olora, lorafa]\n"
    assert len({experiment.id for experiment in experiments_of(write(text))}) == 7


def test_a_written_suite_loads_to_the_same_experiments(write: Write, tmp_path: Path) -> None:
    suite = load_suite(
        write(f"{HEAD}seeds: [0, 1]\nfactors:\n  method: [lora, dora, loraplus, lorafa, pissa]\n")
    )
    (tmp_path / "again.yaml").write_text(suite_yaml(suite))
    again = load_suite(tmp_path / "again.yaml")
    assert [arm.settings for arm in again.arms] == [arm.settings for arm in suite.arms]
    assert type(suite).from_json(suite.to_json()).arms[1].settings == suite.arms[1].settings


def test_methods_of_plain_lora_pack_and_others_train_alone(write: Write) -> None:
    text = f"{HEAD}factors:\n  lora_rank: [4, 8]\n  method: [lora, loraplus, dora, pissa]\n"
    keys: dict[str, list[str]] = {}
    for experiment in experiments_of(write(text)):
        keys.setdefault(experiment.settings.arm_method.in_name, []).append(experiment.pack_key)
    assert len({*keys["lora"], *keys["loraplus16"]}) == 1
    assert len({*keys["dora"], *keys["pissa"]}) == 4


@pytest.mark.parametrize(
    ("values", "title"),
    [
        ({}, "LoRA"),
        ({"use_dora": True}, "DoRA"),
        ({"loraplus_lr_ratio": 4.0, "use_dora": True}, "DoRA, LoRA+ (ratio 4)"),
        ({"method": "lorafa"}, "LoRA-FA"),
        ({"init_lora_weights": "pissa"}, "PiSSA"),
        ({"rank_pattern": {"q_proj": 8}}, "LoRA with rank_pattern"),
        ({"use_dora": True, "alpha_pattern": {"q_proj": 8.0}}, "DoRA with alpha_pattern"),
    ],
)
def test_a_method_has_a_title(values: dict[str, Any], title: str) -> None:
    assert ArmMethod.from_values({**METHOD_KEYS, **values}).title == title


def test_a_pattern_must_match_and_only_once() -> None:
    layers = named_layers(
        [f"model.layers.{n}.self_attn.{leaf}" for n in (0, 1) for leaf in ("q_proj", "v_proj")]
    )
    assert len(targets_of(Settings(target_modules="qv", rank_pattern={"q_proj": 8}), layers)) == 4
    wrong = Settings(target_modules="qv", rank_pattern={"qproj": 8})
    with pytest.raises(ModelError, match=r"rank_pattern: qproj: matches none .* \(did you mean q_proj\?\)"):
        targets_of(wrong, layers)
    twice = Settings(target_modules="qv", alpha_pattern={"q_proj": 8.0, r"layers\.0\.\w+\.q_proj": 4.0})
    with pytest.raises(ModelError, match="matches both q_proj and"):
        targets_of(twice, layers)


def test_a_regular_expression_makes_a_name_that_a_folder_can_have(write: Write) -> None:
    patterns = r"[{'layers\.(0|1)\..*q_proj': 4}, {'q_proj': 8}]"
    names = [arm.arm for arm in experiments_of(write(f"{HEAD}factors:\n  rank_pattern: {patterns}\n"))]
    assert names == ["custom_r-layers-.-0-1-..-q_proj-4", "custom_r-q_proj-8"]


def test_settings_with_patterns_have_a_hash() -> None:
    patterns = [{"q_proj": 8, "v_proj": 2}, {"v_proj": 2, "q_proj": 8}, {"q_proj": 8}]
    assert len({Settings(rank_pattern=pattern) for pattern in patterns}) == 2


def test_an_adapter_has_the_size_of_its_patterns() -> None:
    layers = [
        TargetLayer(name=name, role="q", in_features=10, out_features=20) for name in ("0.q_proj", "0.v_proj")
    ]
    method = ArmMethod(rank_pattern=(("q_proj", 4),))
    assert adapter_size(layers, r=2, method=method).num_trainable == 4 * 30 + 2 * 30
    assert adapter_size(layers, r=2, method=replace(method, is_lorafa=True)).num_trainable == 4 * 20 + 2 * 20
    pissa = adapter_size(layers, r=2, method=replace(method, init_lora_weights="pissa"))
    assert (pissa.num_trainable, pissa.num_saved) == (180, 360)
    assert adapter_size(layers, r=2, method=ArmMethod(use_dora=True)).num_trainable == 2 * 60 + 40


def test_flags_name_a_method_too(folder: Path) -> None:
    suite = suite_from_values({"dataset_path": "rows.jsonl", "method": "dora"}, where="run")
    assert suite.arms[0].settings.use_dora


def test_excluded_modules_are_not_adapted_as_in_peft() -> None:
    names = [f"model.layers.{n}.self_attn.{leaf}" for n in (0, 1) for leaf in ("q_proj", "k_proj", "v_proj")]

    def kept(*excluded: str) -> list[str]:
        settings = Settings(target_modules=("q_proj", "k_proj"), exclude_modules=excluded)
        return [
            name.removeprefix("model.layers.").replace("self_attn.", "")
            for name in targets_of(settings, named_layers(names))
        ]

    assert kept("k_proj") == ["0.q_proj", "1.q_proj"]
    assert kept(r".*\.1\..*") == ["0.q_proj", "0.k_proj"]
    assert kept("layers.0.self_attn.q_proj", "k_proj") == ["1.q_proj"]
    with pytest.raises(
        ModelError, match=r"exclude_modules: v_proj: matches none .*; these are k_proj, q_proj"
    ):
        kept("v_proj")  # the model has it, but it is not selected
    with pytest.raises(ModelError, match=r"matches none of .* \(did you mean k_proj\?\)"):
        kept("kproj")
    with pytest.raises(ModelError, match="leaves no layer to adapt"):
        kept(".*")


def experiment_with(settings: Settings) -> Experiment:
    return Experiment(
        name="n", arm="a", experiment_type="custom", seed=3, settings=settings,
        sources=Sources(base_model="b", dataset="d", data_version=2),
    )  # fmt: skip


def test_excluding_nothing_is_the_experiment_from_before_the_key() -> None:
    before = experiment_with(Settings())
    assert "exclude_modules" not in without_later(Settings().model_dump())
    assert experiment_with(Settings(exclude_modules=None)).id == before.id
    excluding = experiment_with(Settings(exclude_modules=("k_proj",)))
    assert excluding.id != before.id
    assert excluding.pack_key == before.pack_key  # the arms train together
    labels = arm_labels({"a": Settings(), "b": excluding.settings})
    assert labels == {"a": "nothing excluded", "b": "without k"}


@pytest.mark.parametrize("kind", ["rank_ablation", "parameter_matched_modules"])
def test_an_adapter_without_a_rank_of_lora_has_no_place_in_a_design_about_ranks(
    write: Write, kind: str
) -> None:
    """Its idle `lora_rank` would be among the ranks, and the largest rank is the reference."""
    arms = "experiments:\n  - {lora_rank: 8}\n  - {peft: {peft_type: LOHA, r: 4}}\n"
    with pytest.raises(SuiteFileError, match=rf"5:12: experiments\[1\]\.peft: .* {kind} compares ranks"):
        load_suite(write(f"experiment_type: {kind}\n{HEAD}{arms}"))
    load_suite(write(f"experiment_type: quantization_study\n{HEAD}{arms}"))
