"""Guessing: whether arms learnt more than an answer that needs no model, and whether their scores tell them apart at all."""

from collections.abc import Iterator

from lorastudy.lint.case import Case, names
from lorastudy.lint.finding import Breach, Rule
from lorastudy.stats.splits import stored_split
from lorastudy.stats.study import Arm
from lorastudy.stats.summary import EXACT_MATCH, SAME_ANSWER, are_equal, scores_by_seed
from lorastudy.stats.trivial import best_not_ahead


def _no_better_than_guessing(case: Case) -> Iterator[Breach]:
    best = best_not_ahead(case.trivial)
    if best is None:
        return
    concerned = {one.arm for one in case.trivial if not one.is_beaten}
    arms = [arm for arm in case.arms if arm.name in concerned]
    unit = f" {case.metric.unit}" if case.metric.is_in_units else ""
    has = "has" if best.predictor == "constant" else "have"
    yield Breach(
        arms=names(arms),
        found=f"{best.name} {has} {case.metric.title.lower()} {best.score:.3g}{unit} without a model; "
        f"{'of these arms the best, ' if len(arms) > 1 else ''}{best.arm}{',' if len(arms) > 1 else ''} has "
        f"{best.arm_score:.3g} and is not shown to be better",
        severity="warning",
    )


def _one_answer(case: Case) -> Iterator[Breach]:
    by_rows: dict[int, list[Arm]] = {}
    for arm in case.arms:
        num_rows = _rows_answered_alike(case, arm)
        if num_rows is not None:
            by_rows.setdefault(num_rows, []).append(arm)
    for num_rows, arms in by_rows.items():
        yield Breach(
            arms=names(arms),
            found=f"with every seed the same answer to all {num_rows:,} rows that exact match asks, though they ask for others",
            severity="warning",
        )


def _rows_answered_alike(case: Case, arm: Arm) -> int | None:
    """How many rows got one answer from each of the arm's seeds; None where they did not, or where all of it was right."""
    alike, right = (scores_by_seed(arm, case.study, metric=metric) for metric in (SAME_ANSWER, EXACT_MATCH))
    if not alike or set(alike.values()) != {1.0} or 1.0 in right.values():
        return None
    key = (stored_split(SAME_ANSWER.split, case.study), SAME_ANSWER.name)
    counts = [run.scores[key].num_items for run in arm.completed if run.seed in alike]
    return counts[0] if (counts[0] or 0) > 1 else None


def _all_equal(case: Case) -> Iterator[Breach]:
    score = equal_scores(case)
    if score is None:
        return
    unit = f" {case.metric.unit}" if case.metric.is_in_units else ""
    yield Breach(
        arms=names(case.arms),
        found=f"{case.metric.title.lower()} is {score:.4g}{unit} for every arm and seed",
        severity="warning",
    )


def equal_scores(case: Case) -> float | None:
    """The one score that all arms have with all seeds, on the rows that choose too; None where scores differ or are few."""
    values = [
        value
        for arm in case.study.arms
        for choosing in (False, True)
        for value in scores_by_seed(arm, case.study, metric=case.metric, choosing=choosing).values()
    ]
    num_scored = sum(bool(scores_by_seed(arm, case.study, metric=case.metric)) for arm in case.arms)
    return values[0] if num_scored > 1 and are_equal(values) else None


RULES = (
    Rule(
        code="LS307",
        title="No better than guessing",
        why="the answers' frequencies alone score this much, so an arm that does not beat them has not been shown to use the "
        "prompts, and arms that all learnt nothing are as good as each other",
        source="Gururangan et al., arXiv 1803.02324, where a classifier that never saw the premise was right on 67 % of SNLI",
        change="train longer or at another rate (`learning_rate: auto`), see that prompts hold what the answers follow from, or "
        "take no arm at all",
        find=_no_better_than_guessing,
    ),
    Rule(
        code="LS308",
        title="One answer to every row",
        why="an arm that says the same to every row has an exact match as large as that answer's share, whatever it learnt, so "
        "exact match tells such arms apart by the labels' frequencies and by nothing else",
        source="Zhao et al., arXiv 2102.09690, where prompted models preferred one label whatever the input",
        change="train longer or at another rate, read the answers in the report, and balance the labels if one of them rules",
        find=_one_answer,
    ),
    Rule(
        code="LS309",
        title="Scores that are all equal",
        why="equal scores tell no arm and no learning rate from another: no verdict is possible, no rate is the best of its grid, "
        "and more seeds of the same score change nothing",
        source="Card et al., arXiv 2010.06595, on how much a metric must move to be seen",
        change="take a metric that moves (`primary_metric: loss`), harder or more rows, or a training that learns something",
        find=_all_equal,
    ),
)
