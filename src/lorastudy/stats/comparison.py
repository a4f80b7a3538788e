"""One arm against the reference on one metric: what was measured, what is shown, and what an open verdict needs.

All arms of a suite see the same batches and are scored on the same items, and runs with one seed start from the same
initialisation. So differences are taken per seed and item before anything is averaged. Runs of two environments, on two base
models or scored on different rows are not paired. What remains is noise between seeds and between items, and the interval
covers new seeds and new items (`twoway`). If scores were stored without items, it covers new seeds on these items only
(`Comparison.covers_new_items`). `verdicts` explains how a comparison gets its word.

**A margin that is a share of the gain** is tested with the noise of that gain. The arm may give up the share p of the
reference's gain. Let A be its loss, R the reference's, and B the loss from which the gain is measured (`trivial.gain_start`:
the base model's, or that of guessing if guessing is better). The arm is as good within the margin if

    A - R < p (B - R),   that is   c = A - (1 - p) R - p B < 0

The right-hand side of the first form is measured too, so it is wrong to test the difference A - R against it as if it were a
fixed number: p times the noise of the gain would be missing. The second form has all the noise: c is one paired quantity for
each seed and item, linear in what was measured. Its mean is tested against 0 by the same tests that compare a difference with a
fixed margin. This is the linearised test of a ratio of means (Fieller 1954; Hauschke, Kieser, Diletti and Burke, Statistics in
Medicine 18, 1999; for retention trials: Rothmann et al., Statistics in Medicine 22, 2003). It covers losses only, since the
start is always measured for the loss alone.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import special

from lorastudy.stats.power import MAX_SEEDS_NEEDED, Noise, seeds_needed
from lorastudy.stats.study import Study, StudyArm, obstacle, stored_split
from lorastudy.stats.summary import Metric, arm_versions, run_seconds, scores_by_seed
from lorastudy.stats.trivial import gain_start
from lorastudy.stats.twoway import (
    ItemScores,
    ItemTable,
    TwoWay,
    combined_items,
    has_gaps,
    paired_items,
    seeds_only,
    two_way,
)
from lorastudy.stats.verdicts import (
    ALPHA,
    MIN_SEEDS_ONE_SIDED,
    Floats,
    Rules,
    Word,
    differences_shown,
    holm,
    no_worse_shown,
    rejects,
    sign_flip_p,
    sign_flip_p_below,
    word,
)
from lorastudy.suite.question import MIN_SEEDS

#: Why arms are not compared on a metric that failed for so many rows that fewer than two have a value in every run of both.
TOO_FEW_ROWS = "too few rows that both arms have"


@dataclass(frozen=True, kw_only=True)
class Retention:
    """The quantity c that tests a share of the gain, and that share of the measured gain."""

    amount: float
    """p times the mean gain: the margin as a number, for display."""
    by_seed: tuple[float, ...]
    """The mean of c over items, for each seed."""
    estimate: TwoWay
    """Of the mean of c: below 0 if the arm keeps more than 1 - p of the gain."""


@dataclass(frozen=True, kw_only=True)
class Losses:
    """One of the three losses: by seed, and by item in order of seed if items were stored."""

    by_seed: Mapping[int, float]
    items: Sequence[ItemScores | None]


@dataclass(frozen=True, kw_only=True)
class MoreSeeds:
    """What an open comparison needs."""

    num_seeds: int
    """In addition to those that were run."""
    at_least: bool
    """Whether this is only a lower bound: fewer seeds cannot show anything."""
    seconds: float | None
    """Time that the two arms need for these seeds, from the runs so far; None if no run was timed, or if more items are
    needed: then every seed is scored anew on rows that no run has scored."""
    num_items: int | None = None
    """Items needed in total, if more seeds alone do not decide."""

    def __str__(self) -> str:
        """`about 4 more seeds`, `about 790 more seeds, and 78 held-out items in all`."""
        about = "at least" if self.at_least else "about"
        plural = "" if self.num_seeds == 1 else "s"
        items = "" if self.num_items is None else f", and {self.num_items:,} held-out items in all"
        return f"{about} {self.num_seeds:,} more seed{plural}{items}"


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """On how many of an arm's reporting seeds training diverged."""

    arm: str
    num_diverged: int
    num_seeds: int

    @property
    def interval(self) -> tuple[float, float]:
        """Clopper and Pearson's exact 95 % interval of the share; equal to `binomtest(k, n).proportion_ci()` of scipy."""
        k, n = self.num_diverged, self.num_seeds
        low = 0.0 if k == 0 else float(special.betaincinv(k, n - k + 1, 0.025))
        high = 1.0 if k == n else float(special.betaincinv(k + 1, n - k, 0.975))
        return low, high

    @property
    def rate(self) -> str:
        """`diverged on 1 of 9 seeds (95 % interval 0.3 to 48 %)`."""
        low, high = (100 * bound for bound in self.interval)
        share = f"95 % interval {low:.2g} to {high:.0f} %"
        return f"diverged on {self.num_diverged} of {self.num_seeds} seed{'s' if self.num_seeds > 1 else ''} ({share})"

    @property
    def words(self) -> str:
        """`rate` with the arm's name before it."""
        return f"{self.arm} {self.rate}"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One arm against the reference on one metric. `differences` is arm minus reference, by seed.

    What a single seed cannot give is None. `reason` explains the verdicts "cannot tell" and "invalid".
    """

    arm: str
    reference: str
    metric: Metric
    differences: Mapping[int, float]
    seeds_apart: Mapping[int, str] = field(default_factory=dict)
    """Seeds that are left out because the two runs cannot be compared, with the reason (environment, base model, rows)."""
    diverged: tuple[Divergence, ...] = ()
    """Those of the two arms that diverged on a reporting seed. Every verdict is shown with them."""
    mean: float | None = None
    sd: float | None = None
    """Of the differences between seeds."""
    estimate: TwoWay | None = None
    """The mean with the components of its variance."""
    interval: tuple[float, float] | None = None
    """95 % interval of the mean difference for new seeds and, if items were stored, new items."""
    t_p: float | None = None
    holm_p: float | None = None
    sign_flip_p: float | None = None
    margin: float | None = None
    """In the metric's unit. A margin that is a share of the gain: that share of the measured gain."""
    kept: TwoWay | None = None
    """The quantity that tests a margin which is a share of the gain (`retention`): below 0 is as good."""
    no_worse_p: float | None = None
    """One-sided p against being worse by the margin; None without a margin."""
    no_worse_sign_flip_p: float | None = None
    difference_shown: bool = False
    no_worse: bool = False
    """Whether the arm is shown to be worse by less than the margin, if worse at all."""
    verdict: Word = "cannot tell"
    ahead: str | None = None
    """The arm that is shown to be ahead; if the verdict is "untuned", only at the rates that were tried."""
    reason: str | None = None
    more: MoreSeeds | None = None
    """What would decide; None if the verdict is not open, or if nothing within reach would."""

    @property
    def n(self) -> int:
        """Number of seeds that both arms completed; 0 if they have too few rows in common."""
        return len(self.differences)

    @property
    def covers_new_items(self) -> bool:
        """Whether the interval covers new items too, and not only those that were scored."""
        return self.estimate is not None and self.estimate.num_items is not None

    @property
    def winner(self) -> str | None:
        """The arm that is better, if the verdict says so; an untuned arm never is."""
        return self.ahead if self.verdict == "better" else None

    @property
    def arm_is_ahead(self) -> bool:
        """Whether the arm is shown to be ahead, even if only at the rates that were tried."""
        return self.ahead == self.arm

    @property
    def reference_is_ahead(self) -> bool:
        """Whether the reference is ahead, in the same sense."""
        return self.ahead == self.reference

    @property
    def is_as_good(self) -> bool:
        """Whether the arm is as good within the margin and not ahead, in the same sense."""
        return self.verdict in {"as good within the margin", "untuned"} and self.ahead is None

    @property
    def verdict_words(self) -> str:
        """The verdict in a few words: `r64 is better`, `r64 ahead, untuned`, `cannot tell`."""
        if self.verdict == "untuned":
            return f"{f'{self.ahead} ahead' if self.ahead else 'as good within the margin'}, untuned"
        return self.verdict if self.winner is None else f"{self.winner} is better"

    @property
    def is_valid(self) -> bool:
        """Whether the two arms can be compared."""
        return self.verdict != "invalid"

    @property
    def cost(self) -> float | None:
        """The mean difference as a cost: above 0 the arm is worse, whatever the metric's direction."""
        return None if self.mean is None else self.mean * self.metric.cost_sign


