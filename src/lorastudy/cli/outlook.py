"""How much a suite will be before it runs: its experiments in all, and the training time where steps were timed."""

import shlex
from collections.abc import Sequence

from lorastudy.cli.estimating import SuitePlan
from lorastudy.executors import Executor
from lorastudy.experiments.rate_search import Design
from lorastudy.planner.handover import handover
from lorastudy.planner.packing import PlannedPack
from lorastudy.report.numbers import duration, listing, plural
from lorastudy.spec.experiment import Experiment
from lorastudy.spec.racing import rung_name
from lorastudy.spec.suite import Suite


def size_line(planned: Design, missing: Sequence[Experiment], *, num_packs: int) -> str:
    """What is known by now, and what of it is done."""
    total = len(planned.experiments)
    return (
        f"{plural(total, 'experiment')}, {total - len(missing)} of them done; "
        f"{len(missing)} to run in {plural(num_packs, 'pack')}. An experiment is an arm with one seed."
    )


def outlook(
    suite: Suite, planned: Design, *, packs: Sequence[PlannedPack], predicted: SuitePlan, executor: Executor
) -> list[str]:
    """What comes of the suite besides the packs that are known by now, and how long all of it may train."""
    return [
        *_search(planned, suite=suite),
        *_race(suite),
        *_handover(suite, packs=packs, executor=executor),
        *_time(suite, planned, packs=packs, predicted=predicted, num_at_once=executor.num_packs_at_once),
    ]


def _search(planned: Design, *, suite: Suite) -> list[str]:
    """What comes after the experiments that are known by now, where learning rates are looked for."""
    if not planned.num_open:
        return []
    least, most = (len(planned.experiments) + more for more in planned.to_come)
    arms = plural(planned.num_open, "arm")
    looks, report = ("looks", "reports") if planned.num_open == 1 else ("look", "report")
    note = (
        f"learning_rate auto: {arms} {looks} for a rate on the held-out rows, with the seed {suite.tuning_seeds[0]}, each from the rate "
        f"that its nearest neighbour found, and then {report} at it: {least} "
        "experiments in all. While the best rate lies on the edge of those tried the next one is tried too, so it may be up "
        f"to {most}"
    )
    return [note]


def _race(suite: Suite) -> list[str]:
    """What racing will do, and that it is no certainty."""
    if not suite.rungs:
        return []
    at = listing(map(rung_name, suite.rungs))
    note = (
        f"racing: after {at} of the steps all packs pause and are scored on the held-out rows; arms that are clearly "
        "behind are stopped there. docs/science.md says how often that was wrong"
    )
    return [note]


def _handover(suite: Suite, *, packs: Sequence[PlannedPack], executor: Executor) -> list[str]:
    """That packs pause once to become even."""
    if suite.rungs or not executor.hands_over:
        return []
    change = handover(packs, num_at_once=executor.num_packs_at_once)
    names = [e.name for pack in packs for e in pack.experiments if change and e.id in change.alone]
    return (
        [f"the packs pause once, and {listing(names)} changes workers, so that none stands idle"]
        if names
        else []
    )


def _time(
    suite: Suite, planned: Design, *, packs: Sequence[PlannedPack], predicted: SuitePlan, num_at_once: int
) -> list[str]:
    """The packs' own times added up, and as much again for each experiment that is still to come."""
    seconds = [pack_seconds(predicted, pack) for pack in packs]
    known = [each for each in seconds if each is not None]
    if not packs or not predicted.estimators:
        return []
    if len(known) < len(seconds):
        engines = {each.engine.name for pack in packs if (each := predicted.estimate(pack)) is not None}
        if "reference" in engines:
            return ["training time: not predicted for the reference engine"]
        command = shlex.join(["lorastudy", "estimate", "--suite", str(suite.path or "FILE"), "--calibrate"])
        return [f"training time: not known before steps are timed here: {command}"]
    shown = sum(known)
    words = f"about {duration(shown)} for these packs, one after another"
    if planned.num_open:
        of_one = shown / sum(len(pack.experiments) for pack in packs)
        least, most = (shown + of_one * more for more in planned.to_come)
        words += f"; with those to come {duration(least)}, or up to {duration(most)} where the search goes on"
    if suite.rungs:
        words += "; less where racing stops arms"
    if num_at_once > 1:
        words += f". {num_at_once} packs train side by side"
    return [f"training time: {words}. Loading, measuring and scoring come on top"]


def pack_seconds(predicted: SuitePlan, pack: PlannedPack) -> float | None:
    """Predicted seconds of a pack's training; None where no step was timed."""
    estimate = predicted.estimate(pack)
    return None if estimate is None else estimate.train_seconds
