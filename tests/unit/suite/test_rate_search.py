"""The search for learning rates: which rates are tried, what is chosen from them, and the ladder beneath."""

import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorastudy.errors import SuiteFileError
from lorastudy.suite.base_model import read_config
from lorastudy.suite.experiment import Experiment
from lorastudy.suite.finals import Finalist, Finals
from lorastudy.suite.parabola import parabola
from lorastudy.suite.rate_search import (
    DIVERGED,
    MAX_PLACES_BEYOND,
    Design,
    Merit,
    design,
    first_places,
    nearest_place,
    published_rate,
    rate_of,
)
from lorastudy.suite.suite import Suite, expand
from lorastudy.suite.suite_file import load_suite, suite_from_values

Curve = Callable[[Experiment], Merit | None]

RANKS = "experiment_type: rank_ablation\nlearning_rate: auto\nmax_steps: 200\nseeds: [0, 1, 2]\ntuning_seeds: [3, 4]\nfactors: {lora_rank: [1, 8]}"
FIVE_RANKS = RANKS.replace("[1, 8]", "[4, 8, 16, 32, 64]")


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Suite]:
    monkeypatch.chdir(tmp_path)

    def write_suite(text: str) -> Suite:
        Path("s.yaml").write_text(text, encoding="utf-8")
        return load_suite(Path("s.yaml"))

    return write_suite


def designed(suite: Suite, merits: Mapping[str, Merit | None] | None = None) -> Design:
    return design(suite, fingerprint_dataset=str, fingerprint_base=str, merits=merits)


def rounds(suite: Suite, curve: Curve) -> list[Design]:
    """Every design on the way, each run in full, until nothing more is asked for."""
    merits: dict[str, Merit | None] = {}
    made = [designed(suite)]
    while True:
        merits |= {each.id: curve(each) for each in made[-1].experiments if each.id not in merits}
        following = designed(suite, merits)
        if following == made[-1]:
            return made
        made.append(following)


def finished(suite: Suite, curve: Curve) -> Design:
    """The last design: every run that is asked for has ended."""
    return rounds(suite, curve)[-1]


def best_at(rate: float, *, diverges_above: float = math.inf) -> Curve:
    """Loss is the squared distance from the best rate, in powers of ten."""

    def curve(experiment: Experiment) -> Merit:
        here = experiment.settings.learning_rate
        if here > diverges_above:
            return DIVERGED
        loss = math.log10(here / rate) ** 2
        return Merit(0, loss, loss)

    return curve


def falling(experiment: Experiment) -> Merit:
    """The higher the rate, the better, for ever."""
    return Merit(0, -experiment.settings.learning_rate, 0.0)


def rates(made: Design, rank: int, *, tuning: bool = True) -> list[float]:
    """The rates that an arm is tried at, or with `tuning=False` reported at."""
    return sorted(
        {
            each.settings.learning_rate
            for each in made.experiments
            if each.settings.lora_rank == rank and (each.id in made.tuning) == tuning
        }
    )


def rate_found(made: Design, rank: int = 1) -> float:
    (rate,) = rates(made, rank, tuning=False)
    return rate


def test_one_arm_begins_at_the_published_rule_with_one_seed(write) -> None:
    first = designed(write(RANKS))
    assert [(e.settings.lora_rank, e.settings.learning_rate, e.seed) for e in first.experiments] == [
        (1, 2e-3, 3), (1, 5e-3, 3), (1, 1e-2, 3),
    ]  # fmt: skip
    assert first.reporting == ()
    assert first.num_open == 2
    assert first.experiments[0].name == "rank_ablation_r1_lr0.002"
    assert [e.settings.lora_rank for e in first.waiting] == [8]
    assert {e.settings.lora_rank for e in first.of_every_arm} == {1, 8}


