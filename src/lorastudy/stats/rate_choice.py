"""Which learning rate stands for a configuration, whether it is tuned, and what choosing it does to its score.

At one fixed rate, 4e-5, the effect of rank looked eight times too small over 13 models, and the best rank won in 3 of them; at
another, 3e-4, it won in 26 of 28. Nobody knows beforehand which kind of rate theirs is. So an arm whose rate was never varied,
or whose best rate lies on the edge of its grid, is untuned and cannot be called best.

If a built-in experiment type was run at several rates, each configuration is compared at its best one, chosen by the primary
metric on the validation rows. A study with test rows reports on those, and the rows that chose the rate take no part. Without
test rows the same rows choose and report: the choice is in sample, the chosen score looks better than it is (winner's curse),
and the report says so. Test rows do not remove the curse entirely: the choice also picks lucky seeds, and those train the
adapter that is tested. `Choice.optimism` measures what is left: the mean score of the chosen rate against that of a choice
that is made, for each seed, without this seed. Equal grids put about the same optimism on both sides of a difference.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorastudy.stats.study import CHOOSING_SPLIT, STUDIED_KEYS, Study, StudyArm, reporting_split, stored_split
from lorastudy.stats.summary import LOSS, Metric, are_equal, scores_by_seed
from lorastudy.store.views import ExperimentResult
from lorastudy.suite.experiment import canonical_json
from lorastudy.suite.parabola import parabola
from lorastudy.suite.question import rung_of, rung_split


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A configuration that was run at several rates: the arm that stands for it, and the grid of arms."""

    arm: StudyArm
    grid: tuple[StudyArm, ...]
    in_sample: bool
    """Whether the rows that chose the rate also report."""
    optimism: float | None
    """How much better the chosen score looks than one that its seed did not help to choose, in the metric's unit.

    None with fewer than three seeds that the whole grid completed.
    """


@dataclass(frozen=True, kw_only=True)
class LearningRates:
    """How the learning rate was varied. A configuration is all of an arm's settings except the rate."""

    rates: tuple[float, ...]
    num_configurations: int
    num_varied: int
    """Configurations that were run at more than one rate."""
    on_edge: tuple[str, ...]
    """Arms with the lowest mean loss of their configuration at the smallest or largest rate tried."""

    were_sought: bool = False
    """Whether separate runs chose the rates, so that each configuration is reported at one rate."""

    @property
    def tuned(self) -> bool:
        """Whether every configuration's best rate lies inside its grid."""
        return self.num_varied == self.num_configurations and not self.on_edge


def compared_arms(study: Study, *, metric: Metric) -> tuple[StudyArm, ...]:
    """The arms that are compared: one for each configuration, or every arm in a custom type, which may study the rate itself."""
    if study.experiment_type not in STUDIED_KEYS:
        return study.reported_arms
    chosen = {(best_of(study, rates_of(study, arm), metric=metric) or arm).name for arm in study.arms}
    return tuple(arm for arm in study.reported_arms if arm.name in chosen)


def choices(study: Study, *, metric: Metric) -> tuple[Choice, ...]:
    """The choices of learning rate behind the comparisons; empty if every configuration has one rate."""
    if study.experiment_type not in STUDIED_KEYS:
        return ()
    made = []
    for arm in compared_arms(study, metric=metric):
        grid = rates_of(study, arm)
        if len(grid) > 1 and arm.completed:
            made.append(
                Choice(
                    arm=arm,
                    grid=grid,
                    in_sample=reporting_split(study) == CHOOSING_SPLIT,
                    optimism=_optimism(study, arm, grid=grid, metric=metric),
                )
            )
    return tuple(made)


def learning_rates(study: Study) -> LearningRates:
    """How the learning rate was varied over the study's arms."""
    grids = configurations(study)
    varied = [arms for arms in grids if len(arms) > 1]
    best = [best_if_on_edge(study, arms) for arms in varied]
    return LearningRates(
        rates=tuple(sorted({float(arm.settings["learning_rate"]) for arm in study.arms})),
        num_configurations=len(grids),
        num_varied=len(varied),
        on_edge=tuple(arm.name for arm in best if arm is not None),
        were_sought=bool(study.tuning_seeds),
    )


def configurations(study: Study) -> tuple[tuple[StudyArm, ...], ...]:
    """The arms grouped by configuration: arms of one group differ only in the learning rate."""
    grids: dict[str, list[StudyArm]] = {}
    for arm in study.arms:
        rest = {key: value for key, value in arm.settings.items() if key != "learning_rate"}
        grids.setdefault(canonical_json(rest), []).append(arm)
    return tuple(tuple(arms) for arms in grids.values())