def leans(comparison: Comparison) -> bool:
    """Whether a difference was seen but not shown: the interval excludes 0, but the verdict is open."""
    if comparison.interval is None or comparison.verdict != "cannot tell":
        return False
    low, high = comparison.interval
    return low > 0 or high < 0


def compare_with_reference(
    study: Study,
    *,
    arms: Sequence[StudyArm],
    reference: StudyArm,
    metric: Metric,
    items: ItemTable | None = None,
    rules: Rules | None = None,
) -> tuple[Comparison, ...]:
    """Each arm except the reference, with verdicts that hold for all of them together.

    `items` are the scores by item; without them intervals cover only the items that were scored.
    """
    rules = rules or Rules()
    others = [arm for arm in arms if arm.name != reference.name and arm.completed]
    raw = [
        _measure(study, pair=(arm, reference), metric=metric, items=items or {}, rules=rules)
        for arm in others
    ]
    tested = _with_what_is_shown([one for one in raw if one.estimate is not None], rules)
    by_arm = {one.arm: one for one in raw} | {one.arm: one for one in tested}
    judged = [_judge(by_arm[arm.name], rules=rules, family=len(tested)) for arm in others]
    num_open = sum(one.verdict == "cannot tell" and one.estimate is not None for one in judged)
    return tuple(
        _with_what_would_decide(one, pair=(arm, reference), num_open=max(1, num_open))
        for arm, one in zip(others, judged, strict=True)
    )


