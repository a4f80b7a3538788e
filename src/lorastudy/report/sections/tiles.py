"""The key figures of a study, for the head of the page: what to use, how good it is, what it needs, how much was run.

They are numbers of the tables below, written as there. What was not measured has no tile.
"""

from collections.abc import Callable
from typing import Literal

from lorastudy.analysis.overview import Analysis
from lorastudy.recommend.decision import ArmDecision, decide
from lorastudy.report.document import Tile, Tiles
from lorastudy.report.numbers import ABSENT, duration, mean_sd, number, percent, percent_more, plural, size
from lorastudy.report.sections.method import counts_by_severity
from lorastudy.report.sections.results import metric_decimals, rows_that_report
from lorastudy.stats.summary import ArmSummary, Spread


def key_figures(analysis: Analysis) -> Tiles:
    """The tiles of the arm that the decision names, then those of the study."""
    decision = decide(analysis)
    of_arm = [] if decision.arm is None else _of_arm(analysis, decision.arm)
    answered: Literal["decided", "open"] = "decided" if decision.is_recommended else "open"
    return Tiles(
        status="none" if decision.arm is None else answered,
        tiles=(_answer(decision), *of_arm, _runs(analysis, decision), _fairness(analysis)),
    )


def _answer(decision: ArmDecision) -> Tile:
    if decision.arm is None:
        return Tile(title="Use", value=ABSENT, note="no arm can be named")
    if decision.status != "decided":
        return Tile(title="Use meanwhile", value=decision.arm, note="not decided yet")
    if decision.untuned:
        return Tile(title="At the rates tried", value=decision.arm, note="no rate was tuned")
    return Tile(title="Use", value=decision.arm, note=decision.reason)


def _of_arm(analysis: Analysis, arm: str) -> list[Tile]:
    """Quality and costs of the arm, each beside the reference's."""
    summary = analysis.summary(arm)
    other = analysis.summary(analysis.reference.name) if analysis.reference is not None else None
    if other is not None and other.arm.name == arm:
        other = None
    beside = other if analysis.costs_are_comparable else None
    costs = (
        _cost(
            "Peak memory, alone",
            lambda one: one.costs.peak_memory_bytes,
            of=summary,
            beside=beside,
            words=size,
        ),
        _cost(
            "One step, alone", lambda one: one.costs.step_seconds, of=summary, beside=beside, words=duration
        ),
        _cost("Adapter", lambda one: one.costs.adapter_bytes, of=summary, beside=other, words=size),
        _trained(summary),
    )
    return [tile for tile in (_quality(analysis, summary, other=other), *costs) if tile is not None]


def _quality(analysis: Analysis, summary: ArmSummary, *, other: ArmSummary | None) -> Tile | None:
    metric = analysis.primary
    spread = summary.score(metric)
    if spread is None:
        return None
    decimals = metric_decimals(analysis, metric)
    theirs = None if other is None else other.score(metric)
    beside = "" if other is None or theirs is None else f"{other.arm.name}: {number(theirs.mean, decimals)}"
    where = ", ".join(
        part for part in (metric.unit if metric.is_in_units else "", rows_that_report(analysis)) if part
    )
    return Tile(
        title=metric.title,
        value=mean_sd(spread, decimals),
        note="; ".join(part for part in (where, beside) if part),
    )


def _cost(
    title: str,
    read: Callable[[ArmSummary], Spread | None],
    *,
    of: ArmSummary,
    beside: ArmSummary | None,
    words: Callable[[float], str],
) -> Tile | None:
    """The median of a cost, and how much more it is than the reference's."""
    spread, other = read(of), None if beside is None else read(beside)
    if spread is None:
        return None
    note = ""
    if beside is not None and other is not None and other.median:
        note = f"{percent_more(spread.median, other.median)} against {beside.arm.name}"
    return Tile(title=title, value=words(spread.median), note=note)


def _trained(summary: ArmSummary) -> Tile | None:
    trainable, total = summary.costs.trainable_parameters, summary.costs.total_parameters
    if trainable is None or total is None:
        return None
    share = percent(trainable.median / total.median, decimals=2)
    return Tile(
        title="Trained", value=share, note=f"{trainable.median:,.0f} of {total.median:,.0f} parameters"
    )


def _runs(analysis: Analysis, decision: ArmDecision) -> Tile:
    study = analysis.study
    num_runs = f"{len(study.completed)} of {plural(len(study.results), 'run')} completed"
    if decision.arm is None:
        return Tile(title="Arms", value=str(len(study.reported_arms)), note=num_runs)
    runs = study.reporting_runs(study.arm(decision.arm))
    num_completed = sum(run.status == "completed" for run in runs)
    return Tile(title="Seeds", value=str(num_completed), note=num_runs)


def _fairness(analysis: Analysis) -> Tile:
    if not analysis.lint:
        return Tile(title="Fairness", value="no breach")
    counts = counts_by_severity(analysis.lint)
    if len({finding.severity for finding in analysis.lint}) == 1:
        return Tile(title="Fairness", value=counts)
    return Tile(title="Fairness", value=plural(len(analysis.lint), "finding"), note=counts)
