"""The finals of a suite with a time budget: when they begin, which arms take part, and with how many seeds.

The search for learning rates gives each arm a validation score, from the tuning seed. No further round of the search begins if
it would end after `SEARCH_SHARE` of the budget. Then the finals are decided, once:

- The arm with the best validation score takes part.
- An arm is left out if its score is worse than the best one by more than `CLEARLY_BEHIND` margins. One seed cannot show a
  smaller difference. If all others are that far behind, the nearest of them takes part, because a verdict compares two arms.
- Of the others, cheaper arms than the best come first, then the nearest in score. A dearer arm can win only by being better.
- As many take part as can have `MIN_SEEDS` seeds each in the time left, but two at least and `MAX_FINALISTS` at most. The rest
  of the time goes into more seeds.

Only fresh seeds report, on the test rows, and their number is fixed before the first of them runs. So the verdict follows the
same rules as that of any suite. The decision is stored with the time that it was made for, and a resumed suite repeats it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorastudy.planning.design import finals_key
from lorastudy.planning.study_plan import StudyPlan
from lorastudy.running.results import Results
from lorastudy.stats.summary import primary_metric_of
from lorastudy.store import ExperimentTracker, rebuilding
from lorastudy.store.views import ExperimentResult, StoredDecision
from lorastudy.suite.experiment import Experiment
from lorastudy.suite.finals import Finalist, Finals
from lorastudy.suite.question import MIN_SEEDS, Margin
from lorastudy.suite.rate_search import Merit, Standing

#: The share of the budget that the search for learning rates may take.
SEARCH_SHARE = 0.5
#: More finalists would leave too few seeds for each, and a comparison of many arms needs larger differences.
MAX_FINALISTS = 4
#: In margins. A rule of thumb: with the default margin it is a fifth of what training gains.
CLEARLY_BEHIND = 4
#: The margin by which arms are left out if the suite states none.
DEFAULT_MARGIN = Margin(amount=0.05, is_share=True)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An arm that may take part in the finals."""

    arm: int
    """Its index among the suite's arms."""
    learning_rate: float
    merit: Merit
    """On the validation rows, with the tuning seed."""
    num_parameters: int = 0
    """Trainable parameters: what the arm costs."""


@dataclass(frozen=True, kw_only=True)
class FinalsDecision:
    """Who takes part in the finals."""

    key: str
    finals: Finals
    behind: tuple[int, ...]
    """Arms that are clearly behind."""
    elapsed_seconds: float
    run_seconds: float
    """Of one run so far, loading and scoring included."""

    def to_store(self) -> StoredDecision:
        """The decision as the store keeps it."""
        about: dict[str, Any] = {
            "behind": list(self.behind),
            "elapsed_seconds": self.elapsed_seconds,
            "run_seconds": self.run_seconds,
        }
        return StoredDecision(key=self.key, content={**self.finals.to_json(), **about})


def put_on_record(
    decision: FinalsDecision, *, suite_name: str, tracker: ExperimentTracker, runs: Path
) -> None:
    """Store the decision."""
    is_first = tracker.keep_decision(suite_name, decision.to_store())
    assert is_first, "finals are decided once"
    rebuilding.keep_note(tracker, suite_name, runs=runs)


def is_time_up(plan: StudyPlan, results: Results, *, of_round: Sequence[Experiment]) -> bool:
    """Whether this round of the search would end after its share of the budget. A round that has begun goes on."""
    hours, design = plan.suite.time_budget_hours, results.design
    has_begun = any(not results.is_open(e) or e.id in results.cut_off for e in of_round)
    if hours is None or design.finals is not None or has_begun or not design.standings:
        return False
    seconds = results.elapsed_seconds + len(of_round) * _run_seconds(results)
    return seconds > SEARCH_SHARE * hours * 3600


