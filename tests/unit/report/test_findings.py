"""The sentences: what they conclude, and that they conclude nothing from too little."""

import re

import pytest

from lorastudy.analysis.overview import analyse
from lorastudy.report.document import Strong
from lorastudy.report.findings.by_type import questions_of
from lorastudy.report.findings.recommendation import recommendation
from lorastudy.report.findings.wording import what_seeds_can_show
from lorastudy.stats.study import split_studies
from tuned import tuned_study


def analysis_of(results, *, tuned=True):
    return analyse(tuned_study(results) if tuned else split_studies(results)[0])


def answers(analysis):
    found = questions_of(analysis.study.experiment_type).findings(analysis)
    return {
        finding.question: "".join(span.text if isinstance(span, Strong) else span for span in finding.answer)
        for finding in found
    }


def headline(analysis):
    return questions_of(analysis.study.experiment_type).headline(analysis)


def recommended(analysis):
    return recommendation(analysis).why


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


def six(mean, *, spread=0.01):
    """Six losses about the mean, the same pattern of noise at each."""
    return [mean + spread * x for x in (0.0, 1.0, -1.0, 0.5, -0.5, 0.0)]


def test_rank_questions_are_answered_from_the_analysis(rank_study):
    analysis = analysis_of(rank_study)
    found = answers(analysis)
    assert list(found) == [
        "How does rank affect model accuracy?",
        "What is the memory overhead of higher ranks?",
        "Where are the diminishing returns?",
    ]
    accuracy, memory, returns = found.values()
    assert "Held-out loss: r32 is better than r1, r2, r4, r8 and r16." in accuracy
    assert "It fell at every step up." in accuracy
    # 9,000,000 + 60,000 r + 1,250 bytes at r = 32 and r = 1
    assert "10.4 MiB" in memory
    assert "8.64 MiB" in memory
    assert "1.77 MiB (+20.5 %)" in memory
    # .012 + .0001 r seconds
    assert memory.endswith(
        "A step alone takes 15.2 ms for rank 32 and 12.1 ms for rank 1; times that differ by at most 5 % count as equal."
    )
    assert "Rank 16 is the smallest rank that kept at least 95 % of the gain" in returns
    assert "observed, not proven" in returns
    assert returns.startswith("Step by step up the ranks the mean held-out loss changed by")
    assert len(re.findall(r"\u2212[\d.]+ \(\d+ to \d+\)", returns)) == 5


def test_the_headline_names_a_rank_and_its_price(rank_study):
    text = headline(analysis_of(rank_study))
    assert text.startswith("Rank 16 is the smallest rank")
    assert "with an adapter of 50 % of its size" in text
    assert text.endswith("n = 6: r32 is better.")


def test_a_rank_that_cannot_be_told_from_the_largest_leaves_the_choice_open(make_result):
    near = [1.01, 1.08, 1.23, 1.29, 1.42, 1.48]
    table = {1: [2.0, 2.1, 2.21, 2.3, 2.4, 2.5], 8: near, 16: [1.0, 1.1, 1.2, 1.3, 1.4, 1.5]}
    analysis = ranks(make_result, table)
    assert "cannot tell (even 1,000 seeds would not decide, if the difference is as observed)" in headline(
        analysis
    )
    assert recommendation(analysis).arm is None
    assert recommended(analysis) == (
        "Not decided: it is still between r8 and r16. Meanwhile use r16: it is the design's reference, and no other arm is "
        "shown to be better. More seeds would not decide it (even 1,000 seeds would not decide, if the "
        "difference is as observed)."
    )


def test_a_knee_that_was_seen_to_be_behind_is_not_said_to_cost_nothing(make_result):
    # r8 is behind r16 on five of six seeds: the interval excludes 0, the exact test does not reach .05.
    behind = [1.02, 1.12, 1.22, 1.32, 1.42, 1.499]
    table = {1: [3.0, 3.1, 3.21, 3.3, 3.4, 3.5], 8: behind, 16: [1.0, 1.1, 1.2, 1.3, 1.4, 1.5]}
    text = headline(ranks(make_result, table))
    assert "cannot tell (needs about 1 more seed)" in text
    assert recommended(ranks(make_result, table)).endswith("What would decide: for r8 about 1 more seed.")


