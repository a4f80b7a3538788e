"""What the lab showed of each published law: tables and words, from the measurements of the ready suites.

Whether the lab agrees is decided here by one rule, so that no outcome is worded by hand: the law says which way a
paired difference goes; it agrees if the 95 % interval lies on that side of zero, disagrees if it lies on the other,
and cannot tell if it holds zero.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from scipy import special

from lorastudy.analysis.overview import Analysis
from lorastudy.report.document import Cell, Table, TableColumn
from lorastudy.report.numbers import count, listing, mean_sd, number, signed
from lorastudy.stats.study import Study, StudyArm
from lorastudy.stats.summary import (
    EXACT_MATCH,
    FORGETTING,
    FORGETTING_BEFORE,
    LOSS,
    Metric,
    scores_by_seed,
)
from lorastudy.suite.base_model import read_config
from lorastudy.suite.question import configuration_name
from lorastudy.suite.rate_search import POWERS, published_rate

SUITES = (
    "lab_capacity",
    "lab_modules_rank_matched",
    "lab_modules_parameter_matched",
    "lab_alpha",
    "lab_forgetting",
)

#: Those whose arms look for their rates.
SEARCHED = ("lab_capacity", "lab_modules_rank_matched", "lab_modules_parameter_matched")

#: What the law says of a difference: it is below zero, or above.
BELOW, ABOVE = -1, 1


@dataclass(frozen=True, kw_only=True)
class Paired:
    """A difference per seed: its mean with a 95 % t interval."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.values)

    @property
    def interval(self) -> tuple[float, float]:
        """Mean -+ t(.975, n - 1) sd / sqrt(n)."""
        n = len(self.values)
        half = float(special.stdtrit(n - 1, 0.975)) * statistics.stdev(self.values) / math.sqrt(n)
        return (self.mean - half, self.mean + half)

    def outcome(self, expected: int) -> str:
        """Whether it goes the way that the law says."""
        low, high = self.interval
        if low <= 0 <= high:
            return "cannot tell"
        return "agrees" if self.mean * expected > 0 else "disagrees"

    def __str__(self) -> str:
        low, high = self.interval
        return f"{signed(self.mean, 3)} [{signed(low, 3)}, {signed(high, 3)}]"


def difference(study: Study, one: StudyArm, other: StudyArm, *, metric: Metric = LOSS) -> Paired:
    """One arm minus the other, for each seed that both completed."""
    ours, theirs = (scores_by_seed(arm, study, metric=metric) for arm in (one, other))
    return Paired(values=tuple(ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())))


def configurations(study: Study) -> dict[str, StudyArm]:
    """The reported arms by their name without the rate that was chosen for them."""
    return {configuration_name(arm.name, _rate(arm)): arm for arm in study.reported_arms}


# --- capacity ---------------------------------------------------------------------------------------------


def capacity_table(analysis: Analysis) -> Table:
    """Parameters against completion tokens, for each arm, and what it learnt."""
    rows = []
    for name, arm in configurations(analysis.study).items():
        summary = analysis.summary(arm.name)
        loss, match = summary.score(LOSS), summary.score(EXACT_MATCH)
        cells = (
            count(_parameters(arm)),
            count(_completion_tokens(arm)),
            f"{_rate(arm):g}",
            mean_sd(loss, 3),
            mean_sd(match, 3),
        )
        rows.append((Cell(name), *map(Cell, cells)))
    titles = ("Parameters", "Completion tokens", "Learning rate", "Test loss", "Exact match")
    return Table(columns=(TableColumn("Arm", numeric=False), *map(TableColumn, titles)), rows=tuple(rows))


def capacity_words(analysis: Analysis) -> str:
    """What the small adapter lost to the large one, on few facts and on many, and whether the law foretold it."""
    study, arms = analysis.study, configurations(analysis.study)
    said, gaps = [], {}
    for size in ("few", "many"):
        small, large = arms[f"{size}_r1"], arms[f"{size}_r8"]
        gaps[size] = difference(study, small, large)
        fits = _parameters(small) >= _completion_tokens(small)
        foretold = "no gap" if fits else "a gap"
        # That there is no gap cannot be shown by an interval that holds zero; that there is one can.
        found = gaps[size].outcome(ABOVE)
        agreed = found if not fits else "disagrees" if found == "agrees" else "cannot tell"
        said.append(
            f"On {size} facts rank 1 has {count(_parameters(small))} parameters for "
            f"{count(_completion_tokens(small))} completion tokens, so the law foretells {foretold} to rank 8; rank 1 "
            f"minus rank 8 is {gaps[size]} nats per token: **{agreed}**."
        )
    growth = Paired(values=tuple(m - f for m, f in zip(gaps["many"].values, gaps["few"].values, strict=True)))
    said.append(
        "That the gap grows with the number of tokens, which is the law without its constant: gap on many minus gap on "
        f"few is {growth}: **{growth.outcome(ABOVE)}**."
    )
    return " ".join(said)


