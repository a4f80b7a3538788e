"""The sentences: what they conclude, and that they conclude nothing from too little."""

import re
from dataclasses import replace

import pytest

from lorastudy.analysis.overview import analyse
from lorastudy.analysis.study import split_studies
from lorastudy.analysis.tuning import learning_rates
from lorastudy.report.document import Strong
from lorastudy.report.findings.catalogue import questions_of
from lorastudy.report.findings.wording import difference, learning_rate_caveat, what_seeds_can_show


def analysis_of(results):
    (study,) = split_studies(results)
    return analyse(study)


def answers(analysis):
    found = questions_of(analysis.study.experiment_type).findings(analysis)
    return {
        finding.question: "".join(span.text if isinstance(span, Strong) else span for span in finding.answer)
        for finding in found
    }


def headline(analysis):
    return questions_of(analysis.study.experiment_type).headline(analysis)


def arms(make_result, kind, table):
    """Results from {arm: (settings, losses by seed)}."""
    return [
        make_result(arm, seed, experiment_type=kind, settings=settings, scores={("eval", "loss"): loss})
        for arm, (settings, losses) in table.items()
        for seed, loss in enumerate(losses)
    ]


def ranks(make_result, table):
    named = {f"r{rank}": ({"lora_rank": rank, "lora_alpha": "2r"}, losses) for rank, losses in table.items()}
    return analysis_of(arms(make_result, "rank_ablation", named))


def test_rank_questions_are_answered_from_the_analysis(rank_study):
    analysis = analysis_of(rank_study)
    found = answers(analysis)
    assert list(found) == [
        "How does rank affect model accuracy?",
        "What is the memory overhead of higher ranks?",
        "Where are the diminishing returns?",
    ]
    accuracy, memory, returns = found.values()
    assert "Held-out loss against r32: worse for r1, r2, r4, r8 and r16." in accuracy
    assert "It fell at every step up." in accuracy
    # 9,000,000 + 60,000 r + 1,250 bytes at r = 32 and r = 1
    assert "10.4 MiB" in memory
    assert "8.64 MiB" in memory
    assert "1.77 MiB (+20.5 %)" in memory
    assert "Rank 16 is the smallest rank that kept at least 95 % of the gain" in returns
    assert "observed, not proven" in returns


def test_the_headline_names_a_rank_and_its_price(rank_study):
    text = headline(analysis_of(rank_study))
    assert text.startswith("Rank 16 is the smallest rank")
    assert "with an adapter of 50 % of its size" in text
    assert "n = 6: worse" in text
    assert "rank 32 is the more accurate" in text


def test_a_rank_that_cannot_be_told_from_the_largest_is_where_to_start(make_result):
    table = {1: [2.0, 2.1, 2.21], 8: [1.01, 1.08, 1.23], 16: [1.0, 1.1, 1.2]}
    text = headline(ranks(make_result, table))
    assert "cannot tell (the interval contains 0)" in text
    assert text.endswith("So rank 8 is the one to start with; these runs give no reason to pay for rank 16.")


def test_one_seed_concludes_nothing(make_result):
    analysis = ranks(make_result, {1: [2.0], 16: [1.0]})
    assert headline(analysis).startswith("It cannot be told that rank mattered here")
    assert "n = 1: cannot tell (one seed)" in answers(analysis)["Where are the diminishing returns?"]
    assert what_seeds_can_show(analysis).startswith("With one seed no difference can be told")


def test_a_larger_rank_that_did_worse_is_said_to_have(make_result):
    analysis = ranks(make_result, {1: [1.0, 1.1, 1.2], 16: [2.0, 2.11, 2.22]})
    assert headline(analysis).startswith("A larger rank did not help here: rank 1 against rank 16")


def test_the_largest_rank_may_be_the_knee(make_result):
    text = headline(ranks(make_result, {1: [3.0, 3.1, 3.2], 8: [2.0, 2.1, 2.21], 16: [1.0, 1.12, 1.2]}))
    assert "rank 16 is the one to use, and a larger one was not tried" in text


def test_a_single_rank_cannot_be_compared(make_result):
    analysis = ranks(make_result, {4: [1.0, 1.1]})
    assert "cannot be compared" in headline(analysis)
    assert all("cannot answer this" in text for text in answers(analysis).values())


def test_a_users_arm_name_keeps_its_capitals(make_result):
    table = {
        "MyBig": ({"lora_rank": 16}, [1.0, 1.1, 1.2]),
        "MySmall": ({"lora_rank": 2}, [1.01, 1.12, 1.2]),
        "Tiny": ({"lora_rank": 1}, [3.0, 3.11, 3.2]),
    }
    assert "Rank 2 (MySmall)" in headline(analysis_of(arms(make_result, "rank_ablation", table)))


def test_three_seeds_and_what_they_can_show(make_result):
    text = what_seeds_can_show(ranks(make_result, {1: [1.0, 1.3, 1.2], 16: [1.0, 1.1, 1.2]}))
    assert (
        "With 3 seeds the exact sign-flip p cannot fall below 0.25, so it cannot reach .05 (six seeds could)"
        in text
    )
    assert re.search(r"r1 about \d+", text)


