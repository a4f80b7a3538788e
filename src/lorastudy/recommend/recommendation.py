"""Which configuration to use for a question: what a stored study decides, else what one suggests, else what was published.

Each study answers with its own decision (`recommend.decision`), made among the arms that fit. Of several studies the nearest to
the question answers; of equally near ones, a decided one before an open one and the longer training before the shorter. The
others are listed beside it. Only a decision that was measured for exactly this question is called recommended; anything else is
a place to start.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from scipy import special

from lorastudy.analysis.overview import Analysis, Criterion
from lorastudy.recommend.decision import ArmDecision, Reason, decide_within
from lorastudy.stats.study import Study, StudyArm
from lorastudy.stats.summary import scores_by_seed
from lorastudy.stats.twoway import ItemTable
from lorastudy.suite.settings import Settings

Grade = Literal["measured here", "measured here, untuned", "interpolated from here", "literature only"]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A configuration with its predicted costs. `departures` are its differences from what was measured."""

    settings: Settings
    peak_bytes: int
    terms_bytes: Mapping[str, int]
    num_trainable_parameters: int
    train_seconds: float | None = None
    """Of the whole training; None if it was never timed."""
    time_from: str | None = None
    departures: tuple[str, ...] = ()

    def fits(self, *, budget_bytes: int, max_seconds: float | None) -> bool:
        """Whether memory suffices, and time if it is known."""
        in_time = max_seconds is None or self.train_seconds is None or self.train_seconds <= max_seconds
        return self.peak_bytes <= budget_bytes and in_time


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A study that may answer, with a candidate for each of its arms that could be planned.

    `departures` name how it differs from the question: other data, or a model of another size.
    """

    study: Study
    held_out: str
    """The rows on which it was scored, in words."""
    candidates: Mapping[str, Candidate]
    criterion: Criterion = field(default_factory=Criterion)
    items: ItemTable = field(default_factory=dict)
    departures: tuple[str, ...] = ()
    is_named: bool = False
    """Whether the user named this very suite."""
    notes: tuple[str, ...] = ()
    """What is to be known of the criterion that it is judged by."""


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
    """The answer: a configuration, and the evidence for it."""

    grade: Grade
    name: str
    candidate: Candidate
    analysis: Analysis | None = None
    """Of the study that answers, among the arms that fit; None for published rules."""
    decision: ArmDecision | None = None
    departures: tuple[str, ...] = ()
    """How the study, or the configuration, differs from the question."""
    expectation: Expectation | None = None
    runner_up: "RunnerUp | None" = None
    open: tuple[str, ...] = ()
    """What is undecided, with what would decide it."""
    caveats: tuple[str, ...] = ()
    other_studies: tuple[str, ...] = ()
    """Studies that also answer and rank after this one, with their answers."""
    left_out: tuple[str, ...] = ()
    """Studies that cannot answer, and why."""

    @property
    def is_recommended(self) -> bool:
        """Whether exactly this question was decided. Anything else is a place to start."""
        return self.grade == "measured here" and self.decision is not None and self.decision.is_recommended


@dataclass(frozen=True, kw_only=True)
class RunnerUp:
    """The next best configuration, and how it compares with the recommended one or with the reference."""

    name: str
    candidate: Candidate
    standing: str


@dataclass(frozen=True, kw_only=True)
class _StudyAnswer:
    """The answer of one study."""

    evidence: Evidence
    fitting: Mapping[str, Candidate]
    analysis: Analysis
    decision: ArmDecision
    arm: StudyArm

    @property
    def departures(self) -> tuple[str, ...]:
        return (*self.evidence.departures, *self.fitting[self.arm.name].departures)

    @property
    def order(self) -> tuple[int, int, bool, int]:
        """Sort key: the nearest study first; then tuned before untuned and decided before open; then the suite that was named."""
        state = 2 if self.decision.untuned else 0 if self.decision.status == "decided" else 1
        return (len(self.departures), state, not self.evidence.is_named, -self.num_rows_trained)

    @property
    def num_rows_trained(self) -> int:
        """Number of training rows that the steps took, as the length of the training."""
        settings = self.arm.typed_settings
        rows = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
        return rows * max((result.num_steps or 0 for result in self.arm.completed), default=0)

    @property
    def in_short(self) -> str:
        """`long: r8, decided, after 4,000 training rows`."""
        state = "not decided" if self.decision.status != "decided" else "decided"
        untuned = ", untuned" if self.decision.untuned else ""
        length = f", after {self.num_rows_trained:,} training rows" if self.num_rows_trained else ""
        apart = f" ({'; '.join(self.departures)})" if self.departures else ""
        return f"{self.evidence.study.suite_name}: {self.arm.name}, {state}{untuned}{length}{apart}"


def recommend(
    evidence: Sequence[Evidence],
    literature: Sequence[Candidate],
    *,
    budget_bytes: int,
    max_seconds: float | None = None,
) -> Recommendation | None:
    """The configuration with the best evidence that fits; None if none fits. Published rules come last."""
    left_out, answers = [], []
    for one in evidence:
        fitting = {
            name: candidate
            for name, candidate in one.candidates.items()
            if candidate.fits(budget_bytes=budget_bytes, max_seconds=max_seconds)
        }
        answer = _from_study(one, fitting)
        if isinstance(answer, str):
            left_out.append(f"{one.study.suite_name}: {answer}")
        else:
            answers.append(answer)
    if answers:
        first, *others = sorted(answers, key=lambda answer: answer.order)
        return _recommendation(first, others=others, left_out=tuple(left_out))
    fitting_ones = [c for c in literature if c.fits(budget_bytes=budget_bytes, max_seconds=max_seconds)]
    return _published(fitting_ones, left_out=tuple(left_out)) if fitting_ones else None


_NO_ANSWER: Mapping[Reason, str] = {
    "harm": "training made every arm worse than the base model, which is harm",
    "not shown to help": "training is not shown to have helped: held-out loss rose above the base model's",
    "one arm": "fewer than two of its completed arms fit, so there is no verdict",
}


def _from_study(one: Evidence, fitting: Mapping[str, Candidate]) -> _StudyAnswer | str:
    """The study's decision among the arms that fit, or why it cannot answer."""
    if not any(arm.completed for arm in one.study.arms if arm.name in fitting):
        return "none of its completed arms fits"
    analysis, decision = decide_within(one.study, criterion=one.criterion, items=one.items, fitting=fitting)
    if decision.reason in _NO_ANSWER:
        return _NO_ANSWER[decision.reason]
    if decision.reason == "no better than guessing":
        return f"{' and '.join(decision.no_better_than_guessing)}: not shown to beat guessing without a model"
    is_compared = any(c.is_valid and c.estimate is not None for c in analysis.primary_comparisons)
    if decision.arm is None or not (is_compared or decision.status == "decided"):
        reasons = dict.fromkeys(c.reason for c in analysis.primary_comparisons if c.reason)
        return f"no verdict stands ({'; '.join(reasons) or 'nothing was compared'})"
    arm = analysis.study.arm(decision.arm)
    return _StudyAnswer(evidence=one, fitting=fitting, analysis=analysis, decision=decision, arm=arm)


