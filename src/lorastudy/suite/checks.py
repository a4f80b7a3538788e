"""Checks that need more than one key: on the whole suite, and against the files on disk. Each notes its problems.

The checks of data files and of the base model need no network and do not open data files. A hub id is not checked here.
"""

import difflib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorastudy.suite.base_model import base_model_problem
from lorastudy.suite.eval_points import steps_between
from lorastudy.suite.experiment_types import EXPERIMENT_TYPES, class_in_file, missing_class_file
from lorastudy.suite.levels import Given, Level, combinations, num_combinations
from lorastudy.suite.methods import (
    ADAPTER_KEYS,
    FULL,
    JUDGED_KEYS,
    LORA_KEYS,
    LORAFA_CONSTANTS,
    method_problem,
)
from lorastudy.suite.metrics import ALWAYS_MEASURED, MetricDefinition, metric_named, read_metrics
from lorastudy.suite.question import MIN_SEEDS, MIN_SEEDS_TO_RACE
from lorastudy.suite.safe_text import printable
from lorastudy.suite.schedules import SCHEDULE_KEYS, WARMUP_KEYS, schedule_problem
from lorastudy.suite.settings import AUTO, Settings
from lorastudy.suite.suite import MAX_EXPERIMENTS, EntryKeys
from lorastudy.suite.wording import did_you_mean, shown
from lorastudy.suite.yaml_reading import Node, Place, Problems

#: Keys that must be equal for all arms of a race: they decide which rows are scored and how many steps there are.
_ALIKE_IN_A_RACE = (
    "base_model", "dataset_path", "eval_dataset_path", "eval_fraction", "test_dataset_path", "test_fraction",
    "max_train_samples", "max_eval_samples", "max_seq_length", "prompt_format", "data_seed", "num_train_epochs", "max_steps",
    "per_device_train_batch_size", "gradient_accumulation_steps",
)  # fmt: skip

#: Settings that hold a path, a hub id or a name in the package.
SOURCE_KEYS = (
    "base_model", "dataset_path", "eval_dataset_path", "test_dataset_path", "forgetting_dataset_path",
)  # fmt: skip
#: Data sets inside the package are called `lab:<name>`.
LAB_PREFIX = "lab:"

#: The data sets that the package generates (`lab/catalogue.py`), by name.
LAB_SETS: Mapping[str, str] = {
    "facts": "Facts about people the base model has never met, each in four phrasings: to train on.",
    "facts_eval": "The same facts, each asked once in a phrasing that `facts` does not use.",
    "few_facts": "Those about the first half of these people.",
    "few_facts_eval": "The same facts, asked as in `facts_eval`.",
    "many_facts": "Those about these people and as many more.",
    "many_facts_eval": "The same facts, asked as in `facts_eval`.",
    "old_facts": "Questions about people the base model knows, in that same phrasing: to measure forgetting.",
    "skill": "Lists of colours to reverse, a task the base model was not taught: to train on.",
    "skill_eval": "Other lists to reverse.",
}

_ALPACA_SAMPLE = re.compile(r"data/alpaca_(\d+)_sample\.jsonl")


def check_experiment_type(given: Given | None, problems: Problems) -> None:
    """Note an unknown type, or a missing file of a type."""
    if given is None or given.values[0] in EXPERIMENT_TYPES:
        return
    name = given.values[0]
    in_file = class_in_file(name)
    if in_file is None:
        known = ", ".join(EXPERIMENT_TYPES)
        cause = f"must be one of {known}, or path/to/file.py:Class, not {shown(name)}"
        problems.add(given.place, path=given.path, cause=cause + did_you_mean(name, EXPERIMENT_TYPES))
    elif (missing := missing_class_file(name)) is not None:
        problems.add(given.place, path=given.path, cause=missing)


def check_names(names: Sequence[Given], problems: Problems) -> None:
    """Note a name that two entries share. Case does not count, because some file systems ignore it."""
    first: dict[str, Given] = {}
    for given in names:
        name = given.values[0]
        if name is None:
            continue
        other = first.setdefault(name.casefold(), given)
        if other is not given:
            where = f" in line {other.place.line}" if other.place.line else ""
            cause = f"the name {name!r} is taken by the entry{where}; case does not count"
            problems.add(given.place, path=given.path, cause=cause)


