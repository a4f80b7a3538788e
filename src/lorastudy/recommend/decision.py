"""Which arm a study says to take: the one decision that the report, the terminal and `recommend` share.

**The rule.** If the suite or the design names a reference (the largest rank, the highest precision): the cheapest arm that a
verdict calls better than the reference; if there is none, the cheapest of the arms that are as good within the margin and the
reference itself; or the reference, if it is better than every other arm. If no reference is named: the arm that is shown to be
the best, or the cheapest that is shown to be within the margin of the best (`stats.best`). An arm that is shown to be behind
another one of these is left out. The best looking mean alone is no reason.

The cheapest arm is the one with the least measured peak memory; along a ladder of ranks, the smallest rank. If two engines
trained the arms, their memory is not comparable, and the cheapest arm is the one with the fewest trainable parameters.

**Not decided.** If arms are shown to be better than the reference, use the cheapest of those for now. If there are too few
seeds for any verdict, and the whole 95 % interval of an arm is ahead of the reference, use the arm with the best mean among
such arms: it is the best so far, and preliminary. Else use the reference: it was named before the run. In a decision an open
verdict never counts in favour of an arm.

**Never recommended** are arms that are not shown to beat guessing without a model on the primary metric (`stats.trivial`), and, if
held-out loss is that metric, arms whose mean loss is above the base model's. That training made an arm worse (harm) is said
only if the 95 % interval of its rise lies above 0 on enough seeds. By another metric a rise in loss is a limit, and no harm. Arms without a learning rate of their own decide only at the rates that
were tried (`untuned`): the decision names one, but nothing is called best.
"""

import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lorastudy.analysis.overview import Analysis, Criterion, analyse
from lorastudy.stats.comparison import Comparison, leans
from lorastudy.stats.study import Study, StudyArm, differing_settings, have_one_engine
from lorastudy.stats.summary import LOSS, LOSS_BEFORE, Spread, scores_by_seed
from lorastudy.stats.twoway import ItemTable, seeds_only
from lorastudy.suite.question import MIN_SEEDS

Status = Literal["decided", "not decided", "none"]
Cost = Literal["rank", "memory", "parameters", "order"]
Reason = Literal[
    "better than the reference",
    "as good as the reference",
    "reference better than every other",
    "best",
    "as good as the best",
    "racing stopped every other",
    "reference meanwhile",
    "better than the reference meanwhile",
    "best so far",
    "nothing completed",
    "one arm",
    "no valid comparison",
    "harm",
    "not shown to help",
    "no better than guessing",
]

#: Arms of a ladder differ in these only, and the smaller rank is the cheaper arm.
_LADDER_KEYS = frozenset({"lora_rank", "lora_alpha", "learning_rate"})


@dataclass(frozen=True, kw_only=True)
class ArmDecision:
    """The arm to take, and the reason.

    If the status is "not decided", `arm` is the one to use for now. With status "none" there is no arm.
    """

    status: Status
    reason: Reason
    arm: str | None = None
    peers: tuple[str, ...] = ()
    """Other arms for which the same was shown. `arm` is the cheapest of all of them."""
    cheapest_by: Cost | None = None
    """If there are peers: the cost that was compared."""
    left_out: tuple[str, ...] = ()
    """Arms for which the same was shown, but which are shown to be behind one of the peers."""
    untuned: bool = False
    """Whether this holds only at the learning rates that were tried; then nothing is called best or recommended."""
    harmed: tuple[str, ...] = ()
    """Arms that training is shown to have made worse than the base model."""
    not_helped: tuple[str, ...] = ()
    """Arms whose mean held-out loss is above the base model's, which may be noise."""
    no_better_than_guessing: tuple[str, ...] = ()
    """Arms that are not shown to beat every trivial predictor."""

    @property
    def is_recommended(self) -> bool:
        """Whether the arm may be called recommended."""
        return self.status == "decided" and not self.untuned