def paired_estimate(
    study: Study, *, pair: tuple[StudyArm, StudyArm], metric: Metric, items: ItemTable
) -> TwoWay | None:
    """The first arm minus the second with the components of its variance; None if nothing can be tested."""
    return _measure(study, pair=pair, metric=metric, items=items, rules=Rules()).estimate


def _measure(
    study: Study, *, pair: tuple[StudyArm, StudyArm], metric: Metric, items: ItemTable, rules: Rules
) -> Comparison:
    arm, reference = pair
    ours, theirs = (scores_by_seed(one, study, metric=metric) for one in pair)
    runs = [{result.seed: result for result in one.completed} for one in pair]
    obstacles = {
        seed: obstacle(*(by_seed[seed] for by_seed in runs)) for seed in sorted(ours.keys() & theirs.keys())
    }
    apart = {seed: why for seed, why in obstacles.items() if why is not None}
    seeds = [seed for seed in obstacles if seed not in apart]

    def items_of(side: int, scored: Metric) -> list[ItemScores | None]:
        split = stored_split(scored.split, study)
        return [items.get((runs[side][seed].experiment_id, split, scored.name)) for seed in seeds]

    sides = [items_of(0, metric), items_of(1, metric)]
    pairs = paired_items(*sides) if seeds else None
    if pairs is None and has_gaps(
        sides
    ):  # the two means are over different rows, so their difference says nothing
        return Comparison(
            arm=arm.name, reference=reference.name, metric=metric, differences={}, seeds_apart=apart,
            margin=rules.margin, reason=TOO_FEW_ROWS,
        )  # fmt: skip
    values = [ours[seed] - theirs[seed] for seed in seeds]
    if pairs is not None and pairs.has_gaps:
        values = pairs.by_seed  # the two means are over different rows
    differences = dict(zip(seeds, values, strict=True))
    comparison = Comparison(
        arm=arm.name,
        reference=reference.name,
        metric=metric,
        differences=differences,
        seeds_apart=apart,
        mean=statistics.fmean(values) if values else None,
        sd=statistics.stdev(values) if len(values) > 1 else None,
        margin=rules.margin,
    )
    if comparison.sd is None or _is_rounding(comparison.sd, values):
        return _untestable(comparison, study, arms=pair)
    estimate = (
        seeds_only(values)
        if pairs is None
        else two_way(pairs.differences, pairs.weights, groups=pairs.groups)
    )
    tested = _with_tests(comparison, estimate)
    if rules.margin_share is None:
        return tested if rules.margin is None else _with_margin(tested, estimate, margin=rules.margin)
    start = gain_start(study, reference, items=items)
    if start is None:
        return _with_share(tested, None)
    retained = retention(
        arm=Losses(by_seed=ours, items=items_of(0, metric)),
        reference=Losses(by_seed=theirs, items=items_of(1, metric)),
        start=Losses(by_seed=start.by_seed, items=[start.items.get(seed) for seed in differences]),
        seeds=list(differences),
        share=rules.margin_share,
    )
    return _with_share(tested, retained)


