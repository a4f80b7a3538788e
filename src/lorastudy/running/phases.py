"""What a study does next: a pure function of its plan and of what the store holds.

    while (phase := next_phase(plan, results)) is not None: run it

A phase is a stretch of the run whose packs train side by side. Four sources ask for phases:

- Search: with `learning_rate: auto` the results of one round decide which experiments the next has (`suite.rate_search`).
- Finals: with a time budget the search ends in time, and the arms that may be the best report with fresh seeds
  (`running.finals`).
- Racing: the packs of a round pause at each rung, and arms that are clearly behind are pruned (`running.racing`).
- Balancing: packs of unequal size pause once, and some arms go on in packs of their own (`planning.packing`).

Where none of them asks for a pause, a round is one phase: its packs train to their end. Then the round's adapters are
scored by the metrics that the suite adds, if it adds any: a search may choose by them.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lorastudy.planning.packing import PlannedPack
from lorastudy.planning.study_plan import StudyPlan
from lorastudy.report.numbers import listing, names, plural
from lorastudy.running.finals import FinalsDecision, decide_finals, is_time_up
from lorastudy.running.racing import RungDecision, decide_at
from lorastudy.running.results import Results
from lorastudy.suite.experiment import Experiment
from lorastudy.suite.labels import experiment_labels, labels_of
from lorastudy.suite.question import rung_name
from lorastudy.suite.rate_search import Design

CUT_OFF = "an earlier attempt was cut off"


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Packs that train next, and what was decided just before them."""

    name: str = ""
    """For the user; empty where a study has but one phase."""
    packs: tuple[PlannedPack, ...] = ()
    decisions: tuple[RungDecision, ...] = ()
    """Decisions of a race that led to this phase. They are put on record before its packs run."""
    finals: FinalsDecision | None = None
    """A decision on the finals of a suite with a time budget. The phase has no packs: the finals are the next round."""
    searching: frozenset[str] = frozenset()
    """Experiments that look for a learning rate: that one of them diverges is an answer and no failure."""
    is_scoring: bool = False
    """Whether its packs score stored adapters and train nothing."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """What each experiment is called for a reader, by its id."""


def next_phase(plan: StudyPlan, results: Results) -> Phase | None:
    """What runs next; None once nothing is left that this call can run."""
    source = _racing if plan.suite.rungs else _balancing
    for number, of_round in enumerate(results.design.rounds, start=1):
        phase = source(plan, results, of_round=of_round) or _scoring(results, of_round=of_round)
        if phase is not None and is_time_up(plan, results, of_round=of_round):
            break
        if phase is not None:
            name = ", ".join(filter(None, [_round_name(results.design, of_round, number=number), phase.name]))
            labels = experiment_labels(results.design.of_every_arm, tuning=results.design.tuning)
            return replace(phase, name=name, searching=results.design.tuning, labels=labels)
    finals = decide_finals(plan, results)
    return None if finals is None else Phase(finals=finals)


def _racing(plan: StudyPlan, results: Results, *, of_round: Sequence[Experiment]) -> Phase | None:
    """The phase that trains up to the first rung that some open experiment has not reached.

    Experiments that are behind at an earlier rung do not take part.

    Each call walks the race from its first rung. Decisions that are stored are repeated on the way.
    """
    decisions: list[RungDecision] = []
    for rung in (*plan.suite.rungs, None):
        behind = {pruning.experiment_id for decision in decisions for pruning in decision.prunings}
        going_on = [e for e in of_round if results.is_open(e) and e.id not in behind]
        waiting = [e for e in going_on if rung is None or not _has_reached(e, rung, results=results)]
        if waiting:
            packs = _packs(plan, results, of_round=of_round, waiting=waiting)
            packs = [replace(pack, rungs=plan.suite.rungs, pause_at=rung) for pack in packs]
            labels = labels_of(results.design.of_every_arm, tuning=results.design.tuning)
            name = _race_name(rung, last=decisions[-1] if decisions else None, labels=labels)
            return Phase(name=name, packs=tuple(packs), decisions=tuple(decisions))
        if rung is not None:
            decisions.append(
                decide_at(
                    rung,
                    results.rung_losses.get(rung, {}),
                    suite=plan.suite,
                    of_round=of_round,
                    results=results.stored,
                    decided=results.decided,
                )
            )
    has_new = any(pruning.is_new for decision in decisions for pruning in decision.prunings)
    # Where nobody goes on, the stops must be put on record all the same.
    return Phase(decisions=tuple(decisions)) if has_new else None


def _balancing(plan: StudyPlan, results: Results, *, of_round: Sequence[Experiment]) -> Phase | None:
    """To where the packs pause, then to the end; to the end at once where they are equally long anyway."""
    waiting = [experiment for experiment in of_round if results.is_open(experiment)]
    if not waiting:
        return None
    balance = plan.balance_of(of_round)
    if balance is None:
        return Phase(packs=tuple(_packs(plan, results, of_round=of_round, waiting=waiting)))
    # An experiment without a pause trains to its end in this phase.
    before = [e for e in waiting if results.paused_at.get(e.id, 0.0) < balance.pause_at.get(e.id, 1.0)]
    if before:
        packs = _packs(plan, results, of_round=of_round, waiting=before)
        packs = [replace(pack, pause_at=balance.pause_at.get(pack.experiments[0].id)) for pack in packs]
        return Phase(name="until packs are balanced", packs=tuple(packs))
    packs = _packs(plan, results, of_round=of_round, waiting=waiting, alone=balance.alone)
    packs = [replace(pack, begun=balance.pause_at.get(pack.experiments[0].id, 0.0)) for pack in packs]
    return Phase(name="to the end", packs=tuple(packs))


def _scoring(results: Results, *, of_round: Sequence[Experiment]) -> Phase | None:
    """The round's adapters that lack a metric of the suite."""
    ids = {experiment.id for experiment in of_round}
    packs = [pack for pack in results.to_score if pack.experiments[0].id in ids]
    if not packs:
        return None
    metrics = dict.fromkeys(
        metric.name for pack in packs if pack.scoring is not None for metric in pack.scoring.metrics
    )
    return Phase(name=f"scoring by {listing(metrics)}", packs=tuple(packs), is_scoring=True)


