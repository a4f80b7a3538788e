"""Size: whether arms on different modules are matched, and whether an adapter is large enough for its data."""

from collections.abc import Iterator, Sequence

from lorastudy.lint.case import Case, names, share_seen
from lorastudy.lint.finding import MAX_NAMES, Breach, Rule
from lorastudy.lint.rates import METHOD_KEY
from lorastudy.stats.study import STUDIED_KEYS, StudyArm
from lorastudy.suite.experiment import canonical_json

_MODULE_KEYS = frozenset(STUDIED_KEYS["module_ablation"])
#: Numbers of parameters this close count as matched.
MATCH_TOLERANCE = 0.1


def _matched_by_nothing(case: Case) -> Iterator[Breach]:
    unmatched = [
        arm
        for arm in _on_other_modules(case)
        if not _same_rank(case, arm) and not _same_parameters(case, arm)
    ]
    known = [arm for arm in unmatched if _num_parameters(case, arm) is not None]
    unknown = [arm for arm in unmatched if arm not in known]
    at_another_rank = "other modules than the reference's at another rank"
    if known:
        yield Breach(
            arms=names(known),
            found=f"{at_another_rank}, and another number of parameters",
            severity="invalidates",
        )
    if unknown:
        yield Breach(
            arms=names(unknown),
            found=f"{at_another_rank}; the number of parameters is not known",
            severity="warning",
        )


def _matched_by_one(case: Case) -> Iterator[Breach]:
    """Sets of modules that are matched by rank only, or by parameters only."""
    by_rank, by_parameters = set(), set()
    arms = _on_other_modules(case)
    for arm in arms:
        if _same_rank(case, arm):
            by_rank.add(_modules(arm))
        if _same_parameters(case, arm):
            by_parameters.add(_modules(arm))
    known = [arm for arm in arms if _num_parameters(case, arm) is not None]
    for wanted, lacking, what in ((by_rank, by_parameters, "rank"), (by_parameters, by_rank, "parameters")):
        apart = [arm for arm in known if _modules(arm) in wanted - lacking]
        if apart:
            other = "parameters" if what == "rank" else "rank"
            yield Breach(
                arms=names(apart),
                found=f"matched with the reference by {what} and not by {other}",
                severity="note",
            )


def _capacity(case: Case) -> Iterator[Breach]:
    small = []
    for arm in case.arms:
        facts = case.facts_of(arm)
        parameters, tokens = facts.num_trainable_parameters, facts.num_completion_tokens
        if parameters is not None and tokens is not None and parameters < tokens:
            small.append((arm, parameters, tokens))
    if small:
        tokens = max(tokens for _, _, tokens in small)
        yield Breach(
            arms=names([arm for arm, _, _ in small]),
            found=f"fewer trainable parameters ({_counts([parameters for _, parameters, _ in small])}) than "
            f"the training rows have completion tokens ({tokens:,})",
            severity="note",
        )


def _rows_never_seen(case: Case) -> Iterator[Breach]:
    by_share: dict[str, list[StudyArm]] = {}
    for arm in case.arms:
        num_rows = case.facts_of(arm).num_train_rows
        share = 1.0 if num_rows is None else share_seen(arm.typed_settings, num_rows=num_rows)
        if num_rows is not None and share < 1:
            text = f"the steps reach {share * num_rows:,.0f} of {num_rows:,} training rows"
            by_share.setdefault(text, []).append(arm)
    for text, arms in by_share.items():
        yield Breach(arms=names(arms), found=text, severity="note")


def _same_modules(case: Case) -> Iterator[Breach]:
    """Arms whose settings differ only in the names of their modules, and whose modules are nevertheless the same."""
    alike: dict[tuple[str, str], list[StudyArm]] = {}
    for arm in case.arms:
        digest = case.facts_of(arm).modules_digest
        if digest is not None:
            others = {key: value for key, value in arm.settings.items() if key not in _MODULE_KEYS}
            alike.setdefault((digest, canonical_json(others)), []).append(arm)
    for arms in alike.values():
        if len(arms) > 1:
            yield Breach(
                arms=names(arms),
                found=f"these arms adapt the same layers under several names: {case.facts_of(arms[0]).modules}",
                severity="invalidates",
            )


