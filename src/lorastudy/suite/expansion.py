"""Expansion of a suite into its experiments: every arm with every seed, with a name, fingerprints and an id."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lorastudy.errors import StudyError
from lorastudy.suite.base_model import has_chat_template
from lorastudy.suite.experiment import DATA_VERSION, Experiment, Sources
from lorastudy.suite.experiment_types import BaseExperiment, ExperimentConfig, resolve_type, settings_of
from lorastudy.suite.problems import Place, Problems
from lorastudy.suite.question import configuration_name, is_reference
from lorastudy.suite.settings import Settings, label, varied_keys
from lorastudy.suite.suite import Arm, Suite, name_problem
from lorastudy.suite.wording import did_you_mean

Fingerprint = Callable[[str], str]


def expand(
    suite: Suite,
    *,
    fingerprint_dataset: Fingerprint,
    fingerprint_base: Fingerprint,
    waiting: Sequence[Arm] = (),
) -> tuple[Experiment, ...]:
    """The suite's experiments, in the order of its arms and their seeds.

    Every arm must have its learning rate (see `rate_search`). An experiment has the name of its arm, plus `_seed<seed>`
    if the arm has several seeds. Each path is fingerprinted once. `prompt_format: auto` becomes `chat` if the base
    model has a chat template. `waiting` are arms of the same suite whose experiments do not exist yet. They count when
    names are made from the varied settings, and a reference may name them.

    Raises:
        SuiteFileError: two arms share a name, two experiments are the same, a name cannot be a folder's, or no
            arm has the name of the reference.
        StudyError: the experiment type cannot be loaded, or returns something that is not a setting.
    """
    assert not any(arm.seeks_rate for arm in suite.arms)
    named = _named_arms(suite, [*suite.arms, *waiting])
    arms = named[: len(suite.arms)]
    sources_of = sources_reader(fingerprint_dataset, fingerprint_base)
    by_arm = [(arm, _experiments(suite, arm, sources=sources_of(arm.settings))) for arm in arms]
    problems = Problems()
    _note_bad_names(suite, arms, problems=problems)
    _note_twins(suite, by_arm, problems=problems)
    _note_unknown_reference(suite, named, problems=problems)
    problems.raise_if_any()
    return tuple(experiment for _, experiments in by_arm for experiment in experiments)


@dataclass(frozen=True, kw_only=True)
class _NamedArm:
    """An arm with the name and settings that its experiment type gives it."""

    name: str
    settings: Settings
    seeds: tuple[int, ...]
    line: int | None

    def name_with(self, seed: int) -> str:
        """The name of the experiment with this seed."""
        return self.name if len(self.seeds) == 1 else f"{self.name}_seed{seed}"


def _named_arms(suite: Suite, arms: Sequence[Arm]) -> list[_NamedArm]:
    kind = resolve_type(suite.experiment_type)
    varied = varied_keys([arm.settings for arm in arms])
    named = [_named(arm, kind=kind, varied=varied) for arm in arms]
    groups: dict[str, list[_NamedArm]] = {}
    for arm in named:
        groups.setdefault(arm.name, []).append(arm)
    differing = {name: varied_keys([arm.settings for arm in group]) for name, group in groups.items()}
    return [
        _NamedArm(
            name="_".join(
                [arm.name, *(label(key, getattr(arm.settings, key)) for key in differing[arm.name])]
            ),
            settings=arm.settings,
            seeds=arm.seeds,
            line=arm.line,
        )
        for arm in named
    ]


def _named(arm: Arm, *, kind: type[BaseExperiment], varied: tuple[str, ...]) -> _NamedArm:
    """The arm under its given name, or under the name that its type makes. Several arms may still share a name.

    The catch is broad because the class may be the user's own code.

    Raises:
        StudyError: the class raised an error, or returns something that is not a setting.
    """
    try:
        experiment = kind(ExperimentConfig.of(arm.settings, varied=varied))
        settings = settings_of(experiment)
        name = arm.name or experiment.get_experiment_name()
    except StudyError:
        raise
    except Exception as error:
        raise StudyError(f"{kind.__name__} fails: {type(error).__name__}: {error}") from error
    if not isinstance(name, str):
        raise StudyError(f"{kind.__name__}.get_experiment_name returned {name!r}; a name is text")
    return _NamedArm(name=name, settings=_with_layout(settings), seeds=arm.seeds, line=arm.line)


def _with_layout(settings: Settings) -> Settings:
    """The settings, with `prompt_format: auto` replaced by `chat` if the base model has a chat template."""
    if settings.prompt_format == "auto" and has_chat_template(settings.base_model):
        return settings.model_copy(update={"prompt_format": "chat"})
    return settings


def _experiments(suite: Suite, arm: _NamedArm, *, sources: Sources) -> list[Experiment]:
    return [
        Experiment(
            name=arm.name_with(seed),
            arm=arm.name,
            experiment_type=suite.experiment_type,
            seed=seed,
            settings=arm.settings,
            sources=sources,
        )
        for seed in arm.seeds
    ]


def sources_reader(
    fingerprint_dataset: Fingerprint, fingerprint_base: Fingerprint
) -> Callable[[Settings], Sources]:
    """A function that fingerprints the files and the model of given settings, each of them once."""
    dataset = functools.cache(fingerprint_dataset)
    base = functools.cache(fingerprint_base)

    def sources_of(settings: Settings) -> Sources:
        return Sources(
            base_model=base(settings.base_model),
            dataset=dataset(settings.dataset_path),
            eval_dataset=of_optional(settings.eval_dataset_path),
            test_dataset=of_optional(settings.test_dataset_path),
            forgetting_dataset=of_optional(settings.forgetting_dataset_path),
            data_version=DATA_VERSION,
        )

    def of_optional(path: str | None) -> str | None:
        return None if path is None else dataset(path)

    return sources_of


def _note_bad_names(suite: Suite, arms: Sequence[_NamedArm], *, problems: Problems) -> None:
    first: dict[str, _NamedArm] = {}
    for arm in arms:
        for seed in arm.seeds:
            name = arm.name_with(seed)
            cause = name_problem(name)
            if cause is not None:
                problems.add(_place(suite, arm.line), cause=f"{cause}; give the entry a `name`")
            other = first.setdefault(name.casefold(), arm)
            if other is not arm:
                where = f" of line {other.line}" if other.line and other.line != arm.line else ""
                cause = f"the name {name!r} is also that of another arm{where} (case does not count)"
                problems.add(_place(suite, arm.line), cause=f"{cause}; give the entry a `name`")


def _note_twins(
    suite: Suite, by_arm: Sequence[tuple[_NamedArm, Sequence[Experiment]]], *, problems: Problems
) -> None:
    """Note two experiments with the same id: they would share one result, and the store cannot hold both."""
    first: dict[str, Experiment] = {}
    for arm, experiments in by_arm:
        for experiment in experiments:
            other = first.setdefault(experiment.id, experiment)
            if other is not experiment:
                cause = f"{experiment.name!r} is the same experiment as {other.name!r}"
                cause = f"{cause}: same settings, seed and data; remove one"
                problems.add(_place(suite, arm.line), cause=cause)


def _note_unknown_reference(suite: Suite, arms: Sequence[_NamedArm], *, problems: Problems) -> None:
    rates = {arm.name: arm.settings.learning_rate for arm in arms}
    if suite.reference is None or any(
        is_reference(suite.reference, arm=name, learning_rate=rate) for name, rate in rates.items()
    ):
        return
    known = dict.fromkeys(configuration_name(name, rate) for name, rate in rates.items())
    near = did_you_mean(suite.reference, known) or f"; there are {', '.join(known)}"
    problems.add(_place(suite, None), path="reference", cause=f"no arm is called {suite.reference!r}{near}")


def _place(suite: Suite, line: int | None) -> Place:
    source = suite.name if suite.path is None else str(suite.path)
    return Place(source=source, line=line, column=None if line is None else 1)
