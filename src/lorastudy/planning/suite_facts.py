"""Facts on a suite before it runs: its data, a worker's findings on rows and layers, and the case for the linter."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lorastudy.data.batches import steps_of
from lorastudy.data.formats import listed, shortened
from lorastudy.data.load import DataRows, StudyData, train_and_eval
from lorastudy.errors import DataError, ModelError, StudyError
from lorastudy.lab import base_folder
from lorastudy.lint.case import (
    ArmFacts,
    Case,
    after_reading,
    arms_in_words,
    planned_case,
    reporting_rows,
    tokens_seen,
)
from lorastudy.lint.evidence import split_name
from lorastudy.planning.answers import Answers
from lorastudy.planning.estimate import Estimator, by_pack
from lorastudy.planning.memory import num_trainable
from lorastudy.planning.packing import groups
from lorastudy.protocol.records import RowsRead, TrivialScore
from lorastudy.stats.trivial import PREDICTOR_NAMES
from lorastudy.suite.base_model import LAB_MODEL, read_config
from lorastudy.suite.experiment import Experiment, canonical_json
from lorastudy.suite.labels import labels_of
from lorastudy.suite.question import Question
from lorastudy.suite.rate_search import published_rates
from lorastudy.suite.settings import Settings
from lorastudy.suite.targets import count_by_role, in_words, left_out, names_digest

#: The settings that decide which rows are read.
_DATA_KEYS = (
    "dataset_path", "eval_dataset_path", "test_dataset_path", "forgetting_dataset_path", "eval_fraction",
    "test_fraction", "max_train_samples", "max_eval_samples",
)  # fmt: skip

#: The settings that decide how rows become tokens.
_TOKEN_KEYS = ("max_seq_length", "prompt_format", "base_model", "trust_remote_code")


@dataclass(frozen=True, kw_only=True)
class RowsChecked:
    """A worker's findings from reading the rows as a run would."""

    read: Mapping[str, tuple[RowsRead, ...]] = field(default_factory=dict)
    """By `rows_key`: the splits, if they could be read."""
    unknown: tuple[str, ...] = ()
    """One line for each base model whose rows could not be checked."""


def data_key(settings: Settings) -> str:
    """Equal for settings that read the same rows."""
    return canonical_json([getattr(settings, key) for key in _DATA_KEYS])


def rows_key(settings: Settings) -> str:
    """Equal for settings whose rows become the same tokens."""
    return canonical_json([getattr(settings, key) for key in (*_DATA_KEYS, *_TOKEN_KEYS)])


def check_rows(
    experiments: Sequence[Experiment], answers: Answers, *, foreseen: Sequence[Experiment] = ()
) -> RowsChecked:
    """Have a worker read the experiments' rows as a run would. `foreseen` are as in `by_pack`.

    `prepare` asks the same questions, so both together read the rows only once.

    Raises:
        DataError: the rows cannot be used with the base model's tokenizer. The message is that of a run.
        StudyError: a schedule takes more steps than the epochs of these rows have.
    """
    unknown, read = {}, {}
    for estimator in by_pack(experiments, answers, with_data=True, foreseen=foreseen):
        base_model = estimator.settings.base_model
        try:
            read[rows_key(estimator.settings)] = estimator.rows_read
        except DataError:
            raise
        except StudyError as error:
            unknown[base_model] = (
                f"whether {base_model} can read the data is not known before it runs: {error}"
            )
    for experiment in experiments:
        _check_schedule(experiment, read.get(rows_key(experiment.settings), ()))
    return RowsChecked(read=read, unknown=tuple(unknown.values()))


def _check_schedule(experiment: Experiment, read: Sequence[RowsRead]) -> None:
    settings = experiment.settings
    train = next((each.summary for each in read if each.summary.split == "train"), None)
    if settings.max_steps is not None or train is None:
        return  # given steps were checked with the suite file
    num_steps = steps_of(settings, num_rows=train.num_rows_in_all)
    try:
        settings.check_schedule(num_steps=num_steps)
    except StudyError as error:
        raise StudyError(f"{experiment.arm}: {error}") from error


