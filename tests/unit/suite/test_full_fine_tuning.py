"""Full fine-tuning in suite files: what is refused and where, one id at any rank of the others, its label and its first rate."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lorastudy.errors import SuiteFileError
from lorastudy.suite.experiment import Experiment
from lorastudy.suite.labels import arm_labels, in_order_of_values
from lorastudy.suite.rate_search import design, first_places, published_rates, rate_of
from lorastudy.suite.suite import expand
from lorastudy.suite.suite_file import load_suite, suite_yaml
from lorastudy.suite.targets import named_layers, targets_of

Write = Callable[[str], Path]

HEAD = "dataset_path: rows.jsonl\n"


def experiments_of(path: Path) -> tuple[Experiment, ...]:
    return expand(load_suite(path), fingerprint_dataset=str, fingerprint_base=str)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "experiments:\n  - {method: full, lora_rank: 8}\n",
            ":3:31: experiments[0].lora_rank: is a key of adapters, and method: full trains all weights without one; remove it",
        ),
        ("experiments:\n  - {method: full, lora_rank: 16}\n", ":3:31: experiments[0].lora_rank: is a key of adapters"),
        ("experiments:\n  - {method: full, lora_alpha: 2r}\n", ":3:32: experiments[0].lora_alpha: is a key of adapters"),
        ("experiments:\n  - {method: full, lora_dropout: 0.1}\n", "experiments[0].lora_dropout: is a key of adapters"),
        ("experiments:\n  - {method: full, target_modules: qv}\n", "experiments[0].target_modules: is a key of adapters"),
        ("experiments:\n  - {method: full, use_dora: true}\n", "experiments[0].use_dora: is a key of adapters"),
        ("experiments:\n  - {method: full, rank_pattern: {q_proj: 8}}\n", "rank_pattern: is a key of adapters"),
        ("lora_rank: 8\nexperiments:\n  - {method: full}\n", ":2:12: lora_rank: is a key of adapters"),
        (
            "experiments:\n  - {method: full, quantization: 4bit}\n",
            ":3:34: experiments[0].quantization: full fine-tuning trains the base's own weights, and 4bit weights cannot train",
        ),
        (
            "experiments:\n  - {method: full, engine: packed}\n",
            ":3:28: experiments[0].engine: packed does not train this arm: full fine-tuning changes the weights that other arms",
        ),
        (
            "experiments:\n  - {method: full}\n  - {quantization: 8bit}\n",
            ":4:20: experiments[1].quantization: an arm of this suite is full fine-tuning, which no quantised base has",
        ),
        (
            "experiment_type: rank_ablation\nexperiments:\n  - {method: full}\n  - {lora_rank: 8}\n",
            ":2:18: experiment_type: rank_ablation compares adapters, and the arm of method: full has none",
        ),
        (
            "data_seed: 0\nseeds: [0, 1]\nexperiments:\n  - {lora_rank: 8}\n  - {method: full}\n",
            ":2:12: data_seed: fixes the order of the rows, and full fine-tuning draws nothing else, so all of its seeds would be",
        ),
        ("experiments:\n  - {method: ful}\n", "(did you mean full?)"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_its_place_and_the_way_out(
    write: Write, text: str, message: str
) -> None:
    with pytest.raises(SuiteFileError) as error:
        load_suite(write(HEAD + text))
    assert message in str(error.value)


def test_a_rank_at_the_top_is_that_of_the_others(write: Write) -> None:
    ids = {
        experiments_of(
            write(f"{HEAD}lora_rank: {rank}\nexperiments:\n  - {{name: a}}\n  - {{method: full}}\n")
        )[1].id
        for rank in (4, 64)
    }
    alone = experiments_of(write(f"{HEAD}experiments:\n  - {{method: full}}\n"))[0]
    assert ids == {alone.id}
    assert targets_of(alone.settings, named_layers({"model.q_proj": (4, 4)})) == ()


def test_under_factors_full_fine_tuning_has_one_arm_at_every_rank(write: Write) -> None:
    with pytest.raises(SuiteFileError, match="is the same experiment as"):
        experiments_of(write(f"{HEAD}factors:\n  method: [lora, full]\n  lora_rank: [4, 8]\n"))
    names = [each.arm for each in experiments_of(write(f"{HEAD}factors:\n  method: [lora, full]\n"))]
    assert names == ["custom_lora", "custom_full"]


def test_its_label_has_no_rank_and_it_comes_after_the_adapters(write: Write) -> None:
    text = f"{HEAD}lora_alpha: 2r\nexperiments:\n  - {{method: full}}\n  - {{lora_rank: 8}}\n  - {{lora_rank: 4}}\n"
    settings = {each.arm: each.settings for each in experiments_of(write(text))}
    labels = arm_labels(settings)
    assert list(labels.values()) == ["full fine-tuning", "LoRA r=8", "LoRA r=4"]
    assert [labels[name] for name in in_order_of_values(settings)] == [
        "LoRA r=4",
        "LoRA r=8",
        "full fine-tuning",
    ]


def test_the_arms_of_a_method_stand_together_whatever_their_rates(write: Write) -> None:
    text = f"{HEAD}factors:\n  method: [full, lora, dora]\n  learning_rate: [1e-3, 1e-4]\n"
    settings = {each.arm: each.settings for each in experiments_of(write(text))}
    labels = arm_labels(settings)
    assert [labels[name] for name in in_order_of_values(settings)] == [
        "LoRA, lr 1e-4", "LoRA, lr 1e-3", "DoRA, lr 1e-4", "DoRA, lr 1e-3",
        "full fine-tuning, lr 1e-4", "full fine-tuning, lr 1e-3",
    ]  # fmt: skip


def test_beside_other_methods_each_keeps_its_word(write: Write) -> None:
    text = f"{HEAD}lora_rank: 4\nexperiments:\n  - {{name: d, method: dora}}\n  - {{name: f, method: full}}\n"
    assert list(arm_labels({e.arm: e.settings for e in experiments_of(write(text))}).values()) == [
        "DoRA",
        "full fine-tuning",
    ]


@pytest.mark.parametrize(
    "entries", ["  - {method: full}\n", "  - {lora_rank: 4}\n  - {method: full, seeds: [1, 2]}\n"]
)
def test_a_suite_written_out_loads_to_the_same_experiments(write: Write, entries: str) -> None:
    suite = load_suite(write(f"{HEAD}experiments:\n{entries}"))
    before = expand(suite, fingerprint_dataset=str, fingerprint_base=str)
    after = experiments_of(write(suite_yaml(suite)))
    assert [each.id for each in after] == [each.id for each in before]


@pytest.mark.parametrize("num_steps", [50, 1000])
@pytest.mark.parametrize(
    "config", [{"model_type": "llama", "hidden_size": 96}, {"model_type": "phi", "hidden_size": 2560}, None]
)
def test_its_search_begins_at_a_tenth_of_the_rate_of_an_adapter(
    config: dict[str, object] | None, num_steps: int
) -> None:
    (adapter, full) = (
        [rate_of(place) for place in first_places(config, num_steps=num_steps, is_full=is_full)]
        for is_full in (False, True)
    )
    assert full == pytest.approx([rate / 10 for rate in adapter])
    rule = published_rates(config, num_steps=num_steps)
    assert published_rates(config, num_steps=num_steps, is_full=True) == pytest.approx(
        [rate / 10 for rate in rule]
    )


def test_in_a_suite_the_first_rates_of_both_are_tenfold_apart(write: Write) -> None:
    text = "learning_rate: auto\ndataset_path: lab:facts\nseeds: [0]\nmax_steps: 200\nexperiments:\n"
    rates = {}
    for method in ("lora", "full"):
        suite = load_suite(write(f"{text}  - {{method: {method}}}\n"))
        tried = design(suite, fingerprint_dataset=str, fingerprint_base=str).experiments
        rates[method] = sorted({each.settings.learning_rate for each in tried})
    assert rates["full"] == pytest.approx([rate / 10 for rate in rates["lora"]])