def decide(analysis: Analysis) -> ArmDecision:
    """The study's decision. A pure function: equal results give equal decisions."""
    if analysis.reference is None:
        return ArmDecision(status="none", reason="nothing completed")
    decision = _decided(analysis, analysis.reference, unfit=_Unfit.of(analysis))
    return replace(
        decision,
        harmed=harmed_arms(analysis),
        not_helped=_not_helped(analysis),
        no_better_than_guessing=analysis.no_better_than_guessing,
    )


@dataclass(frozen=True, kw_only=True)
class _Unfit:
    """Arms that are never recommended."""

    harmed: frozenset[str]
    not_helped: frozenset[str]
    no_better_than_guessing: frozenset[str]

    @classmethod
    def of(cls, analysis: Analysis) -> "_Unfit":
        return cls(
            harmed=frozenset(harmed_arms(analysis)),
            not_helped=frozenset(_not_helped(analysis)),
            no_better_than_guessing=frozenset(analysis.no_better_than_guessing),
        )

    @property
    def arms(self) -> frozenset[str]:
        return self.harmed | self.not_helped | self.no_better_than_guessing

    def reason(self, arms: Collection[str]) -> Reason:
        """Why none of these arms is recommended. Harm is a claim about every arm."""
        if self.harmed.issuperset(arms):
            return "harm"
        if self.no_better_than_guessing.issuperset(arms):
            return "no better than guessing"
        is_raised = (self.harmed | self.not_helped).issuperset(arms)
        return "not shown to help" if is_raised else "no better than guessing"


def _decided(analysis: Analysis, reference: StudyArm, *, unfit: _Unfit) -> ArmDecision:
    comparisons = analysis.primary_comparisons
    if not comparisons:
        return _alone(analysis, reference, unfit=unfit)
    valid = [comparison for comparison in comparisons if comparison.is_valid]
    arms = [reference.name, *(comparison.arm for comparison in valid or comparisons)]
    if unfit.arms.issuperset(arms):
        return ArmDecision(status="none", reason=unfit.reason(arms))
    if not valid:
        return ArmDecision(status="none", reason="no valid comparison")
    by_rule = _by_reference if analysis.is_reference_named else _by_best
    shown = _Verdicts(analysis=analysis, valid=tuple(valid), unfit=unfit, tuned_only=True)
    decision = by_rule(shown)
    if decision is None:
        at_tried_rates = replace(shown, tuned_only=False)
        decision = by_rule(at_tried_rates) or _meanwhile(at_tried_rates)
        decision = replace(decision, untuned=not analysis.untuned.isdisjoint(arms))
    return decision


def decide_within(
    study: Study, *, criterion: Criterion, items: ItemTable, fitting: Collection[str]
) -> tuple[Analysis, ArmDecision]:
    """The decision among the arms that fit, with the analysis behind it.

    Whether an arm fits does not depend on its results, so leaving others out favours none; the design then names the reference
    among those left. Arms that never completed stay: that racing or divergence ended them is part of the result.
    """
    arms = tuple(arm for arm in study.arms if arm.name in fitting or not arm.completed)
    analysis = analyse(replace(study, arms=arms), criterion=criterion, items=items)
    return analysis, decide(analysis)


def harmed_arms(analysis: Analysis) -> tuple[str, ...]:
    """Arms that training is shown to have made worse: the interval of their rise in held-out loss lies above 0.

    The rise is paired by seed, on as many seeds as a verdict needs. None if another metric decides.
    """
    if analysis.primary != LOSS:
        return ()
    return tuple(
        arm for arm, rises in _rises(analysis).items() if len(rises) >= MIN_SEEDS and _is_shown(rises)
    )


def arms_with_more_loss(analysis: Analysis) -> tuple[str, ...]:
    """Arms whose mean held-out loss is above the base model's on the same seeds, shown or not."""
    return tuple(arm for arm, rises in _rises(analysis).items() if statistics.fmean(rises) > 0)


