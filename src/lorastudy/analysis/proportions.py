"""Shares of items: what one accuracy says of the true one, and whether two of them can be told apart.

For results that come without their items. Two arms that were scored on the same items are paired, and with the
items known their difference would be known better than here, where they are two independent samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

ALPHA = 0.05


@dataclass(frozen=True, kw_only=True)
class Share:
    """So many right of so many items."""

    num_right: int
    num_items: int

    @property
    def value(self) -> float:
        """The share."""
        return self.num_right / self.num_items

    @property
    def standard_error(self) -> float:
        """sqrt(p (1 - p) / n): of new items of the same kind, with the trained adapter as it is."""
        return float((self.value * (1 - self.value) / self.num_items) ** 0.5)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval, which keeps its coverage at shares near 0 and 1."""
        from statsmodels.stats.proportion import proportion_confint

        low, high = proportion_confint(self.num_right, self.num_items, alpha=ALPHA, method="wilson")
        return (max(0.0, float(low)), min(1.0, float(high)))


@dataclass(frozen=True, kw_only=True)
class ShareDifference:
    """One share minus another, as if of independent items."""

    difference: float
    interval: tuple[float, float]
    """Newcombe's 95 % interval, made of the two Wilson intervals."""
    p: float
    """Two-sided, of the z test with the pooled share."""
    holm_p: float | None = None

    @property
    def told_apart(self) -> bool:
        """Whether the two differ by more than the noise of their items, at the 5 % level, taken alone."""
        return self.p < ALPHA

    @property
    def told_apart_of_all(self) -> bool:
        """The same after Holm's correction."""
        return self.holm_p is not None and self.holm_p < ALPHA


def share_of(value: float, num_items: int) -> Share:
    """The share whose value is this mean of right and wrong answers."""
    return Share(num_right=round(value * num_items), num_items=num_items)


def difference(one: Share, other: Share) -> ShareDifference:
    """`one` minus `other`."""
    from statsmodels.stats.proportion import confint_proportions_2indep, proportions_ztest

    counts, totals = [one.num_right, other.num_right], [one.num_items, other.num_items]
    pooled = sum(counts) / sum(totals)
    # with nothing right, or nothing wrong, on both sides there is no variance to divide by, and no difference
    p = 1.0 if pooled in {0.0, 1.0} else float(proportions_ztest(counts, totals)[1])
    low, high = confint_proportions_2indep(
        counts[0], totals[0], counts[1], totals[1], method="newcomb", compare="diff", alpha=ALPHA
    )
    return ShareDifference(difference=one.value - other.value, interval=(float(low), float(high)), p=p)


def corrected(differences: Sequence[ShareDifference]) -> list[ShareDifference]:
    """The same differences with p values that hold for all of them together (Holm)."""
    if not differences:
        return []
    from statsmodels.stats.multitest import multipletests

    holm = multipletests([one.p for one in differences], alpha=ALPHA, method="holm")[1]
    return [replace(one, holm_p=float(p)) for one, p in zip(differences, holm, strict=True)]
