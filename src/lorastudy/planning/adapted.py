"""What each arm of a suite adapts in its base model, before anything runs; a worker tells the model's layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lorastudy.errors import ModelError, StudyError
from lorastudy.planning.answers import Answers
from lorastudy.planning.estimate import Estimator
from lorastudy.planning.packing import groups
from lorastudy.suite.experiment import Experiment
from lorastudy.suite.targets import count_by_role, in_words, left_out, names_digest, targets_of


@dataclass(frozen=True, kw_only=True)
class AdaptedArm:
    """The layers that one arm adapts."""

    digest: str
    """Equal for arms that adapt the same layers."""
    by_role: Mapping[str, int]
    left_out: tuple[str, ...]
    """What its preset means and it cannot have, with the reason."""
    num_trainable_parameters: int

    @property
    def in_words(self) -> str:
        """`q 2, k 2, v 2, o 2 (4,096 trainable parameters)`."""
        return f"{in_words(self.by_role)} ({self.num_trainable_parameters:,} trainable parameters)"


@dataclass(frozen=True, kw_only=True)
class AdaptedArms:
    """What is known of a suite's arms."""

    arms: Mapping[str, AdaptedArm] = field(default_factory=dict)
    misfits: Mapping[str, str] = field(default_factory=dict)
    """By arm that does not fit its base model: why, as a run would say."""
    unknown: tuple[str, ...] = ()
    """What could not be found out, a line for each base model."""

    def lines(self) -> list[str]:
        """Each arm with what it adapts; arms that adapt the same stand in one line."""
        alike: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for name, arm in self.arms.items():
            alike.setdefault((arm.in_words, arm.left_out), []).append(name)
        lines = []
        for (words, without), names in alike.items():
            shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            lines.append(f"adapts {words}: {shown}")
            lines += [f"  left out: {each}" for each in without]
        return lines


def adapted_arms(experiments: Sequence[Experiment], answers: Answers) -> AdaptedArms:
    """Resolve the targets of every arm against its base model."""
    arms: dict[str, AdaptedArm] = {}
    misfits: dict[str, str] = {}
    unknown: dict[str, str] = {}
    for group in groups(experiments):
        base_model = group[0].settings.base_model
        try:
            layers = Estimator(group, answers, with_data=False).shape.linear_layers
        except StudyError as error:
            unknown[base_model] = f"what the arms adapt in {base_model} is not known before it runs: {error}"
            continue
        by_name = {layer.name: layer for layer in layers}
        for experiment in group:
            if experiment.arm in arms:
                continue
            settings = experiment.settings
            try:
                names = targets_of(settings, layers)
            except ModelError as error:
                misfits[experiment.arm] = f"{experiment.arm}: {error}"
                continue
            per_rank = sum(by_name[name].parameters_per_rank for name in names)
            arms[experiment.arm] = AdaptedArm(
                digest=names_digest(names),
                by_role=count_by_role(names, layers=layers),
                left_out=tuple(left_out(names, layers=layers, target_modules=settings.target_modules)),
                num_trainable_parameters=settings.lora_rank * per_rank,
            )
    return AdaptedArms(arms=arms, misfits=misfits, unknown=tuple(unknown.values()))