def test_the_others_begin_around_the_rate_that_their_neighbour_in_rank_found(write) -> None:
    """The middle rank begins; then those beside it; then those beside these."""
    best = {4: 5e-2, 8: 3e-2, 16: 2e-2, 32: 1e-2, 64: 5e-3}
    way = rounds(write(FIVE_RANKS), lambda each: best_at(best[each.settings.lora_rank])(each))
    order = [{e.settings.lora_rank for e in made.experiments if e.id in made.tuning} for made in way]
    assert [ranks for ranks, before in zip(order, [set(), *order], strict=False) if ranks != before] == [
        {16}, {8, 16, 32}, {4, 8, 16, 32}, {4, 8, 16, 32, 64},
    ]  # fmt: skip
    # 0.02 of rank 16, then one place to each side; 32 and 64 find themselves on the edge and look on once
    assert rates(way[-1], 16) == [2e-3, 5e-3, 1e-2, 2e-2, 5e-2]
    assert rates(way[-1], 32) == [5e-3, 1e-2, 2e-2, 5e-2]
    assert rates(way[-1], 64) == [2e-3, 5e-3, 1e-2, 2e-2]
    assert [rate_found(way[-1], rank) for rank in best] == [5e-2, 3e-2, 2e-2, 1e-2, 5e-3]


def test_the_rate_that_is_reported_lies_where_a_parabola_is_lowest(write) -> None:
    first, second, *_, last = rounds(write(RANKS), best_at(6.3e-3))
    assert rates(first, 1) == rates(second, 1) == [2e-3, 5e-3, 1e-2]
    assert rate_found(second) == 6.3e-3
    new = [each for each in last.experiments if each.id not in last.tuning]
    assert [(e.settings.lora_rank, e.settings.learning_rate, e.seed) for e in new] == [
        (rank, 6.3e-3, seed) for rank in (1, 8) for seed in (0, 1, 2)
    ]
    assert set(last.reporting) == set(new)
    assert (last.num_open, last.waiting) == (0, ())
    # three runs with one seed for each of two arms, and three that report
    assert len(last.experiments) == 2 * (3 + 3)


def test_a_best_rate_on_the_edge_widens_the_grid_by_one_rate_at_a_time(write) -> None:
    made = rounds(write(RANKS), best_at(4e-2))
    assert [rates(one, 1)[-1] for one in made if rates(one, 8) == []] == [1e-2, 2e-2, 5e-2, 0.1]
    assert len(rates(made[-1], 1)) == 6
    assert rates(made[-1], 8) == [2e-2, 5e-2, 0.1]
    assert [rate_found(made[-1], rank) for rank in (1, 8)] == [4e-2, 4e-2]


def test_arms_that_differ_in_more_than_rank_wait_for_the_nearest(write) -> None:
    suite = write(
        "experiment_type: custom\nlearning_rate: auto\nmax_steps: 200\nexperiments:\n"
        "  - {name: a, lora_rank: 8}\n  - {name: b, lora_rank: 16}\n"
        "  - {name: c, lora_rank: 16, target_modules: mlp}\n  - {name: d, lora_rank: 64, target_modules: mlp}\n"
    )
    best = {"a": 5e-3, "b": 1e-2, "c": 2e-2, "d": 5e-2}
    way = rounds(suite, lambda each: best_at(best[each.arm[0]])(each))
    begun = [sorted({e.arm[0] for e in made.experiments}) for made in way]
    assert [arms for arms, before in zip(begun, [[], *begun], strict=False) if arms != before] == [
        ["b"], ["a", "b", "c"], ["a", "b", "c", "d"],
    ]  # fmt: skip
    assert {e.arm[0]: e.settings.learning_rate for e in way[-1].reporting} == best


def test_a_neighbours_rate_moves_as_the_rule_does_between_two_base_models(write, tmp_path: Path) -> None:
    """Llama's power is 0.781: at twice the hidden size the rule names 0.58 of the rate."""
    for size in (512, 1024):
        (tmp_path / f"m{size}").mkdir()
        (tmp_path / f"m{size}" / "config.json").write_text(
            f'{{"model_type": "llama", "hidden_size": {size}}}'
        )
        (tmp_path / f"m{size}" / "model.safetensors").touch()
    suite = write(
        "learning_rate: auto\nmax_steps: 200\nexperiments:\n"
        "  - {name: small, base_model: m512}\n  - {name: large, base_model: m1024}\n"
    )
    way = rounds(suite, best_at(2e-2))
    (large,) = [one for one in way if {e.arm[:5] for e in one.experiments} >= {"large", "small"}][:1]
    # 0.02 * 2 ** -0.781 = 0.0116, nearest to 0.01
    assert sorted({e.settings.learning_rate for e in large.experiments if e.arm.startswith("large")}) == [
        5e-3, 1e-2, 2e-2,
    ]  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(st.floats(6e-5, 0.4))
