"""The answer of a suite with a time budget, at any moment: the adapter to use, why, and what another hour would buy.

Once a verdict is there, it is the answer. Before that the answer is preliminary: the arm to use meanwhile, or during the search the
arm with the best validation score so far.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from lorastudy.errors import StudyError
from lorastudy.planning.design import Designer, finals_decision
from lorastudy.protocol.jobs import AdapterOrigin
from lorastudy.recommend.adapter import adapter_to_use
from lorastudy.recommend.decision import decide
from lorastudy.report.findings.wording import least_needed
from lorastudy.report.numbers import duration, plural
from lorastudy.report.read import read_report
from lorastudy.report.sections.front import StudySummary
from lorastudy.running.adapters import original_folder, publish
from lorastudy.store import ExperimentTracker
from lorastudy.store.views import ExperimentResult, StoredDecision
from lorastudy.suite.labels import labels_of, without_rate
from lorastudy.suite.rate_search import Design
from lorastudy.suite.suite import Suite

#: The folder of the adapter to use, in the output folder.
BEST = "best"
#: Reasons not to use any adapter.
_USE_NONE = frozenset({"harm", "not shown to help", "no better than guessing"})


@dataclass(frozen=True, kw_only=True)
class TunedAnswer:
    """What is known so far."""

    taken: ExperimentResult | None
    """The run whose adapter to use; None if no adapter is shown to help."""
    label: str
    """What its arm is called."""
    why: str
    """Why this arm and this seed, without a full stop."""
    is_preliminary: bool
    left_out: tuple[str, ...] = ()
    """Labels of the arms that were clearly behind on the validation rows."""
    num_untried: int = 0
    """Arms for which the time did not suffice."""
    next_hour: str = ""
    """What another hour would buy; empty if that is not known."""
    summary: StudySummary | None = None
    """The verdict in a few lines; None before an arm has run with fresh seeds."""


def tuned_answer(suite: Suite, *, tracker: ExperimentTracker) -> TunedAnswer | None:
    """The answer by now; None if no run has a score yet."""
    design = Designer(suite=suite).by_now(tracker)
    if not design.standings:
        return None
    results = {one.experiment_id: one for one in tracker.get_all_experiments(suite_name=suite.name)}
    labels = labels_of(design.of_every_arm, tuning=design.tuning)
    reporting = [results[each.id] for each in design.reporting if each.id in results]
    if not any(one.status == "completed" for one in reporting):
        best = min(design.standings, key=lambda one: one.merit)
        taken = results[best.experiment_id]
        return TunedAnswer(
            taken=taken,
            label=labels[taken.arm],
            why="the best validation score so far, from one seed; no arm has run with fresh seeds yet",
            is_preliminary=True,
        )
    found = _from_verdicts(suite.name, tracker=tracker)
    decided = finals_decision(suite, tracker)
    if decided is None:
        return found
    of_run = {
        each.id: without_rate(labels[each.arm], each.settings.learning_rate) for each in design.experiments
    }
    by_number = {one.arm: of_run[one.experiment_id] for one in design.standings}
    return dataclasses.replace(
        found,
        left_out=tuple(by_number[number] for number in decided.content["behind"]),
        num_untried=len(suite.arms) - len(design.standings),
        next_hour=f"{_next_hour(design, decided)}{found.next_hour}",
    )


def _from_verdicts(suite_name: str, *, tracker: ExperimentTracker) -> TunedAnswer:
    """The arm of the decision, else the first one that reports. `recommend.adapter` chooses the seed."""
    report = read_report(tracker, suite_name=suite_name)
    (studied,), (summary,) = report.studies, report.summaries
    analysis, study = studied.analysis, studied.analysis.study
    decision = decide(analysis)
    if decision.reason in _USE_NONE:
        return TunedAnswer(taken=None, label="", why=decision.reason, is_preliminary=True, summary=summary)
    arm = decision.arm or next(one.name for one in study.reported_arms if one.completed)
    choice = adapter_to_use(study, study.arm(arm), metric=analysis.primary)
    pair = least_needed(analysis.primary_comparisons)
    lacks = "" if decision.is_recommended or pair is None else f"; {pair.more} would decide"
    because = "the arm of the verdict" if decision.is_recommended else "the arm to use until it is decided"
    return TunedAnswer(
        taken=None if choice is None else tracker.get_experiment(choice.experiment_id),
        label=arm,
        why=because if choice is None else f"{because}; {choice.why}",
        is_preliminary=not decision.is_recommended,
        next_hour=lacks,
        summary=summary,
    )


def _next_hour(design: Design, decided: StoredDecision) -> str:
    """`about 12 more seeds of each of 3 arms`, or as many further runs, at the pace of the runs so far."""
    run_seconds, finals = float(decided.content["run_seconds"]), design.finals
    if not run_seconds or finals is None:
        return ""
    num_runs = int(3600 / run_seconds)
    num_seeds = num_runs // len(finals.finalists)
    if not num_seeds:
        return f"less than one more run of each of {plural(len(finals.finalists), 'arm')}: a run takes {duration(run_seconds)}"
    return f"about {plural(num_seeds, 'more seed')} of each of {plural(len(finals.finalists), 'arm')}"


def publish_best(answer: TunedAnswer, *, output: Path) -> Path | None:
    """Copy the adapter into `best` of the output folder, and return that; None if there is none to use, or it is gone.

    Raises:
        StudyError: something else than an adapter lies there.
    """
    adapter = None if answer.taken is None else original_folder(answer.taken)
    if adapter is None:
        return None
    place = output / BEST
    is_empty = place.is_dir() and not any(place.iterdir())
    if place.exists() and not is_empty and AdapterOrigin.read(place) is None:
        raise StudyError(
            f"{place}: is not an adapter of lorastudy; move it away, or name another --output-dir"
        )
    place.parent.mkdir(parents=True, exist_ok=True)
    publish(adapter, place)
    return place
