"""Studies whose arms had their learning rate tuned: without that no arm wins, whatever the tests show."""

from collections.abc import Sequence
from dataclasses import replace

from lorastudy.stats.study import Study, split_studies
from lorastudy.store.views import ExperimentResult

#: The seed of the runs that chose the rates; no test reports it.
TUNING_SEED = 100
_LOW_IS_GOOD = {"loss", "perplexity"}


def tuned_study(results: Sequence[ExperimentResult]) -> Study:
    """The one study of these results, with runs that found each arm's rate better than a third and three times of it."""
    first = {result.arm: result for result in reversed(results) if result.status == "completed"}
    runs = [_tuning_run(result, factor=factor) for result in first.values() for factor in (1 / 3, 1.0, 3.0)]
    (study,) = split_studies([*results, *runs])
    return replace(study, tuning_seeds=frozenset({TUNING_SEED}))


def _tuning_run(result: ExperimentResult, *, factor: float) -> ExperimentResult:
    arm = result.arm if factor == 1 else f"{result.arm} at {factor:.2g} of its rate"
    worse = 0.0 if factor == 1 else 1.0
    scores = {
        key: replace(score, value=score.value + (worse if key[1] in _LOW_IS_GOOD else -worse))
        for key, score in result.scores.items()
    }
    rate = result.settings["learning_rate"] * factor
    return replace(
        result,
        experiment_id=f"{arm}/{TUNING_SEED}",
        name=f"{arm}_s{TUNING_SEED}",
        arm=arm,
        seed=TUNING_SEED,
        settings={**result.settings, "learning_rate": rate},
        scores=scores,
    )


def at_worse_rates(results):
    """The same runs at half and at twice their rate, with a loss that is higher by one nat."""
    return [
        replace(
            result,
            arm=f"{result.arm} x{factor:g}",
            experiment_id=f"{result.experiment_id} x{factor:g}",
            settings={**result.settings, "learning_rate": result.settings["learning_rate"] * factor},
            scores={
                **result.scores,
                ("eval", "loss"): replace(
                    result.scores[("eval", "loss")], value=result.scores[("eval", "loss")].value + 1
                ),
            },
        )
        for result in results
        for factor in (0.5, 2)
    ]