def _packs(
    plan: StudyPlan,
    results: Results,
    *,
    of_round: Sequence[Experiment],
    waiting: Sequence[Experiment],
    alone: Collection[str] = (),
) -> list[PlannedPack]:
    """The plan's packs as far as they wait, each with the run folders that it can go on from.

    Experiments of a pack that can go on from different folders go on apart. Those that are to be `alone` leave
    their packs.
    """
    packs = []
    for planned in plan.packs_of(of_round, only={experiment.id for experiment in waiting}):
        groups: dict[tuple[Path, ...], list[Experiment]] = defaultdict(list)
        for experiment in planned.experiments:
            groups[results.checkpoints.get(experiment.id, ())].append(experiment)
        for folders, group in groups.items():
            together = [experiment for experiment in group if experiment.id not in alone]
            apart = [[experiment] for experiment in group if experiment.id in alone]
            packs += [
                PlannedPack(
                    experiments=tuple(part),
                    resume_from=folders,
                    reason=CUT_OFF if any(e.id in results.cut_off for e in part) else None,
                )
                for part in (together, *apart)
                if part
            ]
    return packs


def _has_reached(experiment: Experiment, rung: float, *, results: Results) -> bool:
    """Whether it was scored at the rung, or paused there in this call: no phase is run twice."""
    was_scored = experiment.id in results.rung_losses.get(rung, {})
    has_paused = experiment.id in results.ended and results.paused_at.get(experiment.id, 0.0) >= rung
    return was_scored or has_paused


def _round_name(design: Design, of_round: Sequence[Experiment], *, number: int) -> str:
    """What a round of a search is for; nothing where there is no search."""
    if not design.tuning:
        return ""
    num_tuning = sum(experiment.id in design.tuning for experiment in of_round)
    num_reporting = len(of_round) - num_tuning
    if not num_reporting:
        does = "looking for learning rates"
    elif design.finals is not None:
        does = f"the finals: {plural(len(design.finals.finalists), 'arm')} with {plural(len(design.finals.seeds), 'fresh seed')}"
    elif not num_tuning:
        does = "at the learning rates found"
    else:
        does = f"looking on for learning rates ({num_tuning}) and at those found ({num_reporting})"
    return f"round {number}, {does}"


def _race_name(rung: float | None, *, last: RungDecision | None, labels: Mapping[str, str]) -> str:
    to = "the end" if rung is None else f"{rung_name(rung)} of the steps"
    arms = dict.fromkeys(labels[pruning.arm] for pruning in last.prunings) if last is not None else {}
    return f"racing to {to}" + (f", without {names(arms)}, stopped as clearly behind" if arms else "")
