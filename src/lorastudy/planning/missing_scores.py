"""The scores that a suite asks for and its stored adapters lack: work that trains nothing.

A metric is no part of an experiment's identity. So a metric that is added to a finished suite, or whose file changed,
leaves every experiment done and its score missing. The adapters that trained together are scored together: what fitted
into memory at the end of their training fits again.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lorastudy.planning.design import is_current
from lorastudy.store import ExperimentTracker
from lorastudy.store.views import ExperimentResult
from lorastudy.suite.experiment import Experiment
from lorastudy.suite.metrics import MetricDefinition
from lorastudy.suite.settings import names_test_rows


@dataclass(frozen=True, kw_only=True)
class MissingScores:
    """Adapters that trained in one pack and lack the same metrics."""

    experiments: tuple[Experiment, ...]
    metrics: tuple[MetricDefinition, ...]
    results: Mapping[str, ExperimentResult]
    """The completed run of each experiment, by id."""

    @property
    def seconds(self) -> float | None:
        """About how long it takes: loading, and the adapters' share of the time that their pack took to evaluate.

        None if that was not recorded.
        """
        profiles = [result.pack_profile for result in self.results.values()]
        known = [profile for profile in profiles if profile is not None]
        if len(known) < len(profiles):
            return None
        return known[0].load_seconds + sum(profile.eval_seconds / profile.num_arms for profile in known)


def missing_scores(
    experiments: Sequence[Experiment],
    metrics: Sequence[MetricDefinition],
    *,
    tracker: ExperimentTracker | None,
) -> tuple[MissingScores, ...]:
    """The scores that completed experiments lack. Only runs under the installed libraries count."""
    if tracker is None or not metrics:
        return ()
    results = tracker.get_results([experiment.id for experiment in experiments])
    groups: dict[tuple[str, str | None, int | None], list[Experiment]] = {}
    lacks: dict[str, tuple[MetricDefinition, ...]] = {}
    for experiment in experiments:
        result = results.get(experiment.id)
        if result is not None and is_current(result.environment) and (found := lacking(result, metrics)):
            lacks[experiment.id] = found
            key = (experiment.data_key, result.pack_id, result.attempt)
            groups.setdefault(key, []).append(experiment)
    return tuple(
        MissingScores(
            experiments=tuple(part),
            metrics=wanted,
            results={experiment.id: results[experiment.id] for experiment in part},
        )
        for group in groups.values()
        for wanted in dict.fromkeys(lacks[experiment.id] for experiment in group)
        if (part := [experiment for experiment in group if lacks[experiment.id] == wanted])
    )


def lacking(
    result: ExperimentResult, metrics: Iterable[MetricDefinition]
) -> tuple[MetricDefinition, ...]:  # fmt: skip
    """The metrics that a completed run was not measured by on every split that reports or chooses."""
    if result.status != "completed":
        return ()
    splits = ("eval", "test") if names_test_rows(result.settings) else ("eval",)
    return tuple(
        metric
        for metric in metrics
        if not all(result.was_measured(split, metric.key, version=metric.version) for split in splits)
    )
