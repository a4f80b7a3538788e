"""Everything that is computed about one study, once: tables, figures and findings take their numbers from here."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from lorastudy.lint.case import LintFinding, measured_case
from lorastudy.lint.lint import invalidations, lint, untuned
from lorastudy.stats.best import AgainstBest, ConfidenceSet, against_the_best, confidence_set
from lorastudy.stats.comparison import (
    Comparison,
    Divergence,
    compare_with_reference,
    paired_estimate,
)
from lorastudy.stats.frontier import Standing, StepTime, pareto_frontier, standings
from lorastudy.stats.outcomes import divergence_of, is_borne_out, judged_by_outcomes
from lorastudy.stats.ranks import RankReturns, rank_ladder, rank_returns
from lorastudy.stats.rate_choice import Choice, choices, compared_arms
from lorastudy.stats.reference import is_reference_named, reference_arm
from lorastudy.stats.study import (
    Invalidation,
    SetLate,
    Study,
    StudyArm,
    differing_settings,
    have_one_engine,
    stored_split,
)
from lorastudy.stats.summary import (
    EXACT_MATCH,
    FORGETTING,
    LOSS,
    LOSS_BEFORE,
    TOKEN_ACCURACY,
    ArmSummary,
    Metric,
    metric_of,
    scores_by_seed,
    summarise_arm,
)
from lorastudy.stats.trivial import BASE_MODEL, AgainstTrivial, against_trivial, gain_start
from lorastudy.stats.twoway import ItemScores, ItemTable, TwoWay, with_groups
from lorastudy.stats.verdicts import Rules
from lorastudy.store import ExperimentTracker
from lorastudy.store.views import ExperimentResult
from lorastudy.suite.metrics import MetricDefinition
from lorastudy.suite.question import Margin, Question

#: Verdicts are about the primary metric; the others are shown beside it.
COMPARED_METRICS = (LOSS, TOKEN_ACCURACY, EXACT_MATCH)


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """What a study is judged by: the question that its suite stated, with a margin in the metric's unit.

    `primary_metric` is the name of one of `compared_metrics`. There is no default margin: without one no arm can be "as good
    within the margin". `reference` names an arm; by default the design does.
    """

    primary_metric: str = LOSS.name
    margin: float | None = None
    margin_share: float | None = None
    """For a margin that is a share of the reference's gain: that share. `margin` is then its amount at the measured gain."""
    gain_over: str = BASE_MODEL
    """The start of that gain: the base model, or a trivial predictor that is better than it."""
    margin_lost: str | None = None
    """Why a margin that is a share of the gain could not be used, if so."""
    reference: str | None = None
    definitions: tuple[MetricDefinition, ...] = ()
    """The metrics that the suite adds to those that every run has."""
    late: tuple[SetLate, ...] = ()
    """The parts that were set when results already existed."""
    invalidations: Mapping[str, Sequence[Invalidation]] = field(default_factory=dict)
    """By arm: what makes its verdicts invalid, besides the linter's findings."""

    @property
    def late_by_key(self) -> Mapping[str, SetLate]:
        """The late parts that verdicts depend on; a margin that could not be used is not among them."""
        return {one.key: one for one in self.late if one.key != "margin" or self.margin is not None}

    def margin_words(self, unit: str) -> str:
        """`0.1 nats per token`, or the share with its amount; `none` without a margin."""
        if self.margin is None:
            return "none"
        in_unit = f" {unit}" if unit else ""
        if self.margin_share is None:
            return f"{self.margin:g}{in_unit}"
        # This gain is not the gain along a ladder of ranks that the findings describe.
        share = Margin(amount=self.margin_share, is_share=True)
        return f"{share} over {self.gain_over}, {self.margin:.2g}{in_unit} as measured"

    @property
    def added_metrics(self) -> tuple[Metric, ...]:
        """The metrics that the suite adds, on the rows that report."""
        return tuple(map(metric_of, self.definitions))

    @property
    def compared_metrics(self) -> tuple[Metric, ...]:
        """The metrics by which arms are compared."""
        return (*COMPARED_METRICS, *self.added_metrics)

    @property
    def primary(self) -> Metric:
        """The metric that verdicts are about."""
        return next(metric for metric in self.compared_metrics if metric.name == self.primary_metric)

    @property
    def metrics_by_item(self) -> tuple[Metric, ...]:
        """The metrics that are needed by item; the base model's only if the margin is a share of the gain."""
        compared = self.compared_metrics
        return compared if self.margin_share is None else (*compared, LOSS_BEFORE)


