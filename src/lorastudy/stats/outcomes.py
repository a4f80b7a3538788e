"""What a run without a score means for a verdict: a lost one nothing, a diverged one a bad outcome.

**Lost** is a run that was killed, ran out of memory or crashed: that says nothing of its configuration. A pair is compared on
the seeds that both arms completed. Verdicts take six seeds, so that one lost run of six would leave none to be had however
clear the rest; five seeds of a study of six or more are therefore enough, if all five point one way and the t test shows it
at its own level.

**Diverged** is what a configuration did with a seed, the worst that it can do. It is in no mean, so a verdict also takes a
sign test over all seeds on which the diverged arm counts as beaten (by the other arm, or by the margin); where both
diverged, neither is. Two-sided at .05 for "better", one-sided for "as good within the margin". An arm that diverged once can
thus be better with nine seeds, twice with twelve. So "better" says that it is better on most new seeds, divergence included, and
the rate of divergence stands beside the verdict. A ladder of ranks stops at a rank whose step this takes away.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from scipy import special

from lorastudy.stats.comparison import Comparison, Divergence, MoreSeeds, direction
from lorastudy.stats.study import Study, StudyArm
from lorastudy.stats.summary import Metric, run_seconds, scores_by_seed
from lorastudy.stats.verdicts import ALPHA, Rules, Word, word
from lorastudy.suite.question import MIN_SEEDS

#: More seeds than this are not asked for because of a divergence.
_MOST_SEEDS = 1000


def divergence_of(study: Study, arm: StudyArm) -> Divergence | None:
    """How many of the arm's reporting seeds diverged; None where none did. Lost and open runs are no seeds of it."""
    diverged, completed = diverged_seeds(study, arm), completed_seeds(study, arm)
    if not diverged:
        return None
    return Divergence(arm=arm.name, num_diverged=len(diverged), num_seeds=len(diverged | completed))


def diverged_seeds(study: Study, arm: StudyArm) -> frozenset[int]:
    """Seeds of the arm's reporting runs that diverged."""
    return frozenset(run.seed for run in study.reporting_runs(arm) if run.failure_kind == "diverged")


def completed_seeds(study: Study, arm: StudyArm) -> frozenset[int]:
    """Seeds of the arm's reporting runs that were completed."""
    return frozenset(run.seed for run in study.reporting_runs(arm) if run.status == "completed")


def judged_by_outcomes(
    study: Study, comparisons: Sequence[Comparison], *, rules: Rules
) -> tuple[Comparison, ...]:
    """The comparisons with what lost and diverged runs give to their verdicts or take from them."""
    judged = [
        _with_divergence(study, one) if one.diverged else _with_lost_run(study, one, rules=rules)
        for one in (replace(one, diverged=_divergences(study, one)) for one in comparisons)
    ]
    return tuple(_down_the_ladder(judged, comparisons, rules=rules))


def is_borne_out(study: Study, pair: tuple[StudyArm, StudyArm], *, metric: Metric) -> bool:
    """Whether the sign test over all seeds bears out which of two arms is ahead; so it is where neither diverged."""
    if not any(diverged_seeds(study, arm) for arm in pair):
        return True
    ours, theirs = (scores_by_seed(arm, study, metric=metric) for arm in pair)
    sign = direction(metric)
    costs = [sign * (ours[seed] - theirs[seed]) for seed in ours.keys() & theirs.keys()]
    fewer, more = sorted(wins_and_losses(study, pair, costs=costs))
    return 2 * sign_p(more, fewer) <= ALPHA


def wins_and_losses(
    study: Study, pair: tuple[StudyArm, StudyArm], *, costs: Sequence[float], margin: float = 0.0
) -> tuple[int, int]:
    """On how many seeds the first arm is better than the second plus a margin, and on how many worse; divergence is worst.

    `costs` are the first arm's less the second's on the seeds that both completed.
    """
    arm, reference = pair
    ours, theirs = (diverged_seeds(study, one) for one in pair)
    won = sum(cost < margin for cost in costs) + len(theirs & completed_seeds(study, arm))
    lost = sum(cost > margin for cost in costs) + len(ours & completed_seeds(study, reference))
    return won, lost


def _of_pair(study: Study, comparison: Comparison, *, margin: float = 0.0) -> tuple[int, int]:
    sign = direction(comparison.metric)
    costs = [sign * value for value in comparison.differences.values()]
    pair = (study.arm(comparison.arm), study.arm(comparison.reference))
    return wins_and_losses(study, pair, costs=costs, margin=margin)


def sign_p(wins: int, losses: int) -> float:
    """One-sided: the chance of so many wins or more where a win is as likely as a loss.

    Equal to `scipy.stats.binomtest(wins, wins + losses, alternative="greater").pvalue`.
    """
    return 1.0 if not wins else float(special.bdtrc(wins - 1, wins + losses, 0.5))


