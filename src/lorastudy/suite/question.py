"""What a suite asks, stated before it runs: the metric that decides, the margin, the reference, the seeds, the rows.

A margin, a metric or a reference that is picked after the results are seen can be picked to suit them. So the
question is stored when a suite is first run, with the time and a hash; a later change is stored beside it and
never over it, with the number of results that were there by then.
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
from lorastudy.suite.settings import label

PrimaryMetric = Literal["loss", "token_accuracy", "exact_match"]

SplitName = Literal["eval", "test"]

#: The fewest seeds with which any verdict can call an arm better: with n paired seeds the exact two-sided sign-flip test gives
#: p = 2 / 2**n at best, .031 with six and .063 with five (`stats.verdicts`).
MIN_SEEDS = 6

_SHARE = re.compile(r"(?P<percent>\d+(?:\.\d+)?) ?%")


@dataclass(frozen=True, kw_only=True)
class Margin:
    """How much worse than the reference still counts as good: a number in the metric's unit, or a share of the gain.

    A share p of the gain g that the reference made over the base model (or over guessing without a model, where that is
    better), as in "keep 98 % of what fine-tuning brings". It is no fixed number, for the gain is itself measured; but the claim stays linear in what is measured.
    With an arm's score A, the reference's R and the base model's B (a loss), "worse by less than p of the gain" is

        A - R < p (B - R)     or     A - (1 - p) R - p B < 0,

    one paired difference per seed and item (the retention tests of active-control trials: Rothmann et al.,
    Statistics in Medicine 22, 2003). Against a margin fixed at the measured gain it carries p times the noise of
    that gain besides, which is little where p is.
    """

    amount: float
    is_share: bool = False

    @classmethod
    def parse(cls, value: float | str) -> Self:
        """The margin that a file asks for: `0.02`, or `2%`.

        Raises:
            ValueError: neither, or out of range.
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
        """As a suite file has it: the inverse of `parse`."""
        if not self.is_share:
            return self.amount
        # The fewest digits that come to the same number; a share has no exponent in a file.
        texts = (format(Decimal(f"{100 * self.amount:.{digits}g}"), "f") for digits in range(1, 18))
        return f"{next(text for text in texts if float(text) / 100 == self.amount)}%"

    def __str__(self) -> str:
        return f"{100 * self.amount:g} % of the reference's gain" if self.is_share else f"{self.amount:g}"


@dataclass(frozen=True, kw_only=True)
class Question:
    """The question of one suite. `reference` None leaves it to the design, which never asks the results.

    `tuning_seeds` are runs of their own that choose the learning rate; they report nothing. `choosing_split` is
    None where nothing is chosen.
    """

    primary_metric: PrimaryMetric = "loss"
    margin: Margin | None = None
    reference: str | None = None
    seeds: tuple[int, ...] = ()
    tuning_seeds: tuple[int, ...] = ()
    choosing_split: SplitName | None = None
    reporting_split: SplitName = "eval"
    rungs: tuple[float, ...] = ()
    """Shares of the training at which arms that are clearly behind are stopped."""
    subject: tuple[tuple[str, str], ...] = ()
    """What it is asked of: base model and data, each with its fingerprint. Empty where an older version stated it."""

    @property
    def id(self) -> str:
        """`ask-` and a hash: equal for questions that ask the same."""
        return tagged_hash("ask", self.to_json())

    def to_json(self) -> dict[str, Any]:
        """All of it as plain JSON values; `from_json` is its inverse."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        for later in ("rungs", "subject"):
            if not plain[later]:
                del plain[later]  # so that a question from before there was such a thing keeps its id
        return plain

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The question that `to_json` wrote."""
        margin = None if values["margin"] is None else Margin(**values["margin"])
        listed = {key: tuple(values.get(key, ())) for key in ("seeds", "tuning_seeds", "rungs")}
        subject = tuple((what, fingerprint) for what, fingerprint in values.get("subject", ()))
        return cls(**{**values, **listed, "margin": margin, "subject": subject})

    def differences(self, other: "Question") -> tuple[str, ...]:
        """The keys in which two questions differ. A subject that nobody stated differs from none."""
        mine, theirs = asdict(self), asdict(other)
        unknown = set() if self.subject and other.subject else {"subject"}
        return tuple(key for key in mine if key not in unknown and mine[key] != theirs[key])

    def subject_of(self, what: str) -> tuple[str, ...]:
        """The fingerprints of one part of the subject: `base_model`, `dataset`, `eval_dataset` or `test_dataset`."""
        return tuple(fingerprint for part, fingerprint in self.subject if part == what)


