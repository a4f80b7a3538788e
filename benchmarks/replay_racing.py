"""How often is racing wrong, and what does it save? Races replayed over full runs, judged by the product's own functions.

    python -m benchmarks.racing_runs lab FOLDER          first; also with `rows`, on a model and data of one's own
    python -m benchmarks.replay_racing FOLDER            some minutes

Writes `benchmarks/results/racing.json`, from which `docs/generate.py` makes the tables of `docs/science.md`.

A study is drawn from the runs of a grid: some of its seeds, of its ranks and of its rates. It is judged twice, once
from the full runs and once after a race. The full runs say what a wrong stop is: that of an arm which in the end, over
all recorded seeds, is not told from the study's best arm, or is worse by less than `AS_GOOD` of what that one gained.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lorastudy.stats import racing
from lorastudy.stats.racing import ALLOWANCE, LEVEL, Behind, RaceRules, clearly_behind
from lorastudy.stats.twoway import ItemScores, two_way
from lorastudy.stats.verdicts import (
    ALPHA,
    Floats,
    Word,
    differences_shown,
    no_worse_shown,
    sign_flip_p,
    sign_flip_p_below,
    word,
)
from lorastudy.suite.question import RUNGS, Margin


@dataclass(frozen=True, kw_only=True)
class Runs:
    """All full runs of a grid. Arms are ranks by rates, in that order."""

    name: str
    ranks: tuple[int, ...]
    rates: tuple[float, ...]
    shares: tuple[float, ...]
    losses: Floats
    """By (share, arm, seed, item) on the held-out rows; NaN from where a run diverged."""
    weights: Floats
    base_loss: float
    test: Floats
    """By (arm, seed, item) on the test rows, at the end."""
    test_weights: Floats
    about: Mapping[str, Any]


RESULTS = Path(__file__).parent / "results" / "racing.json"

MEASURED = Path(racing.__file__).with_name("racing_measured.json")

NUM_SEEDS_TOLD = 6

#: An arm whose loss in the end is so near to the best, as a share of the best arm's gain, is as good for all purposes.
AS_GOOD = 0.02

SEED = 20260

#: What was tried besides what the product does.
ALLOWANCES = (0.02, 0.03, 0.04, 0.05, 0.06)

ALTERNATIVES = (
    (RUNGS, 0.02),
    (RUNGS, LEVEL),
    (RUNGS, 0.2),
    ((0.125, 0.25, 0.375, 0.5, 0.625), LEVEL),
)

#: The held-out rows counted so many times: as if there were more of them, of the same mean and spread.
MORE_ROWS = 4

#: Two is what a search for a learning rate has; a race with so few is refused.
SEEDS = (2, 3, 4, 6)

MARGINS = (None, Margin(amount=0.02, is_share=True))


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Where a race looks, and what it takes to be stopped there; as the product has it where nothing else is said."""

    rungs: tuple[float, ...] = RUNGS
    allowance: float = ALLOWANCE
    level: float = LEVEL


KEPT = Rule()


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A study: which of the arms and seeds of the runs are in it."""

    arms: tuple[int, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """What a study says: its best arm on the rows that choose, and a word for each rank but the largest."""

    best: int
    words: Mapping[int, str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay, and write what came out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay_racing")
    parser.add_argument("folder", type=Path, help="where the full runs are")
    parser.add_argument(
        "--studies", type=int, default=2000, help="to draw for each line; each distinct one counts once"
    )
    parser.add_argument("--into", type=Path, default=RESULTS, help="the file to write")
    parser.add_argument("--measured", type=Path, default=MEASURED, help="what the package brings along of it")
    chosen = parser.parse_args(arguments)
    every = [read_runs(paths) for paths in files_by_name(chosen.folder).values()]
    results = {
        "as_good": AS_GOOD,
        "rungs": RUNGS,
        "allowance": ALLOWANCE,
        "level": LEVEL,
        "runs": [described(runs) for runs in every],
        "kept": [line for runs in every for line in kept_lines(runs, num_studies=chosen.studies)],
        "tried": [
            line
            for runs in every
            for times in (1, MORE_ROWS)
            for line in tried_lines(runs, times=times, num_studies=chosen.studies // 10)
        ],
    }
    chosen.into.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    chosen.measured.write_text(json.dumps(told_in_reports(results), indent=1) + "\n", encoding="utf-8")
    print(f"wrote {chosen.into} and {chosen.measured}")
    return 0


def told_in_reports(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the package brings along to be told where racing was used: six seeds, no margin."""
    settings = {runs["name"]: runs["settings"] for runs in results["runs"]}
    seeds = {runs["name"]: runs["seeds"] for runs in results["runs"]}
    keys = (
        "num_seeds",
        "num_studies",
        "num_stops",
        "num_wrong_stops",
        "wrong_stops",
        "same_verdicts",
        "share_of_steps",
    )
    return [
        {key: settings[line["runs"]][key] for key in ("base_model", "dataset_path")}
        | {"seeds": seeds[line["runs"]]}
        | {k: line[k] for k in keys}
        for line in results["kept"]
        if line["num_seeds"] == NUM_SEEDS_TOLD and line["margin"] is None
    ]


