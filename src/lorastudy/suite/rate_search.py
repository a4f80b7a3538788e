"""`learning_rate: auto`: a suite that adds learning rates to try until each arm has found its best one.

The search depends only on the suite and on the results so far. So a suite that is run again, or resumed after a kill,
has the same experiments and runs only those that are missing.

One arm begins, at the rates around the published rule (`suite.rates`). Every other arm waits for its nearest neighbour:
the arm that differs from it in the fewest settings, and then least in rank. It begins with the three rates around the
rate that its neighbour found. While an arm's best rate is the lowest or the highest one tried, the search also tries
the next rate beyond it. When the best rate has a worse one on each side, a parabola through the three gives the rate
for the report, which need not be one of those tried. An arm takes three or four such runs, all with one seed, because
losses of different seeds cannot be compared. The arm then runs at its rate with the reporting seeds. These runs and
their test rows take no part in the choice, so a lucky rate gains nothing.

Rates are compared by the suite's primary metric on the held-out rows, and at equality by the held-out loss. A rate at
which the run diverged is worse than any other. A rate whose run was lost is skipped, as if it were not on the ladder.
It is tried again only if no other rate of the arm has a result.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from lorastudy.suite.base_model import read_config
from lorastudy.suite.expansion import Fingerprint, expand
from lorastudy.suite.experiment import Experiment
from lorastudy.suite.rates import (
    MAX_RUNGS_BEYOND,
    Rungs,
    as_shown,
    first_rungs,
    nearest_rung,
    parabola,
    published_rates,
    rate_of,
)
from lorastudy.suite.settings import Settings
from lorastudy.suite.suite import Arm, Suite

#: Lower is better: the primary metric, then the held-out loss. A run that diverged is infinitely bad.
Merit = tuple[float, float]
DIVERGED: Merit = (math.inf, math.inf)

#: By experiment that has ended: its merit; None if it failed without diverging.
Merits = Mapping[str, Merit | None]
NumSteps = Callable[[Settings], int | None]

_HIGHEST_RUNG = 2  # the rate 5: `learning_rate` is less than 10
#: The number of rates that an arm tries first, around the rate that its neighbour found.
_NUM_AROUND = 3
#: Settings that do not count when neighbours are compared: the rank has its own distance, the rate is unknown.
_OF_RANK = frozenset({"lora_rank", "learning_rate"})


@dataclass(frozen=True, kw_only=True)
class Search:
    """The state of one arm's search. `chosen` is None until the search is over, and stays None if it found no rate.

    An arm that waits for its neighbour has tried nothing. Its `start` is then the first grid by the published rule.
    """

    start: Rungs
    tried: tuple[int, ...] = ()
    passed: frozenset[int] = frozenset()
    """Rungs whose run was lost."""
    chosen: float | None = None
    is_over: bool = False


@dataclass(frozen=True, kw_only=True)
class Design:
    """All experiments of a suite that are known from the results so far.

    `tuning` are the ids of the experiments that choose rates. `num_open` arms have not found their rate yet.
    """

    experiments: tuple[Experiment, ...]
    rounds: tuple[tuple[Experiment, ...], ...]
    """The experiments by the round that adds them. Packs are formed within a round, even if part of it is done."""
    tuning: frozenset[str] = frozenset()
    num_open: int = 0
    to_come: tuple[int, int] = (0, 0)
    """The fewest and the most runs that the open searches will add; the most if every grid is widened to its end."""
    passed: tuple[Experiment, ...] = ()
    """Runs of the search that were lost and are not tried again. They stay in the suite for its report to name."""
    waiting: tuple[Experiment, ...] = ()
    """For each arm that waits for a neighbour: one experiment by the published rule, for planning. It does not run."""

    @property
    def reporting(self) -> tuple[Experiment, ...]:
        """The experiments whose results are reported."""
        return tuple(each for each in self.experiments if each.id not in self.tuning)

    @property
    def of_every_arm(self) -> tuple[Experiment, ...]:
        """The experiments, plus one for each arm that waits."""
        return self.experiments + self.waiting


def design(
    suite: Suite,
    *,
    fingerprint_dataset: Fingerprint,
    fingerprint_base: Fingerprint,
    merits: Merits | None = None,
    num_steps: NumSteps = lambda settings: settings.max_steps,
) -> Design:
    """The suite's experiments given the results so far; without results, the first round.

    An experiment that is not in `merits` counts as not ended.

    Raises:
        SuiteFileError, StudyError: as `expand`.
    """
    fingerprints = {
        "fingerprint_dataset": functools.cache(fingerprint_dataset),
        "fingerprint_base": functools.cache(fingerprint_base),
    }
    arms = _Arms.of(suite, num_steps)
    searches = arms.first_searches()
    rounds: list[tuple[Experiment, ...]] = []
    while True:
        fixed = list(_fixed_arms(suite, searches))
        not_begun = [suite.arms[number] for number, search in searches.items() if not search.tried]
        begun = replace(suite, arms=tuple(each.arm for each in fixed))
        experiments = expand(begun, waiting=not_begun, **fingerprints)
        asked = {each.id for of_round in rounds for each in of_round}
        rounds.append(tuple(each for each in experiments if each.id not in asked))
        tuning = _tuning_runs(fixed, experiments, seeds=suite.tuning_seeds)
        looked_on = {
            number: _next(search, merits=_by_rung(number, tuning, merits=merits or {}))
            for number, search in searches.items()
        }
        further = {number: arms.begun(number, looked_on) for number in searches}
        if further == searches:
            break
        searches = further
    known = {each.id for each in experiments}
    waiting = [number for number, search in searches.items() if not search.tried]
    return Design(
        experiments=experiments,
        # without experiments that were added and then passed over
        rounds=tuple(kept for of_round in rounds if (kept := tuple(e for e in of_round if e.id in known))),
        tuning=frozenset(run.id for run in tuning.values()),
        num_open=sum(not search.is_over for search in searches.values()),
        to_come=_to_come(suite, searches),
        passed=tuple(each for of_round in rounds for each in of_round if each.id not in known),
        waiting=_by_the_rule(suite, {number: searches[number] for number in waiting}, **fingerprints),
    )


def foreseen(
    suite: Suite,
    *,
    fingerprint_dataset: Fingerprint,
    fingerprint_base: Fingerprint,
    num_steps: NumSteps = lambda settings: settings.max_steps,
) -> tuple[Experiment, ...]:
    """The suite's experiments if each arm's best rate were the middle of its first grid.

    The linter judges a plan by them, because the rates that will be chosen are not known yet.
    """
    searches = {
        number: replace(
            search, tried=tuple(search.start), chosen=rate_of(_middle(search.start)), is_over=True
        )
        for number, search in _Arms.of(suite, num_steps).first_searches().items()
    }
    fixed = replace(suite, arms=tuple(each.arm for each in _fixed_arms(suite, searches)))
    return expand(fixed, fingerprint_dataset=fingerprint_dataset, fingerprint_base=fingerprint_base)


# --- which arm begins where -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Arms:
    """The arms that seek a rate, by number: each arm's neighbour and its rates by the published rule."""

    neighbour: Mapping[int, int | None]
    rungs: Mapping[int, Rungs]
    """Each arm's first grid by the rule."""
    rule: Mapping[int, float]
    """Each arm's rate by the rule; for an unknown family, the geometric mean of the lowest and the highest rate."""

    @classmethod
    def of(cls, suite: Suite, num_steps: NumSteps) -> "_Arms":
        """The arms of a suite that seek a rate."""
        seeking = {number: arm.settings for number, arm in enumerate(suite.arms) if arm.seeks_rate}
        config = functools.cache(read_config)
        about = {n: (config(s.base_model), num_steps(s)) for n, s in seeking.items()}
        rates = {n: published_rates(base, num_steps=steps) for n, (base, steps) in about.items()}
        return cls(
            neighbour=_neighbours(seeking),
            rungs={n: first_rungs(base, num_steps=steps) for n, (base, steps) in about.items()},
            rule={n: math.sqrt(min(found) * max(found)) for n, found in rates.items()},
        )

    def first_searches(self) -> dict[int, Search]:
        """The searches at the start: the arm without a neighbour has begun, the others wait."""
        return {
            number: Search(start=rungs, tried=tuple(rungs) if self.neighbour[number] is None else ())
            for number, rungs in sorted(self.rungs.items())
        }

    def begun(self, number: int, searches: Mapping[int, Search]) -> Search:
        """The arm's search, begun if its neighbour's is over; by the published rule if the neighbour found no rate."""
        search, neighbour = searches[number], self.neighbour[number]
        if search.tried or neighbour is None or not searches[neighbour].is_over:
            return search
        found = searches[neighbour].chosen
        start = search.start if found is None else self._around(found, number, neighbour=neighbour)
        return replace(search, start=start, tried=tuple(start))

    def _around(self, found: float, number: int, *, neighbour: int) -> Rungs:
        """Three rungs around the neighbour's rate, times the ratio of the two arms' rates by the published rule."""
        middle = min(nearest_rung(found * self.rule[number] / self.rule[neighbour]), _HIGHEST_RUNG - 1)
        return Rungs(middle - 1, middle + 2)


