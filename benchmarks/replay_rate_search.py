r"""Does the search for a learning rate find it, and at what cost? The product's own search replayed over recorded grids.

    python -m benchmarks.rate_grids lab                 first; also with `rows`
    python -m benchmarks.replay_rate_search             a minute or two; needs optuna
    python -m benchmarks.replay_rate_search --check     trains for real at the rates found, in ten cells

Writes `benchmarks/results/rate_search.json`, from which `docs/generate.py` makes `docs/rate-search.md`.

A cell is an arm with a tuning seed. The search is asked what it would run (`lorastudy.suite.rate_search.design`)
and is answered from the recorded losses of that seed, between the recorded rates by a monotone cubic over the log rate
(PCHIP). The rate that it finds is judged by the mean of the other seeds: its regret is the loss there above the lowest,
as a share of what the best rate gains over the base model.

Beside it stand, for the same number of runs: random search, Optuna's TPE, and successive halving (ASHA, as Optuna's
pruner has it) over the losses recorded at a ninth and a third of the steps; each told a range of rates, and TPE also
told the rate of the published rule. And the search that this one replaced.
"""

import argparse
import itertools
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from scipy.interpolate import PchipInterpolator

from benchmarks.rate_grids import GRIDS, RateGrid, held_out_means, read_grids
from lorastudy.engine.loading import BaseCache
from lorastudy.suite.experiment import Experiment
from lorastudy.suite.parabola import parabola
from lorastudy.suite.rate_search import (
    DIVERGED,
    Merit,
    design,
    nearest_place,
    published_rates,
    rate_of,
)
from lorastudy.suite.suite_file import suite_from_values

RESULTS = Path(__file__).parent / "results" / "rate_search.json"
#: Seeds that a study reports with; recorded are fewer, and what they cost does not depend on which they are.
NUM_REPORTING = 6
#: How far the published rule is taken to be off: as it is, and as if it named a third or three times of that rate.
OFF_BY = (1.0, 1 / 3, 3.0)
#: Runs that the others may spend, as a multiple of what the search took.
TIMES = (1, 2, 3)
REPEATS = 5
NEAR = 0.02
NUM_CHECKS = 10
SEED = 20270


class Curves:
    """The recorded losses of one grid as functions of the rate."""

    def __init__(self, grid: RateGrid) -> None:
        self.grid = grid
        self._known: dict[tuple[int, int, int], Callable[[float], float]] = {}
        self._best: dict[tuple[int, tuple[int, ...]], tuple[float, float]] = {}

    def loss(self, arm: int, seed: int, rate: float, *, share: int = -1) -> float:
        """The loss of the rank of this number with the seed of this number; infinite where it diverged."""
        key = (share % len(self.grid.shares), arm, seed)
        if key not in self._known:
            self._known[key] = _curve(self.grid.rates, self.grid.losses[key[0], arm, :, seed])
        return self._known[key](rate)

    def mean(self, arm: int, seeds: Sequence[int], rate: float) -> float:
        """The mean over seeds."""
        return math.fsum(self.loss(arm, seed, rate) for seed in seeds) / len(seeds)

    def best(self, arm: int, seeds: Sequence[int]) -> tuple[float, float]:
        """The rate of lowest mean loss, and that loss; looked for at 400 rates."""
        rates = np.geomspace(self.grid.rates[0], self.grid.rates[-1], 400)
        return min((self.mean(arm, seeds, rate), rate) for rate in map(float, rates))[::-1]


def _curve(rates: Sequence[float], losses: Any) -> Callable[[float], float]:
    """Between the recorded rates a monotone cubic; beyond them the loss at the end, which no lowest point lies beyond.

    Above the highest rate that did not diverge, by half a step, it has diverged.
    """
    fine = np.isfinite(losses)
    x = np.log(np.asarray(rates))[fine]
    table = np.linspace(x[0], x[-1], 2000)
    values = PchipInterpolator(x, losses[fine])(table)
    half = math.log(rates[1] / rates[0]) / 2
    diverges = not bool(fine[-1])

    def loss(rate: float) -> float:
        here = math.log(rate)
        if diverges and here > x[-1] + half:
            return math.inf
        between: float = float(np.interp(here, table, values))
        beyond = max(0.0, float(x[0]) - here, here - float(x[-1]))
        return between + 1e-3 * beyond

    return loss


@dataclass(frozen=True, kw_only=True)
class Found:
    """What one way of searching found for one cell, and the runs that it spent on it."""

    arm: int
    seed: int
    rate: float
    runs: float