#: What full fine-tuning trains, in place of the adapted layers of each role.
ALL_WEIGHTS = "all weights"


@dataclass(frozen=True, kw_only=True)
class AdaptedArm:
    """The layers that one arm adapts."""

    digest: str
    """Equal for arms that adapt the same layers."""
    by_role: Mapping[str, int]
    left_out: tuple[str, ...]
    """Layers that the preset names but no arm can adapt, with the reason."""
    num_trainable_parameters: int

    @property
    def in_words(self) -> str:
        """`q 2, k 2, v 2, o 2 (4,096 trainable parameters)`; `all weights (...)` for full fine-tuning."""
        return f"{in_words(self.by_role) or ALL_WEIGHTS} ({self.num_trainable_parameters:,} trainable parameters)"


@dataclass(frozen=True, kw_only=True)
class Misfit:
    """An arm that does not fit the layers of its base model."""

    label: str
    settings: Settings
    error: ModelError

    def __str__(self) -> str:
        return f"{self.label}: {self.error}"

    @property
    def key(self) -> str:
        """The key of the suite file that is to change. The error's message begins with it."""
        return str(self.error).partition(": ")[0]

    @property
    def cause(self) -> str:
        """The error's message without the key."""
        return str(self.error).partition(": ")[2]


@dataclass(frozen=True, kw_only=True)
class AdaptedArms:
    """The layers that a suite's arms adapt, and the arms for which they are not known."""

    arms: Mapping[str, AdaptedArm] = field(default_factory=dict)
    misfits: Mapping[str, Misfit] = field(default_factory=dict)
    """By arm that does not fit its base model: the reason, in the words of a run."""
    unknown: tuple[str, ...] = ()
    """One line for each base model whose layers are not known."""

    def lines(self, labels: Mapping[str, str]) -> list[str]:
        """The layers of each arm, in words. Arms that adapt the same layers share a line. `labels` are by arm."""
        alike: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for name, arm in self.arms.items():
            alike.setdefault((arm.in_words, arm.left_out), []).append(name)
        lines = []
        for (words, without), names in alike.items():
            shown = arms_in_words([labels.get(name, name) for name in names], num_arms=len(self.arms))
            lines.append(f"adapts {words}: {shown}")
            lines += [f"  left out: {each}" for each in without]
        return lines


def adapted_arms(experiments: Sequence[Experiment], answers: Answers) -> AdaptedArms:
    """Resolve the targets of every arm against its base model."""
    arms: dict[str, AdaptedArm] = {}
    labels = labels_of(experiments)
    misfits: dict[str, Misfit] = {}
    unknown: dict[str, str] = {}
    for group in groups(experiments):
        base_model = group[0].settings.base_model
        try:
            estimator = Estimator(group, answers, with_data=False)
            shape = estimator.shape
        except StudyError as error:
            unknown[base_model] = f"what the arms adapt in {base_model} is not known before it runs: {error}"
            continue
        layers = shape.linear_layers
        for experiment in group:
            if experiment.arm in arms:
                continue
            settings = experiment.settings
            try:
                size = estimator.size_of(settings)
            except ModelError as error:
                misfits[experiment.arm] = Misfit(label=labels[experiment.arm], settings=settings, error=error)
                continue
            names = size.module_names
            arms[experiment.arm] = AdaptedArm(
                digest=names_digest(names),
                by_role=count_by_role(names, layers=layers),
                left_out=tuple(left_out(names, layers=layers, target_modules=settings.target_modules)),
                num_trainable_parameters=num_trainable(shape, size),
            )
    return AdaptedArms(arms=arms, misfits=misfits, unknown=tuple(unknown.values()))


#: The largest exponent of e that a note writes out.
_LARGEST_EXPONENT = 20.0

#: Characters shown of the most frequent answer.
_ANSWER_SHOWN = 40

#: Completion tokens are counted in this many training rows and scaled up, which is enough for an order of magnitude.
NUM_COUNTED_ROWS = 2_000


