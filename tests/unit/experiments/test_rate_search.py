"""The search for a learning rate, with results that follow a curve instead of training."""

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorastudy.errors import SuiteFileError
from lorastudy.experiments.expansion import expand
from lorastudy.experiments.rate_search import DIVERGED, Design, Merit, design
from lorastudy.spec.experiment import Experiment
from lorastudy.spec.loading import load_suite
from lorastudy.spec.rates import MAX_RUNGS_BEYOND, nearest_rung
from lorastudy.spec.suite import Suite

Curve = Callable[[Experiment], Merit]

RANKS = "experiment_type: rank_ablation\nlearning_rate: auto\nmax_steps: 200\nseeds: [0, 1, 2]\ntuning_seeds: [3, 4]\nfactors: {lora_rank: [1, 8]}"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Suite]:
    monkeypatch.chdir(tmp_path)

    def write_suite(text: str) -> Suite:
        Path("s.yaml").write_text(text, encoding="utf-8")
        return load_suite(Path("s.yaml"))

    return write_suite


def designed(suite: Suite, merits: Mapping[str, Merit] | None = None) -> Design:
    known = merits or {}

    def merits_of(experiments: Sequence[Experiment]) -> dict[str, Merit]:
        return {each.id: known[each.id] for each in experiments if each.id in known}

    return design(suite, fingerprint_dataset=str, fingerprint_base=str, merits_of=merits_of)


def rounds(suite: Suite, curve: Curve) -> list[Design]:
    """Every design on the way, each run in full, until nothing more is asked for."""
    merits: dict[str, Merit] = {}
    made = [designed(suite)]
    while True:
        merits |= {each.id: curve(each) for each in made[-1].experiments}
        following = designed(suite, merits)
        if following == made[-1]:
            return made
        made.append(following)


def best_at(rate: float, *, diverges_above: float = math.inf) -> Curve:
    """Loss is the squared distance from the best rate, in powers of ten."""

    def curve(experiment: Experiment) -> Merit:
        here = experiment.settings.learning_rate
        if here > diverges_above:
            return DIVERGED
        loss = math.log10(here / rate) ** 2
        return (loss, loss)

    return curve


def rates_by_seed(made: Design, arm: str = "_r1_") -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for each in made.experiments:
        if arm in each.name:
            found.setdefault(each.seed, []).append(each.settings.learning_rate)
    return found


def test_the_first_round_is_the_published_rule_with_the_tuning_seeds(write) -> None:
    first = designed(write(RANKS))
    assert rates_by_seed(first) == {3: [2e-3, 5e-3, 1e-2], 4: [2e-3, 5e-3, 1e-2]}
    assert len(first.experiments) == 2 * 3 * 2
    assert first.reporting == ()
    assert first.num_open == 2
    assert first.experiments[0].name == "rank_ablation_r1_lr0.002_seed3"


def test_a_best_rate_inside_is_run_with_the_seeds_that_report_and_nothing_else(write) -> None:
    first, last = rounds(write(RANKS), best_at(5e-3))
    new = [each for each in last.experiments if each not in first.experiments]
    assert [(each.settings.learning_rate, each.seed) for each in new] == [(5e-3, s) for s in (0, 1, 2)] * 2
    assert set(last.reporting) == set(new)
    assert last.num_open == 0


def test_a_best_rate_on_the_edge_widens_the_grid_by_one_rate_at_a_time(write) -> None:
    made = rounds(write(RANKS), best_at(4e-2))
    assert [max(each.settings.learning_rate for each in one.experiments) for one in made] == [
        1e-2, 2e-2, 5e-2, 0.1, 0.1,
    ]  # fmt: skip
    assert {each.settings.learning_rate for each in made[-1].reporting} == {5e-2}
    assert len(rates_by_seed(made[-1])[3]) == 6


