"""The question of a suite, stated before it runs: primary metric, margin, reference, seeds and rows.

A margin, a metric or a reference chosen after the results can be chosen to suit them. So the store keeps the question
from the first run of a suite, with the time and a hash. A later change is stored next to it, never over it, with the
number of results that existed at that moment.
"""

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any, Literal, Self

from lorastudy.suite.experiment import Sources, tagged_hash
from lorastudy.suite.metrics import MetricDefinition
from lorastudy.suite.names import label

SplitName = Literal["eval", "test"]

#: The fewest seeds with which a verdict can call an arm better. With n paired seeds, the smallest p of the exact
#: two-sided sign-flip test is 2 / 2**n: .031 with six and .063 with five (`stats.verdicts`).
MIN_SEEDS = 6

_SHARE = re.compile(r"(?P<percent>\d+(?:\.\d+)?) ?%")


@dataclass(frozen=True, kw_only=True)
class Margin:
    """How much worse than the reference still counts as good: a number in the metric's unit, or a share of the gain.

    The gain is that of the reference over the base model, or over guessing without a model if that is better. A share
    of 2 % means "keep 98 % of what fine-tuning brings". Such a margin is not a fixed number, because the gain is
    measured, but the claim stays linear in the measurements. With an arm's score A, the reference's R and the base
    model's B (all losses), "worse by less than the share p of the gain" is

        A - R < p (B - R)     or     A - (1 - p) R - p B < 0,

    one paired difference per seed and item (the retention tests of active-control trials: Rothmann et al.,
    Statistics in Medicine 22, 2003). Compared with a margin fixed at the measured gain, it adds p times the noise of
    that gain, which is small for small p.
    """

    amount: float
    is_share: bool = False

    @classmethod
    def parse(cls, value: float | str) -> Self:
        """The margin from a file's value, such as `0.02` or `2%`.

        Raises:
            ValueError: the value has another form, or is out of range.
        """
        if not isinstance(value, str):
            if value <= 0:
                raise ValueError(f"must be greater than 0, not {value:g}")
            return cls(amount=float(value))
        match = _SHARE.fullmatch(value.strip())
        if match is None or not 0 < float(match["percent"]) < 100:
            raise ValueError(
                f"{value!r} is neither a number in the metric's unit nor a share of the gain such as 2%"
            )
        return cls(amount=float(match["percent"]) / 100, is_share=True)

    def allowed(self, *, reference: float, base: float) -> float:
        """The margin in the metric's unit: the number, or the share of |base - reference|."""
        return self.amount * abs(base - reference) if self.is_share else self.amount

    def as_written(self) -> float | str:
        """The value for a suite file: the inverse of `parse`."""
        if not self.is_share:
            return self.amount
        # The fewest digits that parse to the same number. A file allows no exponent in a share.
        texts = (format(Decimal(f"{100 * self.amount:.{digits}g}"), "f") for digits in range(1, 18))
        return f"{next(text for text in texts if float(text) / 100 == self.amount)}%"

    def __str__(self) -> str:
        return f"{100 * self.amount:g} % of the reference's gain" if self.is_share else f"{self.amount:g}"


@dataclass(frozen=True, kw_only=True)
class Question:
    """The question of one suite. If `reference` is None, the design names the reference, never the results.

    `tuning_seeds` are the seeds of separate runs that choose the learning rate and report nothing. `choosing_split` is
    None if nothing is chosen.
    """

    primary_metric: str = "loss"
    """The name in the store: of a metric that every run has, or `MetricDefinition.key`."""
    margin: Margin | None = None
    reference: str | None = None
    seeds: tuple[int, ...] = ()
    tuning_seeds: tuple[int, ...] = ()
    choosing_split: SplitName | None = None
    reporting_split: SplitName = "eval"
    rungs: tuple[float, ...] = ()
    """Shares of the training at which racing stops arms that are clearly behind."""
    subject: tuple[tuple[str, str], ...] = ()
    """Pairs (`base_model` or a data set's key, fingerprint). Empty if an older version stored the question."""
    metrics: tuple[MetricDefinition, ...] = ()
    """The metrics that are measured besides those that every run has."""
    time_budget_hours: float | None = None
    """Hours after which the suite must have its answer. They decide how many arms report and with how many of the seeds."""

    @property
    def id(self) -> str:
        """`ask-` and a hash: equal for questions that ask the same."""
        return tagged_hash("ask", self.to_json())

    def to_json(self) -> dict[str, Any]:
        """All of it as plain JSON values; `from_json` is its inverse."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        for later in ("rungs", "subject", "metrics", "time_budget_hours"):
            if not plain[later]:
                del plain[later]  # so that questions stored before this key existed keep their ids
        return plain

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The question that `to_json` wrote."""
        margin = None if values["margin"] is None else Margin(**values["margin"])
        listed = {key: tuple(values.get(key, ())) for key in ("seeds", "tuning_seeds", "rungs")}
        subject = tuple((what, fingerprint) for what, fingerprint in values.get("subject", ()))
        metrics = tuple(MetricDefinition.from_json(each) for each in values.get("metrics", ()))
        return cls(**{**values, **listed, "margin": margin, "subject": subject, "metrics": metrics})

    @property
    def primary_name(self) -> str:
        """The name of the primary metric as people write it."""
        return next(
            (each.name for each in self.metrics if each.key == self.primary_metric), self.primary_metric
        )

    def differences(self, other: "Question") -> tuple[str, ...]:
        """The keys in which two questions differ. An empty subject is unknown, so it differs from no other."""
        mine, theirs = asdict(self), asdict(other)
        unknown = set() if self.subject and other.subject else {"subject"}
        return tuple(key for key in mine if key not in unknown and mine[key] != theirs[key])

    def subject_of(self, what: str) -> tuple[str, ...]:
        """The fingerprints of one part of the subject: `base_model`, `dataset`, `eval_dataset` or `test_dataset`."""
        return tuple(fingerprint for part, fingerprint in self.subject if part == what)


