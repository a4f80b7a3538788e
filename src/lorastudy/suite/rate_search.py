"""`learning_rate: auto`: a suite that adds learning rates to try until each arm has found its best one.

The search depends only on the suite and on the results so far. So a suite that is run again, or resumed after a kill,
has the same experiments and runs only those that are missing.

All models share one ladder of rates: 1, 2 and 5 times a power of ten. So the grids of two arms share their rates, and
a rate has a short name. A place is the number of a rate on that ladder.

One arm begins, at the rates around the published rule. Every other arm waits for its nearest neighbour:
the arm that differs from it in the fewest settings, and then least in rank. It begins with the three rates around the
rate that its neighbour found. While an arm's best rate is the lowest or the highest one tried, the search also tries
the next rate beyond it. When the best rate has a worse one on each side, a parabola through the three gives the rate
for the report, which need not be one of those tried. An arm takes three or four such runs, all with one seed, because
losses of different seeds cannot be compared. The arm then runs at its rate with the reporting seeds. These runs and
their test rows take no part in the choice, so a lucky rate gains nothing.

Rates are compared by the suite's primary metric on the held-out rows, and at equality by the held-out loss. A rate at
which the run diverged is worse than any other. A rate whose run was lost is skipped, as if it were not on the ladder.
It is tried again only if no other rate of the arm has a result.

With a time budget no arm reports by itself. The search may end before every arm has its rate, and then the finals
(`suite.finals`) say which arms report, at which rate and with which seeds.

The published rule ("LoRA Without Regret", 2025; 14 models): the best rate for an adapter is about ten times that
of full fine-tuning, and falls with the hidden size h as

    5e-5 * 10 * (2000 / h) ** p,     p = 0.781 for Llama, 0.0775 for Qwen;

below about a hundred steps the factor is nearer fifteen than ten. The search of an arm of full fine-tuning begins at a tenth of
the rate at which an adapter's begins.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from lorastudy.suite.base_model import read_config
from lorastudy.suite.experiment import Experiment
from lorastudy.suite.finals import Finals
from lorastudy.suite.parabola import parabola
from lorastudy.suite.settings import Settings
from lorastudy.suite.suite import Arm, Fingerprint, Suite, expand


class Merit(NamedTuple):
    """What a run is worth to the search, compared from the first part on; lower is better.

    The value is a mean over the rows for which the primary metric gave one. So failed rows come before it: a rate at which
    the hard answers cannot be read is no good rate.
    """

    num_failed: float
    """Held-out rows for which the primary metric gave no value."""
    cost: float
    """The primary metric."""
    loss: float


#: A run that diverged, or that the primary metric gave no value at all, is infinitely bad.
DIVERGED = Merit(math.inf, math.inf, math.inf)

#: By experiment that has ended: its merit; None if it failed without diverging.
Merits = Mapping[str, Merit | None]
NumSteps = Callable[[Settings], int | None]

_HIGHEST_PLACE = 2  # the rate 5: `learning_rate` is less than 10
#: The number of rates that an arm tries first, around the rate that its neighbour found.
_NUM_AROUND = 3
#: Settings that do not count when neighbours are compared: the rank has its own distance, the rate is unknown.
_OF_RANK = frozenset({"lora_rank", "learning_rate"})

#: The rate for full fine-tuning at the rule's hidden size.
FULL_RATE, HIDDEN_SIZE = 5e-5, 2000
#: The factor of an adapter's rate over that of full fine-tuning; the second below `SHORT_STEPS` steps.
TIMES_FULL, TIMES_FULL_WHEN_SHORT, SHORT_STEPS = 10, 15, 100
#: The exponent p by the beginning of `model_type` in `config.json`.
POWERS: Mapping[str, float] = {"llama": 0.781, "qwen": 0.0775}
#: Places to each side of the rule's rate, for a known and for an unknown family.
AROUND_KNOWN, AROUND_UNKNOWN = 1, 2
#: The search gives up this many places beyond the first grid, on either side: a factor of a hundred.
MAX_PLACES_BEYOND = 6

_MANTISSAS = (1, 2, 5)

Places = range


@dataclass(frozen=True, kw_only=True)
class Search:
    """The state of one arm's search. `chosen` is None until the search is over, and stays None if it found no rate.

    An arm that waits for its neighbour has tried nothing. Its `start` is then the first grid by the published rule.
    """

    start: Places
    tried: tuple[int, ...] = ()
    passed: frozenset[int] = frozenset()
    """Places whose run was lost."""
    chosen: float | None = None
    is_over: bool = False


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How far an arm's search has come: its best learning rate so far, and the run that tried it or the nearest one."""

    arm: int
    """Its index among the suite's arms."""
    learning_rate: float
    """The rate that the search chose; the best one tried while it is open."""
    merit: Merit
    """Of the best rate tried."""
    experiment_id: str
    """The run at the best rate tried."""
    is_over: bool


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
    standings: tuple[Standing, ...] = ()
    """With a time budget: the arms of which a search has a result, in the order of the suite."""
    finals: Finals | None = None
    """With a time budget: the finals, once they are decided."""

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
    finals: Finals | None = None,
) -> Design:
    """The suite's experiments given the results so far; without results, the first round.

    An experiment that is not in `merits` counts as not ended. In a suite with a time budget nothing reports before its
    `finals` are decided.

    Raises:
        SuiteFileError, StudyError: as `expand`.
    """
    fingerprints = {
        "fingerprint_dataset": functools.cache(fingerprint_dataset),
        "fingerprint_base": functools.cache(fingerprint_base),
    }
    arms = _Arms.of(suite, num_steps)
    searches = before = arms.first_searches()
    rounds: list[tuple[Experiment, ...]] = []
    while True:
        asked = _asked(suite, searches, reports=_reports(suite, searches), **fingerprints)
        new = asked.not_in(rounds)
        if finals is not None and not {each.id for each in new}.issubset(finals.searched):
            searches = before  # the finals were decided before this round began
            break
        rounds.append(new)
        by_place = {n: _by_place(n, asked.tuning, merits=merits or {}) for n in searches}
        looked_on = {n: _next(search, merits=by_place[n]) for n, search in searches.items()}
        before, searches = searches, {n: arms.begun(n, looked_on) for n in searches}
        if searches == before:
            break
    if finals is not None:
        reports = {f.arm: (f.learning_rate, finals.seeds) for f in finals.finalists}
        asked = _asked(suite, searches, reports=reports, **fingerprints)
        rounds.append(asked.not_in(rounds))
        searches = {n: replace(search, is_over=True) for n, search in searches.items() if search.tried}
    known = {each.id for each in asked.experiments}
    waiting = [number for number, search in searches.items() if not search.tried]
    return Design(
        experiments=asked.experiments,
        # without experiments that were added and then passed over
        rounds=tuple(kept for of_round in rounds if (kept := tuple(e for e in of_round if e.id in known))),
        tuning=frozenset(run.id for run in asked.tuning.values()),
        num_open=sum(not search.is_over for search in searches.values()),
        to_come=_to_come(suite, searches),
        passed=tuple(each for of_round in rounds for each in of_round if each.id not in known),
        waiting=_by_the_rule(suite, {number: searches[number] for number in waiting}, **fingerprints),
        standings=()
        if suite.time_budget_hours is None
        else tuple(_standings(searches, asked.tuning, merits=merits or {})),
        finals=finals,
    )


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """The experiments that the searches ask for by now, and those of them that tune, by arm and place."""

    experiments: tuple[Experiment, ...]
    tuning: Mapping[tuple[int, int], Experiment]

    def not_in(self, rounds: Sequence[Sequence[Experiment]]) -> tuple[Experiment, ...]:
        """Those that no round has yet."""
        known = {each.id for of_round in rounds for each in of_round}
        return tuple(each for each in self.experiments if each.id not in known)