def _counts(numbers: Sequence[int]) -> str:
    """All numbers or, of many, the smallest and the largest."""
    if len(numbers) > MAX_NAMES:
        return f"{min(numbers):,} to {max(numbers):,}"
    return ", ".join(f"{number:,}" for number in numbers)


def _on_other_modules(case: Case) -> list[StudyArm]:
    """Arms of the reference's method on other modules; the rank of another method means something else."""
    return [
        arm
        for arm in case.others()
        if case.reference is not None
        and case.apart(arm) & _MODULE_KEYS
        and arm.settings.get(METHOD_KEY) == case.reference.settings.get(METHOD_KEY)
    ]


def _modules(arm: StudyArm) -> str:
    return str([arm.settings.get(key) for key in sorted(_MODULE_KEYS)])


def _same_rank(case: Case, arm: StudyArm) -> bool:
    assert case.reference is not None
    return bool(arm.settings.get("lora_rank") == case.reference.settings.get("lora_rank"))


def _same_parameters(case: Case, arm: StudyArm) -> bool:
    assert case.reference is not None
    ours, theirs = _num_parameters(case, arm), _num_parameters(case, case.reference)
    return (
        ours is not None
        and theirs is not None
        and max(ours, theirs) <= (1 + MATCH_TOLERANCE) * min(ours, theirs)
    )


def _num_parameters(case: Case, arm: StudyArm) -> int | None:
    """The arm's number of parameters; None also if the reference's is unknown, since then nothing can match."""
    reference = case.reference
    if reference is None or case.facts_of(reference).num_trainable_parameters is None:
        return None
    return case.facts_of(arm).num_trainable_parameters


RULES = (
    Rule(
        code="LS301",
        title="Modules matched neither by rank nor by parameters",
        why="attention alone with 0.25 billion adapter parameters lost to the MLP alone with 0.24 billion, so modules can be "
        "compared only at equal adapter size",
        source="Schulman et al., LoRA Without Regret (Thinking Machines, 2025)",
        change="give each set of modules the reference's `lora_rank`, or the rank that gives equally many parameters",
        find=_matched_by_nothing,
    ),
    Rule(
        code="LS302",
        title="Modules matched in one way only",
        why="at equal rank an arm may be ahead because it has more parameters, at equal parameters because it has more rank",
        source="Schulman et al., LoRA Without Regret (Thinking Machines, 2025)",
        change="add the arm that is matched the other way, so that the comparison reads both ways",
        find=_matched_by_one,
    ),
    Rule(
        code="LS303",
        title="Capacity exceeded",
        why="LoRA keeps up with full fine-tuning while it has about as many trainable parameters as there are completion "
        "tokens to learn; with fewer it falls behind gradually",
        source="Schulman et al., LoRA Without Regret (Thinking Machines, 2025)",
        change="add an arm with a higher rank or more modules before concluding what LoRA cannot do",
        find=_capacity,
    ),
    Rule(
        code="LS304",
        title="Less than one pass over the training rows",
        why="adapters of all ranks learn alike at first, and a small one falls behind only after more rows than it can hold, so "
        "the result holds for the rows that were seen and not for all rows",
        source="Schulman et al., LoRA Without Regret (Thinking Machines, 2025)",
        change="raise `max_steps` or `num_train_epochs`, or read the results as those of that many rows (`max_train_samples`)",
        find=_rows_never_seen,
    ),
    Rule(
        code="LS306",
        title="One arm under several names",
        why="arms that adapt the same layers with the same settings are one configuration, so neither can be the better one",
        source="presets are resolved by role and names as PEFT does: in some models two presets mean the same layers",
        change="keep one of them, or name modules that differ in this model",
        find=_same_modules,
    ),
)
