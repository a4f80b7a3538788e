"""What guessing without a model scores (`data.answers`), as a study's results recorded it, and how the arms compare with it.

A trivial predictor is not an arm: it takes no part in verdicts, in the set of the best or in the frontier. But an arm that is
not shown to beat it has not been shown to learn anything from the prompts, and is not recommended.

An arm is compared with each predictor on its own runs, per seed and item, with the same estimate as two arms (`twoway`). It
beats the predictor if the 95 % interval of the difference lies on its side. It must beat all predictors, so their number does
not raise the error rate. With one seed there is no interval, and the mean decides.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorastudy.protocol.records import TrivialPredictor, TrivialScore
from lorastudy.stats.study import Study, StudyArm, stored_split
from lorastudy.stats.summary import (
    LOSS,
    LOSS_BEFORE,
    Metric,
    Spread,
    newest_version,
    scores_by_seed,
)

if TYPE_CHECKING:
    from lorastudy.stats.twoway import ItemScores, ItemTable, TwoWay

PREDICTOR_NAMES: Mapping[TrivialPredictor, str] = {
    "constant": "the constant answer",
    "frequencies": "answer frequencies",
    "unigram": "token frequencies",
}
BASE_MODEL = "the base model"


@dataclass(frozen=True, kw_only=True)
class AgainstTrivial:
    """One arm against one trivial predictor on one metric."""

    arm: str
    predictor: TrivialPredictor
    metric: Metric
    score: float
    """The predictor's mean over seeds."""
    arm_score: float
    interval: tuple[float, float] | None
    """95 % interval of arm minus predictor; None with one seed."""

    @property
    def is_beaten(self) -> bool:
        """Whether the arm is shown to be ahead of the predictor."""
        difference = self.arm_score - self.score
        return max(self.metric.cost_sign * bound for bound in self.interval or (difference,)) < 0

    @property
    def name(self) -> str:
        """The predictor's, for people."""
        return PREDICTOR_NAMES[self.predictor]


def against_trivial(
    study: Study, arms: Sequence[StudyArm], *, metric: Metric, items: "ItemTable"
) -> tuple[AgainstTrivial, ...]:
    """Each arm against each predictor that has the metric, on the arm's own reporting runs."""
    found = []
    for arm in arms:
        ours = scores_by_seed(arm, study, metric=metric)
        for predictor, by_seed in _recorded(study, [arm], metric=metric).items():
            theirs = {seed: scores[0] for seed, scores in by_seed.items() if seed in ours}
            if theirs:
                estimate = _estimate(study, arm, ours=ours, theirs=theirs, metric=metric, items=items)
                interval = None if estimate is None else tuple(map(float, estimate.interval()))
                found.append(
                    AgainstTrivial(
                        arm=arm.name,
                        predictor=predictor,
                        metric=metric,
                        score=statistics.fmean(score.value for score in theirs.values()),
                        arm_score=statistics.fmean(ours[seed] for seed in theirs),
                        interval=None if interval is None else (interval[0], interval[1]),
                    )
                )
    return tuple(found)


def best_not_ahead(found: Sequence[AgainstTrivial]) -> AgainstTrivial | None:
    """The best arm that is not shown to beat guessing, against the hardest predictor that it does not beat.

    Every message about such arms names this pair. None if every arm beats all predictors.
    """
    open_ones = [one for one in found if not one.is_beaten]
    if not open_ones:
        return None
    sign = open_ones[0].metric.cost_sign
    best = min(open_ones, key=lambda one: sign * one.arm_score)
    return min((one for one in open_ones if one.arm == best.arm), key=lambda one: sign * one.score)


def trivial_spreads(study: Study, *, metric: Metric) -> Mapping[TrivialPredictor, Spread]:
    """Each predictor's score over the study's seeds, which may train on different rows of one file."""
    spreads = {}
    for predictor, by_seed in _recorded(study, study.reported_arms, metric=metric).items():
        distinct = [value for scores in by_seed.values() for value in {score.value for score in scores}]
        spread = Spread.of(distinct)
        assert spread is not None
        spreads[predictor] = spread
    return spreads