def read_data(experiments: Sequence[Experiment]) -> Mapping[str, StudyData]:
    """The rows of the experiments by `data_key`; each data set is read once.

    Reading them here finds a bad file early: a worker would find it only after it has loaded the base model.

    Raises:
        DataError: a file is empty, damaged or of an unknown format, or holding out leaves one side empty.
    """
    readings = {data_key(experiment.settings): experiment.settings for experiment in experiments}
    return {key: train_and_eval(settings) for key, settings in readings.items()}


def data_notes(experiments: Sequence[Experiment], data: Mapping[str, StudyData]) -> list[str]:
    """Notes on rows that can be read but are odd."""
    notes = []
    for settings in (experiment.settings for experiment in experiments):
        read = data[data_key(settings)]
        if read.num_empty_prompts:
            share = f"{read.num_empty_prompts} of {len(read.train)} training rows"
            notes.append(f"{settings.dataset_path}: {share} have an empty prompt")
        notes += _column_notes(settings, read)
    return list(dict.fromkeys(notes))


def _column_notes(settings: Settings, data: StudyData) -> list[str]:
    """Notes on columns of the files that are not trained on."""
    files = (
        (settings.dataset_path, data.train),
        (settings.eval_dataset_path, data.held_out),
        (settings.test_dataset_path, data.test),
        (settings.forgetting_dataset_path, data.forgetting),
    )
    return [
        f"{path}: {note}"
        for path, rows in files
        if path and rows is not None
        for note in rows.dataset.format.notes
    ]


def layout_notes(rows: Mapping[str, Sequence[RowsRead]]) -> list[str]:
    """Notes on conversations that no chat template lays out, or only in part."""
    notes = []
    for summary in (read.summary for splits in rows.values() for read in splits):
        of = f"of {summary.num_rows + summary.num_refused_rows} {split_name(summary.split)} rows"
        if summary.num_fallback_rows:
            notes.append(
                f"{of}, {summary.num_fallback_rows} call functions, which the base model's chat template does not "
                "support: calls and results are given to it as text"
            )
        if summary.unseen_fields:
            fields = listed(list(map(shortened, summary.unseen_fields)))
            notes.append(f"{of}, some have fields that the model does not see: {fields}")
        if summary.layout == "plain" and summary.format in ("messages", "sharegpt"):
            notes.append(
                f"{summary.split}: no chat template lays out its conversations; they stand under headings (### User:)"
            )
    return list(dict.fromkeys(notes))


def trivial_lines(rows: Mapping[str, Sequence[RowsRead]]) -> list[str]:
    """The scores of guessing on the reporting rows, if they were read. An arm that does not beat them learns nothing.

    One line for each set of rows.
    """
    lines = []
    for splits in rows.values():
        read = reporting_rows(splits)
        if read is not None and read.trivial:
            scores = "; ".join(
                _score_in_words(score, num_asked=read.summary.num_asked_rows) for score in read.trivial
            )
            name = split_name(read.summary.split)
            lines.append(f"without a model, on {read.summary.num_rows:,} {name} rows: {scores}")
    return list(dict.fromkeys(lines))


def _score_in_words(score: TrivialScore, *, num_asked: int | None) -> str:
    """`answer frequencies: loss 0.52 nats/token`. Exact match states the number of asked rows, which may be fewer."""
    answer = score.answer
    guess = "" if answer is None else f" {answer[:_ANSWER_SHOWN]!r}{'...' * (len(answer) > _ANSWER_SHOWN)}"
    of = f" of {num_asked} rows asked" if score.metric == "exact_match" and num_asked else ""
    unit = f" {score.unit}" if score.unit else ""
    name = PREDICTOR_NAMES[score.predictor]
    return f"{name}{guess}: {score.metric.replace('_', ' ')} {score.value:.3g}{unit}{of}"


def margin_notes(question: Question) -> list[str]:
    """The meaning of a margin in nats. It shows at once if the percent sign was forgotten: `2` instead of `2%`."""
    margin = question.margin
    if margin is None or margin.is_share or question.primary_metric != "loss":
        return []
    times = f"{math.exp(margin.amount):.4g}" if margin.amount < _LARGEST_EXPONENT else "more than a billion"
    note = f"margin: {margin} nats per token: an arm of {times} times the reference's perplexity still counts as good"
    if margin.amount >= 1:
        note += f"; a share of the reference's gain has a percent sign: '{margin}%'"
    return [note]