def test_the_rate_found_is_the_best_to_two_digits_and_lies_inside_what_was_tried(rate: float) -> None:
    last = finished(_flags(), best_at(rate))
    found = rate_found(last, 16)
    tried = rates(last, 16)
    assert found == pytest.approx(rate, rel=0.05)
    assert min(tried) < found < max(tried)


def _flags() -> Suite:
    return suite_from_values({"learning_rate": "auto", "max_steps": 200}, where="test")


def test_a_rate_that_diverges_is_an_edge_that_was_tried(write) -> None:
    last = finished(write(RANKS), best_at(1e-2, diverges_above=1e-2))
    assert rates(last, 1)[-1] == 2e-2
    # infinity tells a side and no distance, so the best rate that was tried stands
    assert rate_found(last) == 1e-2


def test_where_everything_diverges_the_search_goes_down_and_then_gives_up(write) -> None:
    last = finished(write(RANKS), lambda _: DIVERGED)
    assert last.reporting == ()
    assert last.num_open == 0
    # each from the rule, since the neighbour found nothing
    assert [len(rates(last, rank)) for rank in (1, 8)] == [3 + MAX_PLACES_BEYOND] * 2


def test_a_loss_that_falls_for_ever_ends_at_the_bound(write) -> None:
    last = finished(write(RANKS), falling)
    assert rate_found(last) == 1.0  # six places above 1e-2
    assert len(rates(last, 1)) == 3 + MAX_PLACES_BEYOND


# --- runs that are lost -----------------------------------------------------------------------------------


def losing(curve: Curve, *rates: float) -> Curve:
    return lambda each: None if each.settings.learning_rate in rates else curve(each)


@pytest.mark.parametrize("lost", [2e-3, 5e-3, 1e-2, 2e-2, 5e-2])
def test_a_rate_whose_run_was_lost_is_passed_over(write, lost: float) -> None:
    """The parabola goes through the next ones; so a lost run moves nothing where the loss is a parabola."""
    last = finished(write(RANKS), losing(best_at(1.2e-2), lost))
    assert last.num_open == 0
    assert lost not in {each.settings.learning_rate for each in last.experiments}
    assert rate_found(last) == 1.2e-2


def test_a_lost_run_is_asked_for_again_where_nothing_else_is_known(write) -> None:
    first, *_ = way = rounds(write(RANKS), lambda _: None)
    assert way == [first]
    assert first.num_open == 2


def test_what_was_passed_over_is_in_no_round(write) -> None:
    last = finished(write(RANKS), losing(best_at(1.2e-2), 5e-3))
    assert {e.id for of_round in last.rounds for e in of_round} == {e.id for e in last.experiments}


# --- how many runs ----------------------------------------------------------------------------------------


@given(st.lists(st.floats(-6, 1), min_size=3, max_size=3))
@settings(deadline=None, max_examples=5)
def test_how_many_runs_are_to_come_is_known_within_bounds_at_every_round(places: list[float]) -> None:
    curves = dict(zip((4, 8, 16), (best_at(10.0**place) for place in places), strict=True))
    suite = suite_from_values(
        {"learning_rate": "auto", "max_steps": 200, "factors": {"lora_rank": list(curves)}}, where="test"
    )
    way = rounds(suite, lambda each: curves[each.settings.lora_rank](each))
    for made in way:
        least, most = (len(made.experiments) + more for more in made.to_come)
        assert least <= len(way[-1].experiments) <= most
    assert way[-1].to_come == (0, 0)


def test_the_bounds_are_met(write) -> None:
    """Two arms with three runs, then three seeds each; at most six further rates each."""
    first = designed(write(RANKS))
    assert (len(first.experiments), first.to_come) == (3, (3 + 6, 3 + 6 + 2 * MAX_PLACES_BEYOND))
    inside = finished(write(RANKS), best_at(5e-3))
    assert len(inside.experiments) == 3 + 3 + 6
    nothing = finished(write(RANKS), lambda _: DIVERGED)
    assert len(nothing.experiments) == 3 + 3 + 2 * MAX_PLACES_BEYOND


