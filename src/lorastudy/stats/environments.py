"""Which runs may be compared: those of one environment, on one base model, scored on the same rows.

A library upgrade alone changes results (38 re-runs of a public benchmark moved by -1.65 points on average), so a difference
across environments is not a difference between arms.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from lorastudy.protocol.records import Environment
from lorastudy.store.views import ExperimentResult

#: Besides the file, these decide which rows are held out and how much of each is scored.
_SCORING_KEYS = ("max_eval_samples", "max_seq_length", "prompt_format")
#: These too if the rows are held out of the training file, which `max_train_samples` cuts first.
_SPLIT_KEYS = ("eval_fraction", "max_train_samples")


@dataclass(frozen=True, kw_only=True)
class EnvironmentGroup:
    """One environment, and the names of the completed experiments that ran in it."""

    environment: Environment
    experiments: tuple[str, ...]


def comparable(one: Environment | None, other: Environment | None) -> bool:
    """Whether a difference between two runs can be due to their arms.

    Library versions and the kind of device must be equal. The Python version and the number of threads change only the
    last bits, and which of several equal GPUs ran does not matter. Two unknown environments count as equal; a known and an
    unknown one do not.
    """
    return _key(one) == _key(other)


def same_environment(one: ExperimentResult, other: ExperimentResult) -> bool:
    """`comparable` for two results. An imported result has its environment as one text, as its tool wrote it."""
    texts = (one.sources.get("environment"), other.sources.get("environment"))
    return comparable(one.environment, other.environment) and texts[0] == texts[1]


def obstacle(one: ExperimentResult, other: ExperimentResult) -> str | None:
    """Why two runs cannot be compared; None if they can."""
    if not same_environment(one, other):
        return "environments differ"
    if one.sources.get("base_model") != other.sources.get("base_model"):
        return "different base models"
    if scored_rows(one) != scored_rows(other):
        return "scored on different rows"
    return None


def environment_groups(results: Iterable[ExperimentResult]) -> tuple[EnvironmentGroup, ...]:
    """Each distinct recorded environment with its experiments."""
    groups: dict[Environment, list[str]] = {}
    for result in results:
        if result.environment is not None:
            groups.setdefault(result.environment, []).append(result.name)
    return tuple(
        EnvironmentGroup(environment=environment, experiments=tuple(names))
        for environment, names in groups.items()
    )


def _key(environment: Environment | None) -> tuple[str, ...] | None:
    if environment is None:
        return None
    versions = (environment.torch, environment.transformers, environment.peft, environment.bitsandbytes)
    device = environment.device.split(":")[0]
    return (*versions, environment.lorastudy, device, environment.device_name)


def scored_rows(result: ExperimentResult, *, leaving_out: str | None = None) -> tuple[object, ...]:
    """Everything that decides the held-out rows: the fingerprint of their file, and settings (`leaving_out` one of them)."""
    own = result.sources.get("eval_dataset")
    keys = _SCORING_KEYS if own is not None else (*_SPLIT_KEYS, *_SCORING_KEYS)
    source = own if own is not None else result.sources.get("dataset")
    test = (result.sources.get("test_dataset"), result.settings.get("test_fraction"))
    rest = (result.settings.get(key) for key in keys if key != leaving_out)
    return (own is not None, source, *test, *rest)