def is_still_sought(study: Study, arms: Sequence[StudyArm], *, metric: Metric) -> bool:
    """Whether a search has tried rates for this configuration and has not chosen one.

    The runs at the chosen rate are the first that report. A search of which every run diverged, or got no value of the metric,
    found no rate and is over. So is every search once the finals of a suite with a time budget are decided.
    """
    if study.has_finals:
        return False
    completed = any(not _is_without_value(study, run, metric=metric) for arm in arms for run in arm.completed)
    return bool(study.tuning_seeds) and completed and not any(study.reporting_runs(arm) for arm in arms)


def best_if_on_edge(study: Study, arms: Sequence[StudyArm], *, metric: Metric = LOSS) -> StudyArm | None:
    """The best arm of one configuration if its rate is the smallest or largest tried, else None.

    A rate that racing stopped counts as tried. If racing stopped all of them, the best is the one that was last ahead.
    """
    best = best_of(study, arms, metric=metric) or last_ahead(arms)
    rates = [float(arm.settings["learning_rate"]) for arm in arms]
    return best if best and float(best.settings["learning_rate"]) in (min(rates), max(rates)) else None


def best_of(study: Study, arms: Sequence[StudyArm], *, metric: Metric) -> StudyArm | None:
    """The arm that stands for one configuration, of `arms` at its different rates; None if none was scored.

    Test rows take no part. In this order:

    1. The smallest share of diverged runs. A rate at which training diverged is no good rate, however low the losses of the
       seeds that it spared. A run for which the metric gave no value at all counts as one that diverged.
    2. The fewest rows by run for which the metric gave no value. The mean is over the other rows, so a rate at which the hard
       answers cannot be read would look best.
    3. The best mean on common seeds: a two-way fit of rates and seeds (`adjusted_means`), so that a lost run, or a seed that
       only one rate has, counts neither for nor against a rate.
    4. If the metric is not the loss, rates within one standard error of the best mean are ordered by the loss: 40 and 42 right
       answers of 50 do not separate two rates.

    If a search chose the rate, only the arm that it chose is considered.
    """
    if study.tuning_seeds:
        arms = [arm for arm in arms if study.reporting_runs(arm)] or arms
    scores = {arm.name: scores_by_seed(arm, study, metric=metric, choosing=True) for arm in arms}
    scored = [arm for arm in arms if scores[arm.name]]
    if not scored:
        return None
    lacking = {
        arm.name: (_lost_share(study, arm, metric=metric), failed_rows_by_run(study, arm, metric=metric))
        for arm in scored
    }
    left = [arm for arm in scored if lacking[arm.name] == min(lacking.values())]
    costs = _costs(study, left, metric=metric)
    best = min(left, key=lambda arm: costs[arm.name])
    if metric.name == LOSS.name:
        return best
    room = _standard_error(study, best, metric=metric)
    near = [arm for arm in left if costs[arm.name] <= costs[best.name] + room]
    losses = _costs(study, near, metric=LOSS)
    return min(near, key=lambda arm: (losses.get(arm.name, math.inf), costs[arm.name]))


def best_rate_within(study: Study, arms: Sequence[StudyArm], *, metric: Metric) -> float | None:
    """The factor of the chosen rate within which the best rate of a configuration lies, in 95 of 100 cases.

    From the parabola through the best rate tried and its neighbours (`suite.parabola.Parabola.factor`), by the metric, or by the
    loss if the metric is the same at all rates. None if no parabola can be fitted (the best rate is on the edge, or beside a
    rate that diverged), the metric failed for more rows at one rate than at another, or the noise is unknown.
    """
    taken = best_of(study, arms, metric=metric)
    tried = [
        arm
        for arm in arms
        if not study.tuning_seeds or any(r.seed in study.tuning_seeds for r in arm.results)
    ]
    rates = {arm.name: float(arm.settings["learning_rate"]) for arm in arms}
    costs = _costs(study, tried, metric=metric)
    if are_equal(costs.values()):
        metric, costs = LOSS, _costs(study, tried, metric=LOSS)
    elif len({failed_rows_by_run(study, arm, metric=metric) for arm in tried}) > 1:
        return None
    costs |= {arm.name: math.inf for arm in tried if _lost_share(study, arm, metric=metric)}
    order = sorted(costs, key=rates.__getitem__)
    best = order.index(min(order, key=costs.__getitem__)) if order else 0
    if taken is None or not 0 < best < len(order) - 1:
        return None
    found = parabola([(rates[name], costs[name]) for name in order[best - 1 : best + 2]])
    noise = _noise_of_an_arm(study, tried, metric=metric)
    return None if found is None or noise is None else found.factor(noise, taken=rates[taken.name])