def _with_tests(comparison: Comparison, estimate: TwoWay) -> Comparison:
    low, high = estimate.interval()
    values = np.array(list(comparison.differences.values()))
    return replace(
        comparison,
        estimate=estimate,
        interval=(float(low), float(high)),
        t_p=float(estimate.p_value()),
        sign_flip_p=_number(sign_flip_p(values)),
    )


def _with_margin(tested: Comparison, estimate: TwoWay, *, margin: float) -> Comparison:
    """The comparison with the tests against being worse by a fixed margin."""
    sign, values = tested.metric.cost_sign, np.array(list(tested.differences.values()))
    cost = replace(estimate, mean=sign * estimate.mean)
    return replace(
        tested,
        no_worse_p=float(cost.p_below(margin)),
        no_worse_sign_flip_p=_number(sign_flip_p_below(sign * values, margin)),
    )


def _with_share(tested: Comparison, retained: Retention | None) -> Comparison:
    """The comparison with the tests against losing a share of the gain, noise of the gain included; without a gain none."""
    if retained is None:
        return replace(tested, margin=None)
    return replace(
        tested,
        margin=retained.amount,
        kept=retained.estimate,
        no_worse_p=float(retained.estimate.p_below(0.0)),
        no_worse_sign_flip_p=_number(sign_flip_p_below(retained.by_seed, 0.0)),
    )


def _with_what_is_shown(tested: Sequence[Comparison], rules: Rules) -> list[Comparison]:
    """The comparisons with what their tests show, corrected for their number."""
    if not tested:
        return []
    t_ps, flips = _column(tested, "t_p"), _column(tested, "sign_flip_p")
    shown, adjusted = differences_shown(t_ps, flips), holm(t_ps)
    no_worse = _no_worse(tested, rules)
    return [
        replace(
            comparison,
            holm_p=float(adjusted[index]),
            difference_shown=bool(shown[index]),
            no_worse=comparison.arm in no_worse,
        )
        for index, comparison in enumerate(tested)
    ]


def _no_worse(tested: Sequence[Comparison], rules: Rules) -> frozenset[str]:
    """Names of the arms that are shown to be worse by less than the margin."""
    if rules.margin is None:
        return frozenset()
    by_arm = {comparison.arm: comparison for comparison in tested if comparison.no_worse_p is not None}
    family = _testable_ladder(by_arm, rules) if rules.ladder else list(by_arm.values())
    if not family:
        return frozenset()
    shown = no_worse_shown(
        _column(family, "no_worse_p"),
        _column(family, "no_worse_sign_flip_p"),
        in_sequence=bool(rules.ladder),
    )
    return frozenset(one.arm for one, passes in zip(family, shown, strict=True) if passes)


def _testable_ladder(by_arm: Mapping[str, Comparison], rules: Rules) -> list[Comparison]:
    """The ladder down to the first arm that cannot be tested or is invalid, where the sequence ends."""
    found = []
    for name in rules.ladder:
        if name not in by_arm or rules.invalidations.get(name):
            break
        found.append(by_arm[name])
    return found


def _judge(comparison: Comparison, *, rules: Rules, family: int) -> Comparison:
    """The comparison with its word, and with the reason if nothing was shown."""
    invalidations = [
        *rules.invalidations.get(comparison.arm, ()),
        *rules.invalidations.get(comparison.reference, ()),
    ]
    if invalidations:
        why = "; ".join(dict.fromkeys(one.why for one in invalidations))
        return replace(comparison, verdict="invalid", reason=why)
    if comparison.estimate is None or comparison.mean is None:
        return comparison
    arm_ahead = comparison.mean * comparison.metric.cost_sign < 0
    verdict = word(arm_ahead=arm_ahead, shown=comparison.difference_shown, no_worse=comparison.no_worse)
    if verdict == "cannot tell":
        return replace(comparison, verdict=verdict, reason=_why_open(comparison, family=family))
    ahead = comparison.arm if arm_ahead else comparison.reference
    is_untuned = not rules.untuned.isdisjoint({comparison.arm, comparison.reference})
    return replace(
        comparison,
        verdict="untuned" if is_untuned else verdict,
        ahead=ahead if verdict == "better" else None,
    )


