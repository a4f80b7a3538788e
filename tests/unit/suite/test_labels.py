"""What arms are called for a reader: by what differs, the same before and after a run, and each by another label."""

import pytest

from lorastudy.suite.labels import arm_labels, in_order_of_values, without_rate
from lorastudy.suite.settings import Settings


def labels(*arms, **options):
    """The labels of arms with these settings, in their order."""
    named = {f"arm{number}": Settings(**settings) for number, settings in enumerate(arms)}
    return list(arm_labels(named, **options).values())


@pytest.mark.parametrize(
    ("arms", "expected"),
    [
        ([{"lora_rank": 4}, {"lora_rank": 16}], ["r=4", "r=16"]),
        ([{"target_modules": "qv"}, {"target_modules": "mlp"}], ["q,v", "MLP"]),
        ([{"target_modules": ("q_proj", "v_proj")}, {"target_modules": "all"}], ["q,v", "all modules"]),
        ([{"target_modules": ("`q`",)}, {"target_modules": ("v_proj",)}], ["'q'", "v"]),
        ([{"quantization": "4bit"}, {"quantization": "bf16"}], ["4-bit", "bf16"]),
        (
            [{"lora_rank": 4, "learning_rate": 2e-4}, {"lora_rank": 4, "learning_rate": 0.0025}],
            ["lr 2e-4", "lr 2.5e-3"],
        ),
        (
            [{"lora_rank": 4, "learning_rate": 0.5}, {"lora_rank": 4, "learning_rate": 1.5}],
            ["lr 5e-1", "lr 1.5"],
        ),
        (
            [{"lora_rank": 16, "learning_rate": 2e-4}, {"lora_rank": 4, "learning_rate": 1e-4}],
            ["r=16, lr 2e-4", "r=4, lr 1e-4"],
        ),
        (
            [{"lora_rank": 16}, {"lora_rank": 16, "layers_to_transform": (0, 1, 2)}],
            ["all layers", "layers 0-2"],
        ),
        ([{"use_rslora": True}, {"use_rslora": False}], ["rsLoRA", "LoRA"]),
        ([{"use_rslora": True, "lora_rank": 8}, {"lora_rank": 4}], ["rsLoRA r=8", "LoRA r=4"]),
        (
            [
                {"use_dora": True, "lora_rank": 16},
                {"loraplus_lr_ratio": 16.0},
                {"loraplus_lr_ratio": 4.0},
                {},
            ],
            ["DoRA", "LoRA+", "LoRA+ 4x", "LoRA"],
        ),
        (
            [{"init_lora_weights": "pissa", "lora_rank": 8}, {"method": "lorafa", "lora_rank": 4}],
            ["PiSSA r=8", "LoRA-FA r=4"],
        ),
        ([{"lora_alpha": "2r"}, {"lora_alpha": 16.0}], ["alpha 2r", "alpha 16"]),
        ([{"warmup_ratio": 0.1}, {"warmup_ratio": 0.0}], ["warmup_ratio 0.1", "warmup_ratio 0"]),
        ([{"base_model": "org/a-1b"}, {"base_model": "models/b/"}], ["a-1b", "b"]),
    ],
)
def test_a_label_is_what_differs(arms, expected):
    assert labels(*arms) == expected


def test_an_alpha_that_follows_from_the_rank_is_not_shown():
    assert labels({"lora_rank": 4, "lora_alpha": 8.0}, {"lora_rank": 8, "lora_alpha": 16.0}) == ["r=4", "r=8"]
    grid = [{"lora_rank": rank, "lora_alpha": alpha} for rank in (4, 8) for alpha in (8.0, 16.0)]
    assert labels(*grid) == ["r=4, alpha 8", "r=4, alpha 16", "r=8, alpha 8", "r=8, alpha 16"]


def test_an_alpha_that_changes_the_scale_with_the_rank_is_shown():
    assert labels({"lora_rank": 16, "lora_alpha": 16.0}, {"lora_rank": 64, "lora_alpha": 128.0}) == [
        "r=16, alpha 16",
        "r=64, alpha 128",
    ]
    # 16 / sqrt(4) = 32 / sqrt(16) = 8: one scale, so the rank says it all; 8 / sqrt(4) is another one.
    assert labels(
        {"use_rslora": True, "lora_rank": 4, "lora_alpha": 16.0},
        {"use_rslora": True, "lora_rank": 16, "lora_alpha": 32.0},
    ) == ["r=4", "r=16"]
    assert labels(
        {"use_rslora": True, "lora_rank": 4, "lora_alpha": 8.0},
        {"use_rslora": True, "lora_rank": 16, "lora_alpha": 32.0},
    ) == ["r=4, alpha 8", "r=16, alpha 32"]


def test_arms_that_differ_in_nothing_shown_keep_their_names():
    assert labels({}, {}) == ["arm0", "arm1"]
    assert labels({"deterministic": True}, {"deterministic": False}) == ["arm0", "arm1"]
    assert labels({"lora_rank": 4}, {"lora_rank": 4}, {"lora_rank": 8}) == ["arm0", "arm1", "r=8"]
    assert labels({}) == ["arm0"]


def test_a_name_that_is_anothers_label_makes_no_two_equal():
    arms = {"r=8": Settings(lora_rank=4), "b": Settings(lora_rank=4), "c": Settings(lora_rank=8)}
    assert list(arm_labels(arms).values()) == ["r=8", "b", "c"]


def test_a_search_shows_the_rates_that_it_tries_and_not_those_that_it_finds():
    tried = [{"lora_rank": rank, "learning_rate": rate} for rank in (4, 8) for rate in (1e-3, 2e-3)]
    found = [{"lora_rank": 4, "learning_rate": 1.4e-3}, {"lora_rank": 8, "learning_rate": 1e-2}]
    arms = {f"arm{number}": Settings(**settings) for number, settings in enumerate([*tried, *found])}
    shown = arm_labels(arms, tried={"arm0", "arm1", "arm2", "arm3"}, is_searched=True)
    assert list(shown.values()) == [
        "r=4, lr 1e-3", "r=4, lr 2e-3", "r=8, lr 1e-3", "r=8, lr 2e-3", "r=4", "r=8",
    ]  # fmt: skip
    assert without_rate("r=4, lr 1e-3", 1e-3) == "r=4"


def test_numbers_rise_precisions_fall_and_modules_come_as_the_suite_lists_them():
    def order(key, *values):
        return [
            values[int(name)]
            for name in in_order_of_values({str(n): Settings(**{key: v}) for n, v in enumerate(values)})
        ]

    assert order("lora_rank", 16, 4, 128, 8) == [4, 8, 16, 128]
    assert order("quantization", "4bit", "fp32", "bf16") == ["fp32", "bf16", "4bit"]
    assert order("target_modules", "qv", "all", "mlp") == ["qv", "all", "mlp"]
