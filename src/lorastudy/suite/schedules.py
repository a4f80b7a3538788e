"""Learning rate schedules: their names, their options and the rate in every step, as in transformers.

`lr_scheduler_type`, `lr_scheduler_kwargs` and the warm-up are the keys of transformers' `TrainingArguments`, and
`Schedule.factor` equals `transformers.get_scheduler` in every step. It is written out here, because the packed engine
needs the rates of many arms, and a plan draws them, without transformers.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from lorastudy.suite.wording import did_you_mean, shown

Scheduler = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
]

#: Schedules of transformers that follow a measured loss, so that the rate of a step is not known beforehand.
ADAPTIVE = frozenset({"reduce_lr_on_plateau", "greedy"})

#: The keys for the warm-up. A suite gives one of them.
WARMUP_KEYS = ("warmup_ratio", "warmup_steps")

Shape = Literal["linear", "cosine", "1-sqrt"]

_SHAPES: tuple[str, ...] = get_args(Shape)


@dataclass(frozen=True, kw_only=True)
class _Option:
    """An option of a schedule: the values that it takes, and the default."""

    words: str
    allows: Callable[[Any], bool]
    default: float | str | None = None
    is_needed: bool = False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(default: float | None, words: str, *, least: float, most: float = math.inf) -> _Option:
    return _Option(
        words=words, allows=lambda value: _is_number(value) and least <= value <= most, default=default
    )


def _steps(*, least: int, is_needed: bool = False) -> _Option:
    return _Option(
        words=f"a whole number of steps, at least {least}",
        allows=lambda value: _is_number(value) and isinstance(value, int) and value >= least,
        is_needed=is_needed,
    )


def _shape(default: Shape) -> _Option:
    return _Option(
        words=f"one of {', '.join(_SHAPES)}", allows=lambda value: value in _SHAPES, default=default
    )


_WAVES = _Option(
    words="a number of waves greater than 0",
    allows=lambda value: _is_number(value) and value > 0,
    default=0.5,
)
_RATE = _number(None, "a learning rate of at least 0", least=0)
_SHARE = _number(None, "a share of the learning rate from 0 to 1", least=0, most=1)
_MINIMUM = {"num_cycles": _WAVES, "min_lr": _RATE, "min_lr_rate": _SHARE}

#: The options of every schedule that has any: the arguments of transformers' functions, with their defaults.
_OPTIONS: Mapping[str, Mapping[str, _Option]] = {
    "cosine": {"num_cycles": _WAVES},
    "cosine_with_restarts": {
        "num_cycles": _Option(
            words="a number of cycles greater than 0", allows=_WAVES.allows, default=1
        )
    },
    "polynomial": {
        "lr_end": _number(1e-7, "a learning rate of at least 0", least=0),
        "power": _number(1.0, "a number of at least 0", least=0),
    },
    "inverse_sqrt": {"timescale": _steps(least=1)},
    "cosine_with_min_lr": _MINIMUM,
    "cosine_warmup_with_min_lr": {**_MINIMUM, "warmup_lr_rate": _SHARE},
    "warmup_stable_decay": {
        "num_decay_steps": _steps(least=0, is_needed=True),
        "num_stable_steps": _steps(least=0),
        "warmup_type": _shape("linear"),
        "decay_type": _shape("cosine"),
        "min_lr_ratio": _number(0.0, "a share of the learning rate from 0 to 1", least=0, most=1),
        "num_cycles": _WAVES,
    },
}  # fmt: skip


_ABOUT: Mapping[str, str] = {
    "linear": "Falls in a straight line to 0.",
    "cosine": "Falls along half a wave of the cosine to 0.",
    "cosine_with_restarts": "Falls from the peak to 0 as `cosine` does, `num_cycles` times.",
    "polynomial": "Falls to `lr_end` as the share of the steps that are left, to the `power`.",
    "constant": "Stays at the peak, without a warm-up.",
    "constant_with_warmup": "Rises, then stays at the peak.",
    "inverse_sqrt": "Falls as one over the square root of the step. By default `timescale` is the length of the warm-up, or 10000.",
    "cosine_with_min_lr": "As `cosine`, but to a lowest rate: `min_lr`, or `min_lr_rate` as a share of the peak.",
    "cosine_warmup_with_min_lr": "As `cosine_with_min_lr`, but the last step has the lowest rate, and the warm-up begins at "
    "`warmup_lr_rate` of the peak, by default one over its steps.",
    "warmup_stable_decay": "Rises, stays at the peak for `num_stable_steps` (by default all other steps), and falls for "
    "`num_decay_steps`.",
}


def described() -> Iterator[tuple[str, str, str]]:
    """Each schedule with what it does, and its options as a file gives them. An option without a default stands alone."""
    for name in get_args(Scheduler):
        options = (
            f"`{key}`" if option.default is None else f"`{key}: {option.default}`"
            for key, option in _OPTIONS.get(name, {}).items()
        )
        yield name, _ABOUT[name], ", ".join(options)


def acting_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that say something else than the schedule's defaults. Whole numbers of other units become `float`."""
    known = _OPTIONS.get(name, {})
    acting = {}
    for key, value in options.items():
        option = known.get(key)
        if option is None or value != option.default:
            counts = key.endswith("_steps") or key == "timescale"
            acting[key] = float(value) if isinstance(value, int) and not counts else value
    return dict(sorted(acting.items()))


