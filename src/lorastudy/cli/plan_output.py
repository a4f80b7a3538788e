"""A plan as text: what a suite will be before it runs, its packs, and the training time where steps were timed."""

import shlex
from collections.abc import Sequence

from lorastudy.cli.console import PlainConsole
from lorastudy.cli.estimating import pack_line
from lorastudy.lint.finding import arms_in_words
from lorastudy.planning.packing import PlannedPack
from lorastudy.planning.predictions import Predictions
from lorastudy.planning.study_plan import StudyPlan
from lorastudy.planning.suite_facts import trivial_lines
from lorastudy.report.numbers import duration, listing, plural
from lorastudy.suite.base_model import is_hub_model
from lorastudy.suite.experiment import Experiment
from lorastudy.suite.question import rung_name
from lorastudy.suite.rate_search import Design
from lorastudy.suite.suite import Suite


def show_plan(plan: StudyPlan) -> None:
    """Print what would run: packs, experiments, and which results are there already."""
    suite, experiments = plan.suite, plan.design.of_every_arm
    console = PlainConsole()
    console.print(suite.name, style="bold", end="")
    console.print(f" ({suite.experiment_type})  base model: {_shared(experiments, 'base_model')}")
    console.print(size_line(plan))
    notes = [*plan.notes, *_on_the_hub(experiments), *outlook(plan)]
    for line in [*(f"note: {note}" for note in notes), *_findings(plan)]:
        console.print(line)
    for line in [*plan.predicted.adapted.lines(), *trivial_lines(plan.predicted.rows.read)]:
        console.print(line)
    for number, pack in enumerate(plan.packs, start=1):
        console.print(f"\npack {number}: {plural(len(pack.experiments), 'experiment')} on one base")
        estimate = plan.predicted.estimate(pack)
        if estimate is not None:
            console.print(f"  {pack_line(estimate)}")
        for experiment in pack.experiments:
            console.print(f"  {experiment.name:<40} {_summary(experiment)}  {experiment.id}")


def size_line(plan: StudyPlan) -> str:
    """What is known by now, and what of it is done."""
    total, num_missing = len(plan.design.experiments), len(plan.missing)
    return (
        f"{plural(total, 'experiment')}, {total - num_missing} of them done; "
        f"{num_missing} to run in {plural(len(plan.packs), 'pack')}. An experiment is an arm with one seed."
    )


def outlook(plan: StudyPlan) -> list[str]:
    """What comes of the suite besides the packs that are known by now, and how long all of it may train."""
    return [*_search(plan.design, suite=plan.suite), *_race(plan.suite), *_balance(plan), *_time(plan)]


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


def _balance(plan: StudyPlan) -> list[str]:
    """That packs pause once to become equally long."""
    alone = frozenset() if plan.balance is None else plan.balance.alone
    names = [experiment.name for experiment in plan.missing if experiment.id in alone]
    return (
        [f"the packs pause once, and {listing(names)} changes workers, so that none stands idle"]
        if names
        else []
    )


def _time(plan: StudyPlan) -> list[str]:
    """The packs' own times added up, and as much again for each experiment that is still to come."""
    suite, planned, packs, predicted = plan.suite, plan.design, plan.packs, plan.predicted
    num_at_once = plan.num_packs_at_once
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


def pack_seconds(predicted: Predictions, pack: PlannedPack) -> float | None:
    """Predicted seconds of a pack's training; None where no step was timed."""
    estimate = predicted.estimate(pack)
    return None if estimate is None else estimate.train_seconds


def _on_the_hub(experiments: Sequence[Experiment]) -> list[str]:
    return [
        f"base model {name}: taken for an id on the hub; whether it can be had is found out when the suite runs"
        for name in sorted({experiment.settings.base_model for experiment in experiments})
        if is_hub_model(name)
    ]


def _findings(plan: StudyPlan) -> list[str]:
    """The linter's findings, a line each; `lorastudy check` has the reasons."""
    lines = [
        f"{finding.code} {finding.severity}: {finding.found} ({arms_in_words(finding.arms, num_arms=plan.num_arms)})"
        for finding in plan.findings
    ]
    return [*lines, "`lorastudy check FILE` says why that is unfair and what to change"] if lines else []


def _shared(experiments: Sequence[Experiment], key: str) -> str:
    return ", ".join(sorted({str(getattr(experiment.settings, key)) for experiment in experiments}))


def _summary(experiment: Experiment) -> str:
    settings = experiment.settings
    targets = settings.target_modules
    names = targets if isinstance(targets, str) else ",".join(targets)
    length = (
        f"{settings.max_steps} steps" if settings.max_steps else f"{settings.num_train_epochs or 1:g} epochs"
    )
    return (
        f"r={settings.lora_rank} alpha={settings.lora_alpha_value:g} {names} lr={settings.learning_rate:g} "
        f"{settings.quantization} seed={experiment.seed} {length}"
    )
