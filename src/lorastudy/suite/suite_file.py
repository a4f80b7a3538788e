"""Suite files: a file becomes a checked `Suite`, and a `Suite` becomes a file again.

`load_suite` reports everything that is wrong in one error. `suite_from_values` makes the same checks on a suite given as
flags, a dict or keyword arguments. `lorastudy.suite.suite` later names the arms and runs their experiment type.
"""

import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorastudy.suite.checks import (
    NEEDED,
    SOURCE_KEYS,
    check_can_answer,
    check_effects,
    check_eval_steps,
    check_experiment_type,
    check_full,
    check_methods,
    check_names,
    check_number,
    check_racing,
    check_ranks,
    check_schedules,
    check_selection,
    check_sources,
    check_time_budget,
    check_tuning_seeds,
    expand_home,
    overridden,
    suite_metrics,
)
from lorastudy.suite.experiment import canonical_json
from lorastudy.suite.levels import (
    Given,
    Level,
    Scope,
    combinations,
    defaults_scope,
    entry_scope,
    factors_scope,
    merge,
    read_level,
    top_scope,
)
from lorastudy.suite.methods import METHOD_KEYS, TRAINING_KEYS, written_out
from lorastudy.suite.metrics import metric_named
from lorastudy.suite.question import RUNGS, Margin
from lorastudy.suite.settings import AUTO, AskedSettings, Settings, names_test_rows
from lorastudy.suite.suite import (
    AUTO_TEST_SHARE,
    AUTO_TEST_SHARE_OF_EVAL,
    Arm,
    EntryKeys,
    Suite,
    SuiteKeys,
    name_problem,
)
from lorastudy.suite.wording import shown
from lorastudy.suite.yaml_reading import Node, Place, Problems, node_from_value, plain, read_yaml

#: A project's own defaults, read if the file exists.
DEFAULTS_PATH = Path("configs/default_config.yaml")

_FLAGS = {"dataset_path": "--dataset", "num_train_epochs": "--num-epochs"}

_STRUCTURE = ("experiments", "factors")


def load_suite(path: Path, *, defaults: Path | None = None) -> Suite:
    """The suite in the file, every arm with all its settings.

    Without `defaults`, the function reads `configs/default_config.yaml` of the current folder if it exists. Paths in the
    file start at the current folder.

    Raises:
        SuiteFileError: everything that is wrong, as `file:line:col: path: cause`.
    """
    problems = Problems()
    base = _read_defaults(defaults, problems)
    values = _document(path, problems)
    source = _Source(scope=top_scope(), path=path, start=Place(source=str(path), line=1, column=1))
    return _suite(values, base=base, source=source, problems=problems)


def suite_from_values(
    values: Mapping[str, Any],
    *,
    where: str,
    flags: Mapping[str, str] | None = None,
    defaults: Path | None = None,
) -> Suite:
    """The suite that flags, a dict or keyword arguments describe. A value of None counts as not given.

    Messages have the form `where: --flag: cause`. The flag of a key is `--key-with-dashes`, unless `flags` names
    another. Without `experiments` and `factors`, the values describe one arm, which may have a `name`.

    Raises:
        SuiteFileError: everything that is wrong.
    """
    names = {**_FLAGS, **(flags or {})}
    place = Place(source=where)
    scope = Scope(
        models=(SuiteKeys, EntryKeys, AskedSettings),
        label=lambda key: names.get(key, "--" + key.replace("_", "-")),
    )
    nodes = {key: node_from_value(value, place) for key, value in values.items() if value is not None}
    problems = Problems()
    base = _read_defaults(defaults, problems)
    return _suite(nodes, base=base, source=_Source(scope=scope, path=None, start=place), problems=problems)