@given(
    places=st.lists(st.floats(-0.35, 0.35), min_size=5, max_size=5),
    steepness=st.floats(0.2, 3.0),
    seed=st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=25)
def test_under_noise_the_rate_is_near_and_takes_a_third_of_the_full_grid(
    places: list[float], steepness: float, seed: int
) -> None:
    """Five ranks whose best rates drift by up to 2.2 times; noise of a fiftieth of what a factor of ten costs.

    The full grid is what a suite would list to have each best rate inside: the seven rates of two decades, with the
    six seeds that report. The loss at the rate found is within three times the noise of the lowest.
    """
    noise = 0.02 * steepness
    best = {rank: 10 ** (place - 2) for rank, place in zip((4, 8, 16, 32, 64), places, strict=True)}
    suite = suite_from_values(
        {"learning_rate": "auto", "max_steps": 200, "experiment_type": "rank_ablation",
         "seeds": list(range(6)), "factors": {"lora_rank": list(best)}}, where="test",
    )  # fmt: skip

    def curve(each: Experiment) -> Merit:
        rng = random.Random(f"{seed} {each.id}")
        loss = steepness * math.log10(each.settings.learning_rate / best[each.settings.lora_rank]) ** 2
        return Merit(0, loss + rng.gauss(0, noise), 0.0)

    last = finished(suite, curve)
    assert len(last.experiments) <= 5 * 7 * 6 / 3
    for rank, place in best.items():
        away = math.log10(rate_found(last, rank) / place)
        assert steepness * away**2 <= 3 * noise + 1e-3


def test_equal_metrics_are_told_apart_by_the_loss(write) -> None:
    """Exact match may be 1 at several rates."""
    last = finished(write(RANKS), lambda each: Merit(0, -1.0, best_at(6e-3)(each).loss))
    assert rate_found(last) == 6e-3


def test_a_rate_whose_answers_can_hardly_be_read_is_not_the_best(write) -> None:
    """Above 6e-3 rows fail, and the mean of the others looks better the more of them do."""

    def curve(each: Experiment) -> Merit:
        merit = best_at(6e-3)(each)
        num_failed = max(0, round(100 * math.log10(each.settings.learning_rate / 6e-3)))
        return merit._replace(num_failed=num_failed, cost=-float(num_failed) if num_failed else merit.cost)

    assert 3e-3 < rate_found(finished(write(RANKS), curve)) < 1e-2


def test_nothing_is_decided_while_a_run_has_not_ended(write) -> None:
    suite = write(RANKS)
    first = designed(suite)
    merits = {each.id: best_at(1e-2)(each) for each in first.experiments}
    merits.pop(first.experiments[-1].id)
    assert designed(suite, merits) == first


def test_the_runs_are_those_of_a_list_of_rates(write) -> None:
    """So results are shared with a suite that lists the rates, and with one that is run again."""
    auto = designed(write(RANKS + "\ntest_fraction: 0.1"))
    listed = write(
        RANKS.replace("auto", "[2e-3, 5e-3, 1e-2]")
        .replace("tuning_seeds: [3, 4]\n", "")
        .replace("[0, 1, 2]", "[3]")
        .replace("[1, 8]", "[1]")
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
        write(f"learning_rate: auto\nmax_steps: 9\nseeds: {seeds}\nexperiments: [{{}}]")
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
        ("tuning_seeds: [7, 7]\nexperiments: [{learning_rate: auto}]", "a seed appears twice"),
        ("primary_metric: exact_match\nmax_generation_samples: 0\nexperiments: [{}]", "primary_metric: exact_match is not measured where max_generation_samples is 0"),
        ("tuning_seeds: [7]\nexperiments: [{learning_rate: auto}]", "tuning_seeds: must be a list"),
    ],
)  # fmt: skip
def test_mistakes_are_told(write, text: str, message: str) -> None:
    with pytest.raises(SuiteFileError, match=message):
        write(text)


def first_rates(config, *, num_steps=1000):
    return [rate_of(place) for place in first_places(config, num_steps=num_steps)]


def test_the_ladder_is_one_two_five():
    assert [rate_of(place) for place in range(-12, 1)] == [
        1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0,
    ]  # fmt: skip