def _divergences(study: Study, comparison: Comparison) -> tuple[Divergence, ...]:
    pair = (divergence_of(study, study.arm(name)) for name in (comparison.arm, comparison.reference))
    return tuple(one for one in pair if one is not None)


def _with_divergence(study: Study, comparison: Comparison) -> Comparison:
    """The verdict, where the sign test over all seeds bears it; else it is open."""
    if comparison.verdict in {"cannot tell", "invalid"}:
        return comparison
    assert comparison.cost is not None
    won, lost = _of_pair(study, comparison)
    arm_ahead = comparison.cost < 0
    shown = comparison.difference_shown and 2 * sign_p(*((won, lost) if arm_ahead else (lost, won))) <= ALPHA
    within = _of_pair(study, comparison, margin=comparison.margin or 0.0)
    no_worse = comparison.no_worse and sign_p(*within) <= ALPHA
    if shown == comparison.difference_shown and no_worse == comparison.no_worse:
        return comparison
    verdict = word(arm_ahead=arm_ahead, shown=shown, no_worse=no_worse)
    if verdict == "cannot tell":
        why = f"{' and '.join(one.words for one in comparison.diverged)}; counted as beaten there, that is too few seeds"
        return replace(
            comparison, verdict=verdict, ahead=None, difference_shown=False, no_worse=False, reason=why,
            more=_more_seeds(study, comparison, num_lost=lost if arm_ahead else won),
        )  # fmt: skip
    ahead = (comparison.arm if arm_ahead else comparison.reference) if verdict == "better" else None
    kept = "untuned" if comparison.verdict == "untuned" else verdict
    return replace(comparison, verdict=kept, ahead=ahead, difference_shown=shown, no_worse=no_worse)


def _more_seeds(study: Study, comparison: Comparison, *, num_lost: int) -> MoreSeeds:
    """The fewest further seeds with which the sign test can show it, if the arm ahead wins all of them."""
    now = sum(_of_pair(study, comparison))
    least = next(n for n in range(now + 1, _MOST_SEEDS) if 2 * sign_p(n - num_lost, num_lost) <= ALPHA)
    per_seed = [run_seconds(study.arm(name)) for name in (comparison.arm, comparison.reference)]
    seconds = None if None in per_seed else sum(value for value in per_seed if value is not None)
    more = least - now
    return MoreSeeds(num_seeds=more, at_least=True, seconds=None if seconds is None else more * seconds)


def _with_lost_run(study: Study, comparison: Comparison, *, rules: Rules) -> Comparison:
    """Five seeds of six or more that all point one way show what the t test shows, where one run was lost."""
    signs = {value > 0 for value in comparison.differences.values()}
    is_one_short = comparison.n == MIN_SEEDS - 1 and len(_seeds_of(study)) >= MIN_SEEDS
    is_shown = comparison.holm_p is not None and comparison.holm_p <= ALPHA and len(signs) == 1
    if comparison.verdict != "cannot tell" or not (is_one_short and is_shown) or comparison.cost is None:
        return comparison
    arm_ahead = comparison.cost < 0
    is_untuned = not rules.untuned.isdisjoint({comparison.arm, comparison.reference})
    return replace(
        comparison,
        difference_shown=True,
        verdict="untuned" if is_untuned else "better",
        ahead=comparison.arm if arm_ahead else comparison.reference,
        reason=None,
        more=None,
    )


def _seeds_of(study: Study) -> frozenset[int]:
    """Seeds with which the study has ended a reporting run, whatever became of it."""
    return frozenset(
        run.seed
        for arm in study.reported_arms
        for run in study.reporting_runs(arm)
        if run.status in {"completed", "failed", "stopped"}
    )


def _down_the_ladder(
    judged: Sequence[Comparison], before: Sequence[Comparison], *, rules: Rules
) -> Iterator[Comparison]:
    """Steps below one that was taken away are taken away too: the fixed sequence ends there."""
    was_shown = {one.arm for one in before if one.no_worse}
    ended = False
    fallen = set()
    for name in rules.ladder:
        still = next((one for one in judged if one.arm == name), None)
        ended = ended or (still is not None and name in was_shown and not still.no_worse)
        if ended:
            fallen.add(name)
    for one in judged:
        if one.arm not in fallen or not one.no_worse:
            yield one
        elif one.difference_shown:
            ahead = one.arm if (one.cost or 0.0) < 0 else one.reference
            kept: Word = "untuned" if one.verdict == "untuned" else "better"
            yield replace(one, no_worse=False, ahead=ahead, verdict=kept)
        else:
            why = "a larger rank that diverged ends the steps down"
            yield replace(one, no_worse=False, ahead=None, verdict="cannot tell", reason=why)