#: The keys that `schedule_problem` reads.
SCHEDULE_KEYS = ("lr_scheduler_type", "lr_scheduler_kwargs", *WARMUP_KEYS, "learning_rate", "max_steps")


def schedule_problem(values: Mapping[str, Any]) -> tuple[str, str] | None:
    """Why an arm cannot have the schedule that these settings describe: the key to change, and the cause with the fix.

    None if it can. `values` has all of `SCHEDULE_KEYS`, as the file or the defaults give them.
    """
    return next(_problems(values), None)


def _problems(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    name, options = values["lr_scheduler_type"], values["lr_scheduler_kwargs"]
    for cause in _option_problems(name, options):
        yield "lr_scheduler_kwargs", cause
        return
    for cause in _rate_problems(options, learning_rate=values["learning_rate"]):
        yield "lr_scheduler_kwargs", cause
    if all(values[key] for key in WARMUP_KEYS):
        yield "warmup_steps", "warmup_ratio and warmup_steps both say how long the rate rises; keep one"
    num_steps, num_warmup_steps = values["max_steps"], values["warmup_steps"]
    if num_steps is None:
        return
    if num_warmup_steps >= num_steps:
        yield (
            "warmup_steps",
            f"must be less than the {num_steps} steps of the training, not {num_warmup_steps}",
        )
    num_others = sum(options.get(key, 0) for key in ("num_decay_steps", "num_stable_steps"))
    if num_warmup_steps + num_others > num_steps:
        yield (
            "lr_scheduler_kwargs",
            (
                f"the warm-up and {name}'s own steps are {num_warmup_steps + num_others} together, more than the {num_steps} of "
                "the training; lower one"
            ),
        )


def _option_problems(name: str, options: Mapping[str, Any]) -> Iterator[str]:
    known = _OPTIONS.get(name, {})
    for key, value in options.items():
        if key not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            yield f"{name} has no option {key!r}{did_you_mean(key, known) or f'; {has}'}"
        elif not known[key].allows(value):
            yield f"{key} must be {known[key].words}, not {shown(value)}"
    for key, option in known.items():
        if option.is_needed and key not in options:
            yield f"{name} needs {key}, such as {{{key}: 50}}"
    if "min_lr" in known and ("min_lr" in options) is ("min_lr_rate" in options):
        yield f"{name} needs one of min_lr and min_lr_rate, such as {{min_lr_rate: 0.1}}"


def _rate_problems(options: Mapping[str, Any], *, learning_rate: float | str) -> Iterator[str]:
    """A lowest rate beside rates that may be lower. transformers refuses these, or lets the rate rise."""
    for key in ("min_lr", "lr_end"):
        lowest = options.get(key)
        if lowest is None:
            continue
        if isinstance(learning_rate, str):
            instead = "min_lr_rate, a share of it" if key == "min_lr" else "a learning_rate"
            yield f"{key} is a rate of its own, and learning_rate: {learning_rate} tries many; give {instead}"
        elif lowest >= learning_rate:
            yield f"{key} is {lowest:g}, and the learning rate that falls to it is {learning_rate:g}; lower {key}"


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The schedule of an arm whose number of steps is known."""

    name: str
    num_warmup_steps: int
    num_steps: int
    learning_rate: float
    """The peak."""
    options: Mapping[str, Any] = field(default_factory=dict)

    def rate(self, step: int) -> float:
        """The learning rate in a step, counted from 0."""
        return self.learning_rate * self.factor(step)

    def factor(self, step: int) -> float:
        """The factor on the peak in a step, counted from 0. Equals transformers' schedulers."""
        if self.name == "constant":
            return 1.0
        if step < self.num_warmup_steps:
            return _WARMUPS.get(self.name, _linear_warmup)(self, step)
        return _AFTER_WARMUP[self.name](self, step)

    def option(self, key: str) -> Any:
        """The option's value, or its default."""
        return self.options.get(key, _OPTIONS[self.name][key].default)

    @property
    def lowest(self) -> float:
        """The lowest rate as a share of the peak, for the schedules with `min_lr` or `min_lr_rate`."""
        absolute: float | None = self.options.get("min_lr")
        share: float = self.options["min_lr_rate"] if absolute is None else absolute / self.learning_rate
        return share

    def progress(self, step: int) -> float:
        """The share of the steps after the warm-up that are done."""
        return (step - self.num_warmup_steps) / max(1, self.num_steps - self.num_warmup_steps)


def _linear_warmup(schedule: Schedule, step: int) -> float:
    return step / max(1, schedule.num_warmup_steps)


def _warmup_to_minimum(schedule: Schedule, step: int) -> float:
    """The warm-up of `cosine_warmup_with_min_lr`, which does not start at zero."""
    first = schedule.options.get("warmup_lr_rate")
    if first is None:
        return (step + 1.0) / max(1.0, schedule.num_warmup_steps)
    return float(first + (1.0 - first) * step / max(1, schedule.num_warmup_steps - 1))


def _warmup_before_stable(schedule: Schedule, step: int) -> float:
    progress = _linear_warmup(schedule, step)
    rising = {
        "linear": progress,
        "cosine": 0.5 * (1.0 - math.cos(math.pi * progress)),
        "1-sqrt": 1.0 - math.sqrt(1.0 - progress),
    }[schedule.option("warmup_type")]
    return _raised(rising, lowest=schedule.option("min_lr_ratio"))


def _linear(schedule: Schedule, step: int) -> float:
    num_falling_steps = max(1, schedule.num_steps - schedule.num_warmup_steps)
    return max(0.0, (schedule.num_steps - step) / num_falling_steps)


def _waves(progress: float, *, num_cycles: float) -> float:
    """A cosine from 1 that ends a wave `num_cycles` times; half a wave falls to 0."""
    return 0.5 * (1.0 + math.cos(math.pi * num_cycles * 2.0 * progress))


def _cosine(schedule: Schedule, step: int) -> float:
    return max(0.0, _waves(schedule.progress(step), num_cycles=schedule.option("num_cycles")))


def _cosine_with_restarts(schedule: Schedule, step: int) -> float:
    progress = schedule.progress(step)
    if progress >= 1.0:
        return 0.0
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((schedule.option("num_cycles") * progress) % 1.0))))