def _not_helped(analysis: Analysis) -> tuple[str, ...]:
    if analysis.primary != LOSS:
        return ()
    harmed = harmed_arms(analysis)
    return tuple(arm for arm in arms_with_more_loss(analysis) if arm not in harmed)


def _rises(analysis: Analysis) -> dict[str, list[float]]:
    """Each arm's held-out loss less the base model's, one for each seed that has both; without arms that have none."""
    found = {}
    for summary in analysis.completed:
        before, after = (
            scores_by_seed(summary.arm, analysis.study, metric=metric) for metric in (LOSS_BEFORE, LOSS)
        )
        shared = sorted(before.keys() & after.keys())
        if shared:
            found[summary.arm.name] = [after[seed] - before[seed] for seed in shared]
    return found


def _is_shown(rises: Sequence[float]) -> bool:
    low, _ = seeds_only(rises).interval()
    return float(low) > 0


def _alone(analysis: Analysis, arm: StudyArm, *, unfit: _Unfit) -> ArmDecision:
    """The decision if one arm completed: it is taken if racing stopped the others."""
    if arm.name in unfit.arms:
        return ArmDecision(status="none", reason=unfit.reason([arm.name]))
    if not analysis.study.pruned:
        return ArmDecision(status="none", reason="one arm")
    untuned = arm.name in analysis.untuned
    return ArmDecision(status="decided", reason="racing stopped every other", arm=arm.name, untuned=untuned)


@dataclass(frozen=True, kw_only=True)
class _Verdicts:
    """What the verdicts show about the arms that may be taken: all of them, or the tuned ones only."""

    analysis: Analysis
    valid: tuple[Comparison, ...]
    unfit: _Unfit
    tuned_only: bool

    @property
    def reference(self) -> str:
        assert self.analysis.reference is not None
        return self.analysis.reference.name

    @property
    def better(self) -> list[str]:
        """Arms that are ahead of the reference."""
        return [one.arm for one in self._counted if one.arm_is_ahead and one.arm not in self.unfit.arms]

    @property
    def as_good(self) -> list[str]:
        """Arms that are as good as the reference within the margin."""
        return [one.arm for one in self._counted if one.no_worse and one.arm not in self.unfit.arms]

    @property
    def leading(self) -> list[Comparison]:
        """Comparisons with too few seeds for a verdict in which the arm's whole 95 % interval is ahead of the reference."""
        return [
            one
            for one in self.valid
            if one.n < MIN_SEEDS and leans(one) and (one.cost or 0.0) < 0 and one.arm not in self.unfit.arms
        ]

    @property
    def is_reference_ahead_of_all(self) -> bool:
        return len(self._counted) == len(self.valid) and all(one.reference_is_ahead for one in self.valid)

    @property
    def _counted(self) -> list[Comparison]:
        return [one for one in self.valid if one.verdict != "untuned" or not self.tuned_only]


def _by_reference(shown: _Verdicts) -> ArmDecision | None:
    """The decision if a reference was named before the run: better arms first, then arms that are as good."""
    if shown.better:
        return _cheapest_not_behind(shown, reason="better than the reference")
    reference = [] if shown.reference in shown.unfit.arms else [shown.reference]
    if shown.as_good:
        return _cheapest(shown, [*shown.as_good, *reference], reason="as good as the reference")
    if reference and shown.is_reference_ahead_of_all:
        return ArmDecision(status="decided", reason="reference better than every other", arm=shown.reference)
    return None