@dataclass(frozen=True, kw_only=True, repr=False)
class Analysis:
    """One study with its summaries, comparisons and frontier. `reference` is None if nothing completed."""

    study: Study
    criterion: Criterion
    primary: Metric
    """The metric that verdicts are about."""
    summaries: tuple[ArmSummary, ...]
    reference: StudyArm | None
    choices: tuple[Choice, ...]
    """The learning rates that were chosen for the comparisons."""
    comparisons: Mapping[tuple[str, str], tuple[Comparison, ...]]
    """By metric key; empty if the metric was not measured."""
    frontier: tuple[str, ...]
    """Names of the arms on the Pareto frontier of mean held-out loss and mean peak memory; of loss alone if their memory is not
    comparable (`costs_are_comparable`)."""
    standings: tuple[Standing, ...]
    """Every compared arm on the frontier of quality, memory, time and forgetting, with its probability."""
    returns: RankReturns | None
    """For a rank ablation with at least two ranks."""
    items: ItemTable
    """The scores item by item from which the intervals were made."""
    lint: tuple[LintFinding, ...]
    """What makes the arms unfair to compare; what invalidates is part of the verdicts."""
    untuned: frozenset[str]
    """Arms without a learning rate of their own, by the linter: none of them can win."""
    trivial: tuple[AgainstTrivial, ...]
    """Every compared arm against guessing without a model, on the primary metric."""

    def __repr__(self) -> str:
        study = self.study
        against = "" if self.reference is None else f", compared with {self.reference.name}"
        verdicts = (f"{one.arm}: {one.verdict_words}" for one in self.primary_comparisons)
        told = "; ".join(verdicts) or "nothing to compare"
        return f"<Analysis of {study.suite_name}: {len(study.reported_arms)} arms{against} by {self.primary.title.lower()}: {told}>"

    @cached_property
    def may_be_best(self) -> ConfidenceSet | None:
        """The arms that may be the best; None with too few seeds. Computed on first use: its library takes a second."""
        found = self.primary_comparisons
        return confidence_set(
            _costs_by_seed(self.study, compared_arms(self.study, metric=self.primary), metric=self.primary),
            undecided=[(one.arm, one.reference) for one in found if one.verdict == "cannot tell"],
            behind=[_loser_and_winner(one) for one in found if one.ahead is not None],
        )

    @property
    def is_reference_named(self) -> bool:
        """Whether the suite or the design named the reference before the run."""
        return is_reference_named(self.study, named=self.criterion.reference)

    def against_the_best(self, arms: Sequence[str]) -> Mapping[str, AgainstBest]:
        """Each of these arms against the best of the others; empty if no two can be compared."""
        pairs, num_seeds = pairs_in_cost(
            self.study, [self.study.arm(name) for name in arms], metric=self.primary, items=self.items
        )
        return against_the_best(pairs, arms=arms, num_seeds=num_seeds)

    @property
    def no_better_than_guessing(self) -> tuple[str, ...]:
        """Compared arms that are not shown to be ahead of every trivial predictor, in the order of the study."""
        return tuple(dict.fromkeys(one.arm for one in self.trivial if not one.is_beaten))

    @property
    def costs_are_comparable(self) -> bool:
        """Whether one engine trained all reported arms, so that their memory and times may be compared."""
        return have_one_engine(self.study.reported_arms)

    def divergence(self, name: str) -> Divergence | None:
        """On how many reporting seeds the arm diverged; None if on none."""
        return divergence_of(self.study, self.study.arm(name))

    def summary(self, name: str) -> ArmSummary:
        """The summary of the arm of that name."""
        return next(summary for summary in self.summaries if summary.arm.name == name)

    def comparison(self, name: str, metric: Metric | None = None) -> Comparison | None:
        """The arm against the reference, on the primary metric by default.

        None for the reference itself, for a metric that was not measured, and for an arm that is represented by another rate.
        """
        family = self.comparisons.get((metric or self.primary).key, ())
        return next((comparison for comparison in family if comparison.arm == name), None)

    def pairs(
        self, arms: Sequence[StudyArm], *, reference: StudyArm, metric: Metric | None = None
    ) -> tuple[Comparison, ...]:
        """Arms against an arm other than the reference, on the primary metric by default: for intervals, not for verdicts."""
        return compare_with_reference(
            self.study, arms=arms, reference=reference, metric=metric or self.primary, items=self.items
        )

    @property
    def primary_comparisons(self) -> tuple[Comparison, ...]:
        """The comparisons that verdicts are about."""
        return self.comparisons.get(self.primary.key, ())

    @property
    def smallest_sufficient(self) -> StudyArm | None:
        """The smallest rank shown to be as good as the reference within the margin, or better than it.

        None if that is shown for no rank, or only at untuned rates.
        """
        smallest = self.smallest_no_worse
        comparison = None if smallest is None else self.comparison(smallest.name)
        return None if comparison is None or comparison.verdict == "untuned" else smallest

    @property
    def smallest_no_worse(self) -> StudyArm | None:
        """The same, even if only at untuned rates.

        By the fixed sequence; None if it stopped at its first step, or without a sequence.
        """
        if self.returns is None or self.criterion.margin is None:
            return None
        by_arm = {comparison.arm: comparison for comparison in self.primary_comparisons}
        passed = [arm for arm in self.returns.ladder if (c := by_arm.get(arm.name)) and c.no_worse]
        return passed[0] if passed else None

    @property
    def completed(self) -> tuple[ArmSummary, ...]:
        """Summaries of the arms that have at least one completed seed."""
        return tuple(summary for summary in self.summaries if summary.arm.completed)