@given(st.integers(-30, 6))
def test_every_rate_is_its_own_nearest(place: int) -> None:
    assert nearest_place(rate_of(place)) == place


@given(st.floats(1e-8, 5))
def test_no_place_is_nearer_by_ratio(rate: float) -> None:
    nearest = nearest_place(rate)
    far = max(rate_of(nearest) / rate, rate / rate_of(nearest))
    assert all(far <= max(rate_of(r) / rate, rate / rate_of(r)) for r in (nearest - 1, nearest + 1))


@pytest.mark.parametrize(
    ("hidden_size", "power", "num_steps", "rate"),
    [
        (2000, 0.781, 1000, 5e-4),  # 5e-5 * 10 * 1 ** p
        (4096, 0.781, 1000, 2.8564e-4),  # python -c "print(5e-4 * (2000 / 4096) ** 0.781)"
        (96, 0.781, 1000, 5.3567e-3),  # python -c "print(5e-4 * (2000 / 96) ** 0.781)"
        (896, 0.0775, 1000, 5.3210e-4),  # python -c "print(5e-4 * (2000 / 896) ** 0.0775)"
        (2000, 0.781, 99, 7.5e-4),  # fifteen times below a hundred steps
        (2000, 0.781, None, 5e-4),
    ],
)
def test_the_published_rule(hidden_size: int, power: float, num_steps: int | None, rate: float) -> None:
    found = published_rate(hidden_size=hidden_size, power=power, num_steps=num_steps)
    assert found == pytest.approx(rate, rel=1e-4)


def test_a_family_that_the_rule_knows_starts_with_a_rate_to_each_side():
    assert first_rates(read_config("lab")) == [2e-3, 5e-3, 1e-2]  # 5.36e-3 is nearest to 5e-3
    assert first_rates({"model_type": "qwen2", "hidden_size": 896}) == [2e-4, 5e-4, 1e-3]
    assert first_rates({"model_type": "llama", "hidden_size": 4096}) == [
        1e-4,
        2e-4,
        5e-4,
    ]  # 2.86e-4 is nearest to 2e-4


def test_an_unknown_family_starts_wide():
    """At 2,560 Llama's power gives 4.12e-4 and Qwen's 4.90e-4: both nearest to 5e-4, then two to each side."""
    assert first_rates({"model_type": "phi", "hidden_size": 2560}) == [1e-4, 2e-4, 5e-4, 1e-3, 2e-3]
    assert first_rates(None) == [1e-4, 2e-4, 5e-4, 1e-3, 2e-3]
    # at 96 from 5e-4 * 20.8 ** .0775 = 6.3e-4 to 5.4e-3, each to its nearest, then two more
    assert first_rates({"model_type": "own", "hidden_size": 96}) == [
        1e-4,
        2e-4,
        5e-4,
        1e-3,
        2e-3,
        5e-3,
        1e-2,
        2e-2,
    ]


def test_few_steps_start_higher():
    config = {"model_type": "llama", "hidden_size": 1500}
    assert first_rates(config, num_steps=100) == [2e-4, 5e-4, 1e-3]  # 6.26e-4
    assert first_rates(config, num_steps=99) == [5e-4, 1e-3, 2e-3]  # 9.39e-4


@given(
    st.lists(st.floats(0.3, 2.0), min_size=2, max_size=2),
    st.floats(-0.45, 0.45),
    st.floats(0.05, 5.0),
    st.floats(-3.0, 3.0),
)
def test_a_parabola_is_found_as_a_least_squares_fit_finds_it(
    steps: list[float], place: float, curvature: float, lowest: float
) -> None:
    """Its twin is `numpy.polyfit` of the second degree, through the same three points."""
    x = [math.log(5e-3) - steps[0], math.log(5e-3), math.log(5e-3) + steps[1]]
    at = x[1] + place * min(steps)
    losses = [lowest + curvature * (one - at) ** 2 for one in x]
    found = parabola([(math.exp(one), loss) for one, loss in zip(x, losses, strict=True)])
    assert found is not None
    a, b, _ = np.polyfit(np.array(x) - x[1], losses, 2)
    assert math.log(found.rate) == pytest.approx(x[1] - b / (2 * a), abs=1e-6)
    assert math.log(found.rate) == pytest.approx(at, abs=1e-6)
    assert found.curvature == pytest.approx(curvature, rel=1e-6)


