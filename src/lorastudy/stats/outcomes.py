"""How runs without a score change a verdict: a lost run not at all, a diverged run as a bad outcome.

**Lost** runs were killed, ran out of memory or crashed, which says nothing about their configuration. A pair is compared on
the seeds that both arms completed. Verdicts take six seeds, so one lost run of six would rule out every verdict, however clear
the rest. Therefore five seeds of a study of six or more are enough if all five point one way and the t test shows it at its own
level.

**Diverged** runs are what a configuration did with a seed, and the worst that it can do. They are in no mean. So a verdict also
takes a sign test over all seeds, in which a diverged arm counts as beaten (by the other arm, or by the margin); if both
diverged, neither does. It is two-sided at .05 for "better" and one-sided for "as good within the margin". An arm that diverged
once can thus be better with nine seeds, and twice with twelve. So "better" means better on most new seeds, divergence included;
the rate of divergence is shown beside the verdict. A ladder of ranks stops at a rank whose step this takes away.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from scipy import special

from lorastudy.stats.comparison import Comparison, Divergence, MoreSeeds
from lorastudy.stats.study import Study, StudyArm
from lorastudy.stats.summary import Metric, run_seconds, scores_by_seed
from lorastudy.stats.verdicts import ALPHA, Rules, Word, word
from lorastudy.suite.question import MIN_SEEDS

#: A divergence never calls for more seeds than this.
_MOST_SEEDS = 1000


def divergence_of(study: Study, arm: StudyArm) -> Divergence | None:
    """How many of the arm's reporting seeds diverged; None if none did. Lost and open runs do not count as seeds."""
    diverged, completed = diverged_seeds(study, arm), completed_seeds(study, arm)
    if not diverged:
        return None
    return Divergence(arm=arm.name, num_diverged=len(diverged), num_seeds=len(diverged | completed))


def diverged_seeds(study: Study, arm: StudyArm) -> frozenset[int]:
    """Seeds of the arm's reporting runs that diverged."""
    return frozenset(run.seed for run in study.reporting_runs(arm) if run.failure_kind == "diverged")


def completed_seeds(study: Study, arm: StudyArm) -> frozenset[int]:
    """Seeds of the arm's reporting runs that completed."""
    return frozenset(run.seed for run in study.reporting_runs(arm) if run.status == "completed")


def judged_by_outcomes(
    study: Study, comparisons: Sequence[Comparison], *, rules: Rules
) -> tuple[Comparison, ...]:
    """The comparisons with their verdicts adjusted for lost and diverged runs."""
    judged = [
        _with_divergence(study, one) if one.diverged else _with_lost_run(study, one, rules=rules)
        for one in (replace(one, diverged=_divergences(study, one)) for one in comparisons)
    ]
    return tuple(_down_the_ladder(judged, comparisons, rules=rules))


def is_borne_out(study: Study, pair: tuple[StudyArm, StudyArm], *, metric: Metric) -> bool:
    """Whether the sign test over all seeds confirms which of two arms is ahead; true if neither diverged."""
    if not any(diverged_seeds(study, arm) for arm in pair):
        return True
    ours, theirs = (scores_by_seed(arm, study, metric=metric) for arm in pair)
    sign = metric.cost_sign
    costs = [sign * (ours[seed] - theirs[seed]) for seed in ours.keys() & theirs.keys()]
    fewer, more = sorted(wins_and_losses(study, pair, costs=costs))
    return 2 * sign_p(more, fewer) <= ALPHA


def wins_and_losses(
    study: Study, pair: tuple[StudyArm, StudyArm], *, costs: Sequence[float], margin: float = 0.0
) -> tuple[int, int]:
    """On how many seeds the first arm beats the second plus a margin, and on how many it loses; divergence is worst.

    `costs` are the first arm's minus the second's on the seeds that both completed.
    """
    arm, reference = pair
    ours, theirs = (diverged_seeds(study, one) for one in pair)
    won = sum(cost < margin for cost in costs) + len(theirs & completed_seeds(study, arm))
    lost = sum(cost > margin for cost in costs) + len(ours & completed_seeds(study, reference))
    return won, lost


def _of_pair(study: Study, comparison: Comparison, *, margin: float = 0.0) -> tuple[int, int]:
    sign = comparison.metric.cost_sign
    costs = [sign * value for value in comparison.differences.values()]
    pair = (study.arm(comparison.arm), study.arm(comparison.reference))
    return wins_and_losses(study, pair, costs=costs, margin=margin)


def sign_p(wins: int, losses: int) -> float:
    """One-sided: the chance of at least this many wins if a win is as likely as a loss.

    Equal to `scipy.stats.binomtest(wins, wins + losses, alternative="greater").pvalue`.
    """
    return 1.0 if not wins else float(special.bdtrc(wins - 1, wins + losses, 0.5))


def _divergences(study: Study, comparison: Comparison) -> tuple[Divergence, ...]:
    pair = (divergence_of(study, study.arm(name)) for name in (comparison.arm, comparison.reference))
    return tuple(one for one in pair if one is not None)


def _with_divergence(study: Study, comparison: Comparison) -> Comparison:
    """The verdict if the sign test over all seeds confirms it, else an open one."""
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
    """The fewest further seeds with which the sign test can show the difference, if the arm ahead wins all of them."""
    now = sum(_of_pair(study, comparison))
    least = next(n for n in range(now + 1, _MOST_SEEDS) if 2 * sign_p(n - num_lost, num_lost) <= ALPHA)
    per_seed = [run_seconds(study.arm(name)) for name in (comparison.arm, comparison.reference)]
    seconds = None if None in per_seed else sum(value for value in per_seed if value is not None)
    more = least - now
    return MoreSeeds(num_seeds=more, at_least=True, seconds=None if seconds is None else more * seconds)


def _with_lost_run(study: Study, comparison: Comparison, *, rules: Rules) -> Comparison:
    """The verdict of five seeds of six or more: shown if all five point one way and the t test shows it."""
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
    """Seeds for which a reporting run of the study has ended, whatever its outcome."""
    return frozenset(
        run.seed
        for arm in study.reported_arms
        for run in study.reporting_runs(arm)
        if run.status in {"completed", "failed", "stopped"}
    )


def _down_the_ladder(
    judged: Sequence[Comparison], before: Sequence[Comparison], *, rules: Rules
) -> Iterator[Comparison]:
    """The comparisons, with every step below one that was taken away taken away too: the fixed sequence ends there."""
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