# --- the product's search, and the one before -------------------------------------------------------------


def searched(curves: Curves, *, seed: int, off_by: float) -> list[Found]:
    """The rates that the product's search finds with this tuning seed, where the rule is off by this factor."""
    grid = curves.grid
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(_config(grid, off_by=off_by)), encoding="utf-8")
        suite = suite_from_values(
            {
                "base_model": "lab",
                "learning_rate": "auto",
                "experiment_type": "rank_ablation",
                "max_steps": max(100, grid.about["settings"]["max_steps"]),
                "lora_alpha": grid.about["settings"]["lora_alpha"],
                "factors": {"lora_rank": list(grid.ranks)},
            },
            where="replay",
        )
        arms = (
            replace(arm, settings=arm.settings.model_copy(update={"base_model": folder}))
            for arm in suite.arms
        )
        suite = replace(suite, arms=tuple(arms))

        merits: dict[str, Merit | None] = {}
        made = design(suite, fingerprint_dataset=str, fingerprint_base=str)
        while unread := made.tuning - merits.keys():
            runs = [experiment for experiment in made.experiments if experiment.id in unread]
            merits |= {run.id: _merit(curves, run, seed=seed) for run in runs}
            made = design(suite, fingerprint_dataset=str, fingerprint_base=str, merits=merits)
    assert made.num_open == 0
    by_rank = {each.settings.lora_rank: each.settings.learning_rate for each in made.reporting}
    num_runs = dict.fromkeys(grid.ranks, 0)
    for each in made.experiments:
        num_runs[each.settings.lora_rank] += each.id in made.tuning
    return [
        Found(arm=arm, seed=seed, rate=by_rank[rank], runs=num_runs[rank])
        for arm, rank in enumerate(grid.ranks)
    ]


def _config(grid: RateGrid, *, off_by: float) -> dict[str, Any]:
    """The model's configuration, of a hidden size at which the rule names so many times the rate."""
    (rule,) = published_rates(grid.about["config"], num_steps=None)
    (doubled,) = published_rates(
        {**grid.about["config"], "hidden_size": 2 * grid.about["config"]["hidden_size"]}, num_steps=None
    )
    power = math.log(rule / doubled) / math.log(2)
    return {
        **grid.about["config"],
        "hidden_size": round(grid.about["config"]["hidden_size"] * off_by ** (-1 / power)),
    }


def _merit(curves: Curves, experiment: Experiment, *, seed: int) -> Merit:
    arm = curves.grid.ranks.index(experiment.settings.lora_rank)
    loss = curves.loss(arm, seed, experiment.settings.learning_rate)
    return DIVERGED if math.isinf(loss) else Merit(0, loss, loss)


def searched_before(curves: Curves, *, seeds: tuple[int, int], off_by: float) -> list[Found]:
    """The search of version 0.1: each arm from the rule, on the ladder, every rate with two seeds."""
    (rule,) = published_rates(_config(curves.grid, off_by=off_by), num_steps=None)
    found = []
    for arm in range(len(curves.grid.ranks)):
        tried = range(nearest_place(rule) - 1, nearest_place(rule) + 2)
        while True:
            merits = {place: curves.mean(arm, seeds, rate_of(place)) for place in tried}
            best = min(tried, key=lambda place: merits[place])
            if best not in {tried[0], tried[-1]}:
                break
            tried = range(best - 1, tried.stop) if best == tried[0] else range(tried.start, best + 2)
        found.append(Found(arm=arm, seed=seeds[0], rate=rate_of(best), runs=2 * len(tried)))
    return found


# --- others, for the same number of runs ------------------------------------------------------------------

Objective = Callable[[float, int], float]


def whole_curve(curves: Curves, cells: Sequence[Found]) -> list[Found]:
    """For each cell the lowest of all that was recorded of its seed: what a search with one seed can know at most."""
    return [
        replace(cell, rate=curves.best(cell.arm, [cell.seed])[0], runs=len(curves.grid.rates))
        for cell in cells
    ]


def random_search(curves: Curves, cell: Found, *, runs: int, rng: np.random.Generator) -> float:
    """The best of so many rates, drawn evenly over the log of the recorded range."""
    low, high = _range(curves)
    rates = [float(rate) for rate in np.exp(rng.uniform(math.log(low), math.log(high), runs))]
    return min(rates, key=lambda rate: curves.loss(cell.arm, cell.seed, rate))


