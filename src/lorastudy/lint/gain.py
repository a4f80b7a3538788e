"""Gain: whether the arms learnt more than the base model and guessing, and whether the margin is smaller than that gain."""

import math
import statistics
from collections.abc import Iterator

from lorastudy.lint.case import Breach, Case, Rule, names
from lorastudy.stats.study import StudyArm, stored_split
from lorastudy.stats.summary import EXACT_MATCH, LOSS, LOSS_BEFORE, SAME_ANSWER, are_equal, scores_by_seed
from lorastudy.stats.trivial import best_not_ahead

#: A gain below this share of the base model's loss is too small, however sure: of 2 nats it is 0.02, or 2 % of the perplexity,
#: and the differences between arms are only a part of that.
LITTLE_SHARE = 0.01


def _hardly_learnt(case: Case) -> Iterator[Breach]:
    reference = case.reference
    if reference is None or not (why := _little(case, reference)):
        return
    arms = [arm for arm in case.arms if _little(case, arm)]
    yield Breach(arms=names(arms), found=why, severity="warning")


def _little(case: Case, arm: StudyArm) -> str:
    """Why the arm's gain over the base model is negligible; empty if it is not, or was not measured."""
    gains, base = _gains(case, arm), _base_loss(case, arm)
    if not gains or base is None:
        return ""
    gain = statistics.fmean(gains)
    did = "lowered" if gain >= 0 else "raised"
    text = f"{arm.name} {did} the base model's held-out loss of {base:.3g} by {abs(gain):.2g} nats per token"
    if gain < LITTLE_SHARE * base:
        return f"{text}, {100 * abs(gain) / base:.1f} % of it"
    if len(gains) > 1:
        from scipy import special  # not at the top: a dry run has no gains and does not need scipy

        error = statistics.stdev(gains) / math.sqrt(len(gains))
        if gain - float(special.stdtrit(len(gains) - 1, 0.975)) * error <= 0:
            return f"{text}, within the noise between {len(gains)} seeds"
    return ""


def _margin_too_large(case: Case) -> Iterator[Breach]:
    """Before a run, against the loss of guessing among all tokens; after it, against what the reference gained."""
    if case.margin is None or case.reference is None or not case.others():
        return
    if case.metric != LOSS:
        if case.margin >= 1:
            yield Breach(
                arms=names(case.others()),
                found=f"a margin of {case.margin:g}, where {case.metric.title.lower()} lies between 0 and 1",
                severity="invalidates",
            )
        return
    gains = _gains(case, case.reference)
    if gains and case.margin >= statistics.fmean(gains):
        yield Breach(
            arms=names(case.others()),
            found=f"a margin of {case.margin:g} nats per token, and {case.reference.name} gained "
            f"{statistics.fmean(gains):.2g} over the base model: the base model itself would be as good within it",
            severity="invalidates",
        )
    size = case.facts_of(case.reference).vocab_size
    if not gains and size is not None and case.margin >= math.log(size):
        yield Breach(
            arms=names(case.others()),
            found=f"a margin of {case.margin:g} nats per token, and guessing among the {size:,} tokens of the vocabulary "
            f"has a loss of {math.log(size):.3g}",
            severity="warning",
        )


def _margin_above_loss(case: Case) -> Iterator[Breach]:
    """After a run only. A share of the gain is smaller than the gain, so for that it is only a note."""
    if case.allowed is None or case.metric != LOSS or case.reference is None or not case.others():
        return
    losses = scores_by_seed(case.reference, case.study, metric=LOSS)
    if losses and case.allowed >= statistics.fmean(losses.values()):
        yield Breach(
            arms=names(case.others()),
            found=f"a margin of {case.allowed:.2g} nats per token, and {case.reference.name} has a loss of "
            f"{statistics.fmean(losses.values()):.2g}: an arm of twice its loss would be as good within it",
            severity="note" if case.margin is None else "warning",
        )