MODULES = {
    "qv": ({"target_modules": "qv"}, [1.50, 1.52, 1.51]),
    "qkvo": ({"target_modules": "qkvo"}, [1.40, 1.43, 1.41]),
    "mlp": ({"target_modules": "mlp"}, [1.20, 1.21, 1.22]),
    "mlp-low": ({"target_modules": "mlp", "layers_to_transform": (0, 1)}, [1.30, 1.325, 1.32]),
}


def test_module_questions(make_result, add_profile):
    results = arms(make_result, "module_ablation", MODULES)
    sizes = {"qv": 10_000, "qkvo": 20_000, "mlp": 30_000, "mlp-low": 15_000}
    results = [add_profile(r, parameters=sizes[r.arm], memory=1_000_000, step=0.1) for r in results]
    modules, layers, mlp = answers(analysis_of(results)).values()
    assert "mlp 1.210 ± 0.010; mlp-low 1.315 ± 0.013; qkvo" in modules
    assert "better for qkvo, mlp and mlp-low" in modules
    assert "not matched in trainable parameters (10,000 to 30,000)" in modules
    assert layers.startswith("mlp-low (layers 0 and 1) against mlp (all layers): +0.105")
    assert layers.endswith("worse.")
    assert mlp.startswith("Against qkvo, the largest arm without MLP modules")
    assert "Leaving the MLP out cost accuracy here: mlp and mlp-low did better." in mlp


def test_module_questions_without_the_arms_they_need(make_result):
    table = {name: MODULES[name] for name in ("qv", "qkvo")}
    _, layers, mlp = answers(analysis_of(arms(make_result, "module_ablation", table))).values()
    assert "cannot answer this" in layers
    assert "cannot answer it" in mlp


def test_quantization_questions(make_result, add_profile):
    table = {
        "nf4": ({"quantization": "4bit"}, [1.10, 1.21, 1.32]),
        "int8": ({"quantization": "8bit"}, [1.01, 1.09, 1.20]),
        "half": ({"quantization": "bf16"}, [1.0, 1.1, 1.2]),
    }
    costs = {"nf4": (3, 0.5), "int8": (5, 0.8), "half": (9, 0.4)}
    results = [
        add_profile(r, parameters=1000, memory=costs[r.arm][0] * 2**30, step=costs[r.arm][1])
        for r in arms(make_result, "quantization_study", table)
    ]
    four, eight, speed = answers(analysis_of(results)).values()
    # .10, .11, .12: mean .11, half width 4.30 x .01 / sqrt 3 = .025
    assert (
        "nf4 (4bit) against half (bf16): held-out loss +0.110 nats per token, 95 % interval [0.085, 0.135], n = 3: worse"
        in four
    )
    assert "peak memory is 5.00 GiB against 3.00 GiB (+66.7 %)" in eight
    assert "half (bf16): 400 ms a step, 3,000 tokens/s." in speed
    assert "int8 (8bit): 800 ms a step, 1,500 tokens/s (+100.0 % in step time)" in speed


def test_quantization_without_the_arms_it_needs(make_result):
    table = {"a": ({"quantization": "bf16"}, [1.0]), "b": ({"quantization": "fp16"}, [1.0])}
    four, eight, _ = answers(analysis_of(arms(make_result, "quantization_study", table))).values()
    assert "cannot answer it" in four
    assert "cannot answer it" in eight


def test_a_type_of_ones_own_gets_general_answers(make_result):
    table = {"a": ({}, [1.0, 1.1, 1.2]), "b": ({"lora_rank": 4}, [1.5, 1.61, 1.72])}
    analysis = analysis_of(arms(make_result, "my_own", table))
    accuracy, costs = answers(analysis).values()
    assert "worse for b" in accuracy
    assert costs == "Neither memory nor time was measured."


@pytest.mark.parametrize(
    ("rates", "losses", "said"),
    [
        ([1e-4], [1.0], "not tuned per arm (one value: 0.0001), so no arm can be called best"),
        ([1e-4, 1e-3], [1.0, 2.0], "on the edge of its grid for a0"),
        ([1e-4, 1e-3, 1e-2], [2.0, 1.0, 2.0], "each rate is an arm of its own"),
    ],
)
def test_learning_rate_caveat(make_result, rates, losses, said):
    table = {
        f"a{i}": ({"learning_rate": rate}, [loss])
        for i, (rate, loss) in enumerate(zip(rates, losses, strict=True))
    }
    (study,) = split_studies(arms(make_result, "own", table))
    assert said in learning_rate_caveat(learning_rates(study))


def test_rates_that_differ_between_configurations_are_not_tuning(make_result):
    table = {"a": ({"learning_rate": 1e-4}, [1.0]), "b": ({"learning_rate": 1e-3, "lora_rank": 4}, [1.0])}
    (study,) = split_studies(arms(make_result, "own", table))
    assert "0 of 2 configurations were run at more than one rate" in learning_rate_caveat(
        learning_rates(study)
    )


def test_a_difference_without_pairs_has_no_number(make_result):
    analysis = ranks(make_result, {1: [2.0], 16: [1.0]})
    comparison = replace(analysis.comparison("r1"), mean=None, differences={}, reason="no seed in common")
    assert difference(comparison) == "cannot tell (no seed in common)"