def _why_open(comparison: Comparison, *, family: int) -> str:
    assert comparison.interval is not None
    low, high = comparison.interval
    if low <= 0 <= high:
        return "the interval contains 0"
    if comparison.n < MIN_SEEDS:
        # Comes before Holm: with so few seeds a study of fewer arms could not show it either.
        return f"{comparison.n} seeds are too few, six can show it"
    if not rejects(np.array(comparison.holm_p)):
        return f"not after correction for {family} comparisons"
    return "the exact sign-flip test does not reach .05"


def _with_what_would_decide(
    comparison: Comparison, *, pair: tuple[StudyArm, StudyArm], num_open: int
) -> Comparison:
    """An open comparison with the seeds that it needs, at the level that Holm leaves for the open ones."""
    if comparison.verdict != "cannot tell":
        return comparison
    per_seed = [run_seconds(arm) for arm in pair]
    seconds = None if None in per_seed else sum(value for value in per_seed if value is not None)

    def more(num_seeds: int, *, at_least: bool = False, num_items: int | None = None) -> Comparison:
        took = None if seconds is None else seconds * num_seeds
        lacks = MoreSeeds(
            num_seeds=num_seeds,
            at_least=at_least,
            seconds=took if num_items is None else None,
            num_items=num_items,
        )
        return replace(comparison, more=lacks)

    if comparison.reason == TOO_FEW_ROWS:  # further seeds do not help
        return comparison
    if comparison.estimate is None:
        fewest = MIN_SEEDS if comparison.margin is None else MIN_SEEDS_ONE_SIDED
        return more(fewest - comparison.n, at_least=True) if comparison.n < 2 else comparison
    assert comparison.cost is not None
    needed = seeds_needed(
        comparison.cost,
        Noise.of(comparison.estimate),
        margin=comparison.margin,
        margin_noise=None if comparison.kept is None else Noise.of(comparison.kept),
        alpha=ALPHA / num_open,
    )
    if needed is None:
        why = f"even {MAX_SEEDS_NEEDED:,} seeds would not decide, if the difference is as observed"
        return replace(comparison, reason=why)
    # The difference was not shown with these seeds, so it takes at least one more, whatever the power says.
    return more(max(1, needed.num_seeds - comparison.n), num_items=needed.num_items)


def _untestable(comparison: Comparison, study: Study, *, arms: tuple[StudyArm, StudyArm]) -> Comparison:
    """A comparison without a spread over seeds: invalid if the runs cannot be compared, else open."""
    n = comparison.n
    if n == 0 and comparison.seeds_apart:
        return replace(comparison, verdict="invalid", reason=next(iter(comparison.seeds_apart.values())))
    if n == 0:
        versions = [arm_versions(arm, study, metric=comparison.metric) for arm in arms]
        if all(versions) and versions[0] != versions[1]:
            why = "measured by different versions of the metric"
            return replace(comparison, verdict="invalid", reason=why)
        return replace(comparison, reason="no seed in common")
    return replace(comparison, reason="one seed" if n == 1 else "every seed gave the same difference")


def _is_rounding(sd: float, values: Sequence[float]) -> bool:
    """Whether the differences are equal up to rounding, so that their spread says nothing about seeds."""
    return sd <= 1e-9 * max(map(abs, values), default=0.0)


def _column(comparisons: Sequence[Comparison], name: str) -> Floats:
    """One p value of each comparison; NaN if the test could not be made."""
    values = [getattr(comparison, name) for comparison in comparisons]
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _number(value: Floats) -> float | None:
    return None if math.isnan(value) else float(value)


def retention(
    *, arm: Losses, reference: Losses, start: Losses, seeds: Sequence[int], share: float
) -> Retention | None:
    """The quantity c over these seeds; None if the start has no loss for one of them, or nothing was gained."""
    if any(seed not in start.by_seed for seed in seeds):
        return None
    gains = [start.by_seed[seed] - reference.by_seed[seed] for seed in seeds]
    gain = sum(gains) / len(gains)
    if gain <= 0:
        return None
    factors = (1.0, share - 1.0, -share)
    sides = (arm, reference, start)
    by_seed = tuple(
        sum(f * side.by_seed[seed] for f, side in zip(factors, sides, strict=True)) for seed in seeds
    )
    cells = combined_items([side.items for side in sides], factors=factors)
    return Retention(
        amount=share * gain,
        by_seed=by_seed,
        estimate=seeds_only(by_seed)
        if cells is None
        else two_way(cells.differences, cells.weights, groups=cells.groups),
    )
