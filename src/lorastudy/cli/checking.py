"""What can be known of a suite before it runs: its data as read, and from it the facts that the linter judges."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from lorastudy.analysis.fairness.case import ArmFacts, Case, planned_case, tokens_seen
from lorastudy.data.examples import Example
from lorastudy.data.load import StudyData, train_and_eval
from lorastudy.errors import ModelError
from lorastudy.lab import base_folder
from lorastudy.spec.base_folder import read_config
from lorastudy.spec.experiment import Experiment, canonical_json
from lorastudy.spec.question import Question
from lorastudy.spec.rates import published_rates
from lorastudy.spec.settings import Settings
from lorastudy.spec.sources import LAB_MODEL

#: The settings that decide which rows are read.
_DATA_KEYS = (
    "dataset_path", "eval_dataset_path", "test_dataset_path", "forgetting_dataset_path", "eval_fraction",
    "test_fraction", "max_train_samples", "max_eval_samples",
)  # fmt: skip
#: Completion tokens are counted in this many training rows and scaled to all: enough for a comparison of orders.
NUM_COUNTED_ROWS = 2_000


def read_data(experiments: Sequence[Experiment]) -> Mapping[str, StudyData]:
    """The rows of the experiments by `data_key`; each data set is read once.

    A worker would find out only once it has loaded the base that a file cannot be used.

    Raises:
        DataError: a file is empty, damaged or of an unknown format, or holding out leaves one side empty.
    """
    readings = {data_key(experiment.settings): experiment.settings for experiment in experiments}
    return {key: train_and_eval(settings) for key, settings in readings.items()}


def data_notes(experiments: Sequence[Experiment], data: Mapping[str, StudyData]) -> list[str]:
    """What a reader should know of rows that can be read and are odd all the same."""
    notes = []
    for settings in (experiment.settings for experiment in experiments):
        read = data[data_key(settings)]
        if read.num_empty_prompts:
            share = f"{read.num_empty_prompts} of {len(read.train)} training rows"
            notes.append(f"{settings.dataset_path}: {share} have an empty prompt")
    return list(dict.fromkeys(notes))


def data_key(settings: Settings) -> str:
    """Equal for settings that read the same rows."""
    return canonical_json([getattr(settings, key) for key in _DATA_KEYS])


def suite_case(
    experiments: Sequence[Experiment],
    *,
    suite_name: str,
    data: Mapping[str, StudyData],
    question: Question | None = None,
) -> Case:
    """The suite as the linter judges it, with what its data and its base models' folders tell."""
    settings_of = {experiment.arm: experiment.settings for experiment in experiments}
    num_tokens: dict[tuple[str, str], int | None] = {}
    facts = {}
    for arm, settings in settings_of.items():
        key = data_key(settings)
        if (key, settings.base_model) not in num_tokens:
            num_tokens[key, settings.base_model] = num_completion_tokens(data[key].train, settings.base_model)
        facts[arm] = _facts(settings, data[key], num_tokens=num_tokens[key, settings.base_model])
    return planned_case(experiments, suite_name=suite_name, facts=facts, question=question)


def _facts(settings: Settings, data: StudyData, *, num_tokens: int | None) -> ArmFacts:
    seen = None
    if num_tokens is not None:
        seen = tokens_seen(settings, num_rows=len(data.train), num_completion_tokens=num_tokens)
    split, reporting = ("eval", data.held_out) if data.test is None else ("test", data.test)
    return ArmFacts(
        num_completion_tokens=seen,
        num_train_rows=len(data.train),
        num_test_rows=len(reporting),
        num_leaked_rows=data.num_leaked[split],
        tokenizer=_tokenizer_fingerprint(settings.base_model),
        published_rates=_published_rates(settings, num_rows=len(data.train)),
    )


def _published_rates(settings: Settings, *, num_rows: int) -> tuple[float, float] | None:
    config = read_config(settings.base_model)
    if config is None:
        return None
    rates = published_rates(config, num_steps=steps_over(settings, num_rows=num_rows))
    return min(rates), max(rates)


def steps_over(settings: Settings, *, num_rows: int) -> int:
    """Optimizer steps of an arm over so many training rows."""
    if settings.max_steps is not None:
        return settings.max_steps
    rows_per_step = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
    return math.ceil((settings.num_train_epochs or 1.0) * num_rows / rows_per_step)


def num_completion_tokens(examples: Sequence[Example], base_model: str) -> int | None:
    """Tokens that the loss would cover, with the end token of each row; None without a tokenizer file at hand.

    Rows are rendered without the model's chat template and not cut at `max_seq_length`, so it is an estimate.
    """
    file = _tokenizer_file(base_model)
    if file is None:
        return None
    from tokenizers import Tokenizer

    counted = examples[:NUM_COUNTED_ROWS]
    texts = [segment.text for example in counted for segment in example.segments if segment.trained]
    try:
        encodings = Tokenizer.from_file(str(file)).encode_batch(texts, add_special_tokens=False)
    except Exception as error:  # of a file that it cannot read, tokenizers raises a plain Exception
        raise ModelError(f"base_model: {base_model}: its tokenizer.json cannot be read: {error}") from error
    return round((sum(map(len, encodings)) + len(counted)) * len(examples) / len(counted))


def _tokenizer_fingerprint(base_model: str) -> str | None:
    file = _tokenizer_file(base_model)
    return None if file is None else hashlib.sha256(file.read_bytes()).hexdigest()


def _tokenizer_file(base_model: str) -> Path | None:
    """`tokenizer.json` of a base model in a folder; a model of the hub is not looked for."""
    folder = base_folder() if base_model == LAB_MODEL else Path(base_model)
    file = folder / "tokenizer.json"
    return file if file.is_file() else None