def kept_lines(runs: Runs, *, num_studies: int) -> Iterator[dict[str, Any]]:
    """What the product does, by number of seeds and margin."""
    for num_seeds, margin in itertools.product(SEEDS, MARGINS):
        if num_seeds <= runs.test.shape[1]:
            line = replayed(runs, margin=margin, num_seeds=num_seeds, num_studies=num_studies)
            yield {"runs": runs.name, "num_seeds": num_seeds, "margin": _said(margin), **line}


def tried_lines(runs: Runs, *, times: int, num_studies: int) -> Iterator[dict[str, Any]]:
    """Other rungs, levels and allowances, with six seeds and no margin, the held-out rows counted so many times."""
    more = with_more_rows(runs, times=times)
    for (rungs, level), allowance in itertools.product(ALTERNATIVES, ALLOWANCES):
        rule = Rule(rungs=rungs, level=level, allowance=allowance)
        line = replayed(more, rule=rule, margin=None, num_seeds=6, num_studies=num_studies)
        yield {
            "runs": runs.name,
            "rungs": rungs,
            "level": level,
            "times": times,
            "allowance": allowance,
            **line,
        }


def replayed(
    runs: Runs, *, rule: Rule = KEPT, margin: Margin | None, num_seeds: int, num_studies: int
) -> dict[str, Any]:  # fmt: skip
    """Counts over the distinct ones of so many studies that are drawn: stops, wrong ones, equal verdicts, share of the steps."""
    draw = np.random.default_rng(SEED)
    studies = {_drawn(runs, draw, num_seeds=num_seeds): None for _ in range(num_studies)}
    num_stops = num_wrong = races_wrong = same_best = same_verdicts = num_good = good_stopped = 0
    shares, least = [], []
    for study in studies:
        rules = RaceRules(
            num_arms=len(study.arms),
            num_rungs=len(rule.rungs),
            margin=margin,
            allowance=rule.allowance,
            level=rule.level,
        )
        stops = raced(runs, study, rungs=rule.rungs, rules=rules)
        good = as_good_as_the_best(runs, study)
        wrong = good & stops.keys()
        num_stops += len(stops)
        num_wrong += len(wrong)
        races_wrong += bool(wrong)
        num_good += len(good)
        good_stopped += len(wrong)
        full = verdicts(runs, study, margin=margin)
        after = verdicts(
            runs, replace(study, arms=tuple(a for a in study.arms if a not in stops)), margin=margin
        )
        same_best += full.best == after.best
        same_verdicts += full.best == after.best and _agree(full, after)
        shares.append(sum(stops.get(arm, 1.0) for arm in study.arms) / len(study.arms))
        needed = len(good | _told_of(runs, study, full)) / len(study.arms)
        least.append(needed + (1 - needed) * rule.rungs[0])
    return {
        "num_studies": len(studies),
        "num_stops": num_stops,
        "num_wrong_stops": num_wrong,
        "wrong_stops": num_wrong / num_stops if num_stops else 0.0,
        "races_with_a_wrong_stop": races_wrong / len(studies),
        "good_arms_stopped": good_stopped / num_good,
        "same_best": same_best / len(studies),
        "same_verdicts": same_verdicts / len(studies),
        "share_of_steps": float(np.mean(shares)),
        "least_share_of_steps": float(np.mean(least)),
    }  # fmt: skip


def raced(runs: Runs, study: Drawn, *, rungs: Sequence[float], rules: RaceRules) -> dict[int, float]:
    """The arms that are stopped, each with the share of the steps that it had."""
    going = list(study.arms)
    largest = max(_rank(runs, arm) for arm in study.arms)
    stopped: dict[int, float] = {}
    for rung in rungs:
        for one in _stopped_at(runs, study, going, rung=rung, rules=rules, largest=largest):
            stopped[int(one.arm)] = rung
        going = [arm for arm in going if arm not in stopped]
    return stopped