def _neighbours(seeking: Mapping[int, Settings]) -> dict[int, int | None]:
    """The arm that each arm waits for: a minimum spanning tree (Prim) from the arm that is nearest to all others."""
    plain = {number: settings.model_dump(mode="json") for number, settings in seeking.items()}

    def apart(one: int, other: int) -> tuple[int, float]:
        differing = sum(plain[one][key] != plain[other][key] for key in plain[one].keys() - _OF_RANK)
        return differing, abs(math.log2(seeking[one].lora_rank / seeking[other].lora_rank))

    def to_all(one: int) -> tuple[int, float, int]:
        away = [apart(one, other) for other in seeking]
        return sum(count for count, _ in away), math.fsum(ratio for _, ratio in away), one

    found: dict[int, int | None] = {min(seeking, key=to_all): None} if seeking else {}
    while len(found) < len(seeking):
        edges = ((*apart(new, old), new, old) for new in seeking.keys() - found.keys() for old in found)
        *_, new, old = min(edges)
        found[new] = old
    return found


# --- one arm ----------------------------------------------------------------------------------------------


def _next(search: Search, *, merits: Mapping[int, Merit | None]) -> Search:
    """The search after one more step, given the merits of the tried rungs; a merit of None means a lost run."""
    if search.is_over or not search.tried or not all(rung in merits for rung in search.tried):
        return search
    known = {rung: merit for rung in search.tried if (merit := merits[rung]) is not None}
    if not known:
        return search
    search = replace(
        search, tried=tuple(sorted(known)), passed=search.passed | (set(search.tried) - known.keys())
    )
    best = min(known, key=lambda rung: (known[rung], rung))
    lowest, highest = _ends(search.start)
    down = next((rung for rung in range(best - 1, lowest - 1, -1) if rung not in search.passed), None)
    up = next((rung for rung in range(best + 1, highest + 1) if rung not in search.passed), None)
    beyond = [rung for rung in (down, up) if rung is not None and rung not in known]
    if beyond:
        return replace(search, tried=tuple(sorted((*known, *beyond))))
    return replace(search, chosen=_rate_found(best, known), is_over=True)