def analyse(study: Study, *, criterion: Criterion | None = None, items: ItemTable | None = None) -> Analysis:
    """The analysis of one study. Without items, intervals cover only the items that were scored."""
    criterion = criterion or Criterion()
    primary = criterion.primary
    summaries = tuple(summarise_arm(arm, study, added=criterion.added_metrics) for arm in study.reported_arms)
    reference = reference_arm(study, named=criterion.reference, metric=primary)
    arms = compared_arms(study, metric=primary)
    trivial = against_trivial(study, arms, metric=primary, items=items or {})
    found = _linted(study, criterion, metric=primary, trivial=trivial)
    blocked, loose = {**invalidations(found), **criterion.invalidations}, untuned(found)
    ladder = _ladder(study, reference, metric=primary)
    comparisons = {
        metric.key: _compared(study, arms, reference=reference, metric=metric, items=items, rules=rules)
        for metric, rules in _metrics_with_rules(
            Rules(
                margin=criterion.margin,
                margin_share=criterion.margin_share,
                invalidations=blocked,
                untuned=loose,
            ),
            criterion=criterion,
            ladder=_steps_down(study, ladder),
        )
    }
    returns = None
    if reference is not None and ladder:
        returns = rank_returns(
            study, reference, ladder=ladder, metric=primary, comparisons=comparisons[primary.key]
        )
    compared = [summary for summary in summaries if summary.arm.name in {arm.name for arm in arms}]
    return Analysis(
        study=study,
        criterion=criterion,
        primary=primary,
        summaries=summaries,
        reference=reference,
        choices=choices(study, metric=primary),
        comparisons=comparisons,
        frontier=pareto_frontier(_loss_and_memory(summaries)),
        standings=_standings(study, compared, primary=primary),
        returns=returns,
        items=items or {},
        lint=found,
        untuned=loose,
        trivial=trivial,
    )


def stored_items(tracker: ExperimentTracker, study: Study, *, metrics: Sequence[Metric]) -> ItemTable:
    """The stored scores by item of these metrics, for the completed runs: what `analyse` takes as `items`."""
    table: dict[tuple[str, str, str], ItemScores] = {}
    for metric in metrics:
        split = stored_split(metric.split, study)
        found = scores_by_item(tracker, study.completed, split=split, metric=metric.name)
        table |= {(experiment_id, split, metric.name): scores for experiment_id, scores in found.items()}
    return table


