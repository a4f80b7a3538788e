"""Gain: whether the arms learnt enough for a comparison to say anything, and whether the margin is smaller than that."""

import math
import statistics
from collections.abc import Iterator

from lorastudy.lint.case import Case, names
from lorastudy.lint.finding import Breach, Rule
from lorastudy.stats.study import Arm
from lorastudy.stats.summary import LOSS, LOSS_BEFORE, scores_by_seed

#: A gain below this share of the base model's loss is little, however sure: of 2 nats it is 0.02, 2 % of the perplexity,
#: and what tells the arms apart is a part of that.
LITTLE_SHARE = 0.01


def _hardly_learnt(case: Case) -> Iterator[Breach]:
    reference = case.reference
    if reference is None or not (why := _little(case, reference)):
        return
    arms = [arm for arm in case.arms if _little(case, arm)]
    yield Breach(arms=names(arms), found=why, severity="warning")


def _little(case: Case, arm: Arm) -> str:
    """Why the arm's gain over the base model is as good as none; empty where it is not, or was not measured."""
    gains, base = _gains(case, arm), _base_loss(case, arm)
    if not gains or base is None:
        return ""
    gain = statistics.fmean(gains)
    told = f"{arm.name} took {gain:.2g} nats per token off the base model's held-out loss of {base:.3g}"
    if gain < LITTLE_SHARE * base:
        return f"{told}, {100 * gain / base:.1f} % of it"
    if len(gains) > 1:
        from scipy import special  # a dry run, which asks before there are gains, goes without

        error = statistics.stdev(gains) / math.sqrt(len(gains))
        if gain - float(special.stdtrit(len(gains) - 1, 0.975)) * error <= 0:
            return f"{told}, within the noise between {len(gains)} seeds"
    return ""


def _margin_too_large(case: Case) -> Iterator[Breach]:
    """Before a run by what no model can lose; after it by what the reference gained."""
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
            found=f"a margin of {case.margin:g} nats per token, and who guesses among the {size:,} tokens of the vocabulary "
            f"loses {math.log(size):.3g}",
            severity="warning",
        )


def _margin_above_loss(case: Case) -> Iterator[Breach]:
    """After a run. A share of the gain is smaller than the gain, so it is no more than worth a note."""
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


def _gains(case: Case, arm: Arm) -> list[float]:
    """What the arm took off the base model's held-out loss, by seed."""
    before = scores_by_seed(arm, case.study, metric=LOSS_BEFORE)
    after = scores_by_seed(arm, case.study, metric=LOSS)
    return [before[seed] - after[seed] for seed in sorted(before.keys() & after.keys())]


def _base_loss(case: Case, arm: Arm) -> float | None:
    before = scores_by_seed(arm, case.study, metric=LOSS_BEFORE)
    return statistics.fmean(before.values()) if before else None


RULES = (
    Rule(
        code="LS305",
        title="Hardly anything learnt",
        why="arms that stay at the base model's loss differ in nothing yet, and what tells them apart later, rank or modules, "
        "shows only once there was something to hold",
        source="Schulman et al., LoRA Without Regret (Thinking Machines, 2025), where all ranks learn alike at first",
        change="train longer (`max_steps`, `num_train_epochs`) or raise the rate (`learning_rate: auto` looks for one)",
        find=_hardly_learnt,
    ),
    Rule(
        code="LS403",
        title="Margin that cannot be missed",
        why="within a margin as large as the whole gain the untrained base model is as good as any arm, so that word says "
        "nothing, and it takes the place of the one for a difference that was shown",
        source="Rothmann et al., Statistics in Medicine 22 (2003), where a margin is a share of what the reference achieves",
        change="state a share of the gain (`margin: 2%`), or a number of nats well below it; the runs stand as they are",
        find=_margin_too_large,
    ),
    Rule(
        code="LS404",
        title="Margin above the reference's own loss",
        why="an arm may then lose more than the reference has to lose, so what is as good within the margin may be far from it in "
        "all that is left to learn",
        source="Rothmann et al., Statistics in Medicine 22 (2003), where a margin is a share of what the reference achieves",
        change="state a smaller share of the gain, or a number of nats well below the loss that you expect",
        find=_margin_above_loss,
    ),
)