def check_sources(levels: Sequence[Level], problems: Problems) -> None:
    """Note missing data files and model folders, at the place that names them."""
    asked = {
        (key, value): given
        for level in reversed(levels)
        for key in SOURCE_KEYS
        if (given := level.get(key)) is not None
        for value in given.values
        if value is not None
    }
    for (key, value), given in asked.items():
        cause = source_problem(key, expand_home(value))
        if cause is not None:
            problems.add(given.place, path=given.path, cause=cause)


def suite_metrics(
    values: Mapping[str, Node], header: Level, *, folder: Path, problems: Problems
) -> tuple[MetricDefinition, ...]:
    """The metrics of a suite. Notes each entry that cannot be used, and an unknown primary metric.

    A primary metric need not be listed. Files of the user's own metrics are run.
    """
    given, primary = header.get("metrics"), header.get("primary_metric")
    entries: list[str] = [] if given is None else list(given.values[0])
    places = values["metrics"].value if given is not None else ()

    def note(number: int, cause: str) -> None:
        node = places[number] if isinstance(places, tuple) and number < len(places) else None
        place, path = (None, "") if given is None else (given.place, f"{given.path}[{number}]")
        problems.add(node.place if node else place or Place(source=""), path=path, cause=cause)

    found = read_metrics(entries, folder=folder, on_problem=note)
    if primary is None or primary.values[0] in ALWAYS_MEASURED or metric_named(primary.values[0], found):
        return found
    if len(found) < len([entry for entry in entries if entry not in ALWAYS_MEASURED]):
        return found  # the primary metric may be the one that cannot be used
    added = read_metrics(
        [primary.values[0]],
        folder=folder,
        on_problem=lambda _, cause: problems.add(primary.place, path=primary.path, cause=cause),
    )
    return (*found, *added)


def check_can_answer(
    header: Level, levels: Sequence[Level], *, metrics: Sequence[MetricDefinition], problems: Problems
) -> None:
    """Note a primary metric that some arm does not measure, and a margin as a share for a metric other than loss."""
    metric, margin = header.get("primary_metric"), header.get("margin")
    _check_generates(header, levels, metrics=metrics, problems=problems)
    if metric is None or metric.values[0] == "loss":
        return
    if margin is not None and isinstance(margin.values[0], str):
        cause = (
            f"is a share of the gain, which only loss has; give a number in the unit of {metric.values[0]}"
        )
        problems.add(margin.place, path=margin.path, cause=cause)


def _check_generates(
    header: Level, levels: Sequence[Level], *, metrics: Sequence[MetricDefinition], problems: Problems
) -> None:
    """Note a metric of generated answers if some arm generates none."""
    primary, listed = header.get("primary_metric"), header.get("metrics")
    of_answers = {metric.name for metric in metrics if metric.reads == "answers"}
    given = primary if primary is not None and primary.values[0] == "exact_match" else None
    name = "exact_match"
    if of_answers:
        given, name = listed or primary, min(of_answers)
    asked = (level.get("max_generation_samples") for level in levels)
    if given is not None and any(one is not None and 0 in one.values for one in asked):
        cause = f"{name} is not measured where max_generation_samples is 0; raise that, or take loss"
        problems.add(given.place, path=given.path, cause=cause)


def check_tuning_seeds(given: Given | None, levels: Sequence[Level], *, problems: Problems) -> None:
    """Note a seed that both chooses the rate and reports results: its luck would favour the rate that it chose."""
    if given is None or given.values[0] is None:
        return
    for seed in given.values[0]:
        if any(seed in _seeds(level) for level in levels):
            cause = f"the seed {seed} is among `seeds` too; runs that choose the rate do not report"
            problems.add(given.place, path=given.path, cause=cause)