def _recommendation(
    answer: _StudyAnswer, *, others: Sequence[_StudyAnswer], left_out: tuple[str, ...]
) -> Recommendation:
    analysis, arm = answer.analysis, answer.arm
    measured: Grade = "measured here, untuned" if answer.decision.untuned else "measured here"
    candidate = answer.fitting[arm.name]
    return Recommendation(
        grade="interpolated from here" if answer.departures else measured,
        name=_called(arm.name, candidate),
        candidate=candidate,
        analysis=analysis,
        decision=answer.decision,
        departures=answer.departures,
        expectation=_expectation(analysis, arm, held_out=answer.evidence.held_out),
        runner_up=_runner_up(answer),
        open=_open(analysis),
        caveats=(
            *_still_running(analysis.study),
            *answer.evidence.notes,
            *(
                f"{finding.code} {finding.title}: {finding.found}"
                for finding in analysis.lint
                if finding.severity != "note" and arm.name in finding.arms
            ),
        ),
        other_studies=tuple(other.in_short for other in others),
        left_out=left_out,
    )


def _still_running(study: Study) -> tuple[str, ...]:
    """A caveat if the study has not ended, since its answer may change."""
    to_come = sum(result.status in {"pending", "running", "paused"} for result in study.results)
    if not to_come:
        return ()
    return (
        f"the study still runs: {to_come} of {len(study.results)} experiments have not ended, and the answer may change",
    )


