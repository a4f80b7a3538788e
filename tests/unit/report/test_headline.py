"""The first screen: an answer in at most 120 words before the first chart, and in at most ten lines on a terminal."""

import math
import re
from dataclasses import replace

import pytest

from lorastudy.analysis.overview import Criterion, analyse
from lorastudy.recommend.decision import decide
from lorastudy.report import write
from lorastudy.report.figures.data import frontier_figure
from lorastudy.report.findings.headline import headline
from lorastudy.report.findings.recommendation import recommendation
from lorastudy.report.read import read_report
from lorastudy.report.sections.costs import frontier_blocks
from lorastudy.report.write import write_report
from lorastudy.stats.study import split_studies
from tuned import at_worse_rates, tuned_study

NOISE = (0.0, 0.01, -0.01, 0.005, -0.005, 0.002)
#: The title, the adapter and the next command stand beside the sentences.
OTHER_LINES = 3


@pytest.fixture
def analysis_of(make_result, add_profile):
    """From {rank: (mean loss, wobble of its noise)}, with a quarter of the parameters for a quarter of the rank."""

    def analysis_of(table, *, seeds=6, tuned=True, kind="own", engines=None, memory=None, **criterion):
        results = [
            add_profile(
                make_result(
                    f"arm_{rank}", seed, experiment_type=kind, settings={"lora_rank": rank},
                    scores={("eval", "loss"): mean + wobble * NOISE[seed]},
                    engine=(engines or {}).get(rank, "packed"),
                ),
                parameters=1000 * rank, memory=(memory or {}).get(rank, rank) * 2**20, step=0.1,
            )
            for rank, (mean, wobble) in table.items()
            for seed in range(seeds)
        ]  # fmt: skip
        study = tuned_study(results) if tuned else split_studies(results)[0]
        return analyse(study.labelled(), criterion=Criterion(**criterion))

    return analysis_of


def test_an_arm_that_is_as_good_is_named_with_what_it_saves(analysis_of):
    table = {4: (2.0, 1), 16: (1.001, 1.5), 64: (1.0, 2)}
    told = headline(analysis_of(table, kind="rank_ablation", margin=0.1))
    assert told.arm == "r=16"
    assert told.answer == (
        "Use r=16: as good as r=64 within the margin of 0.1 nats per token, with a quarter of its parameters."
    )
    assert told.how_sure.startswith("r=16 minus r=64 is +0.0008 nats per token, 95 % interval [")
    assert told.how_sure.endswith(", over 6 seeds.")
    assert told.cost.startswith("r=16 needs 16.0 MiB at its peak, 100 ms a step and an adapter of ")
    assert told.what_decides == ""


def test_an_arm_that_is_better_is_named(analysis_of):
    assert headline(analysis_of({4: (2.0, 1), 16: (1.0, 2)})).answer == "Use r=16: better than r=4."
    every = {4: (1.0, 1), 16: (2.0, 2), 64: (1.5, 3)}
    assert headline(analysis_of(every)).answer == "Use r=4: better than every other arm."


def test_how_sure_shows_the_arm_against_the_best_one(analysis_of):
    # The first arm is neither the one that is taken nor the best: r=4 needs the least memory, r=64 has the lowest loss.
    analysis = analysis_of({16: (1.02, 2), 4: (1.05, 1.5), 64: (1.0, 1)}, margin=0.2)
    assert (decide(analysis).reason, decide(analysis).arm) == ("as good as the best", "r=4")
    told = headline(analysis)
    assert (
        told.answer
        == "Use r=4: within the margin of 0.2 nats per token of the best arm, and the cheapest that is."
    )
    assert told.how_sure.startswith("r=4 minus r=64 is +0.05")


def test_an_arm_without_a_known_cost_is_not_called_the_cheapest(analysis_of):
    within = analysis_of({16: (1.02, 2), 4: (1.05, 1.5), 64: (1.0, 1)}, margin=0.2)
    ahead = analysis_of({64: (3.0, 1), 16: (1.0, 2), 4: (1.001, 1.5)}, reference="arm_64")
    equal = analysis_of({16: (1.02, 2), 4: (1.05, 1.5)}, margin=0.2, reference="arm_16")
    for analysis in (within, ahead, equal):
        unknown = without_costs(analysis)
        assert (decide(unknown).arm, decide(unknown).cheapest_by) == ("r=16", "order")
        assert "first in the suite" in headline(unknown).answer
        assert "cheap" not in headline(unknown).answer
        assert (
            "cheapest" in headline(analysis).answer or decide(analysis).reason == "as good as the reference"
        )