# --- modules ----------------------------------------------------------------------------------------------


def modules_table(analysis: Analysis) -> Table:
    """Each set of modules: rank, parameters, rate, loss and what was forgotten."""
    rows = []
    for arm in analysis.study.reported_arms:
        summary = analysis.summary(arm.name)
        cells = (
            str(arm.settings["lora_rank"]), count(_parameters(arm)), f"{_rate(arm):g}", mean_sd(summary.score(LOSS), 3),
            mean_sd(summary.score(EXACT_MATCH), 3), mean_sd(summary.score(FORGETTING), 2),
        )  # fmt: skip
        rows.append((Cell(str(arm.settings["target_modules"])), *map(Cell, cells)))
    titles = ("Rank", "Parameters", "Learning rate", "Test loss", "Exact match", "Loss on old facts")
    return Table(columns=(TableColumn("Modules", numeric=False), *map(TableColumn, titles)), rows=tuple(rows))


def modules_words(analysis: Analysis) -> str:
    """The MLP against attention, as one difference with an outcome."""
    arms = {str(arm.settings["target_modules"]): arm for arm in analysis.study.reported_arms}
    mlp, attention = arms["mlp"], arms["qkvo"]
    gap = difference(analysis.study, mlp, attention)
    share = _parameters(mlp) / _parameters(attention) - 1
    return (
        f"MLP minus attention (all four projections) is {gap} nats per token, with "
        f"{signed(100 * share, 0)} % parameters: **{gap.outcome(BELOW)}**."
    )


# --- learning rates and alpha -----------------------------------------------------------------------------


def rates_table(analysis: Analysis) -> Table:
    """The best rate by rank, for each policy of alpha."""
    study = analysis.study
    ranks = _ranks(study)
    rows = []
    for policy in _policies(study):
        best = [Paired(values=_best_rates(study, policy, rank=rank)) for rank in ranks]
        rows.append((Cell(_policy_name(policy)), *(Cell(f"{10**each.mean:.2g}") for each in best)))
    columns = (
        TableColumn("Alpha", numeric=False),
        *(TableColumn(f"Best rate at rank {rank}") for rank in ranks),
    )
    return Table(columns=columns, rows=tuple(rows))


def rates_words(analysis: Analysis) -> str:
    """How far the best rate moves from the smallest to the largest rank, for each policy."""
    study = analysis.study
    smallest, *_, largest = _ranks(study)
    said = []
    for policy in _policies(study):
        low, high = (_best_rates(study, policy, rank=rank) for rank in (smallest, largest))
        shift = Paired(values=tuple(upper - lower for upper, lower in zip(high, low, strict=True)))
        expected, law = (BELOW, "falls") if policy == "r" else (ABOVE, "does not fall, and rises")
        bounds = " to ".join(f"{10**bound:.2g}" for bound in shift.interval)
        said.append(
            f"With {_policy_name(policy)} the law says that it {law} with rank: at rank {largest} it is "
            f"{10**shift.mean:.2g} times that of rank {smallest} (95 % interval {bounds}, {len(shift.values)} seeds): "
            f"**{shift.outcome(expected)}**."
        )
    return " ".join(said)


def _best_rates(study: Study, policy: object, *, rank: int) -> tuple[float, ...]:
    """For each seed the base-10 logarithm of the rate of lowest loss.

    The vertex of the parabola through the best rate and its neighbours, over the logarithm of the rate; the rate
    itself where it is the first or the last of the list.
    """
    arms = [a for a in study.arms if a.settings["lora_alpha"] == policy and a.settings["lora_rank"] == rank]
    losses = {_rate(arm): scores_by_seed(arm, study, metric=LOSS) for arm in arms}
    seeds = sorted({seed for by_seed in losses.values() for seed in by_seed})
    return tuple(
        vertex([(math.log10(rate), losses[rate][seed]) for rate in sorted(losses) if seed in losses[rate]])
        for seed in seeds
    )


def vertex(points: Sequence[tuple[float, float]]) -> float:
    """Where a parabola through the lowest of the points and its two neighbours is lowest."""
    index = min(range(len(points)), key=lambda i: points[i][1])
    if index in {0, len(points) - 1}:
        return points[index][0]
    (x0, y0), (x1, y1), (x2, y2) = points[index - 1 : index + 2]
    # the lowest point of Lagrange's parabola
    left, right = (x1 - x0) * (y1 - y2), (x1 - x2) * (y1 - y0)
    return x1 - 0.5 * ((x1 - x0) * left - (x1 - x2) * right) / (left - right)