def subject(sources: Iterable[Sources]) -> tuple[tuple[str, str], ...]:
    """What experiments that read this are about. The rows that measure forgetting decide nothing and are no part of it.

    A model on the hub goes without its commit, which is known only once it was fetched; how rows become tokens is no
    part of it either.
    """
    parts = (
        (what, fingerprint.partition("@")[0] if fingerprint.startswith("hub:") else fingerprint)
        for each in sources
        for what, fingerprint in vars(each).items()
        if fingerprint is not None and what not in {"forgetting_dataset", "data_version"}
    )
    return tuple(sorted(set(parts)))


def configuration_name(arm: str, learning_rate: float) -> str:
    """An arm's name without its learning rate, so that a reference can be named before the rate is known.

    `rank_16_lr0.002` at the rate 0.002 is `rank_16`; a name that does not hold the rate stands as it is.
    """
    part = f"_{label('learning_rate', learning_rate)}"
    before, found, after = arm.partition(part)
    return before + after if found and (not after or after.startswith("_")) else arm


def is_reference(reference: str, *, arm: str, learning_rate: float) -> bool:
    """Whether the named reference is this arm, or the configuration that this arm is at one of its rates."""
    return reference in {arm, configuration_name(arm, learning_rate)}


def all_seeds(seeds: Iterable[Iterable[int]]) -> tuple[int, ...]:
    """The seeds of all arms, each once, in order."""
    return tuple(sorted({seed for of_arm in seeds for seed in of_arm}))


#: Where `racing: true` looks; docs/science.md has the measurement behind them.
RUNGS = (0.125, 0.25, 0.5)

#: Each look takes room in the correction for many looks, and some seconds.
MAX_RUNGS = 5

#: With two seeds a difference would have to be hundreds of its standard errors, so nothing would ever be stopped.
MIN_SEEDS_TO_RACE = 3

_RUNG_SPLIT = "eval_at_"


def check_rungs(shares: Sequence[float]) -> None:
    """Hold a list of rungs to what it must be.

    Raises:
        ValueError: there are too many, or they do not rise.
    """
    if len(shares) > MAX_RUNGS:
        raise ValueError(f"has {len(shares)} shares; more than {MAX_RUNGS} looks cost more than they save")
    if any(later <= earlier for earlier, later in itertools.pairwise(shares)):
        raise ValueError("the shares of the steps must rise, as in [0.25, 0.5]")


def rung_step(rung: float, *, num_steps: int) -> int:
    """The step after which a rung lies: the share of the steps, rounded up."""
    return math.ceil(round(rung * num_steps, 9))  # 0.28 * 100 is a little more than 28


def rung_name(rung: float) -> str:
    """A rung for a reader: `25 %`."""
    return f"{100 * rung:g} %"


def rung_split(rung: float) -> str:
    """The split of a `Score` on the held-out rows after this share of the training: `eval_at_25` after 25 %."""
    return f"{_RUNG_SPLIT}{100 * rung:g}"


def rung_of(split: str) -> float | None:
    """The share that `rung_split` named; None for a score that was not taken on the way."""
    return float(split.removeprefix(_RUNG_SPLIT)) / 100 if split.startswith(_RUNG_SPLIT) else None