@dataclass(frozen=True, kw_only=True)
class _Source:
    """The origin of a suite: a file, or values (`path` is None)."""

    scope: Scope
    path: Path | None
    start: Place


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One entry of `experiments`, or all of `factors`."""

    level: Level
    line: int | None
    own: tuple[Given, ...] = ()
    """The values written in the entry itself."""


def _suite(values: Mapping[str, Node], *, base: Level, source: _Source, problems: Problems) -> Suite:
    settings = {key: node for key, node in values.items() if key not in _STRUCTURE}
    top = read_level(settings, scope=source.scope, problems=problems)
    header = {key: top.pop(key) for key in SuiteKeys.model_fields if key in top}
    entries = [
        replace(entry, level=merge(base, top, entry.level))
        for entry in _entries(values, top=top, source=source, problems=problems)
    ]
    check_experiment_type(header.get("experiment_type"), problems)
    levels = [entry.level for entry in entries]
    _check_levels(levels, start=source.start, problems=problems)
    check_full(header.get("experiment_type"), levels, problems=problems)
    check_ranks(header.get("experiment_type"), levels, problems=problems)
    metrics = suite_metrics(
        values, header, folder=Path() if source.path is None else source.path.parent, problems=problems
    )
    check_can_answer(header, levels, metrics=metrics, problems=problems)
    check_tuning_seeds(header.get("tuning_seeds"), levels, problems=problems)
    check_racing(header.get("racing"), levels, metric=header.get("primary_metric"), problems=problems)
    check_time_budget(header.get("time_budget_hours"), levels, problems=problems)
    own = [*top.values(), *(given for entry in entries for given in entry.own)]
    if problems.are_none:
        check_effects(own, levels=levels, problems=problems)
    given = {key: value.values[0] for key, value in header.items()}
    primary = metric_named(given.get("primary_metric", ""), metrics)
    name = given.get("suite_name") or _name_from(source, given=given, problems=problems)
    problems.raise_if_any()
    return Suite(
        name=name,
        description=given.get("description", SuiteKeys.model_fields["description"].default),
        experiment_type=given.get("experiment_type", SuiteKeys.model_fields["experiment_type"].default),
        path=source.path,
        arms=tuple(arm for entry in entries for arm in _arms(entry)),
        notes=(*overridden(own, levels=levels), *_seed_notes(own), *_test_row_notes(levels)),
        primary_metric=given.get("primary_metric", SuiteKeys.model_fields["primary_metric"].default)
        if primary is None
        else primary.key,
        margin=None if given.get("margin") is None else Margin.parse(given["margin"]),
        reference=given.get("reference"),
        given_tuning_seeds=given.get("tuning_seeds"),
        rungs=_rungs(given.get("racing", False)),
        metrics=metrics,
        time_budget_hours=given.get("time_budget_hours"),
    )


def _seed_notes(given: Sequence[Given]) -> list[str]:
    """A note if `seeds` is a single number, because that reads like a count."""
    return [
        f"{one.place}: {one.path}: this is the one seed {number}; for {number} seeds write a list, as in [0, 1, 2]"
        for one in given
        if one.path.endswith("seeds") and isinstance(number := one.values[0], int) and number > 1
    ]


def _test_row_notes(levels: Sequence[Level]) -> list[str]:
    """A note for each file of which `learning_rate: auto` takes rows to report on, since that leaves fewer for others."""
    notes = []
    for values in (values for level in levels for values in combinations(level) if _lacks_test_rows(values)):
        own = values.get("eval_dataset_path")
        file = own or values.get("dataset_path", Settings.model_fields["dataset_path"].default)
        rest = "which neither train nor choose" if own is None else "and the others choose the rate"
        notes.append(
            f"learning_rate: auto takes {100 * _auto_test_share(values):g} % of the rows of {file} to report on, {rest}; name other "
            "rows with test_dataset_path, or another share with test_fraction"
        )
    return list(dict.fromkeys(notes))


def _rungs(racing: Any) -> tuple[float, ...]:
    """The shares of the training at which racing looks."""
    if isinstance(racing, bool):
        return RUNGS if racing else ()
    return tuple(racing)


def _document(path: Path, problems: Problems) -> Mapping[str, Node]:
    """The keys of a file.

    Raises:
        SuiteFileError: the file has none.
    """
    node = read_yaml(path, problems)
    if node is not None and isinstance(node.value, Mapping):
        return node.value
    if node is not None:
        cause = f"must be keys with values, such as `base_model: microsoft/phi-2`, not {shown(plain(node))}"
        problems.add(node.place, cause=cause)
    problems.raise_if_any()
    raise AssertionError("a file that cannot be read is a problem")


def _read_defaults(path: Path | None, problems: Problems) -> Level:
    if path is None and not DEFAULTS_PATH.is_file():
        return {}
    values = _document(path or DEFAULTS_PATH, problems)
    return read_level(values, scope=defaults_scope(), problems=problems)


def _entries(values: Mapping[str, Node], *, top: Level, source: _Source, problems: Problems) -> list[_Entry]:
    experiments, factors = (values.get(key) for key in _STRUCTURE)
    if experiments and factors:
        place = max(experiments.key_place, factors.key_place, key=lambda place: place.line or 0)
        problems.add(place, path="factors", cause="experiments and factors are both given; keep one")
    elif not experiments and not factors and source.path is not None:
        cause = (
            "has no arms; add `experiments:` with one entry for each arm, or `factors:` with lists of values"
        )
        problems.add(source.start, cause=cause)
    listed = _listed(experiments, problems) if experiments else []
    crossed = _crossed(factors, top=top, problems=problems) if factors else []
    # Without both, the top is the only arm. Flags describe one arm; a file is checked further despite its error.
    return listed + crossed or [_Entry(level={}, line=None)]


def _listed(node: Node, problems: Problems) -> list[_Entry]:
    if not isinstance(node.value, tuple) or not node.value:
        cause = f"must be a list of entries such as `- lora_rank: 8`, at least one, not {shown(plain(node))}"
        problems.add(node.place, path="experiments", cause=cause)
        return []
    entries = []
    for number, item in enumerate(node.value):
        path = f"experiments[{number}]"
        if isinstance(item.value, Mapping):
            level = read_level(item.value, scope=entry_scope(path + "."), problems=problems)
            entries.append(_Entry(level=level, line=item.place.line, own=tuple(level.values())))
        else:
            cause = f"must be keys with values, such as `lora_rank: 8`, not {shown(plain(item))}"
            problems.add(item.place, path=path, cause=cause)
    return entries


def _crossed(node: Node, *, top: Level, problems: Problems) -> list[_Entry]:
    if not isinstance(node.value, Mapping) or not node.value:
        cause = f"must be settings with a list each, such as `lora_rank: [4, 8]`, not {shown(plain(node))}"
        problems.add(node.place, path="factors", cause=cause)
        return []
    level = read_level(node.value, scope=factors_scope(), problems=problems)
    for key in level.keys() & top.keys():
        place = node.value[key].key_place
        problems.add(place, path=f"factors.{key}", cause="is given at the top of the file too; keep one")
    return [_Entry(level=level, line=node.key_place.line, own=tuple(level.values()))]


def _check_levels(levels: list[Level], *, start: Place, problems: Problems) -> None:
    check_names([level["name"] for level in levels if "name" in level], problems)
    check_sources(levels, problems)
    check_number(levels, start=start, problems=problems)
    check_eval_steps(levels, problems=problems)
    check_selection(levels, problems=problems)
    check_methods(levels, start=start, problems=problems)
    check_schedules(levels, start=start, problems=problems)


def _name_from(source: _Source, *, given: Mapping[str, Any], problems: Problems) -> str:
    if source.path is None:
        return "single"
    cause = name_problem(source.path.stem)
    if cause and "suite_name" not in given:
        problems.add(
            source.start,
            path="suite_name",
            cause=f"is not given, and the file's name cannot be used for it: {cause}",
        )
    return source.path.stem


def _arms(entry: _Entry) -> list[Arm]:
    level = dict(entry.level)
    name, seeds = (
        level.pop(key).values[0] if key in level else EntryKeys.model_fields[key].default
        for key in EntryKeys.model_fields
    )
    places = {key: f"{given.place}: {given.path}" for key, given in level.items()}
    return [
        Arm(
            name=name,
            settings=Settings.model_validate(written_out(_with_test_rows(_with_homes(values)))),
            seeds=seeds if isinstance(seeds, tuple) else (seeds,),
            line=entry.line,
            seeks_rate=values.get("learning_rate") == AUTO,
            places=places,
        )
        for values in combinations(level)
    ]


def _with_test_rows(values: dict[str, Any]) -> dict[str, Any]:
    """The values; with `learning_rate: auto`, without a rate and with test rows.

    Test rows are needed because the rows that choose the rate must not report results.
    """
    if values.get("learning_rate") != AUTO:
        return values
    rest = {key: value for key, value in values.items() if key != "learning_rate"}
    if _lacks_test_rows(values):
        rest["test_fraction"] = _auto_test_share(values)
    return rest


def _lacks_test_rows(values: Mapping[str, Any]) -> bool:
    """Whether the values ask for a search and name no test rows to report on."""
    return values.get("learning_rate") == AUTO and not names_test_rows(values)


def _auto_test_share(values: Mapping[str, Any]) -> float:
    return AUTO_TEST_SHARE if values.get("eval_dataset_path") is None else AUTO_TEST_SHARE_OF_EVAL


def _with_homes(values: dict[str, Any]) -> dict[str, Any]:
    paths = {key: expand_home(values[key]) for key in SOURCE_KEYS if values.get(key)}
    return {**values, **paths}


#: Keys for the layout of the work. They are not part of the study.
_OF_THE_LAYOUT = {"max_arms_per_pack", "checkpoint_steps", "checkpoint_minutes"}


def suite_yaml(suite: Suite) -> str:
    """The text of a suite file that loads to the same question and the same experiments.

    The question and the settings that all arms share come first, then an entry for each arm with the settings that
    differ. All settings are written, so that a later version's defaults change nothing. A learning rate of `auto` stays
    `auto`. Comments and the short forms of the first file (`factors`, `racing: true`) are lost, and so are the keys for
    the layout of the work: the planner decides them again.
    """
    entries = _written_entries(suite.arms)
    shared = {key: value for key, value in entries[0].items() if _is_in_all(entries, key, value=value)}
    shared.pop("name", None)
    body = {**_question_keys(suite), **shared}
    # An entry needs at least one key.
    own = [{key: value for key, value in entry.items() if key not in shared} for entry in entries]
    some = "lora_rank" if "lora_rank" in shared else "base_model"
    body["experiments"] = [entry or {some: shared[some]} for entry in own]
    return _dumped(body)


def _question_keys(suite: Suite) -> dict[str, Any]:
    """The keys that only the top may have, without those at their default."""
    asked = {
        "suite_name": suite.name,
        "description": suite.description,
        "experiment_type": suite.experiment_type,
        "metrics": [metric.as_written for metric in suite.metrics] or None,
        "primary_metric": suite.question.primary_name,
        "margin": None if suite.margin is None else suite.margin.as_written(),
        "reference": suite.reference,
        "tuning_seeds": suite.given_tuning_seeds and list(suite.given_tuning_seeds),
        "racing": list(suite.rungs) or None,
        "time_budget_hours": suite.time_budget_hours,
    }
    kept = {"suite_name", "experiment_type", "primary_metric"}
    defaults = {key: SuiteKeys.model_fields[key].default for key in asked}
    return {
        key: value
        for key, value in asked.items()
        if key in kept or (value is not None and value != defaults[key])
    }


def _written_entries(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """The entries with all their keys. Consecutive arms that differ only in their rate become one entry with a list.

    Such arms came from one entry. As separate entries they would share its name, and loading refuses that.
    """
    entries = []
    for _, group in itertools.groupby(map(_written_entry, arms), key=_but_for_the_rate):
        found = list(group)
        rates = [entry["learning_rate"] for entry in found]
        # Keep equal arms as separate entries, so that loading the file reports them.
        if len(set(rates)) == len(rates) > 1 and AUTO not in rates:
            entries.append({**found[0], "learning_rate": rates})
        else:
            entries += found
    return entries


def _written_entry(arm: Arm) -> dict[str, Any]:
    settings = {
        key: value
        for key, value in arm.settings.model_dump(mode="json").items()
        if value is not None
        and key not in _OF_THE_LAYOUT
        and not _is_void(key, value, settings=arm.settings)
        and not _is_plain(key, value)
    }
    named = {} if arm.name is None else {"name": arm.name}
    rate = {"learning_rate": AUTO} if arm.seeks_rate else {}
    return {**named, **settings, **rate, "seeds": list(arm.seeds)}


def _is_void(key: str, value: Any, *, settings: Settings) -> bool:
    """Whether loading refuses the key because another setting makes it have no effect."""
    is_default = bool(value == Settings.model_fields[key].default)
    return any(
        (need.even_at_default or not is_default) and not need.holds(getattr(settings, need.key))
        for need in NEEDED.get(key, ())
    )


def _is_plain(key: str, value: Any) -> bool:
    """Whether the value is that of plain LoRA, trained plainly."""
    return any(key in plain and value == plain[key] for plain in (METHOD_KEYS, TRAINING_KEYS))


def _but_for_the_rate(entry: Mapping[str, Any]) -> str:
    return canonical_json({key: value for key, value in entry.items() if key != "learning_rate"})


def _is_in_all(entries: Sequence[Mapping[str, Any]], key: str, *, value: Any) -> bool:
    return all(key in entry and canonical_json(entry[key]) == canonical_json(value) for entry in entries)


def _dumped(body: Mapping[str, Any]) -> str:
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 100
    # Without this, equal lists become anchors and aliases.
    yaml.representer.ignore_aliases = lambda *_: True
    stream = io.StringIO()
    yaml.dump(dict(body), stream)
    return stream.getvalue()