def _published(candidates: Sequence[Candidate], *, left_out: tuple[str, ...]) -> Recommendation:
    first, *others = candidates
    standing = "next by the same rules; the two were not compared here"
    return Recommendation(
        grade="literature only",
        name=_configuration(first),
        candidate=first,
        runner_up=RunnerUp(name=_configuration(others[0]), candidate=others[0], standing=standing)
        if others
        else None,
        left_out=left_out,
    )


def _open(analysis: Analysis) -> tuple[str, ...]:
    """What is undecided, with the seeds that would decide; and a note if no margin was set."""
    text = []
    for comparison in analysis.primary_comparisons:
        if comparison.verdict != "cannot tell":
            continue
        more = comparison.more
        needs = comparison.reason if more is None else f"needs {more}"
        text.append(f"{comparison.arm} against {comparison.reference}: cannot tell ({needs})")
    if analysis.criterion.margin_lost is not None:
        text.append(f"the margin is a share of the gain, and {analysis.criterion.margin_lost}")
    elif analysis.criterion.margin is None and analysis.returns is not None:
        text.append("no margin was set, so no smaller rank can be shown to be as good")
    return tuple(text)


def _runner_up(answer: _StudyAnswer) -> RunnerUp | None:
    """The best mean among the other arms with a valid comparison, and how the two differ."""
    analysis, reference = answer.analysis, answer.analysis.reference
    assert reference is not None
    valid = [c for c in analysis.primary_comparisons if c.is_valid and c.cost is not None]
    costs = {c.arm: c.cost for c in valid} | {reference.name: 0.0}
    costs.pop(answer.arm.name, None)
    names = [name for name in costs if name in answer.fitting]
    if not names:
        return None
    name = min(names, key=lambda arm: costs[arm] or 0.0)
    comparison = analysis.comparison(answer.arm.name if name == reference.name else name)
    assert comparison is not None
    if comparison.mean is None:
        return None
    standing = f"{comparison.arm} minus {comparison.reference}: {comparison.mean:+.4g} {comparison.metric.unit}".rstrip()
    if comparison.interval is not None:
        low, high = comparison.interval
        standing += f", 95 % interval [{low:.4g}, {high:.4g}]"
    return RunnerUp(
        name=_called(name, answer.fitting[name]),
        candidate=answer.fitting[name],
        standing=f"{standing}; {comparison.verdict_words}",
    )


def _expectation(analysis: Analysis, arm: StudyArm, *, held_out: str) -> Expectation | None:
    """Mean ± t(.975, n - 1) * sd * sqrt(1 + 1/n): the prediction interval for one more seed on the same rows."""
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
    """The arm's name, which only a configuration that was measured may have."""
    return f"{_configuration(candidate)} (after {arm})" if candidate.departures else arm


def _configuration(candidate: Candidate) -> str:
    settings = candidate.settings
    if settings.arm_method.is_full:
        return f"{settings.arm_method.title}, {settings.quantization}"
    targets = settings.target_modules
    where = targets if isinstance(targets, str) else ", ".join(targets)
    adapter = f"rank {settings.lora_rank}" if settings.arm_method.has_lora else settings.arm_method.title
    return f"{adapter} on {where}, {settings.quantization}"