def adjusted_means(scores: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
    """The mean of each row when rows lack different columns: score = row + column, by least squares.

    If all rows have the same columns, these are the row means. Rows that are not linked to others by shared columns, directly or
    through a third row, keep their own mean.
    """
    rows = [name for name, by_seed in scores.items() if by_seed]
    if len({frozenset(scores[name]) for name in rows}) == 1:
        return {name: statistics.fmean(scores[name].values()) for name in rows}
    found: dict[str, float] = {}
    for group in _linked(scores, rows):
        seeds = sorted({seed for name in group for seed in scores[name]})
        cells = [
            (row, seeds.index(seed), value)
            for row, name in enumerate(group)
            for seed, value in scores[name].items()
        ]
        import numpy as np  # a dry run imports this module and fits nothing

        design = np.zeros((len(cells), len(group) + len(seeds)))
        for position, (row, column, _) in enumerate(cells):
            design[position, [row, len(group) + column]] = 1
        fitted = np.linalg.lstsq(design, np.array([value for *_, value in cells]), rcond=None)[0]
        of_seeds = float(fitted[len(group) :].mean())
        found |= {name: float(fitted[row]) + of_seeds for row, name in enumerate(group)}
    return found


def tried_rates(study: Study) -> str:
    """`at the one learning rate that was tried (0.0002)`, or `at the learning rates that were tried`."""
    rates = {float(arm.settings["learning_rate"]) for arm in study.arms}
    if len(rates) == 1:
        return f"at the one learning rate that was tried ({min(rates):g})"
    return "at the learning rates that were tried"


def last_ahead(arms: Sequence[StudyArm]) -> StudyArm | None:
    """Of the arms that racing stopped, the one with the lowest mean loss at the last rung that any of them reached."""
    last = {arm.name: (_last_rung(arm), arm) for arm in arms if arm.was_pruned}
    furthest = max((rung for rung, _ in last.values()), default=0.0)
    there = [arm for rung, arm in last.values() if rung == furthest > 0]
    return min(there, key=lambda arm: _loss_at(arm, furthest), default=None)


def rates_of(study: Study, arm: StudyArm) -> tuple[StudyArm, ...]:
    """The arms that differ from this one only in the learning rate, itself included."""
    return tuple(one for one in study.arms if one.configuration == arm.configuration)


def _noise_of_an_arm(study: Study, tried: Sequence[StudyArm], *, metric: Metric) -> float | None:
    """Standard deviation of the mean by which a rate was judged, without the part that all arms of one seed share.

    The residual of an arm x seed layout, on the rows that choose and the seeds that all arms have: over the rates tried if
    several seeds chose, else over the arms that report. With a single arm its spread over seeds, which is no smaller.
    """
    arms = study.reported_arms if study.tuning_seeds else tried
    key = (stored_split(metric.split, study, choosing=True), metric.name)
    scores = [
        {
            run.seed: run.scores[key].value
            for run in arm.completed
            if key in run.scores and run.seed in reporting
        }
        for arm in arms
        if (reporting := {run.seed for run in study.reporting_runs(arm)})
    ]
    scores = [by_seed for by_seed in scores if by_seed]
    seeds = sorted(set.intersection(*map(set, scores))) if scores else []
    if len(seeds) < 2:
        return None
    judged = [scores_by_seed(arm, study, metric=metric, choosing=True) for arm in tried]
    num_judged = min(len(by_seed) for by_seed in judged if by_seed)
    means = [statistics.fmean(by_seed[seed] for seed in seeds) for by_seed in scores]
    of_seeds = [statistics.fmean(by_seed[seed] for by_seed in scores) for seed in seeds]
    middle = statistics.fmean(means)
    if len(scores) == 1:
        return statistics.stdev(of_seeds) / math.sqrt(num_judged)
    squares = math.fsum(
        (by_seed[seed] - mean - of_seed + middle) ** 2
        for by_seed, mean in zip(scores, means, strict=True)
        for seed, of_seed in zip(seeds, of_seeds, strict=True)
    )
    return math.sqrt(squares / ((len(scores) - 1) * (len(seeds) - 1) * num_judged))


def _linked(scores: Mapping[str, Mapping[int, float]], rows: Sequence[str]) -> list[list[str]]:
    """The rows, grouped so that a group shares columns directly or through others."""
    groups: list[list[str]] = []
    for name in rows:
        touching = [
            group for group in groups if any(scores[name].keys() & scores[one].keys() for one in group)
        ]
        groups = [group for group in groups if group not in touching]
        groups.append([*(one for group in touching for one in group), name])
    return groups


def _costs(study: Study, arms: Sequence[StudyArm], *, metric: Metric) -> dict[str, float]:
    """Adjusted mean costs on the rows that choose; less is better."""
    sign = metric.cost_sign
    means = adjusted_means(
        {arm.name: scores_by_seed(arm, study, metric=metric, choosing=True) for arm in arms}
    )
    return {name: sign * mean for name, mean in means.items()}


def _lost_share(study: Study, arm: StudyArm, *, metric: Metric) -> float:
    """Share of the choosing runs that diverged, or completed without any value of the metric."""
    runs = study.choosing_runs(arm)
    diverged = sum(run.failure_kind == "diverged" for run in runs)
    completed = [run for run in runs if run.status == "completed"]
    lost = diverged + sum(_is_without_value(study, run, metric=metric) for run in completed)
    return lost / (diverged + len(completed)) if lost else 0.0


def failed_rows_by_run(study: Study, arm: StudyArm, *, metric: Metric) -> float:
    """For how many rows the metric gave no value, on the rows that choose: the mean over the runs that have some value."""
    key = _choosing_key(study, metric)
    runs = [run for run in study.choosing_runs(arm) if run.status == "completed" and key in run.scores]
    failed = sum(len(run.failed_rows[key].rows) for run in runs if key in run.failed_rows)
    return failed / len(runs) if failed else 0.0


def _is_without_value(study: Study, run: ExperimentResult, *, metric: Metric) -> bool:
    """Whether the metric was measured, on the rows that choose, and failed for all of them."""
    key = _choosing_key(study, metric)
    return key in run.failed_rows and key not in run.scores


def _choosing_key(study: Study, metric: Metric) -> tuple[str, str]:
    return stored_split(metric.split, study, choosing=True), metric.name


def _standard_error(study: Study, arm: StudyArm, *, metric: Metric) -> float:
    """Standard error of the arm's mean: from the spread over seeds or, for a share, from its items, whichever is larger."""
    values = list(scores_by_seed(arm, study, metric=metric, choosing=True).values())
    of_seeds = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    mean, num_items = statistics.fmean(values), _num_items(study, arm, metric=metric)
    of_items = (
        math.sqrt(max(0.0, mean * (1 - mean)) / num_items) if metric.unit == "share" and num_items else 0.0
    )
    return max(of_seeds, of_items)


def _num_items(study: Study, arm: StudyArm, *, metric: Metric) -> int | None:
    key = _choosing_key(study, metric)
    return next((run.scores[key].num_items for run in study.choosing_runs(arm) if key in run.scores), None)


def _last_rung(arm: StudyArm) -> float:
    """The last rung at which the arm was scored; 0 if there is none."""
    rungs = {rung_of(split) for result in arm.results for split, _ in result.scores}
    return max((rung for rung in rungs if rung is not None), default=0.0)


def _loss_at(arm: StudyArm, rung: float) -> float:
    """Held-out loss at a rung, mean over seeds."""
    key = (rung_split(rung), LOSS.name)
    return statistics.fmean(result.scores[key].value for result in arm.results if key in result.scores)


def _optimism(study: Study, arm: StudyArm, *, grid: Sequence[StudyArm], metric: Metric) -> float | None:
    """The chosen arm's mean score against the mean, over seeds, of the arm that the other seeds would have chosen."""
    picked_by = {one.name: scores_by_seed(one, study, metric=metric, choosing=True) for one in grid}
    reported = {one.name: scores_by_seed(one, study, metric=metric) for one in grid}
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in (*picked_by.values(), *reported.values()))))
    if len(seeds) < 3:
        return None
    sign = metric.cost_sign
    left_out = [reported[_best_without(seed, picked_by, seeds=seeds, sign=sign)][seed] for seed in seeds]
    chosen = [reported[arm.name][seed] for seed in seeds]
    return sign * (statistics.fmean(left_out) - statistics.fmean(chosen))


def _best_without(
    seed: int, scores: Mapping[str, Mapping[int, float]], *, seeds: Sequence[int], sign: int
) -> str:
    others = [one for one in seeds if one != seed]
    return min(scores, key=lambda name: sign * statistics.fmean(scores[name][one] for one in others))