def _asked(
    suite: Suite, searches: Mapping[int, Search], *, reports: "_Reports", **fingerprints: Fingerprint
) -> _Asked:
    fixed = list(_fixed_arms(suite, searches, reports=reports))
    not_begun = [suite.arms[number] for number, search in searches.items() if not search.tried]
    begun = replace(suite, arms=tuple(each.arm for each in fixed))
    experiments = expand(begun, waiting=not_begun, **fingerprints)
    return _Asked(experiments=experiments, tuning=_tuning_runs(fixed, experiments, seeds=suite.tuning_seeds))


def _standings(
    searches: Mapping[int, Search],
    tuning: Mapping[tuple[int, int], Experiment],
    *,
    merits: Mapping[str, Merit | None],
) -> Iterator[Standing]:
    """The arms of which at least one run has a finite merit."""
    for number, search in searches.items():
        known = {
            place: merit
            for place, merit in _by_place(number, tuning, merits=merits).items()
            if merit is not None and merit != DIVERGED
        }
        if not known:
            continue
        best = min(known, key=lambda place: (known[place], place))
        yield Standing(
            arm=number,
            learning_rate=rate_of(best) if search.chosen is None else search.chosen,
            merit=known[best],
            experiment_id=tuning[number, best].id,
            is_over=search.is_over,
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
    reports = {n: (search.chosen, suite.arms[n].seeds) for n, search in searches.items() if search.chosen}
    fixed = replace(suite, arms=tuple(each.arm for each in _fixed_arms(suite, searches, reports=reports)))
    return expand(fixed, fingerprint_dataset=fingerprint_dataset, fingerprint_base=fingerprint_base)


# --- which arm begins where -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Arms:
    """The arms that seek a rate, by number: each arm's neighbour and its rates by the published rule."""

    neighbour: Mapping[int, int | None]
    places: Mapping[int, Places]
    """Each arm's first grid by the rule."""
    rule: Mapping[int, float]
    """Each arm's rate by the rule; for an unknown family, the geometric mean of the lowest and the highest rate."""

    @classmethod
    def of(cls, suite: Suite, num_steps: NumSteps) -> "_Arms":
        """The arms of a suite that seek a rate."""
        seeking = {number: arm.settings for number, arm in enumerate(suite.arms) if arm.seeks_rate}
        config = functools.cache(read_config)
        about = {n: (config(s.base_model), num_steps(s)) for n, s in seeking.items()}
        full = {n: settings.arm_method.is_full for n, settings in seeking.items()}
        rates = {
            n: published_rates(base, num_steps=steps, is_full=full[n]) for n, (base, steps) in about.items()
        }
        return cls(
            neighbour=_neighbours(seeking),
            places={
                n: first_places(base, num_steps=steps, is_full=full[n]) for n, (base, steps) in about.items()
            },
            rule={n: math.sqrt(min(found) * max(found)) for n, found in rates.items()},
        )

    def first_searches(self) -> dict[int, Search]:
        """The searches at the start: the arm without a neighbour has begun, the others wait."""
        return {
            number: Search(start=places, tried=tuple(places) if self.neighbour[number] is None else ())
            for number, places in sorted(self.places.items())
        }

    def begun(self, number: int, searches: Mapping[int, Search]) -> Search:
        """The arm's search, begun if its neighbour's is over; by the published rule if the neighbour found no rate."""
        search, neighbour = searches[number], self.neighbour[number]
        if search.tried or neighbour is None or not searches[neighbour].is_over:
            return search
        found = searches[neighbour].chosen
        start = search.start if found is None else self._around(found, number, neighbour=neighbour)
        return replace(search, start=start, tried=tuple(start))

    def _around(self, found: float, number: int, *, neighbour: int) -> Places:
        """Three places around the neighbour's rate, times the ratio of the two arms' rates by the published rule."""
        middle = min(nearest_place(found * self.rule[number] / self.rule[neighbour]), _HIGHEST_PLACE - 1)
        return Places(middle - 1, middle + 2)


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
    """The search after one more step, given the merits of the tried places; a merit of None means a lost run."""
    if search.is_over or not search.tried or not all(place in merits for place in search.tried):
        return search
    known = {place: merit for place in search.tried if (merit := merits[place]) is not None}
    if not known:
        return search
    search = replace(
        search, tried=tuple(sorted(known)), passed=search.passed | (set(search.tried) - known.keys())
    )
    best = min(known, key=lambda place: (known[place], place))
    lowest, highest = _ends(search.start)
    down = next((place for place in range(best - 1, lowest - 1, -1) if place not in search.passed), None)
    up = next((place for place in range(best + 1, highest + 1) if place not in search.passed), None)
    beyond = [place for place in (down, up) if place is not None and place not in known]
    if beyond:
        return replace(search, tried=tuple(sorted((*known, *beyond))))
    return replace(search, chosen=_rate_found(best, known), is_over=True)


def _rate_found(best: int, known: Mapping[int, Merit]) -> float | None:
    """The rate at the lowest point of the parabola through the best place and its neighbours; else the best place's rate.

    The parabola goes through the costs, or through the losses if the costs give none. Costs over different numbers of rows
    have none. None if every run diverged.
    """
    if known[best] == DIVERGED:
        return None
    below, above = (
        max((r for r in known if r < best), default=None),
        min((r for r in known if r > best), default=None),
    )
    if below is not None and above is not None:
        beside = [known[place] for place in (below, best, above)]
        are_alike = len({merit.num_failed for merit in beside}) == 1
        for values in (
            [merit.cost for merit in beside] if are_alike else [],
            [merit.loss for merit in beside],
        ):
            if not values or min(values) != values[1]:  # the best place may be so for its failed rows alone
                continue
            through = parabola(list(zip(map(rate_of, (below, best, above)), values, strict=True)))
            if through is not None:
                return as_shown(through.rate)
    return rate_of(best)


def _ends(start: Places) -> tuple[int, int]:
    """The lowest and the highest place that a search with this first grid may try."""
    return start[0] - MAX_PLACES_BEYOND, min(start[-1] + MAX_PLACES_BEYOND, _HIGHEST_PLACE)


def _middle(places: Places) -> int:
    return places[len(places) // 2]


# --- arms with a rate, and their runs ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _FixedArm:
    """An arm at one rate. `number` is the index of the suite's arm; `place` is None for a rate that is not on trial."""

    arm: Arm
    number: int
    place: int | None


#: The rate at which each arm reports, by its number, and its seeds.
_Reports = Mapping[int, tuple[float, Sequence[int]]]


def _reports(suite: Suite, searches: Mapping[int, Search]) -> _Reports:
    """Every arm reports at the rate that its search found; with a time budget none does before the finals."""
    if suite.time_budget_hours is not None:
        return {}
    return {
        n: (search.chosen, suite.arms[n].seeds) for n, search in searches.items() if search.chosen is not None
    }


def _fixed_arms(suite: Suite, searches: Mapping[int, Search], *, reports: _Reports) -> Iterator[_FixedArm]:
    """The suite's arms at single rates: tried rates with the tuning seed, the one that reports with its seeds."""
    for number, arm in enumerate(suite.arms):
        if not arm.seeks_rate:
            yield _FixedArm(arm=arm, number=number, place=None)
            continue
        places: dict[float, int | None] = {rate_of(place): place for place in searches[number].tried}
        reported, seeds = reports.get(number, (None, ()))
        if reported is not None:
            places.setdefault(reported, None)
        for rate, place in sorted(places.items()):
            reporting = seeds if rate == reported else ()
            tuning = suite.tuning_seeds[:1] if place is not None else ()
            yield _FixedArm(arm=_at(arm, rate, seeds=(*reporting, *tuning)), number=number, place=place)


def _at(arm: Arm, rate: float, *, seeds: Sequence[int]) -> Arm:
    settings = Settings.model_validate({**dict(arm.settings), "learning_rate": rate})
    return replace(arm, settings=settings, seeds=tuple(seeds), seeks_rate=False)


def _tuning_runs(
    arms: Sequence[_FixedArm], experiments: Sequence[Experiment], *, seeds: Sequence[int]
) -> dict[tuple[int, int], Experiment]:
    """By arm and place: the run that tries it. Relies on `expand` keeping the order of arms and of their seeds."""
    rest = iter(experiments)
    runs: dict[tuple[int, int], Experiment] = {}
    for each in arms:
        for run in [next(rest) for _ in each.arm.seeds]:
            if each.place is not None and run.seed in seeds:
                runs[each.number, each.place] = run
    return runs


def _by_place(
    number: int, runs: Mapping[tuple[int, int], Experiment], *, merits: Mapping[str, Merit | None]
) -> dict[int, Merit | None]:
    """By place: the merit of the arm's run, if the run has ended."""
    return {
        place: merits[run.id]
        for (of_arm, place), run in runs.items()
        if of_arm == number and run.id in merits
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
    """The fewest and the most runs to come: for each open search the reporting runs, plus one run per further rate.

    The finals of a suite with a time budget are not among them.
    """
    still_open = [number for number, search in searches.items() if not search.is_over]
    reports_at_once = suite.time_budget_hours is None
    reporting = sum(len(suite.arms[number].seeds) for number in still_open) if reports_at_once else 0
    least = sum(_NUM_AROUND for number in still_open if not searches[number].tried)
    most = sum(_most_further_places(searches[number]) for number in still_open)
    return reporting + least, reporting + most


def _most_further_places(search: Search) -> int:
    """The most further places that a search may try: all beyond its grid on one side.

    An arm that waits adds its first three. A search that has left its first grid continues on the same side.
    """
    if not search.tried:
        return _NUM_AROUND + MAX_PLACES_BEYOND
    lowest, highest = _ends(search.start)
    down, up = search.tried[0] - lowest, max(0, highest - search.tried[-1])
    if search.tried[0] >= search.start[0] and search.tried[-1] <= search.start[-1]:
        return max(down, up)
    return down if search.tried[0] < search.start[0] else up


def rate_of(place: int) -> float:
    """The rate of a place: 1 at 0, 2 at 1, 5 at 2, 10 at 3, 0.5 at -1."""
    power, step = divmod(place, len(_MANTISSAS))
    return float(f"{_MANTISSAS[step]}e{power}")


def nearest_place(rate: float) -> int:
    """The place whose rate has the ratio nearest to 1."""
    below = len(_MANTISSAS) * math.floor(math.log10(rate))
    return min(
        range(below, below + len(_MANTISSAS) + 1), key=lambda place: abs(math.log(rate_of(place) / rate))
    )


def published_rate(*, hidden_size: int, power: float, num_steps: int | None) -> float:
    """The rate by the published rule. An unknown number of steps counts as large."""
    is_short = num_steps is not None and num_steps < SHORT_STEPS
    times = TIMES_FULL_WHEN_SHORT if is_short else TIMES_FULL
    return float(FULL_RATE * times * (HIDDEN_SIZE / hidden_size) ** power)


def published_rates(
    config: Mapping[str, Any] | None, *, num_steps: int | None, is_full: bool = False
) -> tuple[float, ...]:
    """The rates by the published rule for a base model with this `config.json`; None if the file is not known.

    A known family has one rate. An unknown family has one rate for each known family, at this model's hidden size. The rates
    are those of an adapter, or a tenth of them for full fine-tuning.
    """
    hidden_size = HIDDEN_SIZE if config is None else int(config.get("hidden_size") or HIDDEN_SIZE)
    share = TIMES_FULL if is_full else 1
    return tuple(
        published_rate(hidden_size=hidden_size, power=power, num_steps=num_steps) / share
        for power in _powers(config) or POWERS.values()
    )


def _powers(config: Mapping[str, Any] | None) -> list[float]:
    """The exponent of the model's family; empty if the rule does not know the family."""
    family = "" if config is None else str(config.get("model_type", ""))
    return [power for name, power in POWERS.items() if family.startswith(name)]


def as_shown(rate: float) -> float:
    """The rate with two digits: more would claim more precision than the rule has."""
    return float(f"{rate:.2g}")


def first_places(config: Mapping[str, Any] | None, *, num_steps: int | None, is_full: bool = False) -> Places:
    """The places to try first for a base model with this `config.json`; None if the file is not known.

    A known family: its rate and a place to each side. An unknown family: from the lowest to the highest rate of the
    known families at this hidden size, and two places to each side.
    """
    places = [nearest_place(rate) for rate in published_rates(config, num_steps=num_steps, is_full=is_full)]
    around = AROUND_KNOWN if _powers(config) else AROUND_UNKNOWN
    return Places(min(places) - around, max(places) + around + 1)
