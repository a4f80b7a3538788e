"""Learning rate and scale: whether each arm has a tuned rate, and whether alpha follows one policy."""

from collections.abc import Iterator, Mapping, Sequence

from lorastudy.lint.case import Breach, Case, Rule, Severity, names
from lorastudy.lint.gain import equal_scores
from lorastudy.stats.rate_choice import best_if_on_edge, configurations, is_still_sought
from lorastudy.stats.study import StudyArm
from lorastudy.suite.experiment import canonical_json

#: An adapter's own runs have no `method`; imported results name theirs.
METHOD_KEY, FULL_FINE_TUNING = "method", "full"

#: Findings with these codes name arms that had no learning rate of their own.
UNTUNED_CODES = frozenset({"LS101", "LS102", "LS106"})

#: Known causes move the best rate by less than a hundredfold: 7.5 times by rank, 5.6 by the policy of alpha and 1.5 by short
#: training, which is 63 times if all of them combine. The search for a rate goes no farther either.
FAR_FROM_RULE = 100

_LADDER_KEYS = frozenset({"lora_rank", "lora_alpha", "use_rslora", "learning_rate"})


def _untuned(case: Case) -> Iterator[Breach]:
    grids = configurations(case.study)
    single = [arm for grid in grids if len(_rates(grid)) <= 1 for arm in grid]
    if len(grids) < 2 or not single:
        return
    if len(single) < len(case.study.arms):
        yield Breach(
            arms=names(single),
            found="one learning rate, while other arms had several to choose from",
            severity="invalidates",
        )
        return
    yield Breach(
        arms=names(single),
        found=f"{_single_rates(sorted(_rates(single)))}, and no arm is called better or best",
        severity="warning",
    )


def _single_rates(rates: Sequence[float]) -> str:
    if not rates:
        return "no learning rate is recorded: verdicts hold at whatever rates were used"
    if len(rates) == 1:
        return f"one learning rate ({rates[0]:g}) for all: verdicts hold at this rate only"
    return "one learning rate each, and not the same for all: verdicts hold at these rates only"


def _on_edge(case: Case) -> Iterator[Breach]:
    if equal_scores(case) is not None:  # then no rate is best
        return
    for arms in configurations(case.study):
        if is_still_sought(case.study, arms, metric=case.metric):  # then LS106 says so
            continue
        if case.study.is_left_out(arms):  # nothing is said of it
            continue
        grid = [arm for arm in arms if _rates([arm])]
        rates = _rates(grid)
        best = best_if_on_edge(case.study, grid, metric=case.metric) if len(rates) > 1 else None
        if best is not None:
            end = "largest" if float(best.settings["learning_rate"]) == max(rates) else "smallest"
            yield Breach(
                arms=names(grid),
                found=f"best at {best.settings['learning_rate']:g}, the {end} of {len(rates)} learning rates tried",
                severity="invalidates",
            )
    two = [arm for grid in configurations(case.study) if len(_rates(grid)) == 2 for arm in grid]
    if two and not case.study.completed:
        yield Breach(
            arms=names(two),
            found="two learning rates, of which the better one is always on the edge of the grid",
            severity="warning",
        )


def _still_sought(case: Case) -> Iterator[Breach]:
    for arms in configurations(case.study):
        if is_still_sought(case.study, arms, metric=case.metric):
            yield Breach(
                arms=names(arms),
                found=f"the search is still running: {len(_rates(arms))} learning rates tried so far, and none chosen",
                severity="note",
            )


def _same_rate_as_full(case: Case) -> Iterator[Breach]:
    reference = case.reference
    single = [grid[0] for grid in configurations(case.study) if len(grid) == 1 and _rates(grid)]
    full = [arm for arm in single if arm.is_full]
    for rate in sorted(_rates(full)):
        alike = [arm for arm in single if _rates([arm]) == {rate}]
        if reference is None or all(arm.is_full for arm in alike):
            continue
        # concerned are the arms of the other kind than the reference
        apart = [arm for arm in alike if arm.is_full != reference.is_full]
        yield Breach(
            arms=names(apart),
            found=f"full fine-tuning and adapters both ran at {rate:g} and at no other rate",
            severity="invalidates",
        )