def check_time_budget(given: Given | None, levels: Sequence[Level], *, problems: Problems) -> None:
    """Note each reason why the suite cannot choose its reporting arms: it has no search, a single arm, or unequal seeds."""
    if given is None or given.values[0] is None:
        return
    causes = []
    if any(_given(level, "learning_rate") != (AUTO,) for level in levels):
        causes.append("needs learning_rate: auto for every arm, since the search chooses which arms report")
    if sum(map(num_combinations, levels)) < 2:
        causes.append("needs at least two arms to choose from; remove it, or add arms")
    if len({frozenset(_seeds(level)) for level in levels}) > 1:
        causes.append("needs the same seeds for all arms, since they are compared seed by seed")
    for cause in causes:
        problems.add(given.place, path=given.path, cause=cause)


def check_racing(
    given: Given | None, levels: Sequence[Level], *, metric: Given | None, problems: Problems
) -> None:
    """Note each reason why the suite cannot race, such as a single arm, too few seeds, or arms on different rows."""
    if given is None or given.values[0] is False:
        return
    for cause in _why_no_race(levels, metric=metric):
        problems.add(given.place, path=given.path, cause=cause)


def _why_no_race(levels: Sequence[Level], *, metric: Given | None) -> Iterator[str]:
    if metric is not None and metric.values[0] != "loss":
        yield (
            f"compares arms by held-out loss, so it could stop the arm of the best {metric.values[0]}; remove it, or set "
            "primary_metric: loss"
        )
    if any(AUTO in level["learning_rate"].values for level in levels if "learning_rate" in level):
        yield "cannot be combined with learning_rate: auto, which ends its own rates; give a list of rates, or remove racing"
    if sum(map(num_combinations, levels)) < 2:
        yield "needs at least two arms; remove it"
    seeds = {frozenset(_seeds(level)) for level in levels}
    num_seeds = len(min(seeds, default=frozenset()))
    if len(seeds) > 1:
        yield "needs the same seeds for all arms, since they are compared seed by seed"
    elif num_seeds < MIN_SEEDS_TO_RACE:
        yield f"needs at least {MIN_SEEDS_TO_RACE} seeds to tell an arm from noise, not {num_seeds}"
    elif num_seeds < MIN_SEEDS and _has_one_rate(levels):
        yield (
            f"can only stop learning rates with {num_seeds} seeds, and there is one rate; give several rates, or "
            f"{MIN_SEEDS} seeds, since with fewer no verdict can call a configuration worse"
        )
    for key in _ALIKE_IN_A_RACE:
        if len({value for level in levels for value in _given(level, key)}) > 1:
            yield f"needs arms of the same {key}: else they are not scored on the same rows after the same steps"


def _has_one_rate(levels: Sequence[Level]) -> bool:
    return len({value for level in levels for value in _given(level, "learning_rate")}) < 2


def _given(level: Level, key: str) -> tuple[Any, ...]:
    """The key's values in a level; `(None,)`, which stands for the default, if the key is not given."""
    return level[key].values if key in level else (None,)


def check_eval_steps(levels: Sequence[Level], *, problems: Problems) -> None:
    """Note an interval between evaluation points that is as long as the training, since nothing is then scored on the way."""
    wrong: dict[int, tuple[Given, str]] = {}
    for level in levels:
        given = level.get("eval_steps")
        for every, num_steps in itertools.product(_given(level, "eval_steps"), _given(level, "max_steps")):
            if given is None or every is None or num_steps is None:
                continue
            if steps_between(every, num_steps=num_steps) >= num_steps:
                cause = f"must be less than the {num_steps} steps of the training (max_steps), not {every:g}; a share such as 0.1 suits any length"
                wrong[id(given)] = (given, cause)
    for given, cause in wrong.values():
        problems.add(given.place, path=given.path, cause=cause)


def check_selection(levels: Sequence[Level], *, problems: Problems) -> None:
    """Note a choice by validation scores where there are none, or where no test rows are left to report on."""
    wrong: dict[tuple[int, str], Given] = {}
    for level in levels:
        chosen = [
            level[key] for key in ("select_checkpoint", "early_stopping_patience") if _chooses(level, key)
        ]
        lacks_scores = None in _given(level, "eval_steps")
        lacks_rows = not _has_test_rows(level)
        for given in chosen:
            for cause in [_NO_SCORES] * lacks_scores + [_NO_TEST_ROWS] * lacks_rows:
                wrong[id(given), cause] = given
    for (_, cause), given in wrong.items():
        problems.add(given.place, path=given.path, cause=cause)


