"""Equal conditions and sizes: what an arm must share with the reference, unless it is the only thing in which the two differ.

A study may be about the batch size. An arm that differs from the reference in nothing else (except the learning rate, which is
tuned) is compared on purpose. An arm that differs in more is confounded: the verdict would be about both. If every such value is
crossed with all other settings, you can separate the effects by reading within one value, and the finding is a warning.

Arms on different modules are matched by rank or by number of parameters, and an adapter must be large enough for its data.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence

from lorastudy.lint.case import MAX_NAMES, Breach, Case, Rule, Severity, names, share_seen
from lorastudy.lint.rates import METHOD_KEY
from lorastudy.stats.study import STUDIED_KEYS, StudyArm, confounds, scored_rows
from lorastudy.suite.experiment import canonical_json
from lorastudy.suite.settings import LAYOUT_KEYS, SELECTION_KEYS

ValueOf = Callable[[StudyArm], Hashable]

_BATCH_KEYS = frozenset({"per_device_train_batch_size", "gradient_accumulation_steps"})
_LENGTH_KEYS = frozenset({"num_train_epochs", "max_steps"})
_DATA_KEYS = frozenset({"dataset_path", "data_seed", "max_train_samples"})
_QUANTIZATION_KEYS = frozenset(STUDIED_KEYS["quantization_study"])
_SIZE_KEYS = frozenset({"lora_rank", "lora_alpha"})
#: What decides which rows an arm is scored on; `max_seq_length` has a rule of its own.
_SCORED_KEYS = frozenset(
    {"eval_dataset_path", "eval_fraction", "test_dataset_path", "test_fraction", "max_eval_samples"}
)
#: Above this the gap to full fine-tuning was observed to grow.
LARGE_BATCH = 32

_MODULE_KEYS = frozenset(STUDIED_KEYS["module_ablation"])
#: Numbers of parameters this close count as matched.
MATCH_TOLERANCE = 0.1


def _effective_batch_of(arm: StudyArm) -> float | None:
    micro, steps = (
        arm.settings.get(key) for key in ("per_device_train_batch_size", "gradient_accumulation_steps")
    )
    return None if micro is None else float(micro) * float(steps or 1)


def _micro_batch_of(arm: StudyArm) -> int | None:
    return arm.settings.get("per_device_train_batch_size")


def _length_of(arm: StudyArm) -> str:
    steps, epochs = arm.settings.get("max_steps"), arm.settings.get("num_train_epochs")
    number, unit = (epochs or 1.0, "epoch") if steps is None else (steps, "step")
    return f"{number:g} {unit}" if number == 1 else f"{number:g} {unit}s"


def _data_of(arm: StudyArm) -> str:
    sources = arm.results[0].sources
    values = [arm.settings.get(key) for key in ("data_seed", "max_train_samples")]
    return canonical_json([*values, sources.get("dataset")])


def _effective_batch(case: Case) -> Iterator[Breach]:
    yield from _confounded(case, value_of=_effective_batch_of, keys=_BATCH_KEYS, what="effective batch ")


def _micro_batch(case: Case) -> Iterator[Breach]:
    other_effective = names(_other_than_reference(case, _effective_batch_of))
    apart = [
        arm
        for arm in _other_than_reference(case, _micro_batch_of)
        if arm.name not in other_effective
        and not case.apart(arm) <= _BATCH_KEYS | {"learning_rate"}
        and not case.apart(arm) & _QUANTIZATION_KEYS
    ]
    found = "micro-batch {}, the reference's {}; memory and time are not comparable, held-out loss is"
    yield from _breach(case, apart, value_of=_micro_batch_of, found=found, severity="warning")


def _micro_batch_across_precisions(case: Case) -> Iterator[Breach]:
    others = _other_than_reference(case, _micro_batch_of)
    apart = [arm for arm in others if case.apart(arm) & _QUANTIZATION_KEYS]
    found = "the base in another precision, and micro-batch {} against the reference's {}"
    yield from _breach(case, apart, value_of=_micro_batch_of, found=found, severity="invalidates")


def _training_length(case: Case) -> Iterator[Breach]:
    yield from _confounded(case, value_of=_length_of, keys=_LENGTH_KEYS, what="")


def _checkpoint_choice(case: Case) -> Iterator[Breach]:
    yield from _confounded(case, value_of=_choice_of, keys=SELECTION_KEYS, what="")


def _choice_of(arm: StudyArm) -> str:
    """Which checkpoint the arm keeps, and whether it may stop early."""
    settings = arm.typed_settings
    if not settings.selects:
        return "last checkpoint"
    early = (
        ""
        if settings.early_stopping_patience is None
        else f", early_stopping_patience {settings.early_stopping_patience}"
    )
    return f"{settings.select_checkpoint} checkpoint (eval_steps {settings.eval_steps:g}{early})"


def _row_length(case: Case) -> Iterator[Breach]:
    apart = _other_than_reference(case, _row_length_of)
    found = "rows cut at {} tokens, the reference's at {}: other tokens are learnt and scored"
    yield from _breach(case, apart, value_of=_row_length_of, found=found, severity="invalidates")


def _row_length_of(arm: StudyArm) -> int | None:
    return arm.settings.get("max_seq_length")


def _data_order(case: Case) -> Iterator[Breach]:
    apart = _confounded_arms(case, value_of=_data_of, keys=_DATA_KEYS)
    found = (
        "other training rows than the reference's, or the same in another order; other settings differ too"
    )
    severity = _severity(case, keys=_DATA_KEYS)
    yield from _breach(case, apart, value_of=_data_of, found=found, severity=severity)


def _scored_rows(case: Case) -> Iterator[Breach]:
    apart = _other_than_reference(case, _scored_on)
    found = "other held-out rows than the reference's"
    yield from _breach(case, apart, value_of=_scored_on, found=found, severity="invalidates")


def _scored_on(arm: StudyArm) -> Hashable:
    """The scored rows without their length, which has its own rule."""
    return scored_rows(arm.results[0], leaving_out="max_seq_length")


def _engine_of(arm: StudyArm) -> str:
    """The engine that trained the arm, or that will if the packed engine supports the model."""
    trained = sorted({result.engine for result in arm.completed if result.engine is not None})
    settings = arm.typed_settings
    is_reference = settings.engine == "reference" or settings.arm_method.only_in_reference is not None
    return " and ".join(trained) or ("reference" if is_reference else "packed")


def _engine(case: Case) -> Iterator[Breach]:
    apart = _other_than_reference(case, _engine_of)
    found = "their engine is {}, that of the arm they are compared with is {}; losses compare, memory and time do not"
    yield from _breach(case, apart, value_of=_engine_of, found=found, severity="warning")


def _large_batch(case: Case) -> Iterator[Breach]:
    large = [arm for arm in case.arms if (_effective_batch_of(arm) or 0) > LARGE_BATCH]
    if large:
        yield Breach(
            arms=names(large),
            found=f"effective batch {_listed(large, _effective_batch_of)}",
            severity="note",
        )


def _several_factors(case: Case) -> Iterator[Breach]:
    covered = _BATCH_KEYS | _LENGTH_KEYS | _DATA_KEYS | _SCORED_KEYS | SELECTION_KEYS
    covered |= {"max_seq_length", "learning_rate"}
    if case.study.experiment_type == "module_ablation":
        covered |= (
            _SIZE_KEYS  # other modules are matched by rank or by parameters; LS301 and LS302 check that
        )
    others = [key for key in confounds(case.study) if key not in covered | LAYOUT_KEYS]
    if others:
        apart = [arm for arm in case.others() if case.apart(arm) & set(others)]
        yield Breach(
            arms=names(apart),
            found=f"other {', '.join(others)} than the reference's, besides what a "
            f"{case.study.experiment_type.replace('_', ' ')} studies",
            severity="warning",
        )


def _confounded(case: Case, *, value_of: ValueOf, keys: frozenset[str], what: str) -> Iterator[Breach]:
    apart = _confounded_arms(case, value_of=value_of, keys=keys)
    found = f"{what}{{}}, the reference's {{}}; other settings differ too"
    yield from _breach(case, apart, value_of=value_of, found=found, severity=_severity(case, keys=keys))


def _breach(
    case: Case, apart: Sequence[StudyArm], *, value_of: ValueOf, found: str, severity: Severity
) -> Iterator[Breach]:
    """The breach of these arms, if there are any. The two `{}` in `found` are their value and the reference's."""
    if apart and case.reference is not None:
        text = found.format(_listed(apart, value_of), _written(value_of(case.reference)))
        yield Breach(arms=names(apart), found=text, severity=severity)