def _gains(case: Case, arm: StudyArm) -> list[float]:
    """By how much the arm lowered the base model's held-out loss, by seed."""
    before = scores_by_seed(arm, case.study, metric=LOSS_BEFORE)
    after = scores_by_seed(arm, case.study, metric=LOSS)
    return [before[seed] - after[seed] for seed in sorted(before.keys() & after.keys())]


def _base_loss(case: Case, arm: StudyArm) -> float | None:
    before = scores_by_seed(arm, case.study, metric=LOSS_BEFORE)
    return statistics.fmean(before.values()) if before else None


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
    by_rows: dict[int, list[StudyArm]] = {}
    for arm in case.arms:
        num_rows = _rows_answered_alike(case, arm)
        if num_rows is not None:
            by_rows.setdefault(num_rows, []).append(arm)
    for num_rows, arms in by_rows.items():
        yield Breach(
            arms=names(arms),
            found=f"every seed gives the same answer to all {num_rows:,} rows of exact match, whose reference answers differ",
            severity="warning",
        )


def _rows_answered_alike(case: Case, arm: StudyArm) -> int | None:
    """The number of rows, if every seed gave all of them one answer; None if not, or if that was right everywhere."""
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
    """The score that all arms have with all seeds, also on the rows that choose; None if scores differ or are few."""
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
        code="LS305",
        title="Hardly anything learnt",
        why="arms that have learnt next to nothing are alike, whatever their rank and modules, so their comparison says nothing "
        "about arms that have learnt the task",
        source="Schulman et al., LoRA Without Regret (Thinking Machines, 2025), where all ranks learn alike at first",
        change="train longer (`max_steps`, `num_train_epochs`) or raise the rate (`learning_rate: auto` looks for one)",
        find=_hardly_learnt,
    ),
    Rule(
        code="LS403",
        title="Margin as large as the gain",
        why='within a margin as large as the whole gain even the untrained base model is as good as any arm, so "as good" says '
        "nothing, and it replaces the verdict on a difference that was shown",
        source="Rothmann et al., Statistics in Medicine 22 (2003), where a margin is a share of what the reference achieves",
        change="state a share of the gain (`margin: 2%`), or a number of nats well below it; you need not run anything again",
        find=_margin_too_large,
    ),
    Rule(
        code="LS404",
        title="Margin above the reference's own loss",
        why="an arm may then have more than twice the reference's loss, so an arm that is as good within the margin may have learnt "
        "far less",
        source="Rothmann et al., Statistics in Medicine 22 (2003), where a margin is a share of what the reference achieves",
        change="state a smaller share of the gain, or a number of nats well below the loss that you expect",
        find=_margin_above_loss,
    ),
    Rule(
        code="LS307",
        title="No better than guessing",
        why="the frequencies of the answers alone score this much, so an arm that does not beat them is not shown to use the "
        "prompts, and arms that all learnt nothing cannot be compared",
        source="Gururangan et al., arXiv 1803.02324, where a classifier that never saw the premise was right on 67 % of SNLI",
        change="train longer or at another rate (`learning_rate: auto`), check that the prompts contain what the answers follow "
        "from, or use no adapter at all",
        find=_no_better_than_guessing,
    ),
    Rule(
        code="LS308",
        title="One answer to every row",
        why="the exact match of an arm that gives every row the same answer is that answer's share of the rows, whatever the arm "
        "learnt, so exact match compares such arms by the frequencies of the labels alone",
        source="Zhao et al., arXiv 2102.09690, where prompted models preferred one label whatever the input",
        change="train longer or at another rate, read the answers in the report, and balance the labels if one of them dominates",
        find=_one_answer,
    ),
    Rule(
        code="LS309",
        title="All scores equal",
        why="equal scores separate neither arms nor learning rates: no verdict is possible, no rate is the best of its grid, and "
        "more seeds with the same score change nothing",
        source="Card et al., arXiv 2010.06595, on how much a metric must move to be seen",
        change="use a metric that moves (`primary_metric: loss`), harder or more rows, or a training that learns something",
        find=_all_equal,
    ),
)