def test_one_seed_concludes_nothing(make_result):
    analysis = ranks(make_result, {1: [2.0], 16: [1.0]})
    assert headline(analysis).startswith("It is open whether rank mattered here")
    assert (
        "n = 1: cannot tell (needs at least 5 more seeds)"
        in answers(analysis)["Where are the diminishing returns?"]
    )
    assert what_seeds_can_show(analysis).startswith(
        "With one seed no difference can be separated from the noise"
    )
    assert "it takes six to show a difference" in what_seeds_can_show(analysis)


def test_few_seeds_say_what_was_seen_and_that_they_are_too_few(make_result):
    table = {1: [2.0, 2.1, 2.21], 8: [1.02, 1.11, 1.22], 16: [1.0, 1.1, 1.2]}
    analysis = ranks(make_result, table)
    text = headline(analysis)
    # r1 minus r16: 1.0, 1.0, 1.01
    assert text.startswith(
        "Rank 16 had the better held-out loss on every seed (rank 1 minus rank 16: +1.003 nats per token, "
        "95 % interval [0.989, 1.018], n = 3), but that is not shown: 3 seeds are too few, six can show it."
    )
    assert text.endswith(
        "If the gain is as seen, rank 8 is the smallest rank that kept at least 95 % of it (98.3 %)."
    )
    accuracy, _, returns = answers(analysis).values()
    assert "Held-out loss: cannot tell r1 and r8 from r16. Seen but not shown (3 seeds" in accuracy
    assert "r1 +1.003 [0.989, 1.018]" in accuracy
    assert "there is no gain" not in returns


def test_few_seeds_do_not_hide_that_the_smaller_rank_was_ahead(make_result):
    text = headline(ranks(make_result, {1: [1.0, 1.1], 16: [2.0, 2.1001]}))
    assert text.startswith(
        "Rank 1 had the better held-out loss on every seed (rank 1 minus rank 16: \u22121.0"
    )
    assert "2 seeds are too few" in text
    assert "smallest rank that kept" not in text


def test_few_seeds_without_a_clear_interval_claim_nothing(make_result):
    analysis = ranks(make_result, {1: [1.0, 1.3, 1.2], 16: [1.0, 1.1, 1.2]})
    assert headline(analysis).startswith("It is open whether rank mattered here")
    returns = answers(analysis)["Where are the diminishing returns?"]
    assert returns.endswith("so there is no gain of which a smaller rank could keep a share.")
    assert "Seen but not shown" not in answers(analysis)["How does rank affect model accuracy?"]


def test_a_seed_that_points_the_other_way_is_counted(make_result):
    table = {1: [2.0, 2.05, 1.95, 2.02, 1.98, 0.99], 16: [1.0] * 6}
    text = headline(ranks(make_result, table))
    assert text.startswith("Rank 16 had the better held-out loss on 5 of 6 seeds")
    assert "that is not shown: the exact sign-flip test does not reach .05" in text


def test_a_gain_that_the_common_seeds_do_not_show_has_no_share(make_result):
    # r8 completed seed 0 only, on which r1 was ahead of r16; over all seven seeds r1 is worse.
    table = {1: [0.99, 2.05, 1.95, 2.02, 1.98, 2.01, 2.0], 8: [1.0], 16: [1.0] * 7}
    analysis = ranks(make_result, table)
    assert headline(analysis).startswith(
        "Over the seeds that every rank completed a larger rank did not help, though rank 1 against rank 16 is +0.86"
    )
    assert "no gain of which" in answers(analysis)["Where are the diminishing returns?"]


def test_a_larger_rank_that_did_worse_is_said_to_have(make_result):
    analysis = ranks(make_result, {1: six(1.0), 16: six(2.0, spread=0.02)})
    assert headline(analysis).startswith("A larger rank did not help here: rank 1 against rank 16")


def test_the_largest_rank_may_be_the_knee(make_result):
    analysis = ranks(make_result, {1: six(3.0, spread=0.03), 8: six(2.0, spread=0.02), 16: six(1.0)})
    text = headline(analysis)
    assert "No smaller rank kept 95 % of the gain" in text
    assert "rank 8 kept 50.0 %." in text
    assert "A larger rank was not tried." in recommended(analysis)
    assert text.endswith("n = 6: r16 is better.")