def tpe(curves: Curves, cell: Found, *, runs: int, rng: np.random.Generator) -> float:
    """Optuna's TPE over the recorded range."""
    return _tpe(curves, cell, runs=runs, rng=rng, between=_range(curves), first=None)


def tpe_from_rule(curves: Curves, cell: Found, *, runs: int, rng: np.random.Generator) -> float:
    """TPE over a decade around the published rule, whose rate it tries first."""
    (rule,) = published_rates(curves.grid.about["config"], num_steps=None)
    between = (rule / math.sqrt(10), rule * math.sqrt(10))
    return _tpe(curves, cell, runs=runs, rng=rng, between=between, first=rule)


def _tpe(
    curves: Curves,
    cell: Found,
    *,
    runs: int,
    rng: np.random.Generator,
    between: tuple[float, float],
    first: float | None,
) -> float:
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=int(rng.integers(2**31))))
    if first is not None:
        study.enqueue_trial({"rate": first})
    study.optimize(
        lambda trial: _finite(
            curves.loss(cell.arm, cell.seed, trial.suggest_float("rate", *between, log=True))
        ),
        n_trials=runs,
    )
    return float(study.best_params["rate"])


def asha(curves: Curves, cell: Found, *, runs: int, rng: np.random.Generator) -> float:
    """Successive halving by three over random rates, until its steps come to so many whole runs."""
    shares = [index for index, share in enumerate(curves.grid.shares) if _is_rung(share)]
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    sampler = optuna.samplers.RandomSampler(seed=int(rng.integers(2**31)))
    study = optuna.create_study(sampler=sampler, pruner=pruner)
    spent = 0.0
    while spent < runs - 1e-9:
        trial = study.ask()
        rate = trial.suggest_float("rate", *_range(curves), log=True)
        state = optuna.trial.TrialState.COMPLETE
        for index in shares:
            share = curves.grid.shares[index]
            loss = _finite(curves.loss(cell.arm, cell.seed, rate, share=index))
            trial.report(loss, step=round(9 * share))
            if share < 1 and (trial.should_prune() or spent + share >= runs - 1e-9):
                state = optuna.trial.TrialState.PRUNED
                break
        spent += share
        study.tell(trial, loss if state == optuna.trial.TrialState.COMPLETE else None, state=state)
    return float(study.best_params["rate"])


def _is_rung(share: float) -> bool:
    return any(abs(share - 3.0**-power) < 1e-3 for power in range(3))


def _finite(loss: float) -> float:
    return loss if math.isfinite(loss) else 1e3


def _range(curves: Curves) -> tuple[float, float]:
    return curves.grid.rates[0], curves.grid.rates[-1]


OTHERS: Mapping[str, Callable[..., float]] = {
    "random": random_search,
    "tpe": tpe,
    "tpe_from_rule": tpe_from_rule,
    "asha": asha,
}


# --- judged -----------------------------------------------------------------------------------------------