def without_costs(analysis):
    """The same study, of which nobody measured memory or counted parameters."""
    arms = [
        replace(arm, results=tuple(replace(run, profile=None) for run in arm.results))
        for arm in analysis.study.arms
    ]
    return analyse(replace(analysis.study, arms=tuple(arms)), criterion=analysis.criterion)


#: The small rank is trained by PEFT and needs twice the memory of the large one, since PEFT keeps more activations.
BY_TWO_ENGINES = {"engines": {4: "reference"}, "memory": {4: 32}}


def test_memory_of_two_engines_chooses_no_arm_and_is_no_saving(analysis_of):
    table = {16: (1.0, 2), 4: (1.001, 1.5)}
    by_one = analysis_of(table, reference="arm_16", margin=0.1, memory={4: 32})
    assert (decide(by_one).arm, decide(by_one).cheapest_by) == ("r=16", "memory")
    by_two = analysis_of(table, reference="arm_16", margin=0.1, **BY_TWO_ENGINES)
    assert (decide(by_two).arm, decide(by_two).cheapest_by) == ("r=4", "parameters")
    told = headline(by_two)
    assert told.answer.endswith("with a quarter of its parameters.")
    assert told.cost.endswith("Another engine trained r=16, so its memory and time are not comparable.")
    assert "r=16 needs" not in told.cost


def test_memory_of_two_engines_puts_no_arm_on_the_frontier(analysis_of):
    # By memory the worse arm is on the frontier too.
    table = {4: (2.0, 1), 16: (1.0, 2)}
    by_one, by_two = analysis_of(table), analysis_of(table, engines={4: "reference"})
    assert by_one.frontier == ("r=4", "r=16")
    assert by_two.frontier == ("r=16",)
    assert [one.arm for one in by_one.standings if one.on_frontier] == ["r=4", "r=16"]
    assert [one.arm for one in by_two.standings if one.on_frontier] == ["r=16"]
    assert {one.memory_bytes for one in by_two.standings} == {None}
    assert frontier_figure(by_one) is not None
    assert frontier_figure(by_two) is None
    why = "Peak memory and step time are left out: different engines trained the arms"
    assert why in str(frontier_blocks(by_two, figures=(), level=2))
    assert why not in str(frontier_blocks(by_one, figures=(), level=2))


def against_the_base(analysis, *, base):
    """The same study, with the base model's held-out loss."""
    before = ("eval_before", "loss")
    arms = [
        replace(
            arm,
            results=tuple(
                replace(run, scores={**run.scores, before: replace(run.scores[("eval", "loss")], value=base)})
                for run in arm.results
            ),
        )
        for arm in analysis.study.arms
    ]
    return analyse(replace(analysis.study, arms=tuple(arms)), criterion=analysis.criterion)


def test_training_made_an_arm_worse_only_if_that_is_shown_for_every_arm(analysis_of):
    table = {4: (2.2, 1), 16: (2.1, 2)}
    shown = against_the_base(analysis_of(table), base=2.0)
    assert headline(shown).answer == "Use the base model as it is: training made every arm worse."
    # Three seeds show nothing, however large the rise; nor do six if the interval has 0 in it: .002 with a spread of .007.
    few = against_the_base(analysis_of(table, seeds=3), base=2.0)
    noisy = against_the_base(analysis_of({4: (2.002, 1), 16: (2.002, 1)}), base=2.0)
    for analysis in (few, noisy):
        assert decide(analysis).arm is None
        assert headline(analysis).answer == (
            "Cannot tell yet whether training helped: the mean held-out loss of r=4 and r=16 is above the base model's, which may be "
            "noise."
        )
        assert "made" not in recommendation(analysis).answer


def test_harm_of_one_arm_is_no_reason_to_use_the_base_model(analysis_of):
    # r=4 is shown to be worse than the base model, r=16 is not, and it is not shown to be better than r=4.
    some = against_the_base(analysis_of({4: (2.1, 1), 16: (2.1, 60)}), base=2.0)
    assert headline(some).answer == (
        "Cannot tell yet whether training helped: training made r=4 worse; the mean held-out loss of r=16 is above the base model's, "
        "which may be noise."
    )