def _rate_found(best: int, known: Mapping[int, Merit]) -> float | None:
    """The rate at the lowest point of the parabola through the best rung and its neighbours; else the best rung's rate.

    The parabola goes through the first part of the merits, or through the second if the first gives none. None if
    every run diverged.
    """
    if math.isinf(known[best][0]):
        return None
    below, above = (
        max((r for r in known if r < best), default=None),
        min((r for r in known if r > best), default=None),
    )
    if below is not None and above is not None:
        for part in (0, 1):
            through = parabola([(rate_of(rung), known[rung][part]) for rung in (below, best, above)])
            if through is not None:
                return as_shown(through.rate)
    return rate_of(best)


def _ends(start: Rungs) -> tuple[int, int]:
    """The lowest and the highest rung that a search with this first grid may try."""
    return start[0] - MAX_RUNGS_BEYOND, min(start[-1] + MAX_RUNGS_BEYOND, _HIGHEST_RUNG)


def _middle(rungs: Rungs) -> int:
    return rungs[len(rungs) // 2]


# --- arms with a rate, and their runs ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _FixedArm:
    """An arm at one rate. `number` is the index of the suite's arm; `rung` is None for a rate that is not on trial."""

    arm: Arm
    number: int
    rung: int | None


def _fixed_arms(suite: Suite, searches: Mapping[int, Search]) -> Iterator[_FixedArm]:
    """The suite's arms at single rates: tried rates with the tuning seed, the chosen rate with the reporting seeds."""
    for number, arm in enumerate(suite.arms):
        if not arm.seeks_rate:
            yield _FixedArm(arm=arm, number=number, rung=None)
            continue
        search = searches[number]
        rungs: dict[float, int | None] = {rate_of(rung): rung for rung in search.tried}
        if search.chosen is not None:
            rungs.setdefault(search.chosen, None)
        for rate, rung in sorted(rungs.items()):
            reporting = arm.seeds if rate == search.chosen else ()
            tuning = suite.tuning_seeds[:1] if rung is not None else ()
            yield _FixedArm(arm=_at(arm, rate, seeds=(*reporting, *tuning)), number=number, rung=rung)


def _at(arm: Arm, rate: float, *, seeds: Sequence[int]) -> Arm:
    settings = Settings.model_validate({**dict(arm.settings), "learning_rate": rate})
    return replace(arm, settings=settings, seeds=tuple(seeds), seeks_rate=False)


def _tuning_runs(
    arms: Sequence[_FixedArm], experiments: Sequence[Experiment], *, seeds: Sequence[int]
) -> dict[tuple[int, int], Experiment]:
    """By arm and rung: the run that tries it. Relies on `expand` keeping the order of arms and of their seeds."""
    rest = iter(experiments)
    runs: dict[tuple[int, int], Experiment] = {}
    for each in arms:
        for run in [next(rest) for _ in each.arm.seeds]:
            if each.rung is not None and run.seed in seeds:
                runs[each.number, each.rung] = run
    return runs


def _by_rung(
    number: int, runs: Mapping[tuple[int, int], Experiment], *, merits: Mapping[str, Merit | None]
) -> dict[int, Merit | None]:
    """By rung: the merit of the arm's run, if the run has ended."""
    return {
        rung: merits[run.id] for (of_arm, rung), run in runs.items() if of_arm == number and run.id in merits
    }


def _by_the_rule(
    suite: Suite, searches: Mapping[int, Search], **fingerprints: Fingerprint
) -> tuple[Experiment, ...]:
    """One experiment for each of these arms, at the middle of its first grid by the published rule."""
    arms = tuple(
        _at(suite.arms[number], rate_of(_middle(search.start)), seeds=suite.tuning_seeds[:1])
        for number, search in searches.items()
    )
    return expand(replace(suite, arms=arms, reference=None), waiting=(), **fingerprints)


def _to_come(suite: Suite, searches: Mapping[int, Search]) -> tuple[int, int]:
    """The fewest and the most runs to come: for each open search the reporting runs, plus one run per further rate."""
    still_open = [number for number, search in searches.items() if not search.is_over]
    reporting = sum(len(suite.arms[number].seeds) for number in still_open)
    least = sum(_NUM_AROUND for number in still_open if not searches[number].tried)
    most = sum(_most_further_rungs(searches[number]) for number in still_open)
    return reporting + least, reporting + most


def _most_further_rungs(search: Search) -> int:
    """The most further rungs that a search may try: all beyond its grid on one side.

    An arm that waits adds its first three. A search that has left its first grid continues on the same side.
    """
    if not search.tried:
        return _NUM_AROUND + MAX_RUNGS_BEYOND
    lowest, highest = _ends(search.start)
    down, up = search.tried[0] - lowest, max(0, highest - search.tried[-1])
    if search.tried[0] >= search.start[0] and search.tried[-1] <= search.start[-1]:
        return max(down, up)
    return down if search.tried[0] < search.start[0] else up
