"""Which configuration to use: what studies in the store show, else what they suggest, else what was published.

A study is read without the arms that do not fit: what fits is no outcome, so leaving the others out favours nobody,
and the reference is then the design's among those left. Verdicts keep their words. A blocked one never counts, and
an open one is reported with what would decide it. A study whose arms had no learning rate of their own answers too, for a
configuration is named with its rate; but by a lower grade, and nothing of it is called better.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from scipy import special

from lorastudy.analysis.comparison import Comparison
from lorastudy.analysis.items import ItemTable
from lorastudy.analysis.overview import Analysis, Question, analyse
from lorastudy.analysis.study import Arm, Study
from lorastudy.analysis.summary import scores_by_seed
from lorastudy.analysis.tuning import tried_rates
from lorastudy.spec.settings import Settings

Grade = Literal["measured here", "measured here, untuned", "interpolated from here", "literature only"]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A configuration with what it was predicted to take. `departures` are its differences from what was measured."""

    settings: Settings
    peak_bytes: int
    terms_bytes: Mapping[str, int]
    num_trainable_parameters: int
    train_seconds: float | None = None
    """Of the whole training; None where nobody timed it."""
    time_from: str | None = None
    departures: tuple[str, ...] = ()

    def fits(self, *, budget_bytes: int, max_seconds: float | None) -> bool:
        """Whether memory suffices, and time where it is known."""
        in_time = max_seconds is None or self.train_seconds is None or self.train_seconds <= max_seconds
        return self.peak_bytes <= budget_bytes and in_time


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A study that may answer, with a candidate for each of its arms that could be planned.

    `departures` say in what it is about something else than was asked: other data, or a model of another size.
    """

    study: Study
    held_out: str
    """The rows that its scores are of, in words."""
    candidates: Mapping[str, Candidate]
    question: Question = field(default_factory=Question)
    items: ItemTable = field(default_factory=dict)
    departures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What is to be known of the question that it is judged by."""


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """What one more run would score: the mean over seeds, with the 95 % prediction interval of a new seed."""

    metric: str
    unit: str
    mean: float
    interval: tuple[float, float] | None
    num_seeds: int
    held_out: str
    """The rows that would be scored, in words."""


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The answer. `open` names what could not be told, with what would decide it."""

    grade: Grade
    name: str
    candidate: Candidate
    because: tuple[str, ...]
    expectation: Expectation | None = None
    runner_up: "RunnerUp | None" = None
    open: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    """Studies that could not answer, and why."""
    untuned: bool = False
    """Whether no arm of the study had its learning rate tuned, so that this one is not called best."""
    undecided: bool = False
    """Whether the study told no two arms apart, so that its reference is named for want of a reason for another."""


@dataclass(frozen=True, kw_only=True)
class RunnerUp:
    """The next best, and how it stands to the recommended one or to the reference."""

    name: str
    candidate: Candidate
    standing: str


def recommend(
    evidence: Sequence[Evidence],
    literature: Sequence[Candidate],
    *,
    budget_bytes: int,
    max_seconds: float | None = None,
) -> Recommendation | None:
    """The best supported configuration that fits; None where none does.

    Studies of the same model and data come first, those with tuned arms before the others; then those that differ, in
    the order given; published rules last.
    """
    left_out: list[str] = []
    untuned: Recommendation | None = None
    for one in sorted(evidence, key=lambda each: len(_all_departures(each)) > 0):
        if untuned is not None and _all_departures(one):
            break
        fitting = {
            name: candidate
            for name, candidate in one.candidates.items()
            if candidate.fits(budget_bytes=budget_bytes, max_seconds=max_seconds)
        }
        answer = _from_study(one, fitting)
        if isinstance(answer, str):
            left_out.append(f"{one.study.suite_name}: {answer}")
        elif answer.untuned and not _all_departures(one):
            untuned = untuned or answer
        else:
            return replace(answer, left_out=tuple(left_out))
    if untuned is not None:
        return replace(untuned, left_out=tuple(left_out))
    fitting_ones = [c for c in literature if c.fits(budget_bytes=budget_bytes, max_seconds=max_seconds)]
    if not fitting_ones:
        return None
    first, *others = fitting_ones
    standing = "next by the same rules; the two were not compared here"
    return Recommendation(
        grade="literature only",
        name=_configuration(first),
        candidate=first,
        because=("no study in the store answers for this model, so published rules do",),
        runner_up=RunnerUp(name=_configuration(others[0]), candidate=others[0], standing=standing)
        if others
        else None,
        left_out=tuple(left_out),
    )


_UNTUNED = (
    "not called best: no arm of the study had its learning rate tuned, and at rates of their own the arms may stand in "
    "another order; a suite with learning_rate: auto would tell"
)


def _from_study(one: Evidence, fitting: Mapping[str, Candidate]) -> Recommendation | str:
    """What the study recommends of the arms that fit, or why it recommends none."""
    arms = tuple(arm for arm in one.study.arms if arm.name in fitting and arm.completed)
    if len(arms) < 2:
        return "fewer than two of its completed arms fit, so there is no verdict"
    analysis = analyse(replace(one.study, arms=arms), question=one.question, items=one.items)
    valid = [c for c in analysis.primary_comparisons if c.is_valid and c.estimate is not None]
    if analysis.reference is None or not valid:
        reasons = dict.fromkeys(c.reason for c in analysis.primary_comparisons if c.reason)
        return f"no verdict stands ({'; '.join(reasons) or 'nothing was compared'})"
    chosen, because = _chosen(analysis, valid, fitting=fitting)
    departures = (*one.departures, *fitting[chosen.name].departures)
    untuned = chosen.name in analysis.untuned
    as_measured: Grade = "measured here, untuned" if untuned else "measured here"
    return Recommendation(
        grade="interpolated from here" if departures else as_measured,
        name=_called(chosen.name, fitting[chosen.name]),
        candidate=fitting[chosen.name],
        because=(
            because,
            *([_UNTUNED] if untuned else []),
            *(f"not measured as such: {each}" for each in departures),
        ),
        expectation=_expectation(analysis, chosen, held_out=one.held_out),
        runner_up=_runner_up(analysis, chosen, valid=valid, fitting=fitting),
        open=_open(analysis, valid, chosen=chosen),
        caveats=(
            *one.notes,
            *(
                f"{finding.code} {finding.title}: {finding.found}"
                for finding in analysis.lint
                if finding.severity != "note" and chosen.name in finding.arms
            ),
        ),
        untuned=untuned,
        undecided=not any(c.reference_is_ahead or c.arm_is_ahead or c.is_as_good for c in valid),
    )


def _chosen(
    analysis: Analysis, valid: Sequence[Comparison], *, fitting: Mapping[str, Candidate]
) -> tuple[Arm, str]:
    """The arm that the verdicts allow, and why: never the best looking one without a verdict.

    Of untuned arms it is the same one, at the rates that were tried, and the words say so.
    """
    reference = analysis.reference
    assert reference is not None
    is_untuned = reference.name in analysis.untuned
    rates = f"{tried_rates(analysis.study)} " if is_untuned else ""
    ahead_of = f"{rates}shown to be {'ahead of' if is_untuned else 'better than'}"
    smallest = analysis.smallest_no_worse
    by_arm = {comparison.arm: comparison for comparison in valid}
    has_margin = analysis.question.margin is not None
    within = f"within the margin of {analysis.question.margin_words(analysis.primary.unit)}"
    if smallest is not None and smallest.name in by_arm:
        why = f"{rates}the smallest rank shown to be as good as {reference.name} {within}, or {'ahead' if is_untuned else 'better'}"
        return smallest, why
    ahead = [c for c in valid if c.arm_is_ahead]
    if ahead:
        best = min(ahead, key=lambda c: c.cost or 0.0)
        return analysis.study.arm(best.arm), f"{ahead_of} {reference.name}"
    as_good = [c for c in valid if c.is_as_good]
    if as_good:
        cheapest = min(as_good, key=lambda c: fitting[c.arm].peak_bytes)
        why = f"{rates}shown to be as good as {reference.name} {within}, at the least memory"
        return analysis.study.arm(cheapest.arm), why
    behind = [c.arm for c in valid if c.reference_is_ahead]
    if len(behind) == len(valid):
        return reference, f"{ahead_of} {', '.join(behind)}"
    shown = f"; {ahead_of} {', '.join(behind)}" if behind else ""
    as_good_within = f" {within}" if has_margin else ""
    named = analysis.question.reference
    whose = "suite" if named is not None and reference.name.startswith(named) else "design"
    return (
        reference,
        f"the {whose}'s reference, and no arm that fits was shown to be as good{as_good_within}{shown}",
    )


def _open(analysis: Analysis, valid: Sequence[Comparison], *, chosen: Arm) -> tuple[str, ...]:
    """What cannot be told, with the seeds that would decide; and that no margin was set, where none was."""
    told = []
    for comparison in valid:
        if comparison.verdict != "cannot tell" or comparison.arm == chosen.name:
            continue
        more = comparison.more
        needs = comparison.reason if more is None else f"needs {more}"
        told.append(f"{comparison.arm} against {comparison.reference}: cannot tell ({needs})")
    if analysis.question.margin is None and analysis.returns is not None:
        told.append("no margin was set, so no smaller rank can be shown to be as good")
    return tuple(told)


def _runner_up(
    analysis: Analysis, chosen: Arm, *, valid: Sequence[Comparison], fitting: Mapping[str, Candidate]
) -> RunnerUp | None:
    """The best mean among the other arms whose comparison stands."""
    reference = analysis.reference
    assert reference is not None
    costs = {c.arm: c.cost for c in valid if c.cost is not None} | {reference.name: 0.0}
    costs.pop(chosen.name, None)
    if not costs:
        return None
    name = min(costs, key=lambda arm: costs[arm])
    comparison = analysis.comparison(chosen.name if name == reference.name else name)
    assert comparison is not None
    standing = (
        f"{comparison.arm} minus {comparison.reference}: {comparison.mean:+.4g} {comparison.metric.unit}"
    )
    if comparison.interval is not None:
        low, high = comparison.interval
        standing += f", 95 % interval [{low:.4g}, {high:.4g}]"
    return RunnerUp(
        name=_called(name, fitting[name]),
        candidate=fitting[name],
        standing=f"{standing}; {comparison.told}",
    )


def _expectation(analysis: Analysis, arm: Arm, *, held_out: str) -> Expectation | None:
    """Mean ± t(.975, n - 1) * sd * sqrt(1 + 1/n): the prediction interval of one further seed on the same rows."""
    metric = analysis.primary
    values = list(scores_by_seed(arm, analysis.study, metric=metric).values())
    if not values:
        return None
    mean, n = statistics.fmean(values), len(values)
    half = None
    if n > 1:
        half = float(special.stdtrit(n - 1, 0.975)) * statistics.stdev(values) * (1 + 1 / n) ** 0.5
    return Expectation(
        metric=metric.title,
        unit=metric.unit,
        mean=mean,
        interval=None if half is None else (mean - half, mean + half),
        num_seeds=n,
        held_out=held_out,
    )


def _called(arm: str, candidate: Candidate) -> str:
    """The arm's name, which only what was measured may bear."""
    return f"{_configuration(candidate)} (after {arm})" if candidate.departures else arm


def _configuration(candidate: Candidate) -> str:
    settings = candidate.settings
    targets = settings.target_modules
    where = targets if isinstance(targets, str) else ", ".join(targets)
    return f"rank {settings.lora_rank} on {where}, {settings.quantization}"


def _all_departures(one: Evidence) -> tuple[str, ...]:
    return (*one.departures, *(each for c in one.candidates.values() for each in c.departures))
