"""`learning_rate: auto`: a suite that grows by the next rates to try until each arm has found its own.

Everything follows from the suite and from the results that are there, so a suite that is run again, or goes on
after it was killed, comes to the same experiments and runs only what is missing.

An arm is first run at the rates around the published rule (`spec.rates`), with the tuning seeds. While its best
rate lies on the edge of what was tried, the next rate beyond is tried too. When the best rate has a worse one to
each side, or the search has gone a hundredfold beyond its start, the arm is run at its best rate with the seeds
that report. Thus the rate is chosen on other rows and by other runs than those that are reported, so a rate that
was lucky gets nothing for it; and only the tuning seeds are spent on rates that are not chosen.

What counts is the suite's primary metric on the held-out rows, as a mean over the tuning seeds, and the held-out
loss where that is equal. A rate at which one of them diverged is worse than any other.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from lorastudy.experiments.expansion import Fingerprint, expand
from lorastudy.spec.base_folder import read_config
from lorastudy.spec.experiment import Experiment
from lorastudy.spec.rates import MAX_RUNGS_BEYOND, Rungs, first_rungs, rate_of
from lorastudy.spec.settings import Settings
from lorastudy.spec.suite import Arm, Suite

#: Lower is better: the primary metric, then the held-out loss. A run that diverged is infinitely bad.
Merit = tuple[float, float]
DIVERGED: Merit = (math.inf, math.inf)

#: The merit of each of these experiments that has come to an end.
MeritsOf = Callable[[Sequence[Experiment]], Mapping[str, Merit]]
NumSteps = Callable[[Settings], int | None]

_HIGHEST_RUNG = 2  # the rate 5: `learning_rate` is less than 10


@dataclass(frozen=True, kw_only=True)
class Search:
    """How far one arm's search has come. `chosen` is None until it is over, and where every rate diverged."""

    tried: Rungs
    chosen: int | None
    is_over: bool


@dataclass(frozen=True, kw_only=True)
class Design:
    """All experiments of a suite, as far as results tell by now.

    `tuning` are the ids of those that choose rates. `num_open` arms have not found theirs yet.
    """

    experiments: tuple[Experiment, ...]
    rounds: tuple[tuple[Experiment, ...], ...]
    """The same by the round that asks for them. A round's runs train together, whatever was done of it before."""
    tuning: frozenset[str] = frozenset()
    num_open: int = 0
    to_come: tuple[int, int] = (0, 0)
    """Runs beyond `experiments` that the open searches will ask for: at least, and if each grid is widened all the way."""

    @property
    def reporting(self) -> tuple[Experiment, ...]:
        """The experiments that results are reported of."""
        return tuple(each for each in self.experiments if each.id not in self.tuning)


def design(
    suite: Suite,
    *,
    fingerprint_dataset: Fingerprint,
    fingerprint_base: Fingerprint,
    merits_of: MeritsOf = lambda _: {},
    num_steps: NumSteps = lambda settings: settings.max_steps,
) -> Design:
    """The suite's experiments that results ask for; without results the first round.

    Raises:
        SuiteFileError, StudyError: as `expand`.
    """
    fingerprints = {
        "fingerprint_dataset": functools.cache(fingerprint_dataset),
        "fingerprint_base": functools.cache(fingerprint_base),
    }
    searches = _begun(suite, num_steps)
    starts = {number: search.tried for number, search in searches.items()}
    rounds: list[tuple[Experiment, ...]] = []
    while True:
        arms = list(_fixed_arms(suite, searches))
        fixed = replace(suite, arms=tuple(each.arm for each in arms))
        experiments = expand(fixed, **fingerprints)
        asked = {each.id for of_round in rounds for each in of_round}
        rounds += [fresh for fresh in [tuple(e for e in experiments if e.id not in asked)] if fresh]
        tuning = _tuning_runs(arms, experiments, seeds=suite.tuning_seeds)
        merits = merits_of([run for runs in tuning.values() for run in runs])
        further = {
            number: _next(search, start=starts[number], merits=_by_rung(number, tuning=tuning, merits=merits))
            for number, search in searches.items()
        }
        if further == searches:
            return Design(
                experiments=experiments,
                rounds=tuple(rounds),
                tuning=frozenset(run.id for runs in tuning.values() for run in runs),
                num_open=sum(not search.is_over for search in searches.values()),
                to_come=_to_come(suite, searches, starts=starts),
            )
        searches = further


def _to_come(suite: Suite, searches: Mapping[int, Search], *, starts: Mapping[int, Rungs]) -> tuple[int, int]:
    """Each open search ends in the runs that report; before that each further rate is run with the tuning seeds."""
    still_open = [number for number, search in searches.items() if not search.is_over]
    reporting = sum(len(suite.arms[number].seeds) for number in still_open)
    further = sum(_most_further_rungs(searches[number].tried, starts[number]) for number in still_open)
    return reporting, reporting + further * len(suite.tuning_seeds)