def test_the_largest_rank_is_not_the_one_to_use_where_the_next_is_not_shown_to_be_worse(make_result):
    # r8 kept half of a gain of .1, but its own difference is lost in its noise.
    table = {1: six(1.1), 8: six(1.05, spread=0.09), 16: six(1.0, spread=0.02)}
    text = headline(ranks(make_result, table))
    assert "No smaller rank kept 95 %" in text
    assert text.endswith(").")
    assert "cannot tell (needs about" in text


def test_ranks_at_several_rates_are_compared_at_the_best_of_each(make_result):
    # At rate 1e-4, the first listed, rank 16 is behind rank 1.
    best = {1: six(2.0, spread=0.02), 16: six(1.0)}
    table = {}
    for rank, losses in best.items():
        for rate, extra in ((1e-4, 0.1 * rank), (1e-3, 0.0), (1e-2, 0.3)):
            settings = {"lora_rank": rank, "lora_alpha": "2r", "learning_rate": rate}
            table[f"r{rank}_lr{rate:g}"] = (settings, [loss + extra for loss in losses])
    analysis = analysis_of(arms(make_result, "rank_ablation", table))
    text = headline(analysis)
    assert text.startswith(
        "No smaller rank kept 95 % of the gain in held-out loss from rank 1 (r1_lr0.001) to rank 16"
    )
    assert text.endswith("n = 6: r16_lr0.001 is better.")


def test_an_answer_about_some_of_the_arms_says_so(make_result):
    table = {
        "r1": ({"lora_rank": 1}, six(2.0, spread=0.02)),
        "r16": ({"lora_rank": 16}, six(1.0)),
        "r4-other": ({"lora_rank": 4, "lora_dropout": 0.1}, six(1.0)),
    }
    text = headline(analysis_of(arms(make_result, "rank_ablation", table)))
    assert text.endswith("(This is about the arms that differ from r16 only in rank and learning rate.)")


def test_a_single_rank_cannot_be_compared(make_result):
    analysis = ranks(make_result, {4: [1.0, 1.1]})
    assert "cannot be compared" in headline(analysis)
    assert all("cannot answer this" in text for text in answers(analysis).values())


def test_a_users_arm_name_keeps_its_capitals(make_result):
    table = {
        "MyBig": ({"lora_rank": 16}, six(1.0)),
        "MySmall": ({"lora_rank": 2}, six(1.01, spread=0.03)),
        "Tiny": ({"lora_rank": 1}, six(3.0, spread=0.02)),
    }
    assert "Rank 2 (MySmall)" in headline(analysis_of(arms(make_result, "rank_ablation", table)))


@pytest.mark.parametrize("name", ["r16", "rank_16", "rank_ablation_r16"])
def test_a_name_that_is_the_rank_is_not_repeated(make_result, name):
    table = {name: ({"lora_rank": 16}, six(1.0)), "r1": ({"lora_rank": 1}, six(3.0, spread=0.02))}
    assert f"({name})" not in headline(analysis_of(arms(make_result, "rank_ablation", table)))


def test_three_seeds_and_what_they_can_show(make_result):
    analysis = ranks(make_result, {1: [1.0, 1.3, 1.2], 16: [1.0, 1.1, 1.2]})
    text = what_seeds_can_show(analysis)
    assert (
        "With 3 seeds the exact sign-flip p cannot fall below 0.25, so no difference can be shown, however large; "
        "six seeds can show one." in text
    )
    # Differences 0, .2, 0: mean .0667, sd .1155, effect .577: 26 by the power of the t test, three of which there are.
    assert "for r1 about 23 more seeds" in recommended(analysis)


def test_seeds_that_would_decide_are_never_fewer_than_six(make_result):
    analysis = ranks(make_result, {1: [9.0, 9.001], 16: [1.0, 1.0]})
    assert "With 2 seeds the exact sign-flip p cannot fall below 0.5" in what_seeds_can_show(analysis)
    assert recommended(analysis).endswith("for r1 about 4 more seeds.")


def test_differences_that_are_equal_on_every_seed_promise_nothing(make_result):
    text = recommended(ranks(make_result, {1: [1.5, 1.6, 1.7], 16: [1.0, 1.1, 1.2]}))
    assert "would decide" not in text


def test_six_seeds_must_agree_and_seven_need_not(make_result):
    six_seeds = what_seeds_can_show(ranks(make_result, {1: six(2.0, spread=0.02), 16: six(1.0)}))
    assert six_seeds == (
        "With 6 seeds a difference can be shown only if every seed points the same way (exact sign-flip p 0.031)."
    )
    seven = what_seeds_can_show(ranks(make_result, {1: [*six(2.0), 2.1], 16: [*six(1.0), 1.0]}))
    assert seven == ""