def _other_than_reference(case: Case, value_of: ValueOf) -> list[StudyArm]:
    """Arms whose value is not the reference's."""
    reference = case.reference
    return [arm for arm in case.others() if reference and value_of(arm) != value_of(reference)]


def _confounded_arms(case: Case, *, value_of: ValueOf, keys: frozenset[str]) -> list[StudyArm]:
    """Arms whose value is not the reference's and that also differ in more than these keys and the learning rate."""
    others = _other_than_reference(case, value_of)
    return [arm for arm in others if not case.apart(arm) <= keys | {"learning_rate"}]


def _severity(case: Case, *, keys: frozenset[str]) -> Severity:
    """`warning` if each value of these keys was run with the same other settings, else `invalidates`."""
    levels: dict[str, set[str]] = {}
    ignored = keys | LAYOUT_KEYS | {"learning_rate"}
    for arm in case.arms:
        level = canonical_json(
            [[arm.settings.get(key) for key in sorted(keys)], arm.results[0].sources.get("dataset")]
        )
        rest = {key: value for key, value in arm.settings.items() if key not in ignored}
        levels.setdefault(level, set()).add(canonical_json(rest))
    rests = list(levels.values())
    return "warning" if all(rest == rests[0] for rest in rests) else "invalidates"


def _listed(arms: Sequence[StudyArm], value_of: ValueOf) -> str:
    return ", ".join(dict.fromkeys(_written(value_of(arm)) for arm in arms))


