"""Published rules: their values by hand, their sources, and layouts that leave the training as it is."""

import pytest

from lorastudy.planning.literature import RULES, layouts, published_learning_rate, sufficient_rank
from lorastudy.suite.settings import Settings


@pytest.mark.parametrize(
    ("model_type", "hidden_size", "num_steps", "expected"),
    [
        ("llama", 2000, 1000, 5e-4),
        ("llama", 2000, 50, 7.5e-4),
        ("llama", 4096, None, 2.857e-4),  # 5e-4 * (2000 / 4096) ** 0.781: exp(-7.6009 - 0.781 * 0.71689)
        ("qwen2", 4096, None, 4.730e-4),  # 5e-4 * (2000 / 4096) ** 0.0775
        ("gpt2", 4096, None, 3.676e-4),  # between the two: their geometric mean
    ],
)
def test_the_rate_follows_family_size_and_length(model_type, hidden_size, num_steps, expected):
    rate = published_learning_rate(model_type, hidden_size=hidden_size, num_steps=num_steps)
    assert rate == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("tokens", "expected"), [(None, 16), (10, 8), (8_000, 8), (8_001, 16), (16_001, 32), (10**9, 512)]
)
def test_the_rank_holds_as_many_parameters_as_tokens(tokens, expected):
    assert sufficient_rank(1000, num_completion_tokens=tokens, at_most=512) == expected


def test_every_rule_names_a_public_source():
    assert all(rule.source.split(" et al.")[0] for rule in RULES.values())
    assert all("et al." in rule.source for rule in RULES.values())


def test_layouts_keep_the_effective_batch_and_get_smaller():
    settings = Settings(per_device_train_batch_size=6, gradient_accumulation_steps=2)
    found = [
        (s.per_device_train_batch_size, s.gradient_accumulation_steps, s.gradient_checkpointing)
        for s in layouts(settings)
    ]
    plain = [(6, 2), (3, 4), (2, 6), (1, 12)]
    assert found == [(*one, recompute) for recompute in (False, True) for one in plain]