def test_what_is_open_says_what_would_decide(analysis_of):
    told = headline(analysis_of({4: (1.0, 1), 16: (1.004, 6)}))
    assert told.answer == (
        "Cannot tell yet: no arm is told apart from r=4. Meanwhile use that one, the suite's first arm."
    )
    assert re.fullmatch(r"About [\d,]+ more seeds(, and .* in all)? of these two arms\.", told.what_decides)


def test_too_few_seeds_name_the_arm_that_leads_with_its_whole_interval(analysis_of):
    """r=16 and r=64 lead r=4 on each of three seeds; r=64 has the better mean. Six seeds could show it."""
    analysis = analysis_of({4: (2.0, 1), 16: (1.5, 1.1), 64: (1.4, 1.2)}, seeds=3)
    told = headline(analysis)
    assert told.arm == "r=64"
    assert told.answer == (
        "Cannot tell yet: 3 seeds are too few for a verdict, which needs 6. Meanwhile use r=64, the best so far (preliminary): "
        "its whole 95 % interval is ahead of r=4."
    )
    assert decide(analysis).status == "not decided"


def test_too_few_seeds_leave_the_first_arm_where_no_other_leads(analysis_of):
    told = headline(analysis_of({4: (1.0, 1), 16: (0.999, 6)}, seeds=3))
    assert told.arm == "r=4"
    behind = headline(analysis_of({4: (1.0, 1), 16: (1.5, 1.1)}, seeds=3))
    assert behind.arm == "r=4"


def test_untuned_arms_are_never_called_better(analysis_of):
    told = headline(analysis_of({4: (2.0, 1), 16: (1.0, 2)}, tuned=False))
    assert told.answer == (
        "Cannot tell yet: no arm had its learning rate tuned. At the one learning rate that was tried (0.0002) it would be r=16: "
        "ahead of r=4."
    )
    assert told.what_decides == "A recommendation needs learning_rate: auto, or three rates for each arm."


@pytest.mark.parametrize("seeds", [1, 2, 6])
@pytest.mark.parametrize("tuned", [True, False])
@pytest.mark.parametrize("losses", [(1.0, 1.0), (1.0, 2.0), (2.0, 1.0)])
def test_it_names_the_arm_of_the_decision(analysis_of, seeds, tuned, losses):
    first, second = losses
    analysis = analysis_of({4: (first, 1), 16: (second, 2)}, seeds=seeds, tuned=tuned)
    told, decision = headline(analysis), decide(analysis)
    assert told.arm == decision.arm
    assert str(decision.arm) in told.answer
    assert told.answer.startswith("Use ") == decision.is_recommended


def of_many_arms(make_rank_results):
    """Sixteen arms with long labels, all of them open."""
    return [
        replace(result, settings={**result.settings, "weight_decay": decay, "lora_dropout": decay}, arm=f"{result.arm}_{decay}", experiment_id=f"{result.experiment_id}/{decay}")
        for result in make_rank_results(ranks=(1, 2, 4, 8), num_seeds=2)
        for decay in (0.0, 0.1, 0.2, 0.3)
    ]  # fmt: skip


def test_at_most_120_words_stand_before_the_first_chart(
    rank_study, make_rank_results, make_tracker, tmp_path, monkeypatch
):
    monkeypatch.setattr(write, "save_figure", lambda figure, folder: [])
    many = of_many_arms(make_rank_results)
    for results in (rank_study, [*rank_study, *at_worse_rates(rank_study)], many, rank_study[:6]):
        tracker = make_tracker(results)
        tracker.description = "A description that says much. " * 40
        write_report(tracker, output=tmp_path / "RESULTS.md")
        front, chart, _ = (tmp_path / "RESULTS.md").read_text(encoding="utf-8").partition("![")
        assert chart
        assert len(front.split()) <= 120, front
        (summary,) = read_report(tracker).summaries
        taken = sum(math.ceil(len(line) / 76) for line in summary.lines())  # of 80 columns, two are an indent
        assert taken + OTHER_LINES <= 10, summary.lines()


def test_sections_come_in_the_order_of_use(rank_study, make_tracker, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "save_figure", lambda figure, folder: [])
    write_report(make_tracker(rank_study), output=tmp_path / "RESULTS.md")
    found = re.findall(
        r"^## (.*)$", (tmp_path / "RESULTS.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    first = ["Results", "Paired comparisons with r=32", "Recommendation", "Findings", "What limits this"]
    assert found[:5] == first
    assert found[5] == "Fairness of the comparison"
    assert found[-1] == "Reproduce"