def regret(curves: Curves, found: Found) -> float:
    """Loss above the lowest by the seeds that took no part, as a share of the gain."""
    others = [seed for seed in range(len(curves.grid.seeds)) if seed != found.seed]
    _, lowest = curves.best(found.arm, others)
    return (curves.mean(found.arm, others, found.rate) - lowest) / (curves.grid.base_loss - lowest)


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way of searching on one grid: regret and runs of every cell that it was tried in."""

    name: str
    regrets: tuple[float, ...]
    runs: tuple[float, ...]

    def as_json(self) -> dict[str, Any]:
        """Its figures."""
        regrets = np.array(self.regrets)
        return {
            "way": self.name,
            "num_cells": len(regrets),
            "runs_per_arm": round(float(np.mean(self.runs)), 2),
            "mean_regret": round(float(regrets.mean()), 5),
            "p95_regret": round(float(np.quantile(regrets, 0.95)), 5),
            "share_near": round(float((regrets <= NEAR).mean()), 4),
        }


def replayed(grids: Sequence[RateGrid]) -> dict[str, Any]:
    """All ways side by side, by grid; what the full grids take; and how far from the optimum the rates are."""
    lines, costs, cells = [], [], []
    for curves in map(Curves, grids):
        for off_by in OFF_BY:
            seeds = range(len(curves.grid.seeds))
            own = [cell for seed in seeds for cell in searched(curves, seed=seed, off_by=off_by)]
            before = [
                cell
                for pair in itertools.combinations(seeds, 2)
                for cell in searched_before(curves, seeds=pair, off_by=off_by)
            ]
            about = {"grid": curves.grid.name, "rule_off_by": round(off_by, 3)}
            lines += [
                about | _way(curves, "search", own).as_json(),
                about | _way(curves, "before", before).as_json(),
            ]
            costs.append(about | _cost(curves, own, before))
            cells += [about | _cell(curves, cell) for cell in own]
            if off_by == 1.0:
                lines.append(about | _way(curves, "whole_curve", whole_curve(curves, own)).as_json())
                lines += [
                    {"grid": curves.grid.name, "rule_off_by": 1.0, **line} for line in _others(curves, own)
                ]
    return {
        "near": NEAR,
        "num_reporting": NUM_REPORTING,
        "repeats": REPEATS,
        "optuna": optuna.__version__,
        "grids": [_described(grid) for grid in grids],
        "ways": lines,
        "costs": costs,
        "cells": cells,
        "nearness": [nearness(curves) for curves in map(Curves, grids)],
    }


def nearness(curves: Curves) -> dict[str, Any]:
    """How often the best rate lies within the factor that reports tell, as seen by the seeds that took no part.

    The factor is that of the product (`suite.parabola.Parabola.factor`): its noise is the residual of arms and the other seeds at
    the rates found, as `stats.rate_choice` has it. `shape_error` is what noise does not explain of the distances, in steps: root
    of their mean square less that of the noise, of which the best rate by the other seeds has a share, too.
    """
    cells = [cell for seed in range(len(curves.grid.seeds)) for cell in _near_cells(curves, seed)]
    factors, by_noise, offs, spreads, steps = map(np.array, zip(*cells, strict=True))
    num_others = len(curves.grid.seeds) - 1
    beyond = np.mean(np.log(offs) ** 2) - np.mean(spreads**2) * (1 + 1 / num_others)
    return {
        "grid": curves.grid.name,
        "num_cells": len(cells),
        "median_factor": round(float(np.median(factors)), 3),
        "median_off": round(float(np.median(offs)), 3),
        "most_off": round(float(offs.max()), 3),
        "num_within": int((offs <= factors).sum()),
        "num_within_by_noise": int((offs <= by_noise).sum()),
        "shape_error": round(math.sqrt(max(0.0, float(beyond))) / float(steps.mean()), 3),
    }


def _near_cells(curves: Curves, seed: int) -> Iterator[tuple[float, ...]]:
    """Of each arm with this tuning seed: the factor, that by noise alone, the true one, the noise's part, and the step."""
    others = [one for one in range(len(curves.grid.seeds)) if one != seed]
    found = searched(curves, seed=seed, off_by=1.0)
    losses = np.array([[curves.loss(cell.arm, one, cell.rate) for one in others] for cell in found])
    residuals = losses - losses.mean(0) - losses.mean(1, keepdims=True) + losses.mean()
    noise = math.sqrt((residuals**2).sum() / ((len(found) - 1) * (len(others) - 1)))
    for cell in found:
        through = parabola(_around_the_best(curves, cell))
        if through is not None:
            ratio, spread = curves.best(cell.arm, others)[0] / cell.rate, through.spread(noise)
            by_noise = math.exp(abs(math.log(through.rate / cell.rate)) + 1.96 * spread)
            factor = through.factor(noise, taken=cell.rate)
            yield factor, by_noise, max(ratio, 1 / ratio), spread, through.step


def _around_the_best(curves: Curves, cell: Found) -> list[tuple[float, float]]:
    """(rate, loss) of the ladder's best place for the tuning seed, and of its two neighbours."""
    lowest, highest = (nearest_place(rate) for rate in _range(curves))
    known = {
        place: curves.loss(cell.arm, cell.seed, rate_of(place)) for place in range(lowest - 1, highest + 2)
    }
    best = min(range(lowest, highest + 1), key=known.__getitem__)
    return [(rate_of(place), known[place]) for place in (best - 1, best, best + 1)]


def _way(curves: Curves, name: str, found: Sequence[Found]) -> Way:
    return Way(
        name=name,
        regrets=tuple(regret(curves, cell) for cell in found),
        runs=tuple(cell.runs for cell in found),
    )