_NO_SCORES = "needs scores during training; add eval_steps, such as eval_steps: 0.1"

_NO_TEST_ROWS = (
    "chooses by the held-out rows, so a result needs rows that chose nothing; add test_fraction: 0.1, or a "
    "test_dataset_path"
)


def _chooses(level: Level, key: str) -> bool:
    return any(value not in (None, Settings.model_fields[key].default) for value in _given(level, key))


def _has_test_rows(level: Level) -> bool:
    """Whether all arms of a level have test rows. A search for learning rates takes some by itself."""
    named = (_given(level, key) for key in ("test_dataset_path", "test_fraction"))
    return any(None not in values for values in named) or AUTO in _given(level, "learning_rate")


def check_number(levels: Sequence[Level], *, start: Place, problems: Problems) -> None:
    """Note a suite with more than `MAX_EXPERIMENTS` experiments."""
    num_experiments = sum(num_combinations(level) * _num_seeds(level) for level in levels)
    if num_experiments > MAX_EXPERIMENTS:
        cause = f"asks for {num_experiments} experiments; a suite has at most {MAX_EXPERIMENTS}"
        problems.add(start, cause=cause)


def _num_seeds(level: Level) -> int:
    return len(_seeds(level))


def _seeds(level: Level) -> tuple[int, ...]:
    seeds = level["seeds"].values[0] if "seeds" in level else EntryKeys.model_fields["seeds"].default
    return seeds if isinstance(seeds, tuple) else (seeds,)


@dataclass(frozen=True, kw_only=True)
class _Needs:
    """The condition on another setting under which a key has an effect, and the message if it has none."""

    key: str
    holds: Callable[[Any], bool]
    cause: str
    even_at_default: bool = False
    """Whether the key is refused at its default value, too."""


_ONLY_4BIT = _Needs(
    key="quantization",
    holds=lambda value: value == "4bit",
    cause="has no effect without quantization: 4bit; remove it",
)

_ONLY_ANSWERS = _Needs(
    key="max_generation_samples",
    holds=lambda value: value > 0,
    cause="has no effect, as max_generation_samples is 0 and nothing is generated; remove it",
)

_ONLY_ADAPTERS = _Needs(
    key="method",
    holds=lambda value: value != FULL,
    cause="is a key of adapters, and method: full trains all weights without one; remove it",
    even_at_default=True,
)

_ONLY_LORA = _Needs(
    key="peft",
    holds=lambda value: not value,
    cause="is a key of LoRA, and peft names another adapter; remove it, or write its own key inside peft",
    even_at_default=True,
)

_NO_PATIENCE = _Needs(
    key="early_stopping_patience",
    holds=lambda value: value is not None,
    cause="has no effect without early_stopping_patience; add that, or remove it",
)

_OWN_HELD_OUT_ROWS = _Needs(
    key="eval_dataset_path",
    holds=lambda value: value is None,
    cause="has no effect, as eval_dataset_path names the held-out rows; keep one",
)

_NO_WARMUP = _Needs(
    key="lr_scheduler_type",
    holds=lambda value: value != "constant",
    cause="has no effect with lr_scheduler_type: constant; write constant_with_warmup",
)

_ONLY_ADAM = _Needs(
    key="optim",
    holds=lambda value: "adam" in value,
    cause="has no effect with optim: adafactor or sgd, which are no AdamW; remove it",
)


def _not_lorafa(constant: float) -> _Needs:
    return _Needs(
        key="method",
        holds=lambda value: value != "lorafa",
        cause=f"has no effect with method: lorafa, whose optimizer has {constant:g}; remove it",
    )


