"""Which runs may be compared.

The same configuration gave another answer after a library upgrade (38 re-runs of a public benchmark moved by
-1.65 points on average), so a difference across environments is not one between arms.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from lorastudy.records import Environment
from lorastudy.tracker.views import ExperimentResult


@dataclass(frozen=True, kw_only=True)
class EnvironmentGroup:
    """One environment, and the names of the completed experiments that ran in it."""

    environment: Environment
    experiments: tuple[str, ...]


def comparable(one: Environment | None, other: Environment | None) -> bool:
    """Whether a difference between two runs can be due to their arms.

    Library versions and the kind of device must be equal. The Python version and the number of threads move
    last bits only; which of several equal GPUs it was does not matter. Two unknown environments count as
    equal, a known and an unknown one do not.
    """
    return _key(one) == _key(other)


def environment_groups(results: Iterable[ExperimentResult]) -> tuple[EnvironmentGroup, ...]:
    """Each distinct environment, as recorded, with its experiments; unknown environments are left out."""
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