def _others(curves: Curves, own: Sequence[Found]) -> Iterator[dict[str, Any]]:
    """Each other way with as many runs for an arm as the search took on average, rounded up, and with more."""
    rng = np.random.default_rng(SEED)
    mean = math.ceil(sum(cell.runs for cell in own) / len(own))
    for (name, way), times in itertools.product(OTHERS.items(), TIMES):
        found = [
            replace(cell, rate=way(curves, cell, runs=times * mean, rng=rng), runs=times * mean)
            for cell in own
            for _ in range(REPEATS)
        ]
        yield {"times": times, **_way(curves, name, found).as_json()}


def _cost(curves: Curves, own: Sequence[Found], before: Sequence[Found]) -> dict[str, Any]:
    """Runs of one study, against every arm at every rate of the shortest list on the ladder that holds each arm's best inside."""
    grid, seeds = curves.grid, range(len(curves.grid.seeds))
    best = [nearest_place(curves.best(arm, seeds)[0]) for arm in range(len(grid.ranks))]
    num_arms, num_rates = len(grid.ranks), max(best) - min(best) + 3
    reporting = num_arms * NUM_REPORTING

    def studied(found: Sequence[Found]) -> float:
        return sum(cell.runs for cell in found) / len(found) * num_arms + reporting

    return {
        "num_arms": num_arms,
        "num_rates": num_rates,
        "full_grid": num_arms * num_rates * NUM_REPORTING,
        "search": round(studied(own), 1),
        "before": round(studied(before), 1),
    }


def _cell(curves: Curves, cell: Found) -> dict[str, Any]:
    others = [seed for seed in range(len(curves.grid.seeds)) if seed != cell.seed]
    best, _ = curves.best(cell.arm, others)
    return {
        "rank": curves.grid.ranks[cell.arm],
        "seed": curves.grid.seeds[cell.seed],
        "rate": cell.rate,
        "best": float(f"{best:.3g}"),
        "regret": round(regret(curves, cell), 5),
        "runs": cell.runs,
    }


def _described(grid: RateGrid) -> dict[str, Any]:
    return {"name": grid.name, **{key: value for key, value in grid.about.items() if key != "losses"}}


# --- checked by training ----------------------------------------------------------------------------------


def checks(grids: Sequence[RateGrid], *, sources: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Ten cells, spread over the grids: the loss at the rate found, between recorded rates and trained for real.

    Each with the next of the recorded seeds, which had no part in finding the rate.
    """
    curves = {grid.name: Curves(grid) for grid in grids}
    cells = [
        (grid.name, cell)
        for grid in grids
        for seed in range(len(grid.seeds))
        for cell in searched(curves[grid.name], seed=seed, off_by=1.0)
    ]
    chosen = [cells[round(index)] for index in np.linspace(0, len(cells) - 1, NUM_CHECKS)]
    recorded = {grid.name: grid for of_kind in GRIDS.values() for grid in of_kind}
    cache, lines = BaseCache(), []
    for name, cell in chosen:
        grid, seed = curves[name].grid, (cell.seed + 1) % len(curves[name].grid.seeds)
        one = replace(recorded[name], ranks=(grid.ranks[cell.arm],), rates=(cell.rate,))
        own = {} if grid.about["settings"]["base_model"] == "lab" else dict(sources)
        losses, _ = held_out_means(one, sources=own, seed=grid.seeds[seed], cache=cache)
        best, lowest = curves[name].best(cell.arm, (seed,))
        gain = grid.base_loss - lowest
        between, trained = curves[name].loss(cell.arm, seed, cell.rate), float(losses[-1, 0])
        lines.append(
            {
                "grid": name,
                "rank": grid.ranks[cell.arm],
                "seed": grid.seeds[seed],
                "rate": cell.rate,
                "best": float(f"{best:.3g}"),
                "between": round(between, 5),
                "trained": round(trained, 5),
                "lowest": round(lowest, 5),
                "regret_between": round((between - lowest) / gain, 5),
                "regret_trained": round((trained - lowest) / gain, 5),
            }
        )
        print(lines[-1], file=sys.stderr, flush=True)
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay, and write what came out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay_rate_search")
    parser.add_argument("--check", action="store_true", help="train at the rates found in ten cells instead")
    parser.add_argument("--model", help="for `--check`: of the grid of rows")
    parser.add_argument("--data", help="for `--check`")
    parser.add_argument("--into", type=Path, default=RESULTS)
    chosen = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    results = json.loads(chosen.into.read_text(encoding="utf-8")) if chosen.into.exists() else {}
    if chosen.check:
        results["checks"] = checks(
            read_grids(), sources={"base_model": chosen.model, "dataset_path": chosen.data}
        )
    else:
        results |= replayed(read_grids())
    chosen.into.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