def constant_answer(study: Study) -> str | None:
    """The text of the constant answer if it is the same for all runs, else None."""
    answers = {score.answer for run in study.completed for score in run.trivial if score.answer is not None}
    return answers.pop() if len(answers) == 1 else None


@dataclass(frozen=True, kw_only=True)
class GainStart:
    """What the gain in held-out loss is measured from: whatever has the lowest mean loss without training.

    That is the base model, or a trivial predictor if the base model does not know the format or the answers and is worse.
    Winning back what a base model loses beyond guessing needs no prompts, so it is no gain.
    """

    name: str
    by_seed: Mapping[int, float]
    items: Mapping[int, "ItemScores"]
    """By seed, if they are known."""


def gain_start(study: Study, reference: StudyArm, *, items: "ItemTable | None" = None) -> GainStart | None:
    """The start for the reference's runs; None if the base model's loss was measured on none of its seeds."""
    after, before = (scores_by_seed(reference, study, metric=metric) for metric in (LOSS, LOSS_BEFORE))
    ours = sorted(after.keys() & before.keys())
    if not ours:
        return None
    known = items or {}
    runs = {run.seed: run.experiment_id for run in reference.completed}
    of_base, of_arm = (
        {seed: known.get((runs[seed], stored_split(metric.split, study), metric.name)) for seed in ours}
        for metric in (LOSS_BEFORE, LOSS)
    )
    starts = [
        GainStart(
            name=BASE_MODEL,
            by_seed={seed: before[seed] for seed in ours},
            items={seed: scores for seed, scores in of_base.items() if scores is not None},
        )
    ]
    for predictor, by_seed in _recorded(study, [reference], metric=LOSS).items():
        if by_seed.keys() >= set(ours):
            values = {seed: by_seed[seed][0].value for seed in ours}
            of_items = {seed: _items_of(by_seed[seed][0], like=of_arm[seed]) for seed in ours}
            starts.append(GainStart(name=PREDICTOR_NAMES[predictor], by_seed=values, items=of_items))
    return min(starts, key=lambda start: statistics.fmean(start.by_seed.values()))


def _recorded(
    study: Study, arms: Sequence[StudyArm], *, metric: Metric
) -> dict[TrivialPredictor, dict[int, list[TrivialScore]]]:
    """The scores that the arms' reporting runs recorded, by predictor and seed, in the metric's newest version."""
    newest, split = newest_version(study, metric), stored_split(metric.split, study)
    found: dict[TrivialPredictor, dict[int, list[TrivialScore]]] = {}
    for run in (run for arm in arms for run in arm.completed if run.seed not in study.tuning_seeds):
        for score in run.trivial:
            if (score.split, score.metric, score.version) == (split, metric.name, newest):
                found.setdefault(score.predictor, {}).setdefault(run.seed, []).append(score)
    return found


def _estimate(
    study: Study,
    arm: StudyArm,
    *,
    ours: Mapping[int, float],
    theirs: Mapping[int, TrivialScore],
    metric: Metric,
    items: "ItemTable",
) -> "TwoWay | None":
    """Arm minus predictor, for new seeds and, if items were stored, for new items; None with one seed."""
    from lorastudy.stats.twoway import (
        paired_items,  # and numpy with it, which a dry run goes without
        seeds_only,
        two_way,
    )

    seeds = sorted(theirs)
    if len(seeds) < 2:
        return None
    split, runs = stored_split(metric.split, study), {run.seed: run for run in arm.completed}
    scored = [items.get((runs[seed].experiment_id, split, metric.name)) for seed in seeds]
    guessed = [_items_of(theirs[seed], like=one) for seed, one in zip(seeds, scored, strict=True)]
    pairs = paired_items(scored, guessed)
    if pairs is None:
        return seeds_only([ours[seed] - theirs[seed].value for seed in seeds])
    return two_way(pairs.differences, pairs.weights, groups=pairs.groups)


def _items_of(score: TrivialScore, *, like: "ItemScores | None") -> "ItemScores":
    """The predictor's items. They are on the arm's rows, so the arm's groups hold for them too."""
    from lorastudy.stats.twoway import ItemScores

    return ItemScores(values=score.items, weights=score.weights, groups=None if like is None else like.groups)