def decide_finals(plan: StudyPlan, results: Results) -> FinalsDecision | None:
    """The decision on the finals; None without a time budget, if it was made before, or if no run has a score."""
    suite, design = plan.suite, results.design
    if suite.time_budget_hours is None or design.finals is not None or not design.standings:
        return None
    metric = primary_metric_of(suite.question)
    by_id = {result.experiment_id: result for result in results.stored}
    candidates = [_candidate(standing, by_id=by_id) for standing in design.standings]
    before = [result.scores.get(("eval_before", metric.name)) for result in by_id.values()]
    base = next((metric.cost_sign * score.value for score in before if score is not None), None)
    tolerance = tolerance_of(candidates, margin=suite.margin, base_cost=base)
    run_seconds = _run_seconds(results)
    left = suite.time_budget_hours * 3600 - results.elapsed_seconds
    finalists, num_seeds = choose_finalists(
        candidates,
        tolerance=tolerance,
        num_runs=max(0, int(left / run_seconds)) if run_seconds else 0,
        max_seeds=len(suite.arms[0].seeds),
    )
    ended = [of_round for of_round in design.rounds if any(not results.is_open(e) for e in of_round)]
    searched = [experiment.id for of_round in (*ended, design.passed) for experiment in of_round]
    return FinalsDecision(
        key=finals_key(suite),
        finals=Finals(
            finalists=tuple(Finalist(arm=one.arm, learning_rate=one.learning_rate) for one in finalists),
            seeds=suite.arms[0].seeds[:num_seeds],
            searched=tuple(searched),
        ),
        behind=tuple(one.arm for one in candidates if is_behind(one, finalists[0], tolerance=tolerance)),
        elapsed_seconds=results.elapsed_seconds,
        run_seconds=run_seconds,
    )


def choose_finalists(
    candidates: Sequence[Candidate], *, tolerance: float, num_runs: int, max_seeds: int
) -> tuple[list[Candidate], int]:
    """The arms of the finals, the best first, and their number of seeds. The time left is for `num_runs` runs."""
    best, *others = sorted(candidates, key=lambda one: (one.merit, one.num_parameters, one.arm))
    near = [one for one in others if not is_behind(one, best, tolerance=tolerance)] or others[:1]
    near.sort(key=lambda one: (one.num_parameters >= best.num_parameters, one.merit, one.arm))
    most = min(MAX_FINALISTS, 1 + len(near))
    wanted = min(MIN_SEEDS, max_seeds)
    number = next((k for k in range(most, 2, -1) if num_runs // k >= wanted), min(2, most))
    return [best, *near[: number - 1]], max(1, min(max_seeds, num_runs // number))


def is_behind(one: Candidate, best: Candidate, *, tolerance: float) -> bool:
    """Whether an arm is clearly behind the best one: more rows without a value, or a worse score beyond the tolerance."""
    return one.merit.num_failed > best.merit.num_failed or one.merit.cost - best.merit.cost > tolerance


def tolerance_of(candidates: Sequence[Candidate], *, margin: Margin | None, base_cost: float | None) -> float:
    """How much worse than the best score is clearly behind. Infinite if the gain that a share is of was not measured."""
    used = margin or DEFAULT_MARGIN
    if base_cost is None and used.is_share:
        return float("inf")
    best = min(one.merit.cost for one in candidates)
    return CLEARLY_BEHIND * used.allowed(reference=best, base=base_cost or 0.0)


def _candidate(standing: Standing, *, by_id: Mapping[str, ExperimentResult]) -> Candidate:
    profile = by_id[standing.experiment_id].profile
    return Candidate(
        arm=standing.arm,
        learning_rate=standing.learning_rate,
        merit=standing.merit,
        num_parameters=0 if profile is None else profile.num_trainable_parameters,
    )


def _run_seconds(results: Results) -> float:
    """Seconds of work for one run so far, loading and scoring included."""
    num_ended = sum(not results.is_open(experiment) for experiment in results.design.experiments)
    return results.elapsed_seconds / num_ended if num_ended else 0.0