def _written(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


RULES = (
    Rule(
        code="LS201",
        title="Unequal effective batch",
        why="LoRA loses more than full fine-tuning as the batch grows, whatever the rank, so a difference may be one of batch",
        source="Schulman et al., LoRA Without Regret (Thinking Machines, 2025)",
        change="give all arms the same `per_device_train_batch_size` times `gradient_accumulation_steps`",
        find=_effective_batch,
    ),
    Rule(
        code="LS202",
        title="Unequal micro-batch",
        why="activation memory grows in proportion to the rows of one forward pass, so memory and step time compare at an "
        "equal micro-batch only",
        source="Korthikanti et al., arXiv 2205.05198",
        change="give all arms the same `per_device_train_batch_size`; change `gradient_accumulation_steps` for all alike",
        find=_micro_batch,
    ),
    Rule(
        code="LS203",
        title="Unequal length of training",
        why="arms learn at different speeds, so which one is ahead depends on when training stops",
        source="Biderman et al., arXiv 2405.09673, where the gap between LoRA and full fine-tuning changes with the tokens seen",
        change="give all arms the same `max_steps` or `num_train_epochs`, or vary nothing else",
        find=_training_length,
    ),
    Rule(
        code="LS204",
        title="Unequal length of rows",
        why="a row that is cut elsewhere is another row: other tokens are trained and scored, and other memory is needed",
        source="PEFT's method_comparison, which holds `max_seq_length` equal over all its methods",
        change="give all arms the same `max_seq_length`",
        find=_row_length,
    ),
    Rule(
        code="LS205",
        title="Unequal data or data order",
        why="the sample and the order of the data are a source of variance as large as that between methods, and only what "
        "is shared by both arms cancels from their difference",
        source="Bouthillier et al., arXiv 2103.03098",
        change="give all arms the same `dataset_path`, `max_train_samples` and `data_seed`, or vary nothing else",
        find=_data_order,
    ),
    Rule(
        code="LS206",
        title="Unequal micro-batch across precisions",
        why="the memory that a smaller base saves is soon outweighed by the activations of a larger micro-batch, so a table "
        "with unequal ones can show QLoRA as larger than LoRA",
        source="Dettmers et al., arXiv 2305.14314; Korthikanti et al., arXiv 2205.05198",
        change="give all precisions the same `per_device_train_batch_size`",
        find=_micro_batch_across_precisions,
    ),
    Rule(
        code="LS207",
        title="Large effective batch",
        why="above about 32 rows LoRA fell behind full fine-tuning by more the larger the batch, and a higher rank did not help",
        source="Schulman et al., LoRA Without Regret (Thinking Machines, 2025)",
        change="use a smaller batch, or read the results as those of this batch only",
        find=_large_batch,
    ),
    Rule(
        code="LS208",
        title="Not a single factor",
        why="where several settings change together their effects cannot be told apart, as a re-run of metric-learning papers "
        "showed of most of the progress claimed there",
        source="Musgrave et al., arXiv 2003.08505",
        change="vary one thing, or cross the factors and read within one level; `experiment_type: custom` says that it is meant",
        find=_several_factors,
    ),
    Rule(
        code="LS209",
        title="Unequal choice of checkpoints",
        why="the best of many checkpoints is better than the last one of the same run, and the more are tried the better it is, "
        "so an arm that may choose is ahead of one that may not",
        source="Dodge et al., arXiv 1909.03004, on results that grow with the number of tries; Dodge et al., arXiv 2002.06305, on "
        "stopping early",
        change="give all arms the same `select_checkpoint`, `eval_steps` and `early_stopping_patience`, or vary nothing else",
        find=_checkpoint_choice,
    ),
    Rule(
        code="LS210",
        title="Trained by different engines",
        why="the packed engine has no padding and computes logits for labels alone, so it keeps fewer activations than PEFT for the "
        "same arm, and a difference in memory or step time is also one between the engines",
        source="PEFT's method_comparison, which trains all its methods in one and the same loop",
        change="add `engine: reference` for all arms if memory and time are the question; for held-out loss nothing needs to change",
        find=_engine,
    ),
    Rule(
        code="LS502",
        title="Scored on different rows",
        why="items differ in difficulty, so a difference between two sets of items is not one between arms",
        source="Bouthillier et al., arXiv 2103.03098",
        change="give all arms the same held-out rows, best by an `eval_dataset_path`",
        find=_scored_rows,
    ),
)


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
            text = f"the steps reach {share * num_rows:,.0f} of {num_rows:,} usable training rows"
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


SIZE_RULES = (
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