def _stopped_at(
    runs: Runs, study: Drawn, going: Sequence[int], *, rung: float, rules: RaceRules, largest: int
) -> tuple[Behind, ...]:  # fmt: skip
    table = losses_at(runs, rung)
    weights = tuple(int(weight) for weight in runs.weights)
    losses = {
        str(arm): {
            seed: ItemScores(values=tuple(table[arm, seed]), weights=weights)
            for seed in study.seeds
            if np.isfinite(table[arm, seed]).all()
        }
        for arm in going
    }
    ranks = {
        rank: [str(arm) for arm in going if _rank(runs, arm) == rank]
        for rank in {_rank(runs, arm) for arm in going}
    }
    return clearly_behind(
        losses,
        rung=rung,
        base_loss=runs.base_loss,
        rules=rules,
        reference=ranks[largest],
        configurations=tuple(ranks.values()),
    )


def as_good_as_the_best(runs: Runs, study: Drawn) -> set[int]:
    """The study's arms that in the end, over all recorded seeds, are as good as its best one."""
    whole = [arm for arm in study.arms if np.isfinite(runs.test[arm]).all()]
    shares = runs.test_weights / runs.test_weights.sum()
    means = {arm: float((runs.test[arm] @ shares).mean()) for arm in whole}
    best = min(means, key=means.__getitem__)
    allowed = AS_GOOD * max(0.0, runs.base_loss - means[best])
    return {
        arm
        for arm in whole
        if arm == best or means[arm] - means[best] <= allowed or _is_tied(runs, arm, best=best)
    }


def _is_tied(runs: Runs, arm: int, *, best: int) -> bool:
    return float(two_way(runs.test[arm] - runs.test[best], runs.test_weights).p_value()) > ALPHA


def verdicts(runs: Runs, study: Drawn, *, margin: Margin | None) -> Verdicts:
    """What the product says of the study from the runs to their end: each rank at its best rate, against the largest."""
    chosen = _chosen(runs, study)
    ranks = sorted(chosen)
    reference = chosen[ranks[-1]]
    others = [chosen[rank] for rank in reversed(ranks[:-1])]
    if not others:
        return Verdicts(best=_best(runs, study), words={})
    seeds = list(study.seeds)
    differences = np.stack([(runs.test[arm] - runs.test[reference])[seeds] for arm in others])
    weights = runs.test_weights / runs.test_weights.sum()
    estimate = two_way(differences, np.broadcast_to(weights, (len(others), len(weights))))
    by_seed = differences @ weights
    shown = differences_shown(estimate.p_value(), sign_flip_p(by_seed))
    no_worse = np.zeros(len(others), dtype=bool)
    if margin is not None:
        reached = float((runs.test[reference][seeds] @ weights).mean())
        bound = np.full(len(others), margin.allowed(reference=reached, base=runs.base_loss))
        no_worse = no_worse_shown(
            estimate.p_below(bound), sign_flip_p_below(by_seed, bound), in_sequence=True
        )
    words = {
        _rank(runs, arm): _told(
            word(arm_ahead=bool(estimate.mean[i] < 0), shown=bool(shown[i]), no_worse=bool(no_worse[i])),
            arm_ahead=bool(estimate.mean[i] < 0),
        )
        for i, arm in enumerate(others)
    }
    return Verdicts(best=_best(runs, study), words=words)


def _told_of(runs: Runs, study: Drawn, full: Verdicts) -> set[int]:
    """The arms without which a race cannot say what the full grid says: the best, the reference, ranks that are not worse."""
    chosen = _chosen(runs, study)
    return {full.best, chosen[max(chosen)]} | {
        chosen[rank] for rank, said in full.words.items() if said != _WORSE
    }


_WORSE = "worse than the reference"


def _told(verdict: Word, *, arm_ahead: bool) -> str:
    return _WORSE if verdict == "better" and not arm_ahead else verdict


def _agree(full: Verdicts, after: Verdicts) -> bool:
    """Whether every rank has its word; one that was stopped should have been told to be worse."""
    return all(after.words.get(rank, _WORSE) == said for rank, said in full.words.items())