def rule_words(analyses: Mapping[str, Analysis]) -> str:
    """What the published rule gives for the lab's model, and the rates that the searches chose."""
    config = read_config("lab")
    assert config is not None
    rule = published_rate(hidden_size=config["hidden_size"], power=POWERS["llama"], num_steps=None)
    chosen = [_rate(arm) for name in SEARCHED for arm in analyses[name].study.reported_arms]
    low, high = min(chosen), max(chosen)
    where = (
        "within a factor of two of"
        if max(high / rule, rule / low) <= 2
        else "not all within a factor of two of"
    )
    return (
        f"For this model the rule gives {rule:.2g}. The {len(chosen)} arms whose rate was looked for found "
        f"{low:g} to {high:g}, {low / rule:.1f} to {high / rule:.1f} times that, {where} it."
    )


# --- forgetting -------------------------------------------------------------------------------------------


def forgetting_table(analysis: Analysis) -> Table:
    """Loss on old facts and on new ones, by rank and rate."""
    rows = []
    for arm in sorted(analysis.study.reported_arms, key=lambda arm: (arm.settings["lora_rank"], _rate(arm))):
        summary = analysis.summary(arm.name)
        cells = (f"{_rate(arm):g}", mean_sd(summary.score(LOSS), 3), mean_sd(summary.score(FORGETTING), 3))
        rows.append((Cell(str(arm.settings["lora_rank"])), *map(Cell, cells)))
    titles = ("Rank", "Learning rate", "Loss on new facts", "Loss on old facts")
    return Table(columns=tuple(map(TableColumn, titles)), rows=tuple(rows))


def forgetting_words(analysis: Analysis) -> str:
    """More rank at an equal rate, and a larger rate at an equal rank: what each did to the old facts."""
    study = analysis.study
    arms = {(arm.settings["lora_rank"], _rate(arm)): arm for arm in study.reported_arms}
    ranks, rates = (sorted({key[part] for key in arms}) for part in (0, 1))
    before = next(s for one in analysis.summaries if (s := one.score(FORGETTING_BEFORE)))
    by_rank = [
        _step(study, arms[ranks[-1], rate], arms[ranks[0], rate], what=f"at the rate {rate:g}")
        for rate in rates
    ]
    by_rate = [
        _step(study, arms[rank, rates[-1]], arms[rank, rates[0]], what=f"at rank {rank}") for rank in ranks
    ]
    return (
        f"Before training the loss on the old facts is {number(before.mean, 3)}. Rank {ranks[-1]} minus rank "
        f"{ranks[0]}: {listing(by_rank)}. The rate {rates[-1]:g} minus {rates[0]:g}: {listing(by_rate)}."
    )


def _step(study: Study, one: StudyArm, other: StudyArm, *, what: str) -> str:
    gap = difference(study, one, other, metric=FORGETTING)
    return f"{gap} {what} (**{gap.outcome(ABOVE)}**)"


# --- what an arm is ---------------------------------------------------------------------------------------


def _rate(arm: StudyArm) -> float:
    return float(arm.settings["learning_rate"])


def _parameters(arm: StudyArm) -> int:
    profile = arm.completed[0].profile
    assert profile is not None
    return profile.num_trainable_parameters


def _completion_tokens(arm: StudyArm) -> int:
    return next(data.num_completion_tokens for data in arm.completed[0].data if data.split == "train")


def _ranks(study: Study) -> list[int]:
    return sorted({int(arm.settings["lora_rank"]) for arm in study.arms})


def _policies(study: Study) -> list[object]:
    return list(dict.fromkeys(arm.settings["lora_alpha"] for arm in study.arms))


def _policy_name(policy: object) -> str:
    return "alpha equal to the rank" if policy == "r" else f"alpha fixed at {policy:g}"


#: The parts of `docs/laws.md`, by the name of the block: the suite, and what makes the part.
TABLES: Mapping[str, tuple[str, Callable[[Analysis], Table]]] = {
    "laws-capacity-table": ("lab_capacity", capacity_table),
    "laws-modules-rank-table": ("lab_modules_rank_matched", modules_table),
    "laws-modules-parameters-table": ("lab_modules_parameter_matched", modules_table),
    "laws-rates-table": ("lab_alpha", rates_table),
    "laws-forgetting-table": ("lab_forgetting", forgetting_table),
}
WORDS: Mapping[str, tuple[str, Callable[[Analysis], str]]] = {
    "laws-capacity": ("lab_capacity", capacity_words),
    "laws-modules-rank": ("lab_modules_rank_matched", modules_words),
    "laws-modules-parameters": ("lab_modules_parameter_matched", modules_words),
    "laws-rates": ("lab_alpha", rates_words),
    "laws-forgetting": ("lab_forgetting", forgetting_words),
}
