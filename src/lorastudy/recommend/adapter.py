"""Which of an arm's adapters to use: one of its seeds, by a rule that does not flatter the arm.

Seeds of one arm differ, so one of its adapters is the best one. If the study reports on test rows, the adapter with the
best score on the validation rows is taken: the test rows do not choose, so they still say what it is worth. If the
validation rows report as well, the best score on them would be too good to be true, and the first seed is taken.
"""

from dataclasses import dataclass

from lorastudy.stats.study import CHOOSING_SPLIT, Study, StudyArm, reporting_split
from lorastudy.stats.summary import LOSS, Metric


@dataclass(frozen=True, kw_only=True)
class AdapterChoice:
    """The run whose adapter to use, and why that seed."""

    experiment_id: str
    arm: str
    seed: int
    why: str
    """`the lowest held-out loss of 6 seeds on the validation rows`."""

    @property
    def words(self) -> str:
        """`r=16, seed 3: the lowest held-out loss of 6 seeds on the validation rows`."""
        return f"{self.arm}, seed {self.seed}: {self.why}"


def adapter_to_use(study: Study, arm: StudyArm, *, metric: Metric) -> AdapterChoice | None:
    """The choice among the arm's completed runs that report; None if none has an adapter.

    `metric` is the one that verdicts are about. If the validation rows were not scored by it, held-out loss decides.
    """
    runs = {run.seed: run for run in study.reporting_runs(arm) if run.status == "completed"}
    with_adapter = sorted(seed for seed, run in runs.items() if run.adapter_path is not None)
    if not with_adapter:
        return None
    seed, why = _seed(study, arm, seeds=with_adapter, metric=metric)
    return AdapterChoice(experiment_id=runs[seed].experiment_id, arm=arm.name, seed=seed, why=why)


def _seed(study: Study, arm: StudyArm, *, seeds: list[int], metric: Metric) -> tuple[int, str]:
    if len(seeds) == 1:
        return seeds[0], "its only seed"
    if reporting_split(study) == CHOOSING_SPLIT:
        return seeds[0], "the first seed, since the rows that could choose the best one also report"
    for choosing in dict.fromkeys((metric, LOSS)):
        costs = _costs_where_chosen(study, arm, metric=choosing)
        if costs.keys() >= set(seeds):
            best = min(seeds, key=lambda seed: (costs[seed], seed))
            extreme = "lowest" if choosing.lower_is_better else "highest"
            title = choosing.title[:1].lower() + choosing.title[1:]
            return best, f"the {extreme} {title} of {len(seeds)} seeds on the validation rows"
    return seeds[0], "the first seed, since the validation rows were not scored for all of them"


def _costs_where_chosen(study: Study, arm: StudyArm, *, metric: Metric) -> dict[int, float]:
    """The metric on the validation rows as a cost, by seed, in the newest version of the study."""
    key = (CHOOSING_SPLIT, metric.name)
    newest = max(study.versions.get(key, ()), default=None)
    scores = {run.seed: run.scores.get(key) for run in study.reporting_runs(arm)}
    return {
        seed: metric.cost_sign * score.value
        for seed, score in scores.items()
        if score is not None and score.version == newest
    }
