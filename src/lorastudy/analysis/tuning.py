"""Whether each arm got a learning rate of its own, and which did best: else a difference may be one of rate.

At one fixed rate the effect of rank looked eight times too small over 13 models; so an arm whose rate was
never varied, or whose best rate lies on the edge of its grid, is untuned and cannot be called best.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lorastudy.analysis.study import Arm, Study
from lorastudy.analysis.summary import LOSS, Metric, scores_by_seed
from lorastudy.spec.experiment import canonical_json
from lorastudy.spec.racing import rung_of, rung_split


@dataclass(frozen=True, kw_only=True)
class LearningRates:
    """How the learning rate was varied. A configuration is all of an arm's settings but the rate."""

    rates: tuple[float, ...]
    num_configurations: int
    num_varied: int
    """Configurations that were run at more than one rate."""
    on_edge: tuple[str, ...]
    """Arms with the lowest mean loss of their configuration at the smallest or largest rate tried."""

    were_sought: bool = False
    """Whether runs of their own chose the rates, so that each configuration is reported at one rate."""

    @property
    def tuned(self) -> bool:
        """Whether every configuration's best rate lies inside its grid."""
        return self.num_varied == self.num_configurations and not self.on_edge


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


def configurations(study: Study) -> tuple[tuple[Arm, ...], ...]:
    """The arms by configuration: those of one differ in nothing but the learning rate."""
    grids: dict[str, list[Arm]] = {}
    for arm in study.arms:
        rest = {key: value for key, value in arm.settings.items() if key != "learning_rate"}
        grids.setdefault(canonical_json(rest), []).append(arm)
    return tuple(tuple(arms) for arms in grids.values())


def best_if_on_edge(study: Study, arms: Sequence[Arm], *, metric: Metric = LOSS) -> Arm | None:
    """The best arm of one configuration, where its rate is the smallest or the largest tried; else None.

    A rate that racing stopped was tried. Where it stopped all of them, the best is the one that was last ahead.
    """
    best = best_of(study, arms, metric=metric) or last_ahead(arms)
    rates = [float(arm.settings["learning_rate"]) for arm in arms]
    return best if best and float(best.settings["learning_rate"]) in (min(rates), max(rates)) else None


def lowest_loss(study: Study, arms: Sequence[Arm]) -> Arm | None:
    """The arm of lowest mean held-out loss, as `best_of` has it."""
    return best_of(study, arms, metric=LOSS)


def best_of(study: Study, arms: Sequence[Arm], *, metric: Metric) -> Arm | None:
    """The arm of best mean, of those with the most seeds scored; None where none was.

    On the rows that choose: where a study has test rows they take no part in this. An arm that lost seeds, as one
    whose rate is too high does, may owe its good mean to the seeds it lost. Where a search chose the rate, perhaps by
    another metric, the arm is the one it chose.
    """
    if study.tuning_seeds:
        arms = [arm for arm in arms if study.reporting_runs(arm)] or arms
    scores = {
        arm.name: list(scores_by_seed(arm, study, metric=metric, choosing=True).values()) for arm in arms
    }
    most = max(map(len, scores.values()), default=0)
    whole = [arm for arm in arms if len(scores[arm.name]) == most]
    sign = 1 if metric.lower_is_better else -1
    return min(whole, key=lambda arm: sign * statistics.fmean(scores[arm.name])) if most else None


def tried_rates(study: Study) -> str:
    """`at the one learning rate that was tried (0.0002)`, or `at the learning rates that were tried`."""
    rates = {float(arm.settings["learning_rate"]) for arm in study.arms}
    if len(rates) == 1:
        return f"at the one learning rate that was tried ({min(rates):g})"
    return "at the learning rates that were tried"


def last_ahead(arms: Sequence[Arm]) -> Arm | None:
    """Of arms that racing stopped, the one of lowest mean loss at the last rung that any of them came to."""
    last = {arm.name: (_last_rung(arm), arm) for arm in arms if arm.was_outraced}
    furthest = max((rung for rung, _ in last.values()), default=0.0)
    there = [arm for rung, arm in last.values() if rung == furthest > 0]
    return min(there, key=lambda arm: _loss_at(arm, furthest), default=None)


def _last_rung(arm: Arm) -> float:
    """The last one at which the arm was scored; 0 where it was at none."""
    rungs = {rung_of(split) for result in arm.results for split, _ in result.scores}
    return max((rung for rung in rungs if rung is not None), default=0.0)


def _loss_at(arm: Arm, rung: float) -> float:
    """The mean over seeds of the held-out loss at a rung."""
    key = (rung_split(rung), LOSS.name)
    return statistics.fmean(result.scores[key].value for result in arm.results if key in result.scores)


def rates_of(study: Study, arm: Arm) -> tuple[Arm, ...]:
    """The arms that differ from this one in nothing but the learning rate, itself among them."""
    return tuple(one for one in study.arms if one.configuration == arm.configuration)