def test_each_arm_finds_its_own(write) -> None:
    def curve(experiment: Experiment) -> Merit:
        return best_at(2e-2 if experiment.settings.lora_rank == 1 else 5e-3)(experiment)

    last = rounds(write(RANKS), curve)[-1]
    found = {each.settings.lora_rank: each.settings.learning_rate for each in last.reporting}
    assert found == {1: 2e-2, 8: 5e-3}


@settings(max_examples=25, deadline=None)
@given(st.floats(6e-5, 0.4))
def test_the_chosen_rate_is_the_nearest_and_lies_inside_what_was_tried(rate: float) -> None:
    last = rounds(_flags(), best_at(rate))[-1]
    (chosen,) = {each.settings.learning_rate for each in last.reporting}
    tried = {each.settings.learning_rate for each in last.experiments}
    assert nearest_rung(chosen) == nearest_rung(rate)
    assert min(tried) < chosen < max(tried)


def _flags() -> Suite:
    from lorastudy.spec.loading import suite_from_values

    return suite_from_values({"learning_rate": "auto", "max_steps": 200}, where="test")


def test_a_rate_that_diverges_is_an_edge_that_was_tried(write) -> None:
    last = rounds(write(RANKS), best_at(1e-2, diverges_above=1e-2))[-1]
    assert {each.settings.learning_rate for each in last.reporting} == {1e-2}
    assert max(each.settings.learning_rate for each in last.experiments) == 2e-2


def test_one_seed_that_diverges_rules_the_rate_out(write) -> None:
    def curve(experiment: Experiment) -> Merit:
        if experiment.settings.learning_rate == 5e-3 and experiment.seed == 4:
            return DIVERGED
        return best_at(5e-3)(experiment)

    (chosen,) = {each.settings.learning_rate for each in rounds(write(RANKS), curve)[-1].reporting}
    assert chosen != 5e-3


def test_where_everything_diverges_the_search_goes_down_and_then_gives_up(write) -> None:
    last = rounds(write(RANKS), lambda _: DIVERGED)[-1]
    assert last.reporting == ()
    assert last.num_open == 0
    assert len(rates_by_seed(last)[3]) == 3 + MAX_RUNGS_BEYOND


def test_a_loss_that_falls_for_ever_ends_at_the_bound(write) -> None:
    last = rounds(write(RANKS), lambda each: (-each.settings.learning_rate, 0.0))[-1]
    assert {each.settings.learning_rate for each in last.reporting} == {1.0}  # six rungs above 1e-2
    assert len(rates_by_seed(last)[3]) == 3 + MAX_RUNGS_BEYOND


@given(st.floats(-6, 1), st.floats(-6, 1))
@settings(deadline=None, max_examples=30)
def test_how_many_runs_are_to_come_is_known_within_bounds_at_every_round(low: float, high: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "s.yaml").write_text(RANKS, encoding="utf-8")
        suite = load_suite(Path(folder) / "s.yaml")
    curves = {1: best_at(10.0**low), 8: best_at(10.0**high)}
    way = rounds(suite, lambda each: curves[each.settings.lora_rank](each))
    for made in way:
        least, most = (len(made.experiments) + more for more in made.to_come)
        assert least <= len(way[-1].experiments) <= most
    assert way[-1].to_come == (0, 0)


def test_the_bounds_are_met(write) -> None:
    """Two arms at three rates with two tuning seeds, then three seeds each; at most six further rates each."""
    first = designed(write(RANKS))
    assert (len(first.experiments), first.to_come) == (12, (6, 6 + 2 * MAX_RUNGS_BEYOND * 2))
    inside = rounds(write(RANKS), best_at(5e-3))[-1]
    assert len(inside.experiments) == 12 + 6
    for_ever = rounds(write(RANKS), lambda each: (-each.settings.learning_rate, 0.0))[-1]
    assert len(for_ever.experiments) == 12 + 6 + 2 * MAX_RUNGS_BEYOND * 2