def _polynomial(schedule: Schedule, step: int) -> float:
    """From the peak to `lr_end`. Both are learning rates, so the factor depends on the peak."""
    peak, end = schedule.learning_rate, schedule.option("lr_end")
    if step > schedule.num_steps:
        return float(end / peak)
    left = 1 - schedule.progress(step)
    return float(((peak - end) * left ** schedule.option("power") + end) / peak)


def _inverse_sqrt(schedule: Schedule, step: int) -> float:
    timescale = schedule.options.get("timescale", schedule.num_warmup_steps or 10_000)
    return 1.0 / math.sqrt((step + timescale - schedule.num_warmup_steps) / timescale)


def _cosine_to_minimum(schedule: Schedule, step: int) -> float:
    falling = _waves(schedule.progress(step), num_cycles=schedule.option("num_cycles"))
    return _raised(falling, lowest=schedule.lowest)


def _cosine_to_minimum_one_ahead(schedule: Schedule, step: int) -> float:
    """As `cosine_with_min_lr`, one step ahead, so that the last step has the lowest rate."""
    falling = _waves(schedule.progress(step + 1), num_cycles=schedule.option("num_cycles"))
    return _raised(falling, lowest=schedule.lowest)


def _stable_then_decay(schedule: Schedule, step: int) -> float:
    num_decay_steps, lowest = schedule.option("num_decay_steps"), schedule.option("min_lr_ratio")
    num_stable_steps = schedule.options.get(
        "num_stable_steps", schedule.num_steps - schedule.num_warmup_steps - num_decay_steps
    )
    num_steps_in_decay = step - schedule.num_warmup_steps - num_stable_steps
    if num_steps_in_decay < 0:
        return 1.0
    if num_steps_in_decay >= num_decay_steps:
        return float(lowest)
    progress = num_steps_in_decay / max(1, num_decay_steps)
    falling = {
        "linear": 1.0 - progress,
        "cosine": _waves(progress, num_cycles=schedule.option("num_cycles")),
        "1-sqrt": 1.0 - math.sqrt(progress),
    }[schedule.option("decay_type")]
    return _raised(falling, lowest=lowest)


def _raised(factor: float, *, lowest: float) -> float:
    """A factor between 0 and 1 as one between `lowest` and 1."""
    return max(0.0, factor * (1.0 - lowest) + lowest)


def _stays(_: Schedule, __: int) -> float:
    return 1.0


_WARMUPS: Mapping[str, Callable[[Schedule, int], float]] = {
    "cosine_warmup_with_min_lr": _warmup_to_minimum,
    "warmup_stable_decay": _warmup_before_stable,
}

_AFTER_WARMUP: Mapping[str, Callable[[Schedule, int], float]] = {
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_restarts": _cosine_with_restarts,
    "polynomial": _polynomial,
    "constant_with_warmup": _stays,
    "inverse_sqrt": _inverse_sqrt,
    "cosine_with_min_lr": _cosine_to_minimum,
    "cosine_warmup_with_min_lr": _cosine_to_minimum_one_ahead,
    "warmup_stable_decay": _stable_then_decay,
}
