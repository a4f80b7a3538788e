"""What was run, what the arms are, and which experiments did not complete."""

from collections.abc import Sequence
from typing import Any

from lorastudy.protocol.records import FELL_BACK
from lorastudy.report.document import (
    Block,
    Bullets,
    Cell,
    Code,
    Heading,
    Paragraph,
    Table,
    TableColumn,
    Text,
)
from lorastudy.report.numbers import ABSENT, listing, names
from lorastudy.stats.study import Study, StudyArm, differing_settings
from lorastudy.store.views import ExperimentResult
from lorastudy.suite.methods import METHOD_KEYS, WITHOUT_KEY
from lorastudy.suite.settings import Settings

#: Longer failure messages are cut here; the store has them whole.
MAX_MESSAGE = 600


def failure_blocks(study: Study, *, level: int) -> list[Block]:
    """What failed, diverged, was interrupted or has not finished; empty if all completed or were stopped by racing."""
    of_note = [result for result in study.results if not result.was_pruned]
    ended = [result for result in of_note if result.status in {"failed", "stopped"}]
    open_runs = [result for result in of_note if result.status in {"pending", "running", "paused"}]
    blocks: list[Block] = []
    if ended or open_runs:
        blocks.append(Heading(level=level, text="Failures and divergences"))
    if ended:
        columns = ("Experiment", "Arm", "Seed", "What happened", "Message")
        rows = tuple(_failure_row(result) for result in ended)
        blocks.append(
            Table(columns=tuple(TableColumn(title, numeric=title == "Seed") for title in columns), rows=rows)
        )
    if open_runs:
        unfinished = names(result.name for result in open_runs)
        text: Text = (
            f"Not finished: {unfinished}. Run ",
            Code("lorastudy suite"),
            " on the same file again; it runs only what is missing.",
        )
        blocks.append(Paragraph(text))
    return blocks


def arm_blocks(study: Study, *, level: int) -> list[Block]:
    """The settings in which the arms differ, with the effective scale of each, and notes on how results became arms."""
    differing = differing_settings(study.arms)
    keys = [key for key in differing if key not in METHOD_KEYS]
    has_methods = len(keys) < len(differing)
    columns = (
        TableColumn("Arm", numeric=False),
        *([TableColumn(title, numeric=False) for title in ("method", "engine")] if has_methods else []),
        *(TableColumn(key) for key in keys),
        TableColumn("scale of B·A"),
    )
    rows = tuple(
        (
            Cell(arm.name),
            *([Cell(_method(arm)), Cell(_engines_of(arm.completed) or ABSENT)] if has_methods else []),
            *(_setting_cell(arm.settings.get(key)) for key in keys),
            _scale_cell(arm.typed_settings),
        )
        for arm in study.reported_arms
    )
    blocks: list[Block] = [Heading(level=level, text="Arms"), Table(columns=columns, rows=rows)]
    if study.notes:
        blocks.append(Bullets(tuple((note,) for note in study.notes)))
    return blocks


def _scale_cell(settings: Settings) -> Cell:
    """The factor on B·A, which only LoRA has."""
    if not settings.arm_method.has_lora:
        return Cell(ABSENT)
    return Cell(f"{settings.lora_scaling:.4g}", settings.lora_scaling)


def _method(arm: StudyArm) -> str:
    """The arm's method, and both ranks if it is saved with another than it trains. Imported results name their own."""
    named = arm.settings.get("method")
    if named is not None and named not in WITHOUT_KEY:
        return str(named)
    settings = arm.typed_settings
    method = settings.arm_method
    saved = f"; trained at rank {settings.lora_rank}, saved as LoRA of rank {2 * settings.lora_rank}"
    return method.title + (saved if method.changes_base else "")


def setting_text(value: Any) -> str:
    """A setting roughly as a suite file writes it."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


#: Settings of every configuration, whatever their defaults.
_ALWAYS = ("lora_rank", "lora_alpha", "target_modules", "learning_rate")


def configuration_of(arm: StudyArm, study: Study) -> tuple[tuple[str, str], ...]:
    """The arm's settings as text: in what the study's arms differ, the usual four, and what is not at its default.

    Settings that are left out have the defaults of this version.
    """
    defaults = Settings().model_dump(mode="json")
    kept = {*differing_settings(study.arms), *_ALWAYS}
    return tuple(
        (key, setting_text(value))
        for key, value in arm.settings.items()
        if key in kept or (key in defaults and value != defaults[key])
    )


def setting_values(arms: Sequence[StudyArm], key: str) -> list[str]:
    """The setting's distinct values over the arms, in their order."""
    return list(dict.fromkeys(setting_text(arm.settings.get(key)) for arm in arms))


def _setting_cell(value: Any) -> Cell:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(setting_text(value), float(value) if is_number else None)


def what_was_run(study: Study) -> str:
    """How many arms and seeds, on what, for how long, and how many completed."""
    arms = study.reported_arms
    model, data = (listing(setting_values(study.arms, key)) for key in ("base_model", "dataset_path"))
    return (
        f"{_counted(len(arms), 'arm')} with {_seeds_each(study)} each on the base model {model}, "
        f"trained on {data}{_length(study.arms)}{_search(study)}; {len(study.completed)} of {len(study.results)} experiments completed"
        f"{f', {len(study.pruned)} were stopped by racing' if study.pruned else ''}.{_engines(study)}"
    )


def _engines(study: Study) -> str:
    """Which engine trained, and the reason if it is not the requested one."""
    engines = _engines_of(study.completed)
    if not engines:
        return ""
    reasons = {
        incident.message.removeprefix(FELL_BACK)
        for result in study.completed
        for incident in result.incidents
        if incident.kind == "fell_back"
    }
    why = f", since {'; '.join(sorted(reasons))}" if reasons else ""
    return f" Engine: {engines}{why}."


def _engines_of(results: Sequence[ExperimentResult]) -> str:
    """`packed and reference`: the engines that trained; empty if none is on record."""
    return " and ".join(sorted({result.engine for result in results if result.engine is not None}))


def _search(study: Study) -> str:
    """How many runs searched for the learning rates; empty if they were given."""
    num_runs = sum(result.seed in study.tuning_seeds for result in study.results)
    return f", after {_counted(num_runs, 'run')} that searched for their learning rates" if num_runs else ""


def _seeds_each(study: Study) -> str:
    """`6 seeds`, or `3 to 6 seeds` if arms have different numbers."""
    numbers = [len(study.reporting_runs(arm)) for arm in study.reported_arms]
    fewest, most = min(numbers), max(numbers)
    return _counted(most, "seed") if fewest == most else f"{fewest} to {_counted(most, 'seed')}"


def _length(arms: Sequence[StudyArm]) -> str:
    """The number of steps, if that is the same for all arms."""
    steps = {result.num_steps for arm in arms for result in arm.completed}
    if len(steps) == 1 and None not in steps:
        return f" for {_counted(steps.pop() or 0, 'optimizer step')}"
    return ""


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _failure_row(result: ExperimentResult) -> tuple[Cell, ...]:
    kind = (result.failure_kind or result.status).replace("_", " ")
    step = f" at step {result.num_steps}" if result.num_steps else ""
    message = result.failure_message or "no message was recorded"
    shown = message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]}…"
    return (
        Cell(result.name),
        Cell(result.arm),
        Cell(str(result.seed), result.seed),
        Cell(f"{kind}{step}"),
        Cell(shown),
    )