def scores_by_item(
    tracker: ExperimentTracker, results: Sequence[ExperimentResult], *, split: str, metric: str
) -> dict[str, ItemScores]:
    """One metric's stored scores by item, for each experiment that has them."""
    found = tracker.get_all_items([result.experiment_id for result in results], split=split, metric=metric)
    return with_groups(found, results, split=split)


def criterion_of(study: Study, stated: Question | None) -> Criterion:
    """The criterion of the question that the suite stated; the default if it stated none.

    A share of the gain refers to the reference's mean gain in held-out loss over the base model, or over guessing if that is
    better (`trivial.gain_start`). The criterion keeps it both as a share, because the tests include the noise of that gain, and
    as an amount. If the base model's loss is unknown, if there is no gain, or for another metric, the share cannot be used:
    there is no margin, and `margin_lost` says why.
    """
    if stated is None:
        return Criterion()
    criterion = Criterion(
        primary_metric=stated.primary_metric,
        reference=stated.reference,
        definitions=stated.metrics,
    )
    if stated.margin is None:
        return criterion
    if not stated.margin.is_share:
        return replace(criterion, margin=stated.margin.amount)
    return _with_share(criterion, stated.margin, study=study)


def pairs_in_cost(
    study: Study, arms: Sequence[StudyArm], *, metric: Metric, items: ItemTable
) -> tuple[Mapping[tuple[str, str], TwoWay], int]:
    """The arguments of `against_the_best`: the difference in cost of each comparable pair, and the number of seeds."""
    pairs = {}
    for pair in itertools.combinations(arms, 2):
        found = paired_estimate(study, pair=pair, metric=metric, items=items)
        if found is not None and is_borne_out(study, pair, metric=metric):
            pairs[pair[0].name, pair[1].name] = replace(found, mean=metric.cost_sign * found.mean)
    return pairs, len({seed for arm in arms for seed in scores_by_seed(arm, study, metric=metric)})


def _with_share(criterion: Criterion, share: Margin, *, study: Study) -> Criterion:
    """The criterion with the amount of the share at the measured gain, and the start of that gain."""
    metric = criterion.primary
    reference = reference_arm(study, named=criterion.reference, metric=metric)
    if metric != LOSS:
        return replace(criterion, margin_lost="only held-out loss has a gain to take a share of")
    start = None if reference is None else gain_start(study, reference)
    if start is None or reference is None:
        return replace(criterion, margin_lost="the reference's gain in held-out loss was not measured")
    after = scores_by_seed(reference, study, metric=LOSS)
    gained = statistics.fmean(after[seed] for seed in start.by_seed)
    base = statistics.fmean(start.by_seed.values())
    if gained >= base:
        lost = f"{reference.name} has {gained:.3g} nats per token and gained nothing over {start.name} ({base:.3g})"
        return replace(criterion, gain_over=start.name, margin_lost=lost)
    return replace(
        criterion,
        margin=share.allowed(reference=gained, base=base),
        margin_share=share.amount,
        gain_over=start.name,
    )


def _linted(
    study: Study, criterion: Criterion, *, metric: Metric, trivial: tuple[AgainstTrivial, ...]
) -> tuple[LintFinding, ...]:
    """The linter's findings in the measured study."""
    case = measured_case(
        study,
        metric=metric,
        margin=None if criterion.margin_share is not None else criterion.margin,
        allowed=criterion.margin,
        reference=criterion.reference,
        trivial=trivial,
    )
    return lint(replace(case, added_metrics=criterion.added_metrics))


def _loser_and_winner(comparison: Comparison) -> tuple[str, str]:
    pair = (comparison.arm, comparison.reference)
    return pair if comparison.reference_is_ahead else pair[::-1]


def _metrics_with_rules(
    rules: Rules, *, criterion: Criterion, ladder: tuple[str, ...]
) -> list[tuple[Metric, Rules]]:
    """Each metric with its rules: the margin is for the primary metric only, invalidations hold for every metric."""
    without_margin, with_ladder = (
        replace(rules, margin=None, margin_share=None),
        replace(rules, ladder=ladder),
    )
    return [
        (metric, with_ladder if metric == criterion.primary else without_margin)
        for metric in criterion.compared_metrics
    ]


