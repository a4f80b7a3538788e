"""One arm against the reference on one metric: what was measured, what is shown, and what an open verdict lacks.

How the numbers are come by is told in `paired`, how the word in `verdicts`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from scipy import special

from lorastudy.stats.summary import Metric
from lorastudy.stats.twoway import TwoWay
from lorastudy.stats.verdicts import Word


@dataclass(frozen=True, kw_only=True)
class MoreSeeds:
    """What an open comparison lacks."""

    num_seeds: int
    """Beyond those that were run."""
    at_least: bool
    """That many are needed before anything can be shown; with one seed nothing better is known."""
    seconds: float | None
    """What they take for the two arms, from the measured time of the runs so far; None where none was measured."""
    num_items: int | None = None
    """Items needed in all, where more seeds alone do not decide."""

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
        """The same with the arm's name."""
        return f"{self.arm} {self.rate}"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One arm against the reference on one metric. `differences` is arm minus reference, by seed.

    Whatever a single seed cannot give is None. `reason` says why the verdict is "cannot tell" or "invalid".
    """

    arm: str
    reference: str
    metric: Metric
    differences: Mapping[int, float]
    seeds_apart: Mapping[int, str] = field(default_factory=dict)
    """Seeds left out because the two runs cannot be compared, and why: environment, base model or rows differ."""
    diverged: tuple[Divergence, ...] = ()
    """Of the two arms, those that diverged on a reporting seed: to be told beside any verdict."""
    mean: float | None = None
    sd: float | None = None
    """Of the differences between seeds."""
    estimate: TwoWay | None = None
    """The mean with the parts of its variance."""
    interval: tuple[float, float] | None = None
    """95 % interval of the mean difference, over new seeds and, where items were stored, new items."""
    t_p: float | None = None
    holm_p: float | None = None
    sign_flip_p: float | None = None
    margin: float | None = None
    """Where it is a share of the gain: what the share amounts to at the measured gain."""
    kept: TwoWay | None = None
    """What a margin that is a share is tested by (`analysis.retention`): below 0 is as good."""
    no_worse_p: float | None = None
    """One-sided, against a loss of one margin; None without a margin."""
    no_worse_sign_flip_p: float | None = None
    difference_shown: bool = False
    no_worse: bool = False
    """Whether the arm is shown to be worse by less than the margin, if worse at all."""
    verdict: Word = "cannot tell"
    ahead: str | None = None
    """The arm that is shown to be ahead; where the verdict is "untuned", at the rates that were tried only."""
    reason: str | None = None
    more: MoreSeeds | None = None
    """What would decide; None where the verdict is not open or nothing in reach would."""

    @property
    def n(self) -> int:
        """Number of seeds that both arms completed."""
        return len(self.differences)

    @property
    def covers_new_items(self) -> bool:
        """Whether the interval holds for new items too, and not only for the ones that were scored."""
        return self.estimate is not None and self.estimate.num_items is not None

    @property
    def winner(self) -> str | None:
        """The arm that is better, where the verdict says so; an untuned one never is."""
        return self.ahead if self.verdict == "better" else None

    @property
    def arm_is_ahead(self) -> bool:
        """Whether the arm is shown to be ahead, be it at the rates that were tried only."""
        return self.ahead == self.arm

    @property
    def reference_is_ahead(self) -> bool:
        """Whether the reference is, in the same sense."""
        return self.ahead == self.reference

    @property
    def is_as_good(self) -> bool:
        """Whether the arm is shown to be worse by less than the margin and not ahead, in the same sense."""
        return self.verdict in {"as good within the margin", "untuned"} and self.ahead is None

    @property
    def told(self) -> str:
        """The verdict in a few words: `r64 is better`, `r64 ahead, untuned`, `cannot tell`."""
        if self.verdict == "untuned":
            return f"{f'{self.ahead} ahead' if self.ahead else 'as good within the margin'}, untuned"
        return self.verdict if self.winner is None else f"{self.winner} is better"

    @property
    def is_valid(self) -> bool:
        """Whether the two may be compared at all."""
        return self.verdict != "invalid"

    @property
    def cost(self) -> float | None:
        """The mean difference, so that above 0 is worse whatever the metric's direction."""
        return None if self.mean is None else self.mean * direction(self.metric)


def leans(comparison: Comparison) -> bool:
    """Whether a difference was seen but not shown: the interval excludes 0, and yet the verdict is open."""
    if comparison.interval is None or comparison.verdict != "cannot tell":
        return False
    low, high = comparison.interval
    return low > 0 or high < 0


def direction(metric: Metric) -> int:
    """What turns a difference into a difference in cost."""
    return 1 if metric.lower_is_better else -1