MODULES = {
    "qv": ({"target_modules": "qv"}, [1.50, 1.52, 1.51, 1.50, 1.52, 1.51]),
    "qkvo": ({"target_modules": "qkvo"}, [1.40, 1.43, 1.41, 1.40, 1.43, 1.41]),
    "mlp": ({"target_modules": "mlp"}, [1.20, 1.21, 1.22, 1.20, 1.21, 1.22]),
    "mlp-low": (
        {"target_modules": "mlp", "layers_to_transform": (0, 1)},
        [1.30, 1.325, 1.32, 1.30, 1.325, 1.32],
    ),
}


def test_module_questions(make_result, add_profile):
    results = arms(make_result, "module_ablation", MODULES)
    sizes = {"qv": 10_000, "qkvo": 20_000, "mlp": 30_000, "mlp-low": 15_000}
    results = [add_profile(r, parameters=sizes[r.arm], memory=1_000_000, step=0.1) for r in results]
    modules, layers, mlp = answers(analysis_of(results)).values()
    assert "mlp 1.2100 ± 0.0089; mlp-low 1.315 ± 0.012; qkvo" in modules
    assert "qkvo, mlp and mlp-low are each better than qv" in modules
    assert "not matched in trainable parameters (10,000 to 30,000)" in modules
    assert layers.startswith("mlp-low (layers 0 and 1) against mlp (all layers): +0.105")
    assert mlp.startswith("Against qkvo, the largest arm without MLP modules")
    assert "The whole interval of mlp and mlp-low lies on the better side, which speaks for the MLP." in mlp
    for outside_the_family in (layers, mlp):
        assert outside_the_family.endswith("so they have no verdicts.)")
        assert not re.search("is better|worse|cannot tell", outside_the_family)


def first_seeds(table, num_seeds):
    return {arm: (settings, losses[:num_seeds]) for arm, (settings, losses) in table.items()}


def test_modules_on_three_seeds_are_seen_but_not_shown(make_result):
    analysis = analysis_of(arms(make_result, "module_ablation", first_seeds(MODULES, 3)))
    modules, _, mlp = answers(analysis).values()
    assert "cannot tell qkvo, mlp and mlp-low from qv. Seen but not shown (3 seeds are too few" in modules
    assert "better" not in modules
    assert "The whole interval of mlp and mlp-low lies on the better side" in mlp
    assert "Seen but not shown (3 seeds are too few, six can show it): qkvo \u2212" in headline(analysis)


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        (six(2.0, spread=0.02), "which speaks against the MLP."),
        (six(1.4, spread=0.05), "No arm with MLP modules was seen to be ahead;"),
    ],
)
def test_an_mlp_that_was_not_ahead(make_result, losses, said):
    table = {"qv": ({"target_modules": "qv"}, six(1.4)), "mlp": ({"target_modules": "mlp"}, losses)}
    assert (
        said
        in answers(analysis_of(arms(make_result, "module_ablation", table)))["Is MLP fine-tuning necessary?"]
    )


def test_the_cheapest_arm_is_not_named_for_being_open(make_result, add_profile):
    memory = {"qv": 30, "qkvo": 20, "mlp": 40, "mlp-low": 10}
    table = {**first_seeds(MODULES, 3), "mlp-low": ({"target_modules": "all"}, [1.9, 1.91, 1.92])}
    results = [
        add_profile(r, parameters=1, memory=memory[r.arm] * 2**20, step=0.1)
        for r in arms(make_result, "module_ablation", table)
    ]
    analysis = analysis_of(results)
    told = answers(analysis)["Can we skip some layers for efficiency?"]
    assert "Of the arms that no interval puts behind qv, qkvo needs the least memory (20.0 MiB)" in told
    assert (
        "Meanwhile use mlp: it is the best so far (preliminary): its whole 95 % interval is ahead of qv."
        in recommended(analysis)
    )
    without = analysis_of([r for r in results if r.arm in {"qv", "mlp-low"}])
    assert (
        "Every arm that needs less memory than qv is behind by its interval, or not validly compared."
        in answers(without)["Can we skip some layers for efficiency?"]
    )
