"""Equal conditions: what an arm must share with the reference, unless it is the only thing in which the two differ.

A study may be about the batch size. An arm that differs from the reference in nothing else (except the learning rate, which is
tuned) is compared on purpose. An arm that differs in more is confounded: the verdict would be about both. If every such value is
crossed with all other settings, you can separate the effects by reading within one value, and the finding is a warning.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence

from lorastudy.lint.case import Case, names
from lorastudy.lint.finding import Breach, Rule, Severity
from lorastudy.stats.environments import scored_rows
from lorastudy.stats.study import STUDIED_KEYS, StudyArm, confounds
from lorastudy.suite.experiment import canonical_json
from lorastudy.suite.settings import LAYOUT_KEYS

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


def _large_batch(case: Case) -> Iterator[Breach]:
    large = [arm for arm in case.arms if (_effective_batch_of(arm) or 0) > LARGE_BATCH]
    if large:
        yield Breach(
            arms=names(large),
            found=f"effective batch {_listed(large, _effective_batch_of)}",
            severity="note",
        )


def _several_factors(case: Case) -> Iterator[Breach]:
    covered = _BATCH_KEYS | _LENGTH_KEYS | _DATA_KEYS | _SCORED_KEYS | {"max_seq_length", "learning_rate"}
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
        code="LS502",
        title="Scored on different rows",
        why="items differ in difficulty, so a difference between two sets of items is not one between arms",
        source="Bouthillier et al., arXiv 2103.03098",
        change="give all arms the same held-out rows, best by an `eval_dataset_path`",
        find=_scored_rows,
    ),
)