def _by_best(shown: _Verdicts) -> ArmDecision | None:
    """The decision if nobody named a reference: by comparison with the best. An open verdict against the first arm stays open."""
    analysis = shown.analysis
    compared = [shown.reference, *(one.arm for one in shown.valid)]
    if shown.tuned_only and not analysis.untuned.isdisjoint(compared):
        return None
    bounds = analysis.against_the_best(compared)
    arms = [arm for arm in compared if arm not in shown.unfit.arms]
    best = [arm for arm in arms if arm in bounds and bounds[arm].is_best]
    verdicts_agree = {*shown.better, *([shown.reference] if shown.is_reference_ahead_of_all else [])}
    margin = analysis.criterion.margin
    if margin is not None:
        open_to_margin = {*shown.better, *shown.as_good, shown.reference}
        within = [arm for arm in arms if arm in bounds and bounds[arm].is_within(margin)]
        within = [arm for arm in within if arm in open_to_margin]
        if len(within) > 1 or (within and within != best):
            return _cheapest(shown, within, reason="as good as the best")
    if best and best[0] in verdicts_agree:
        return ArmDecision(status="decided", reason="best", arm=best[0])
    return None


def _cheapest_not_behind(shown: _Verdicts, *, reason: Reason) -> ArmDecision:
    """Of the arms that are better than the reference, the cheapest one that is not shown to be behind another of them."""
    bounds, margin = shown.analysis.against_the_best(shown.better), shown.analysis.criterion.margin
    behind = [
        arm
        for arm in shown.better
        if arm in bounds and bounds[arm].is_behind and not bounds[arm].is_within(margin)
    ]
    found = _cheapest(shown, [arm for arm in shown.better if arm not in behind], reason=reason)
    status: Status = "decided" if reason == "better than the reference" else "not decided"
    return replace(found, status=status, left_out=tuple(behind))


def _meanwhile(shown: _Verdicts) -> ArmDecision:
    """Which arm to use until it is decided: never an arm because its verdict is open, and never one that is behind."""
    if shown.better:
        return _cheapest_not_behind(shown, reason="better than the reference meanwhile")
    if shown.leading:
        first = min(shown.leading, key=lambda one: one.cost or 0.0)
        return ArmDecision(status="not decided", reason="best so far", arm=first.arm)
    if shown.reference in shown.unfit.arms:
        # Harm of the reference alone says nothing of the others, which are open.
        reason = shown.unfit.reason([shown.reference])
        return ArmDecision(status="none", reason="not shown to help" if reason == "harm" else reason)
    return ArmDecision(status="not decided", reason="reference meanwhile", arm=shown.reference)


def _by_cost(analysis: Analysis, arms: Sequence[str]) -> tuple[list[str], Cost]:
    """The cheapest first, and the cost compared: rank in a rank ablation, else measured peak memory, else parameters.

    Memory counts only if one engine trained all of these arms. Without a known cost the order is that of the suite.
    """
    if analysis.study.experiment_type == "rank_ablation" and _is_ladder(analysis.study, arms):
        return sorted(arms, key=lambda arm: int(analysis.study.arm(arm).settings["lora_rank"])), "rank"
    costs = [analysis.summary(name).costs for name in arms]
    memory = [one.peak_memory_bytes for one in costs]
    parameters = [one.trainable_parameters for one in costs]
    by_cost: dict[Cost, Sequence[Spread | None]] = {"parameters": parameters}
    if have_one_engine(map(analysis.study.arm, arms)):
        by_cost = {"memory": memory, **by_cost}
    for cost, spreads in by_cost.items():
        known = {name: spread.median for name, spread in zip(arms, spreads, strict=True) if spread}
        if len(known) == len(arms):
            return sorted(arms, key=known.__getitem__), cost
    order = analysis.study.suite_order or [arm.name for arm in analysis.study.arms]
    return sorted(arms, key=order.index), "order"


def _is_ladder(study: Study, arms: Sequence[str]) -> bool:
    return set(differing_settings([study.arm(name) for name in arms])) <= _LADDER_KEYS


def _cheapest(shown: _Verdicts, arms: Sequence[str], *, reason: Reason) -> ArmDecision:
    (taken, *peers), cost = _by_cost(shown.analysis, arms)
    return ArmDecision(
        status="decided", reason=reason, arm=taken, peers=tuple(peers), cheapest_by=cost if peers else None
    )