def subject(sources: Iterable[Sources]) -> tuple[tuple[str, str], ...]:
    """The subject of a question: base models and data sets with their fingerprints.

    It leaves out the rows that measure forgetting, because they decide nothing, and `data_version`. A hub model stands
    without its commit, which is known only after the model was fetched.
    """
    parts = (
        (what, fingerprint.partition("@")[0] if fingerprint.startswith("hub:") else fingerprint)
        for each in sources
        for what, fingerprint in vars(each).items()
        if fingerprint is not None and what not in {"forgetting_dataset", "data_version"}
    )
    return tuple(sorted(set(parts)))


def configuration_name(arm: str, learning_rate: float) -> str:
    """An arm's name without its learning rate, so that users can name a reference before its rate is known.

    `rank_16_lr0.002` at the rate 0.002 becomes `rank_16`; a name without the rate does not change.
    """
    part = f"_{label('learning_rate', learning_rate)}"
    before, found, after = arm.partition(part)
    return before + after if found and (not after or after.startswith("_")) else arm


def is_reference(reference: str, *, arm: str, learning_rate: float) -> bool:
    """Whether `reference` names this arm, or this arm's configuration without its learning rate."""
    return reference in {arm, configuration_name(arm, learning_rate)}


def all_seeds(seeds: Iterable[Iterable[int]]) -> tuple[int, ...]:
    """The seeds of all arms, sorted and without repetition."""
    return tuple(sorted({seed for of_arm in seeds for seed in of_arm}))


#: The rungs of `racing: true`; docs/science.md has the measurement behind them.
RUNGS = (0.125, 0.25, 0.5)

#: Each further rung weakens the test, because it corrects for the number of looks, and costs some seconds.
MAX_RUNGS = 5

#: With two seeds, a difference must be hundreds of standard errors before it counts, so racing would stop nothing.
MIN_SEEDS_TO_RACE = 3

_RUNG_SPLIT = "eval_at_"


def check_rungs(shares: Sequence[float]) -> None:
    """Check a list of rungs.

    Raises:
        ValueError: there are too many rungs, or they do not rise.
    """
    if len(shares) > MAX_RUNGS:
        raise ValueError(f"has {len(shares)} shares; more than {MAX_RUNGS} looks cost more than they save")
    if any(later <= earlier for earlier, later in itertools.pairwise(shares)):
        raise ValueError("the shares of the steps must rise, as in [0.25, 0.5]")


def rung_step(rung: float, *, num_steps: int) -> int:
    """The step after which racing looks: the rung's share of the steps, rounded up."""
    return math.ceil(round(rung * num_steps, 9))  # 0.28 * 100 is a little more than 28


def rung_name(rung: float) -> str:
    """A rung for a reader: `25 %`."""
    return f"{100 * rung:g} %"


def rung_split(rung: float) -> str:
    """The split of a `Score` on the held-out rows after this share of the training: `eval_at_25` after 25 %."""
    return f"{_RUNG_SPLIT}{100 * rung:g}"


def rung_of(split: str) -> float | None:
    """The inverse of `rung_split`; None for a score that does not belong to a rung."""
    return float(split.removeprefix(_RUNG_SPLIT)) / 100 if split.startswith(_RUNG_SPLIT) else None
