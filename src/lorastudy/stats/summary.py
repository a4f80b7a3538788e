"""Each arm's metrics, costs and training curve, summarised over its seeds."""

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from lorastudy.protocol.records import ArmProfile
from lorastudy.stats.study import Study, StudyArm, stored_split
from lorastudy.store.views import ExperimentResult, ScoreValue, StepRow
from lorastudy.suite.metrics import MetricDefinition
from lorastudy.suite.question import Question

#: Scores whose relative difference is smaller than this differ by rounding only.
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A score: where it was measured, what it is, and which direction is good.

    The split `eval` means the rows that report: the test rows of a study that has them (`study.stored_split`).
    """

    split: str
    name: str
    title: str
    unit: str
    lower_is_better: bool
    is_of_answers: bool = False
    """Whether it is measured on generated answers, so on at most `max_generation_samples` rows."""

    @property
    def cost_sign(self) -> int:
        """1 or -1: score times sign is a cost, of which less is better."""
        return 1 if self.lower_is_better else -1

    @property
    def is_in_units(self) -> bool:
        """Whether a value is written with its unit; a share is not."""
        return self.unit not in {"", "share"}

    @property
    def key(self) -> tuple[str, str]:
        """The key of `ExperimentResult.scores`, except for test rows (`study.stored_split`)."""
        return (self.split, self.name)


LOSS = Metric(split="eval", name="loss", title="Held-out loss", unit="nats per token", lower_is_better=True)
LOSS_BEFORE = Metric(
    split="eval_before",
    name="loss",
    title="Held-out loss before training",
    unit="nats per token",
    lower_is_better=True,
)
PERPLEXITY = Metric(split="eval", name="perplexity", title="Perplexity", unit="", lower_is_better=True)
TOKEN_ACCURACY = Metric(
    split="eval", name="token_accuracy", title="Token accuracy", unit="share", lower_is_better=False
)
EXACT_MATCH = Metric(
    split="eval",
    name="exact_match",
    title="Exact match",
    unit="share",
    lower_is_better=False,
    is_of_answers=True,
)
#: Not in the report: 1 means that an arm gave the same answer to every row.
SAME_ANSWER = Metric(
    split="eval", name="same_answer", title="Commonest answer", unit="share", lower_is_better=True
)
FORGETTING_BEFORE = Metric(
    split="forgetting_before",
    name="loss",
    title="Base-domain loss before training",
    unit="nats per token",
    lower_is_better=True,
)
FORGETTING = Metric(
    split="forgetting",
    name="loss",
    title="Base-domain loss after training",
    unit="nats per token",
    lower_is_better=True,
)
#: What a report shows for every arm. `LOSS_BEFORE` belongs to the base model and is the same for all.
METRICS = (LOSS, PERPLEXITY, TOKEN_ACCURACY, EXACT_MATCH, FORGETTING_BEFORE, FORGETTING)


def metric_of(definition: MetricDefinition) -> Metric:
    """A metric that a suite adds, on the rows that report."""
    return Metric(
        split="eval",
        name=definition.key,
        title=definition.title,
        unit=definition.unit,
        lower_is_better=not definition.higher_is_better,
        is_of_answers=definition.reads == "answers",
    )


def primary_metric_of(question: Question) -> Metric:
    """The metric that verdicts are about."""
    known = (*METRICS, *map(metric_of, question.metrics))
    return next(metric for metric in known if metric.name == question.primary_metric)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Values over seeds. `sd` is the sample standard deviation (divisor n - 1); None for a single value."""

    values: tuple[float, ...]
    mean: float
    median: float
    sd: float | None
    minimum: float
    maximum: float

    @property
    def n(self) -> int:
        """How many values."""
        return len(self.values)

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread | None":
        """The spread of the values that are not None; None if there are none."""
        measured = tuple(float(value) for value in values if value is not None)
        if not measured:
            return None
        return cls(
            values=measured,
            mean=statistics.fmean(measured),
            median=statistics.median(measured),
            sd=statistics.stdev(measured) if len(measured) > 1 else None,
            minimum=min(measured),
            maximum=max(measured),
        )