def suite_case(
    experiments: Sequence[Experiment],
    *,
    suite_name: str,
    data: Mapping[str, StudyData],
    rows: Mapping[str, Sequence[RowsRead]] | None = None,
    question: Question | None = None,
    adapted: AdaptedArms | None = None,
) -> Case:
    """The suite as the linter judges it, with facts from its data and its base models' folders.

    `rows` are the splits as a worker read them, by `rows_key`. If they are known, counts cover the rows that remain,
    and no tokens are estimated here.
    """
    settings_of = {experiment.arm: experiment.settings for experiment in experiments}
    num_tokens: dict[tuple[str, str], int | None] = {}
    facts = {}
    for arm, settings in settings_of.items():
        key = data_key(settings)
        read = (rows or {}).get(rows_key(settings), ())
        if not read and (key, settings.base_model) not in num_tokens:
            num_tokens[key, settings.base_model] = num_completion_tokens(data[key].train, settings.base_model)
        known = replace(
            _facts(settings, data[key], num_tokens=num_tokens.get((key, settings.base_model))),
            published_rates=_published_rates(settings, num_rows=_rows_of_an_epoch(data[key].train, read)),
        )
        layers = None if adapted is None else adapted.arms.get(arm)
        if layers is not None:
            known = replace(
                known, modules_digest=layers.digest, modules=in_words(layers.by_role) or ALL_WEIGHTS
            )
        facts[arm] = after_reading(known, settings, rows=read)
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
        num_known_prompts=data.num_known_prompts[split],
        split_by=data.split_by[split],
        tokenizer=_tokenizer_fingerprint(settings.base_model),
        vocab_size=_vocab_size(settings.base_model),
    )


def _vocab_size(base_model: str) -> int | None:
    size = (read_config(base_model) or {}).get("vocab_size")
    return size if isinstance(size, int) else None


def _rows_of_an_epoch(train: DataRows, read: Sequence[RowsRead]) -> int:
    """The rows of an epoch as a worker counts them, if it read all; else the rows of the file.

    The two differ because a worker splits a long plain text into several rows.
    """
    counted = (each.summary for each in read if each.summary.split == "train")
    return next((data.num_rows for data in counted if not data.num_unread_rows), len(train))


def _published_rates(settings: Settings, *, num_rows: int) -> tuple[float, float] | None:
    config = read_config(settings.base_model)
    if config is None:
        return None
    num_steps = steps_of(settings, num_rows=num_rows)
    rates = published_rates(config, num_steps=num_steps, is_full=settings.arm_method.is_full)
    return min(rates), max(rates)


def num_completion_tokens(rows: DataRows, base_model: str) -> int | None:
    """Tokens that the loss covers, with the end token of each row; None without a tokenizer file on this machine.

    It is an estimate: rows are rendered without the model's chat template and are not cut at `max_seq_length`.
    """
    file = _tokenizer_file(base_model)
    if file is None:
        return None
    from tokenizers import Tokenizer

    counted = rows.read(range(min(NUM_COUNTED_ROWS, len(rows))))
    texts = [segment.text for example in counted for segment in example.segments if segment.trained]
    try:
        encodings = Tokenizer.from_file(str(file)).encode_batch(texts, add_special_tokens=False)
    except Exception as error:  # tokenizers raises a plain Exception for a file that it cannot read
        raise ModelError(f"base_model: {base_model}: its tokenizer.json cannot be read: {error}") from error
    return round((sum(map(len, encodings)) + len(counted)) * len(rows) / len(counted))


def _tokenizer_fingerprint(base_model: str) -> str | None:
    file = _tokenizer_file(base_model)
    return None if file is None else hashlib.sha256(file.read_bytes()).hexdigest()


def _tokenizer_file(base_model: str) -> Path | None:
    """`tokenizer.json` of the lab's base model or of one in a folder; None for a hub model."""
    folder = base_folder() if base_model == LAB_MODEL else Path(base_model)
    file = folder / "tokenizer.json"
    return file if file.is_file() else None