def _most_further_rungs(tried: Rungs, start: Rungs) -> int:
    """A search that has left its first grid goes on to that side alone."""
    lowest, highest = _ends(start)
    down, up = tried[0] - lowest, max(0, highest - tried[-1])
    if tried == start:
        return max(down, up)
    return down if tried[0] < start[0] else up


def foreseen(
    suite: Suite,
    *,
    fingerprint_dataset: Fingerprint,
    fingerprint_base: Fingerprint,
    num_steps: NumSteps = lambda settings: settings.max_steps,
) -> tuple[Experiment, ...]:
    """The experiments that a suite comes to if each arm's best rate is in the middle of its first grid.

    To judge a plan by: which rates will be chosen nobody knows before.
    """
    searches = {
        number: replace(search, chosen=search.tried[len(search.tried) // 2], is_over=True)
        for number, search in _begun(suite, num_steps).items()
    }
    fixed = replace(suite, arms=tuple(each.arm for each in _fixed_arms(suite, searches)))
    return expand(fixed, fingerprint_dataset=fingerprint_dataset, fingerprint_base=fingerprint_base)


@dataclass(frozen=True, kw_only=True)
class _FixedArm:
    """An arm at one rate. `number` is that of the suite's arm, `rung` None where the rate was given."""

    arm: Arm
    number: int
    rung: int | None


def _begun(suite: Suite, num_steps: NumSteps) -> dict[int, Search]:
    """The search of each arm that seeks its rate, by the arm's number."""
    return {
        number: Search(tried=_first(arm.settings, num_steps), chosen=None, is_over=False)
        for number, arm in enumerate(suite.arms)
        if arm.seeks_rate
    }


def _first(settings: Settings, num_steps: NumSteps) -> Rungs:
    return first_rungs(read_config(settings.base_model), num_steps=num_steps(settings))


def _fixed_arms(suite: Suite, searches: Mapping[int, Search]) -> Iterator[_FixedArm]:
    """The suite's arms with a rate each: at the chosen one with the seeds that report, too."""
    for number, arm in enumerate(suite.arms):
        if not arm.seeks_rate:
            yield _FixedArm(arm=arm, number=number, rung=None)
            continue
        search = searches[number]
        for rung in search.tried:
            settings = Settings.model_validate({**dict(arm.settings), "learning_rate": rate_of(rung)})
            reporting = arm.seeds if rung == search.chosen else ()
            seeds = (*reporting, *suite.tuning_seeds)
            fixed = replace(arm, settings=settings, seeds=seeds, seeks_rate=False)
            yield _FixedArm(arm=fixed, number=number, rung=rung)


def _tuning_runs(
    arms: Sequence[_FixedArm], experiments: Sequence[Experiment], *, seeds: Sequence[int]
) -> dict[tuple[int, int], list[Experiment]]:
    """The runs that choose, by arm and rung; `expand` gives each arm's experiments in the order of its seeds."""
    rest = iter(experiments)
    runs: dict[tuple[int, int], list[Experiment]] = {}
    for each in arms:
        own = [next(rest) for _ in each.arm.seeds]
        if each.rung is not None:
            runs[each.number, each.rung] = [run for run in own if run.seed in seeds]
    return runs


def _by_rung(
    number: int, *, tuning: Mapping[tuple[int, int], Sequence[Experiment]], merits: Mapping[str, Merit]
) -> dict[int, Merit]:
    """The mean merit at each rung of the arm at which every tuning run has ended."""
    found = {}
    for (of_arm, rung), runs in tuning.items():
        known = [merits[run.id] for run in runs if run.id in merits]
        if of_arm == number and len(known) == len(runs):
            primary, loss = zip(*known, strict=True)
            found[rung] = (math.fsum(primary) / len(known), math.fsum(loss) / len(known))
    return found


def _next(search: Search, *, start: Rungs, merits: Mapping[int, Merit]) -> Search:
    """The search one step on: the same while a rate that was asked for has not ended."""
    tried = search.tried
    if search.is_over or not all(rung in merits for rung in tried):
        return search
    best = min(tried, key=lambda rung: (merits[rung], rung))
    lowest, highest = _ends(start)
    if best == tried[0] and best > lowest:
        return replace(search, tried=Rungs(best - 1, tried.stop))
    if best == tried[-1] and best < highest:
        return replace(search, tried=Rungs(tried.start, best + 2))
    return replace(search, chosen=None if math.isinf(merits[best][0]) else best, is_over=True)


def _ends(start: Rungs) -> tuple[int, int]:
    """The lowest and the highest rung that a search beginning with these may try."""
    return start[0] - MAX_RUNGS_BEYOND, min(start[-1] + MAX_RUNGS_BEYOND, _HIGHEST_RUNG)