def test_the_spread_of_a_parabolas_lowest_point_is_that_of_noisy_losses():
    """Against 20,000 draws of three losses with noise: log rates -0.9, 0 and 0.7, noise a hundredth of the curvature."""
    rng = np.random.default_rng(0)
    x = np.array([-0.9, 0.0, 0.7])
    true = 2.0 * (x - 0.1) ** 2
    draws = true + rng.normal(0, 0.02, (20_000, 3))
    places = [
        math.log(found.rate) for row in draws if (found := parabola(list(zip(np.exp(x), row, strict=True))))
    ]
    exact = parabola(list(zip(np.exp(x), true, strict=True)))
    assert exact is not None
    assert exact.spread(0.02) == pytest.approx(float(np.std(places)), rel=0.03)


def test_a_rate_is_tuned_to_within_its_noise_the_shape_and_its_distance():
    """Steps of h = ln 2, losses .1 above the lowest: curvature .1 / h^2, and slopes of h / .4, 0 and -h / .4.

    Noise .01: .01 * sqrt(2) * h / .4 = .0245. Shape: .37 * h = .2565. exp(1.96 * sqrt(.0245^2 + .2565^2)) = 1.657.
    """
    found = parabola([(1e-3, 1.1), (2e-3, 1.0), (4e-3, 1.1)])
    assert found is not None
    assert found.spread(0.01) == pytest.approx(0.0245, abs=1e-4)
    assert found.factor(0.01, taken=2e-3) == pytest.approx(1.657, abs=1e-3)
    # Half the rate was taken: the factor is twice as large.
    assert found.factor(0.01, taken=1e-3) == pytest.approx(2 * 1.657, abs=2e-3)


@pytest.mark.parametrize(
    "losses",
    [(1.0, 1.0, 1.0), (1.0, 0.5, math.inf), (math.inf, 0.5, 1.0), (0.0, 1.0, 1.2), (0.0, 1.0, 0.0)],
    ids=["level", "diverged above", "diverged below", "bent down", "a hill"],
)
def test_without_a_lowest_point_there_is_no_parabola(losses: tuple[float, float, float]) -> None:
    assert parabola(list(zip((2e-3, 5e-3, 1e-2), losses, strict=True))) is None


TIMED = RANKS.replace("seeds: [0, 1, 2]", "seeds: [0, 1, 2]\ntime_budget_hours: 2")


def test_with_a_time_budget_nothing_reports_before_the_finals(write) -> None:
    last = finished(write(TIMED), best_at(5e-3))
    assert last.reporting == ()
    assert last.num_open == 0
    assert [(one.arm, one.is_over) for one in last.standings] == [(0, True), (1, True)]


def test_the_finals_add_their_runs_to_the_search(write) -> None:
    suite = write(TIMED)
    last = finished(suite, best_at(5e-3))
    merits = {each.id: best_at(5e-3)(each) for each in last.experiments}
    finals = Finals(finalists=(Finalist(arm=1, learning_rate=4.2e-3),), seeds=(0, 1), searched=tuple(merits))
    made = design(suite, fingerprint_dataset=str, fingerprint_base=str, merits=merits, finals=finals)
    assert [(e.settings.lora_rank, e.settings.learning_rate, e.seed) for e in made.reporting] == [
        (8, 4.2e-3, 0), (8, 4.2e-3, 1),
    ]  # fmt: skip
    assert made.rounds[:-1] == last.rounds
    assert made.rounds[-1] == made.reporting
    assert made.tuning == last.tuning


def test_finals_end_the_search(write) -> None:
    """The first round is over and the second would begin."""
    suite = write(TIMED)
    first = designed(suite)
    merits = {each.id: best_at(5e-3)(each) for each in first.experiments}
    finals = Finals(finalists=(Finalist(arm=0, learning_rate=5e-3),), seeds=(0,), searched=tuple(merits))
    made = design(suite, fingerprint_dataset=str, fingerprint_base=str, merits=merits, finals=finals)
    assert made.tuning == first.tuning
    assert [each.seed for each in made.reporting] == [0]
    assert (made.num_open, made.to_come, made.waiting) == (0, (0, 0), ())