#: What each key needs in order to have an effect.
NEEDED: Mapping[str, tuple[_Needs, ...]] = {
    "bnb_4bit_quant_type": (_ONLY_4BIT,),
    "bnb_4bit_use_double_quant": (_ONLY_4BIT,),
    "max_new_tokens": (_ONLY_ANSWERS,),
    "exact_match_pattern": (_ONLY_ANSWERS,),
    "early_stopping_threshold": (_NO_PATIENCE,),
    "eval_fraction": (_OWN_HELD_OUT_ROWS,),
    **dict.fromkeys(ADAPTER_KEYS, (_ONLY_ADAPTERS,)),
    **{key: (*((_ONLY_ADAPTERS,) if key in ADAPTER_KEYS else ()), _ONLY_LORA) for key in LORA_KEYS},
    **{key: (_not_lorafa(constant), _ONLY_ADAM) for key, constant in LORAFA_CONSTANTS.items()},
    **dict.fromkeys(WARMUP_KEYS, (_NO_WARMUP,)),
}


def check_methods(levels: Sequence[Level], *, start: Place, problems: Problems) -> None:
    """Note each combination of a method with other settings that cannot train."""
    defaults = {key: Settings.model_fields[key].default for key in ("lora_rank", "quantization")}
    _check_combinations(
        levels,
        JUDGED_KEYS,
        problem=lambda values: method_problem({**defaults, **values}),
        start=start,
        problems=problems,
    )


def check_schedules(levels: Sequence[Level], *, start: Place, problems: Problems) -> None:
    """Note each schedule with options that it does not have, two lengths of the warm-up, or more steps than the training."""
    defaults = {key: Settings.model_fields[key].default for key in SCHEDULE_KEYS}
    _check_combinations(
        levels,
        SCHEDULE_KEYS,
        problem=lambda values: schedule_problem({**defaults, **values}),
        start=start,
        problems=problems,
    )


def _check_combinations(
    levels: Sequence[Level],
    keys: Sequence[str],
    *,
    problem: Callable[[Mapping[str, Any]], tuple[str, str] | None],
    start: Place,
    problems: Problems,
) -> None:
    """Note what `problem` finds in any arm's values of these keys, each finding once."""
    noted = set()
    for level in levels:
        judged = {key: level[key] for key in keys if key in level}
        for values in combinations(judged):
            found = problem(values)
            if found is not None and found not in noted:
                noted.add(found)
                given = judged.get(found[0])
                problems.add(
                    start if given is None else given.place,
                    path=found[0] if given is None else given.path,
                    cause=found[1],
                )


def check_full(kind: Given | None, levels: Sequence[Level], *, problems: Problems) -> None:
    """Note full fine-tuning beside arms on a quantised base, with equal seeds, and in a design that is about adapters."""
    full = [level for level in levels if FULL in _given(level, "method")]
    if not full or any(map(_is_quantised, full)):  # `method_problem` refuses such a full arm
        return
    for given, cause in (_of_full_seeds(full), _beside_full(levels), _design_beside_full(kind)):
        if given is not None:
            problems.add(given.place, path=given.path, cause=cause)


def _of_full_seeds(full: Sequence[Level]) -> tuple[Given | None, str]:
    fixed = (
        level["data_seed"]
        for level in full
        if None not in _given(level, "data_seed") and _num_seeds(level) > 1
    )
    cause = (
        "fixes the order of the rows, and full fine-tuning draws nothing else, so all of its seeds would be the same run; "
        "remove it"
    )
    return next(fixed, None), cause


def _beside_full(levels: Sequence[Level]) -> tuple[Given | None, str]:
    quantised = (level["quantization"] for level in levels if _is_quantised(level))
    cause = (
        "an arm of this suite is full fine-tuning, which no quantised base has, so a difference between the two could be "
        "one of precision; set quantization: bf16 or fp32 for all arms, or remove method: full"
    )
    return next(quantised, None), cause


def check_ranks(kind: Given | None, levels: Sequence[Level], *, problems: Problems) -> None:
    """Note adapters without a rank of LoRA in a design whose arms differ in it."""
    name = None if kind is None else kind.values[0]
    cause = f"names an adapter without LoRA's rank, and {name} compares ranks; set experiment_type: custom"
    for level in levels:
        if name in ("rank_ablation", "parameter_matched_modules") and any(_given(level, "peft")):
            problems.add(level["peft"].place, path=level["peft"].path, cause=cause)