@dataclass(frozen=True, kw_only=True)
class StepNoise:
    """How sure an arm's step time is: over the packs that know it or, if half of them do not, over all that timed it."""

    num_steps: int
    """Timed steps in all these packs."""
    num_packs: int
    apart: float
    """Relative difference of two measurements of the arm, median over the packs."""
    half_quartile_distance: float
    """Half the interquartile distance of a pack's timed steps, in seconds, median over the packs."""
    error_seconds: float
    """Standard error of the median step."""

    @classmethod
    def of(cls, profiles: Sequence[ArmProfile]) -> "StepNoise | None":
        """From one profile for each pack; None if no noise was measured.

        For normal noise of standard deviation s, the median has the standard error 1.2533 s / sqrt(n) and the quartiles lie
        1.349 s apart. Packs are timed independently, so their errors average: sqrt(sum of squares) / number of packs.
        """
        known = _with_step_time(profiles) or profiles
        timed = [
            (steps, apart, distance)
            for profile in known
            if (steps := profile.num_timed_steps) is not None
            and (apart := profile.step_times_apart) is not None
            and (distance := profile.step_quartile_distance_seconds) is not None
        ]
        if not timed or len(timed) < len(known):
            return None
        squares = [(distance / 1.349 * 1.2533) ** 2 / steps for steps, _, distance in timed]
        return cls(
            num_steps=sum(steps for steps, _, _ in timed),
            num_packs=len(timed),
            apart=statistics.median(apart for _, apart, _ in timed),
            half_quartile_distance=statistics.median(distance / 2 for _, _, distance in timed),
            error_seconds=math.sqrt(sum(squares)) / len(squares),
        )


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What an arm costs. All but `train_seconds` are for the arm training alone on the same base."""

    trainable_parameters: Spread | None
    total_parameters: Spread | None
    adapter_bytes: Spread | None
    peak_memory_bytes: Spread | None
    step_seconds: Spread | None
    """None if it was not timed, or if noise hid it in half of the packs or more: the others may agree by luck."""
    step_noise: StepNoise | None
    tokens_per_second: Spread | None
    train_seconds: Spread | None


@dataclass(frozen=True, kw_only=True)
class ArmSummary:
    """One arm over its completed seeds."""

    arm: StudyArm
    scores: Mapping[tuple[str, str], Spread]
    costs: Costs

    def score(self, metric: Metric) -> Spread | None:
        """The metric over seeds; None if it was not measured."""
        return self.scores.get(metric.key)


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """Mean over seeds of the mean training loss of the steps up to `step`; `low` and `high` are one sd to either side.

    Both are None for a single seed.
    """

    step: int
    mean: float
    low: float | None
    high: float | None
    n: int


def summarise_arm(arm: StudyArm, study: Study, *, added: Sequence[Metric] = ()) -> ArmSummary:
    """The arm's scores and costs over its completed seeds. `added` are metrics beside those that every run has."""
    spreads = {
        metric.key: Spread.of(scores_by_seed(arm, study, metric=metric).values())
        for metric in (*METRICS, LOSS_BEFORE, *added)
    }
    return ArmSummary(
        arm=arm,
        scores={key: spread for key, spread in spreads.items() if spread is not None},
        costs=_costs(arm.completed),
    )


def scores_by_seed(
    arm: StudyArm, study: Study, *, metric: Metric, choosing: bool = False
) -> dict[int, float]:
    """The metric of each completed seed, in the newest metric version of the study.

    By default on the rows that report, without the runs that chose a learning rate. With `choosing`, on the rows that choices
    are made on, and from those tuning runs alone if the arm has them. Two versions of a metric measure two things: mixing
    them once reversed a published ranking.
    """
    newest = newest_version(study, metric)
    key = (stored_split(metric.split, study, choosing=choosing), metric.name)
    tuning = [run for run in arm.completed if run.seed in study.tuning_seeds]
    reporting = [run for run in arm.completed if run.seed not in study.tuning_seeds]
    runs = tuning if choosing and tuning else reporting
    scores: dict[int, ScoreValue | None] = {run.seed: run.scores.get(key) for run in runs}
    return {seed: s.value for seed, s in scores.items() if s is not None and s.version == newest}


