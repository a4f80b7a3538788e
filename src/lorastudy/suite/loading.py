"""From a suite file to a checked `Suite`, or to one error that tells everything that is wrong with it.

The same checks serve a single experiment put together from flags: `suite_from_values`. What names an arm
and which class makes its adapter is decided later, in `lorastudy.suite.expansion`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorastudy.suite.checks import (
    check_can_answer,
    check_experiment_type,
    check_names,
    check_number,
    check_racing,
    check_sources,
    check_tuning_seeds,
)
from lorastudy.suite.effects import check_effects, overridden
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
from lorastudy.suite.problems import Place, Problems
from lorastudy.suite.question import Margin
from lorastudy.suite.racing import RUNGS
from lorastudy.suite.settings import AUTO, AskedSettings, Settings
from lorastudy.suite.sources import SOURCE_KEYS, expand_home
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
from lorastudy.suite.yaml_nodes import Node, node_from_value, plain
from lorastudy.suite.yaml_reading import read_yaml

#: Read when it is there: a project's own defaults.
DEFAULTS_PATH = Path("configs/default_config.yaml")

_FLAGS = {"dataset_path": "--dataset", "num_train_epochs": "--num-epochs"}
_STRUCTURE = ("experiments", "factors")


def load_suite(path: Path, *, defaults: Path | None = None) -> Suite:
    """The suite in the file, every arm with all its settings.

    Without `defaults`, `configs/default_config.yaml` of the current folder is read if it is there. Paths in
    the file begin at the current folder.

    Raises:
        SuiteFileError: all that is wrong, as `file:line:col: path: cause`.
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
    """The suite of one entry that flags ask for. A value of None is a flag that was not given.

    Messages read `where: --flag: cause`; a key's flag is `--key-with-dashes`, or as `flags` says. `name` may
    stand among the values, and so may `experiments` or `factors`.

    Raises:
        SuiteFileError: all that is wrong.
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
    """Where a suite comes from: a file, or flags (`path` is None), which ask for one arm unless they list."""

    scope: Scope
    path: Path | None
    start: Place


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """What is asked for below the top: one entry of `experiments`, or all of `factors`."""

    level: Level
    line: int | None
    own: tuple[Given, ...] = ()
    """What stands in the entry itself."""


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
    check_can_answer(header.get("primary_metric"), levels, margin=header.get("margin"), problems=problems)
    check_tuning_seeds(header.get("tuning_seeds"), levels, problems=problems)
    check_racing(header.get("racing"), levels, metric=header.get("primary_metric"), problems=problems)
    own = [*top.values(), *(given for entry in entries for given in entry.own)]
    if problems.are_none:
        check_effects(own, levels=levels, problems=problems)
    given = {key: value.values[0] for key, value in header.items()}
    name = given.get("suite_name") or _name_from(source, given=given, problems=problems)
    problems.raise_if_any()
    return Suite(
        name=name,
        description=given.get("description", SuiteKeys.model_fields["description"].default),
        experiment_type=given.get("experiment_type", SuiteKeys.model_fields["experiment_type"].default),
        path=source.path,
        arms=tuple(arm for entry in entries for arm in _arms(entry)),
        notes=overridden(own, levels=levels),
        primary_metric=given.get("primary_metric", SuiteKeys.model_fields["primary_metric"].default),
        margin=None if given.get("margin") is None else Margin.parse(given["margin"]),
        reference=given.get("reference"),
        given_tuning_seeds=given.get("tuning_seeds"),
        rungs=_rungs(given.get("racing", False)),
    )


def _rungs(asked: Any) -> tuple[float, ...]:
    """The shares of the training that `racing` stands for."""
    if isinstance(asked, bool):
        return RUNGS if asked else ()
    return tuple(asked)


def _document(path: Path, problems: Problems) -> Mapping[str, Node]:
    """The keys of a file.

    Raises:
        SuiteFileError: it has none, so there is nothing to go on with.
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
        cause = "says no arms; add `experiments:` with one entry each, or `factors:` with lists of values"
        problems.add(source.start, cause=cause)
    listed = _listed(experiments, problems) if experiments else []
    crossed = _crossed(factors, top=top, problems=problems) if factors else []
    # Without any, the top is an arm by itself: of flags it is the one asked for, of a file it is still checked.
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


def _name_from(source: _Source, *, given: Mapping[str, Any], problems: Problems) -> str:
    if source.path is None:
        return "single"
    cause = name_problem(source.path.stem)
    if cause and "suite_name" not in given:
        problems.add(
            source.start, path="suite_name", cause=f"is not given, and the file's name will not do: {cause}"
        )
    return source.path.stem


def _arms(entry: _Entry) -> list[Arm]:
    level = dict(entry.level)
    name, seeds = (
        level.pop(key).values[0] if key in level else EntryKeys.model_fields[key].default
        for key in EntryKeys.model_fields
    )
    return [
        Arm(
            name=name,
            settings=Settings.model_validate(_with_test_rows(_with_homes(values))),
            seeds=seeds if isinstance(seeds, tuple) else (seeds,),
            line=entry.line,
            seeks_rate=values.get("learning_rate") == AUTO,
        )
        for values in combinations(level)
    ]


def _with_test_rows(values: dict[str, Any]) -> dict[str, Any]:
    """Where a rate is looked for, the rate left out and test rows asked for: what chooses must not report."""
    if values.get("learning_rate") != AUTO:
        return values
    rest = {key: value for key, value in values.items() if key != "learning_rate"}
    if rest.get("test_dataset_path") is None and rest.get("test_fraction") is None:
        has_file = rest.get("eval_dataset_path") is not None
        rest["test_fraction"] = AUTO_TEST_SHARE_OF_EVAL if has_file else AUTO_TEST_SHARE
    return rest


def _with_homes(values: dict[str, Any]) -> dict[str, Any]:
    paths = {key: expand_home(values[key]) for key in SOURCE_KEYS if values.get(key)}
    return {**values, **paths}