def _design_beside_full(kind: Given | None) -> tuple[Given | None, str]:
    if kind is None or kind.values[0] not in set(EXPERIMENT_TYPES) - {"custom"}:
        return None, ""
    return kind, (
        f"{kind.values[0]} compares adapters, and the arm of method: full has none; set experiment_type: custom"
    )


def _is_quantised(level: Level) -> bool:
    return not {"4bit", "8bit"}.isdisjoint(_given(level, "quantization"))


def check_effects(given: Sequence[Given], *, levels: Sequence[Level], problems: Problems) -> None:
    """Note keys that have no effect, because of another setting, in any arm that takes them."""
    for key, one in _by_key(given, levels):
        needs = [need for need in NEEDED.get(key, ()) if need.even_at_default or not _is_default(one, key)]
        if not needs:
            continue
        takers = [level for level in levels if level.get(key) is one]
        for need in needs if takers else ():
            if not any(map(need.holds, _values(takers, need.key))):
                problems.add(one.place, path=one.path, cause=need.cause)


def _is_default(given: Given, key: str) -> bool:
    return given.values == (Settings.model_fields[key].default,)


def overridden(given: Sequence[Given], *, levels: Sequence[Level]) -> tuple[str, ...]:
    """One line for each key that no arm takes because every entry overrides it."""
    taken = {id(one) for level in levels for one in level.values()}
    return tuple(
        printable(f"{one.place}: {one.path}: no arm uses this value; every entry gives its own")
        for one in given
        if id(one) not in taken and any(value is not None for value in one.values)
    )


def _by_key(given: Sequence[Given], levels: Sequence[Level]) -> list[tuple[str, Given]]:
    keys = {id(one): key for level in levels for key, one in level.items()}
    return [(keys[id(one)], one) for one in given if id(one) in keys]


def _values(levels: Sequence[Level], key: str) -> list[Any]:
    default = Settings.model_fields[key].default
    return [value for level in levels for value in (level[key].values if key in level else (default,))]


def expand_home(path: str) -> str:
    """The path with a leading `~` expanded; unchanged if the home folder is not known."""
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:
        return path


def source_problem(key: str, value: str) -> str | None:
    """Why the value of a key of `SOURCE_KEYS` cannot be used; None if it can."""
    return base_model_problem(value) if key == "base_model" else dataset_problem(value)


def dataset_problem(path: str) -> str | None:
    """Why the data file cannot be read, and how to make it; None if it exists."""
    if path.startswith(LAB_PREFIX):
        return lab_problem(path.removeprefix(LAB_PREFIX))
    if _is_file(path):
        return None
    if _is_folder(path):
        return f"{path!r} is a folder; name the file in it"
    return f"there is no file {path!r} (paths start at the current folder){_way_out(path)}"


def lab_problem(name: str) -> str | None:
    """What is wrong with the name of a data set of the lab; None if the lab has it."""
    if name in LAB_SETS:
        return None
    near = difflib.get_close_matches(name, LAB_SETS, n=1, cutoff=0.6)
    meant = f" (did you mean {LAB_PREFIX}{near[0]}?)" if near else ""
    offered = ", ".join(LAB_PREFIX + known for known in LAB_SETS)
    return f"the lab has no data set {name!r}{meant}; it has {offered}"


def _way_out(path: str) -> str:
    sample = _ALPACA_SAMPLE.fullmatch(Path(path).as_posix()) if "\0" not in path else None
    if sample:
        return f"; make it: lorastudy prepare --dataset alpaca --num-samples {sample[1]}"
    if near := _nearest_file(path):
        return f" (did you mean {near}?)"
    if "alpaca" in path.casefold():
        return (
            "; `lorastudy prepare --dataset alpaca --num-samples 1000` makes data/alpaca_1000_sample.jsonl, "
            "name that"
        )
    return ""


def _nearest_file(path: str) -> str | None:
    folder = Path(path).parent
    try:
        names = [entry.name for entry in folder.iterdir() if entry.is_file()]
    except (OSError, ValueError):
        return None
    near = difflib.get_close_matches(Path(path).name, names, n=1, cutoff=0.6)
    return str(folder / near[0]) if near else None


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # a name too long for the system, or with a NUL
        return False


def _is_folder(path: str) -> bool:
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False