def are_equal(scores: Collection[float]) -> bool:
    """Whether no two of them differ by more than rounding; true for fewer than two."""
    largest = max(map(abs, scores), default=0.0)
    return max(scores, default=0.0) - min(scores, default=0.0) <= _ROUNDING * largest


def run_seconds(arm: StudyArm) -> float | None:
    """Seconds that one more seed of the arm takes: the median over its runs of loading, training and scoring.

    A pack's time is divided equally among its arms. None if no run was timed.
    """
    packs = [result.pack_profile for result in arm.completed if result.pack_profile is not None]
    spread = Spread.of(
        (pack.load_seconds + pack.train_seconds + pack.eval_seconds) / pack.num_arms for pack in packs
    )
    return None if spread is None else spread.median


def newest_version(study: Study, metric: Metric) -> int | None:
    """The newest version of the metric among the study's completed runs; None if none measured it."""
    return max(metric_versions(study, metric), default=None)


def metric_versions(study: Study, metric: Metric) -> set[int]:
    """All versions of the metric among the study's completed runs."""
    return set(study.versions.get((stored_split(metric.split, study), metric.name), ()))


def arm_versions(arm: StudyArm, study: Study, *, metric: Metric) -> set[int]:
    """All versions of the metric among the arm's completed runs."""
    key = (stored_split(metric.split, study), metric.name)
    return {r.scores[key].version for r in arm.completed if key in r.scores}


def bin_width(num_steps: int, max_points: int = 60) -> int:
    """Steps for each point, so that a curve has at most `max_points` points."""
    return max(1, math.ceil(num_steps / max_points))


def mean_curve(runs: Sequence[Sequence[StepRow]], *, width: int) -> tuple[CurvePoint, ...]:
    """One point for every `width` steps. Steps without a finite loss are left out and never filled in."""
    bins: dict[int, list[float]] = {}
    for run in runs:
        for end, losses in _binned(run, width).items():
            bins.setdefault(end, []).append(sum(losses) / len(losses))
    return tuple(_point(end, Spread.of(values)) for end, values in sorted(bins.items()))


def _with_step_time(profiles: Sequence[ArmProfile]) -> list[ArmProfile]:
    """Of one profile for each pack, those with a step time; empty if half of the packs or more have none."""
    known = [profile for profile in profiles if profile.step_seconds is not None]
    return known if 2 * len(known) > len(profiles) else []


def _costs(results: tuple[ExperimentResult, ...]) -> Costs:
    profiles = [result.profile for result in results if result.profile is not None]
    by_pack = {(result.pack_id, result.attempt): result.profile for result in results if result.profile}
    packs = list(by_pack.values())
    timed = profiles if _with_step_time(packs) else []
    return Costs(
        trainable_parameters=Spread.of(p.num_trainable_parameters for p in profiles),
        total_parameters=Spread.of(p.num_total_parameters for p in profiles),
        adapter_bytes=Spread.of(p.adapter_bytes for p in profiles),
        peak_memory_bytes=Spread.of(p.peak_memory_bytes for p in profiles),
        step_seconds=Spread.of(p.step_seconds for p in timed),
        step_noise=StepNoise.of(packs),
        tokens_per_second=Spread.of(p.tokens_per_second for p in timed),
        train_seconds=Spread.of(result.train_seconds for result in results),
    )


def _binned(run: Sequence[StepRow], width: int) -> dict[int, list[float]]:
    last = max((row.step for row in run), default=0)
    binned: dict[int, list[float]] = {}
    for row in run:
        if row.loss is not None:
            end = min(math.ceil(row.step / width) * width, last)
            binned.setdefault(end, []).append(row.loss)
    return binned


def _point(step: int, spread: Spread | None) -> CurvePoint:
    assert spread is not None
    low = None if spread.sd is None else spread.mean - spread.sd
    high = None if spread.sd is None else spread.mean + spread.sd
    return CurvePoint(step=step, mean=spread.mean, low=low, high=high, n=spread.n)