def _compared(
    study: Study,
    arms: Sequence[StudyArm],
    *,
    reference: StudyArm | None,
    metric: Metric,
    items: ItemTable | None,
    rules: Rules,
) -> tuple[Comparison, ...]:
    if reference is None:
        return ()
    found = compare_with_reference(
        study, arms=arms, reference=reference, metric=metric, items=items, rules=rules
    )
    return judged_by_outcomes(study, found, rules=rules)


def _ladder(study: Study, reference: StudyArm | None, *, metric: Metric) -> tuple[StudyArm, ...]:
    """The ranks up to the reference's; empty for another experiment type."""
    if reference is None or study.experiment_type != "rank_ablation":
        return ()
    return rank_ladder(study, reference, metric=metric)


def _steps_down(study: Study, ladder: Sequence[StudyArm]) -> tuple[str, ...]:
    """The ranks below the reference, the largest first. A rank that racing stopped is among them and ends the sequence."""
    if not ladder:
        return ()
    reference, has_rank = ladder[-1], {arm.settings["lora_rank"] for arm in ladder}
    stopped = {
        arm.settings["lora_rank"]: arm
        for arm in study.arms
        if arm.was_pruned
        and arm.settings["lora_rank"] not in has_rank
        and arm.settings["lora_rank"] < reference.settings["lora_rank"]
        and set(differing_settings([reference, arm])) <= {"lora_rank", "lora_alpha", "learning_rate"}
    }
    below = {arm.settings["lora_rank"]: arm for arm in ladder[:-1]} | stopped
    return tuple(below[rank].name for rank in sorted(below, reverse=True))


def _costs_by_seed(study: Study, arms: Sequence[StudyArm], *, metric: Metric) -> dict[str, list[float]]:
    """Each scored arm's cost on the seeds that all of them share, in order of seed; less is better."""
    shared = _shared_seeds(study, arms, metric=metric)
    sign = metric.cost_sign
    scores = {arm.name: scores_by_seed(arm, study, metric=metric) for arm in arms}
    return {name: [sign * by_seed[seed] for seed in shared] for name, by_seed in scores.items() if by_seed}


def _shared_seeds(study: Study, arms: Sequence[StudyArm], *, metric: Metric) -> list[int]:
    """The seeds that all scored arms share."""
    scored = [by_seed for arm in arms if (by_seed := scores_by_seed(arm, study, metric=metric))]
    return sorted(set.intersection(*map(set, scored))) if scored else []


def _standings(study: Study, compared: Sequence[ArmSummary], *, primary: Metric) -> tuple[Standing, ...]:
    arms = [summary.arm for summary in compared]
    shared = _shared_seeds(study, arms, metric=primary)
    is_comparable = have_one_engine(study.reported_arms)
    return standings(
        _costs_by_seed(study, arms, metric=primary),
        memory_bytes={arm.name: _memory_by_seed(arm, shared) for arm in arms if is_comparable},
        step_times={
            summary.arm.name: StepTime(seconds=step.median, error_seconds=noise.error_seconds)
            for summary in compared
            if is_comparable and (step := summary.costs.step_seconds) and (noise := summary.costs.step_noise)
        },
        forgetting=_costs_by_seed(study, arms, metric=FORGETTING)
        if _shared_seeds(study, arms, metric=FORGETTING) == shared
        else {},
    )


def _memory_by_seed(arm: StudyArm, seeds: Sequence[int]) -> list[float]:
    """Peak bytes of the arm alone on these seeds; empty if one of them was not measured."""
    measured = {run.seed: run.profile.peak_memory_bytes for run in arm.completed if run.profile is not None}
    peaks = [measured.get(seed) for seed in seeds]
    known = [float(peak) for peak in peaks if peak is not None]
    return known if len(known) == len(peaks) else []


def _loss_and_memory(summaries: tuple[ArmSummary, ...]) -> dict[str, tuple[float, float]]:
    """Memory and loss of each arm; memory is 0 for all if two engines trained them, so that it decides nothing."""
    points, is_comparable = {}, have_one_engine(summary.arm for summary in summaries)
    for summary in summaries:
        quality, memory = summary.score(LOSS), summary.costs.peak_memory_bytes
        if quality is not None and memory is not None:
            points[summary.arm.name] = (memory.mean if is_comparable else 0.0, quality.mean)
    return points