def test_equal_metrics_are_told_apart_by_the_loss(write) -> None:
    """Exact match may be 1 at several rates."""
    last = rounds(write(RANKS), lambda each: (-1.0, best_at(5e-3)(each)[1]))[-1]
    assert {each.settings.learning_rate for each in last.reporting} == {5e-3}


def test_nothing_is_decided_while_a_run_has_not_ended(write) -> None:
    suite = write(RANKS)
    first = designed(suite)
    merits = {each.id: best_at(1e-2)(each) for each in first.experiments}
    merits.pop(first.experiments[-1].id)  # of rank 8, at its highest rate
    half = designed(suite, merits)
    assert max(rates_by_seed(half, "_r1_")[3]) == 2e-2
    assert half.num_open == 2
    assert rates_by_seed(half, "_r8_") == rates_by_seed(first, "_r8_")


def test_the_runs_are_those_of_a_list_of_rates(write) -> None:
    """So results are shared with a suite that lists the rates, and with one that is run again."""
    auto = designed(write(RANKS + "\ntest_fraction: 0.1"))
    listed = write(
        RANKS.replace("auto", "[2e-3, 5e-3, 1e-2]")
        .replace("tuning_seeds: [3, 4]\n", "")
        .replace("[0, 1, 2]", "[3, 4]")
        + "\ntest_fraction: 0.1"
    )
    assert {each.id for each in auto.experiments} == {
        each.id for each in expand(listed, fingerprint_dataset=str, fingerprint_base=str)
    }


def test_arms_with_a_rate_of_their_own_stand_beside_those_that_seek_one(write) -> None:
    suite = write(
        "max_steps: 200\nexperiments: [{name: seeks, learning_rate: auto}, {name: fixed, learning_rate: 1e-3, seeds: [2]}]"
    )
    made = designed(suite)
    assert suite.tuning_seeds == (1_000_000, 1_000_001)
    assert [each.name for each in made.reporting] == ["fixed"]


def test_seeds_that_are_added_later_leave_the_tuning_seeds_as_they_were(write) -> None:
    before, after = (
        write(f"learning_rate: auto\nmax_steps: 9\nseeds: {seeds}")
        for seeds in ("[0, 1, 2]", "[0, 1, 2, 3, 4, 5]")
    )
    assert before.tuning_seeds == after.tuning_seeds


# --- what a file may say ----------------------------------------------------------------------------------


def test_a_search_keeps_test_rows_apart(write) -> None:
    (held_out,) = write("experiments: [{learning_rate: auto}]").arms
    (from_file,) = write("eval_dataset_path: s.yaml\nexperiments: [{learning_rate: auto}]").arms
    (given_share,) = write("test_fraction: 0.3\nexperiments: [{learning_rate: auto}]").arms
    (given_file,) = write("test_dataset_path: s.yaml\nexperiments: [{learning_rate: auto}]").arms
    assert [arm.settings.test_fraction for arm in (held_out, from_file, given_share, given_file)] == [
        0.1,
        0.5,
        0.3,
        None,
    ]
    assert write("experiments: [{learning_rate: auto}]").question.reporting_split == "test"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("experiments: [{learning_rate: [auto, 1e-4]}]", "auto makes a list of its own; give it alone"),
        ("experiments: [{learning_rate: aut}]", r"learning_rate: must be a number .* or auto, not 'aut' \(did you mean auto\?\)"),
        ("tuning_seeds: [0, 9]\nexperiments: [{learning_rate: auto}]", "the seed 0 is among `seeds` too"),
        ("tuning_seeds: [7, 7]\nexperiments: [{learning_rate: auto}]", "a seed stands twice"),
        ("primary_metric: exact_match\nmax_generation_samples: 0\nexperiments: [{}]", "primary_metric: exact_match is not measured where max_generation_samples is 0"),
        ("tuning_seeds: [7]\nexperiments: [{learning_rate: auto}]", "tuning_seeds: must be a list"),
    ],
)  # fmt: skip
def test_mistakes_are_told(write, text: str, message: str) -> None:
    with pytest.raises(SuiteFileError, match=message):
        write(text)