def _far_from_rule(case: Case) -> Iterator[Breach]:
    alike: dict[tuple[str, Severity], list[StudyArm]] = {}
    for grid in configurations(case.study):
        far = {arm.name: text for arm in grid if (text := _departure(case, arm)) is not None}
        # If another rate of the arm is near the rule, this one only widens the search.
        severity: Severity = "warning" if len(far) == len(grid) else "note"
        for arm in grid:
            if arm.name in far:
                alike.setdefault((far[arm.name], severity), []).append(arm)
    for (text, severity), arms in alike.items():
        yield Breach(arms=names(arms), found=text, severity=severity)


def _departure(case: Case, arm: StudyArm) -> str | None:
    """How far the arm's rate is from the rule, if that is far."""
    published, rates = case.facts_of(arm).published_rates, _rates([arm])
    if published is None or not rates or arm.settings.get("optim") == "sgd":
        return None  # the rule is for optimizers that scale the gradient, and SGD does not
    (rate,), (low, high) = rates, published
    times = max(rate / high, low / rate)
    if times <= FAR_FROM_RULE:
        return None
    text = f"{high if rate > high else low:.2g}"
    side = "above" if rate > high else "below"
    return f"learning rate {rate:g}, {times:,.0f} times {side} the published rule for this model ({text})"


def _alpha_policy(case: Case) -> Iterator[Breach]:
    for ladder in _ladders(case):
        by_rank: dict[int, list[StudyArm]] = {}
        for arm in ladder:
            by_rank.setdefault(int(arm.settings["lora_rank"]), []).append(arm)
        off = [arm for arm in ladder if not _is_on_a_policy(arm, by_rank)]
        if off:
            scales = ", ".join(
                f"r {rank}: {'/'.join(sorted({f'{_alpha(arm):g}' for arm in arms}))}"
                for rank, arms in sorted(by_rank.items())
            )
            yield Breach(
                arms=names([arm for arm in off if arm is not case.reference] or off),
                found=f"alpha is neither fixed nor a fixed multiple of the rank or its root ({scales})",
                severity="invalidates",
            )


def _fixed_alpha(case: Case) -> Iterator[Breach]:
    """One alpha at all ranks, which is what a suite without `lora_alpha` has."""
    for ladder in _ladders(case):
        ranks = sorted({int(arm.settings["lora_rank"]) for arm in ladder})
        alphas = {_alpha(arm) for arm in ladder}
        if len(ranks) > 1 and len(alphas) == 1 and not any(arm.settings.get("use_rslora") for arm in ladder):
            (alpha,) = alphas
            yield Breach(
                arms=names(ladder),
                found=f"alpha is {alpha:g} at every rank, so the scale alpha / r falls from {alpha / ranks[0]:g} at rank {ranks[0]} "
                f"to {alpha / ranks[-1]:g} at rank {ranks[-1]}",
                severity="note",
            )


def _ladders(case: Case) -> list[list[StudyArm]]:
    """Arms that differ only in rank, scale and learning rate."""
    groups: dict[str, list[StudyArm]] = {}
    for arm in case.arms:
        if arm.settings.get("lora_rank") is not None and arm.settings.get("lora_alpha") is not None:
            rest = {key: value for key, value in arm.settings.items() if key not in _LADDER_KEYS}
            groups.setdefault(canonical_json(rest), []).append(arm)
    return list(groups.values())


def _is_on_a_policy(arm: StudyArm, by_rank: Mapping[int, Sequence[StudyArm]]) -> bool:
    """Whether every rank has an arm with the same alpha / rank**power, for power 0, 1/2 or 1.

    One arm may follow two policies at once: alpha 32 at rank 16 is both `32` and `2r`.
    """
    return any(
        all(_scale(arm, power) in {_scale(other, power) for other in arms} for arms in by_rank.values())
        for power in (0.0, 0.5, 1.0)
    )