def _chosen(runs: Runs, study: Drawn) -> dict[int, int]:
    """The arm at the best rate of each rank, by the held-out rows; ranks of which nothing is left are not in it."""
    means = _final_means(runs, study)
    by_rank: dict[int, list[int]] = {}
    for arm in means:
        by_rank.setdefault(_rank(runs, arm), []).append(arm)
    return {rank: min(arms, key=means.__getitem__) for rank, arms in by_rank.items()}


def _best(runs: Runs, study: Drawn) -> int:
    means = _final_means(runs, study)
    return min(means, key=means.__getitem__)


def _final_means(runs: Runs, study: Drawn) -> dict[int, float]:
    shares = runs.weights / runs.weights.sum()
    means = {arm: float((runs.losses[-1][arm][list(study.seeds)] @ shares).mean()) for arm in study.arms}
    return {arm: mean for arm, mean in means.items() if np.isfinite(mean)}


def _drawn(runs: Runs, draw: np.random.Generator, *, num_seeds: int) -> Drawn:
    """Two ranks or more, three neighbouring rates or more, and seeds, of those recorded."""
    num_ranks = int(draw.integers(2, len(runs.ranks) + 1))
    ranks = np.sort(draw.choice(len(runs.ranks), size=num_ranks, replace=False))
    num_rates = int(draw.integers(3, len(runs.rates) + 1))
    first = int(draw.integers(0, len(runs.rates) - num_rates + 1))
    arms = [int(rank) * len(runs.rates) + rate for rank in ranks for rate in range(first, first + num_rates)]
    seeds = np.sort(draw.choice(runs.test.shape[1], size=num_seeds, replace=False))
    return Drawn(arms=tuple(arms), seeds=tuple(int(seed) for seed in seeds))


def _rank(runs: Runs, arm: int) -> int:
    return runs.ranks[arm // len(runs.rates)]


def _said(margin: Margin | None) -> str | None:
    return None if margin is None else str(margin)


if __name__ == "__main__":
    sys.exit(main())


def files_by_name(folder: Path) -> dict[str, list[Path]]:
    """The files of a folder by the name of their runs, in order of seed."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.npz"), key=lambda path: (len(path.name), path.name)):
        found.setdefault(path.stem.rpartition("-")[0], []).append(path)
    return found


def read_runs(paths: Sequence[Path]) -> Runs:
    """The runs that `racing_runs` recorded, one file for each seed."""
    files = [dict(np.load(path)) for path in paths]
    about = [json.loads(str(file["about"])) for file in files]
    first = files[0]
    weights, test_weights = (first[key].astype(np.float64) for key in ("weights", "test_weights"))
    return Runs(
        name=about[0]["name"],
        ranks=tuple(about[0]["ranks"]),
        rates=tuple(about[0]["rates"]),
        shares=tuple(about[0]["shares"]),
        losses=np.stack([file["losses"] for file in files], axis=2).astype(np.float64),
        weights=weights,
        base_loss=float(first["before"].astype(np.float64) @ weights / weights.sum()),
        test=np.stack([file["test"] for file in files], axis=1).astype(np.float64),
        test_weights=test_weights,
        about=about[0]
        | {
            "seconds": sum(one["seconds"] for one in about),
            "num_seeds": len(files),
            "seeds": [one["seed"] for one in about],
        },
    )


def with_more_rows(runs: Runs, *, times: int) -> Runs:
    """The runs with every held-out row counted so many times; what is reported on the test rows stays."""
    return replace(runs, losses=np.tile(runs.losses, (1, 1, 1, times)), weights=np.tile(runs.weights, times))


def losses_at(runs: Runs, rung: float) -> Floats:
    """The held-out losses by (arm, seed, item) after a share of the steps; between two scores, the later one."""
    index = next(i for i, share in enumerate(runs.shares) if share >= rung - 1e-9)
    found: Floats = runs.losses[index]
    return found


def described(runs: Runs) -> dict[str, Any]:
    """What was recorded, with the mean loss of every arm on the way and the seconds it took."""
    shares = runs.weights / runs.weights.sum()
    curves: npt.NDArray[np.float64] = (runs.losses @ shares).mean(axis=-1)
    return {
        **{key: value for key, value in runs.about.items() if key != "seed"},
        "base_loss": runs.base_loss,
        "num_items": len(runs.weights),
        "num_test_items": len(runs.test_weights),
        "curves": [[round(float(v), 4) if np.isfinite(v) else None for v in arm] for arm in curves.T],
    }