def _scale(arm: StudyArm, power: float) -> tuple[str, bool]:
    """Alpha divided by that power of the rank, to six digits, with the arm's scaling rule."""
    alpha = _alpha(arm) / int(arm.settings["lora_rank"]) ** power
    return (f"{alpha:.6g}", bool(arm.settings.get("use_rslora")))


def _alpha(arm: StudyArm) -> float:
    return arm.typed_settings.lora_alpha_value


def _rates(arms: Sequence[StudyArm]) -> set[float]:
    return {
        float(arm.settings["learning_rate"]) for arm in arms if arm.settings.get("learning_rate") is not None
    }


RULES = (
    Rule(
        code="LS101",
        title="Learning rate never varied",
        why="the best learning rate differs between configurations, so at one fixed rate part of a difference comes from the rate: "
        "at 4e-5 the effect of rank looked eight times too small and the truly best rank won in 3 of 13 models, at 3e-4 it won "
        "in 26 of 28",
        source="tinker-cookbook's sweep of LoRA ranks and rates; arXiv 2602.04998, where 46 of 64 audited papers used one rate",
        change="give `learning_rate` a list of at least three values, the same for every arm",
        find=_untuned,
    ),
    Rule(
        code="LS102",
        title="Best learning rate on the edge of its grid",
        why="a better rate may lie beyond the edge, so it is unknown what the arm can do: with tuned rates, ten variants of LoRA "
        "came within 0.84 % of each other",
        source="arXiv 2602.04998",
        change="extend the grid beyond that edge until the best rate lies inside",
        find=_on_edge,
    ),
    Rule(
        code="LS103",
        title="LoRA and full fine-tuning at the same learning rate",
        why="LoRA's best learning rate is about ten times that of full fine-tuning, so at the same rate one of the two is "
        "far from its best",
        source="Schulman et al., LoRA Without Regret (Thinking Machines, 2025)",
        change="tune the rate of each, with a grid around ten times the rate of full fine-tuning for LoRA",
        find=_same_rate_as_full,
    ),
    Rule(
        code="LS104",
        title="Alpha policy changed along rank",
        why="alpha sets the scale of the update and with it the best learning rate, so an effect of rank cannot be "
        "separated from one of scale",
        source="arXiv 2602.04998; arXiv 2405.09673 (alpha); arXiv 2312.03732 (scaling by the root of the rank)",
        change="keep one policy for all ranks (`lora_alpha: 32`, or `2r`), or cross every policy with every rank",
        find=_alpha_policy,
    ),
    Rule(
        code="LS105",
        title="Learning rate far from the published rule",
        why="the rule was fitted to 14 models, and rank, alpha and short training together move it by about "
        f"sixty times at most, so a factor above {FAR_FROM_RULE} is more likely a wrong exponent than a better rate",
        source="Schulman et al., LoRA Without Regret (Thinking Machines, 2025); tinker-cookbook's sweep; arXiv 2602.04998",
        change="check the exponent, or write `learning_rate: auto`, which starts at the rule",
        find=_far_from_rule,
    ),
    Rule(
        code="LS106",
        title="Search for the learning rate not finished",
        why="the search continues until the best rate has a worse one on each side. Only then does the arm run with the "
        "reporting seeds, so its score is not known yet",
        source="arXiv 2602.04998 (tuned rates)",
        change="let the suite run to its end, or take it up again (`lorastudy resume`)",
        find=_still_sought,
    ),
    Rule(
        code="LS107",
        title="Alpha the same at every rank",
        why="how the best learning rate moves with rank depends on alpha: with alpha fixed it rose up to 7.5 times along rank, with "
        "alpha equal to the rank it fell 5.6 times; and sources disagree on which alpha is best",
        source="tinker-cookbook's sweep; arXiv 2405.09673 (alpha 512 best at rank 256); Schulman et al., LoRA Without Regret "
        "(Thinking Machines, 2025; alpha 32 could not be improved)",
        change="keep it if this policy is the one you ask about; else write another (`lora_alpha: 2r`), or compare both "
        "(`factors`, with `lora_alpha: [32, 2r]`)",
        find=_fixed_alpha,
    ),
)
