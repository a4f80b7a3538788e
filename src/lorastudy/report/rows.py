"""Sentences on the rows that a run reads: their layout, what weakens their scores, and which rows a measured peak is about.

A measured peak is about the rows of the study's data, which are mostly shorter than `max_seq_length` allows. `lorastudy
recommend` and `lorastudy estimate` plan for rows of the full length. So one configuration has two peaks, and a report that
shows one says which.
"""

import shlex

from lorastudy.data.formats import shortened
from lorastudy.lint.case import sample_in_words
from lorastudy.protocol.records import DataSummary
from lorastudy.report.document import Code, Text
from lorastudy.report.numbers import count, listing
from lorastudy.stats.study import StudyArm
from lorastudy.suite.settings import Settings

_PREAMBLE_SHOWN = 400


def rows_in_words(data: DataSummary) -> str:
    """`240 rows`, or `1,057 rows of 10 texts` if long texts became several rows."""
    rows = f"{count(data.num_rows)} rows"
    return (
        rows if data.num_usable_texts == data.num_rows else f"{rows} of {count(data.num_usable_texts)} texts"
    )


def laid_out(data: DataSummary) -> str:
    """The layout of the rows, and what the chat template adds to them; empty for runs that did not record it."""
    sentence = {
        "chat": " The model's chat template lays them out.",
        "alpaca": " Alpaca's prompt lays them out.",
        "plain": " No chat template lays them out.",
    }.get(data.layout or "", "")
    if data.template_preamble is not None:
        text = data.template_preamble
        ending = "" if len(text) <= _PREAMBLE_SHOWN else f" (shortened from {count(len(text))} characters)"
        sentence += f" Before each row it adds {text[:_PREAMBLE_SHOWN]!r}{ending}."
    if data.template_date is not None:
        sentence += f" It asks for today's date, which is always {data.template_date}."
    if data.num_fallback_rows:
        sentence += f" {count(data.num_fallback_rows)} rows call functions, which it does not know: it gets them as text."
    return sentence


def left_out(data: DataSummary) -> str:
    """Columns and fields of the file that the model never sees; empty for runs that did not record them."""
    text = ""
    if data.unused_columns:
        text += f" Columns of its file that are not used: {listing(map(shortened, data.unused_columns))}."
    if data.unseen_fields:
        text += (
            f" Fields of messages that the model never sees: {listing(map(shortened, data.unseen_fields))}."
        )
    return text


def repeated(data: DataSummary) -> str:
    """Rows that weaken the scores: duplicates, and held-out rows that are also in the training rows.

    They are counted among all texts, refused ones included.
    """
    leaked = "are also in the training rows, so their scores say nothing about new rows"
    if data.split == "test":
        leaked = "are also in the training rows or among the rows that choose, so their scores say little about new rows"
    found = [
        (data.num_duplicate_rows, "are duplicates of earlier ones"),
        (data.num_leaked_rows, leaked),
        (
            (data.num_known_prompts or 0) - (data.num_leaked_rows or 0),
            "share a prompt with those rows, with another answer",
        ),
    ]
    num_texts = data.num_usable_texts + data.num_refused_rows + (data.num_unread_rows or 0)
    things = "rows" if data.num_usable_texts == data.num_rows else "texts"
    them = "them" if num_texts == data.num_rows else f"all {count(num_texts)} {things}"
    text = "".join(f" {count(number)} of {them} {what}." for number, what in found if number)
    if data.num_compared_rows:
        text += (
            f" {count(data.num_near_copies or 0)} of {count(data.num_compared_rows)} that were compared have a prompt that "
            "differs by a few words from one of theirs."
        )
        sample = sample_in_words(data)
        text += f" For this, {sample}." if sample else ""
    if data.split_by == "row":
        text += " They were held out row by row, since there are too few prompts to hold out prompts."
    if data.groups is not None:
        text += f" They have {count(max(data.groups) + 1)} distinct prompts."
    if data.num_unread_rows:
        text += f" They are a fixed sample: {count(data.num_unread_rows)} further rows are trained on alike and not counted."
    return text


def on_which_rows(arm: StudyArm) -> str:
    """`on the rows of this data (at most 290 tokens in a micro-batch; rows of the full length have 512)`."""
    longest, full = _longest_micro_batch(arm), _full_micro_batch(arm.typed_settings)
    if longest is None or longest >= full:
        return "on the rows of this data"
    return (
        f"on the rows of this data (at most {count(longest)} tokens in a micro-batch; rows of the full length have "
        f"{count(full)})"
    )


def about_full_length(arm: StudyArm) -> Text:
    """Which rows the arm's measured memory is about, and the command that predicts it for rows of the full length."""
    settings, longest = arm.typed_settings, _longest_micro_batch(arm)
    full = _full_micro_batch(settings)
    if longest is not None and longest >= full:
        return (
            f" Its rows are of the full length: {count(full)} tokens in the largest micro-batch of {arm.name}.",
        )
    known = "" if longest is None else f", at most {count(longest)} tokens in a micro-batch of {arm.name}"
    more = "need more" if longest is not None else "need more, unless all rows are as long"
    text = (
        f" It is about the rows of this data{known}. Rows of the full length (max_seq_length {settings.max_seq_length}, "
        f"{settings.per_device_train_batch_size} in a micro-batch: {count(full)} tokens) {more}, and those are what "
        "lorastudy recommend plans for."
    )
    # The command has no options for these.
    selects = settings.layers_to_transform is not None or settings.exclude_modules is not None
    if selects or not settings.arm_method.has_lora:
        return (text,)
    return (f"{text} To predict it: ", Code(estimate_command(settings)), ".")


def estimate_command(settings: Settings) -> str:
    """`lorastudy estimate` for this configuration, with rows of the full length."""
    targets = settings.target_modules
    options = {
        "--base-model": settings.base_model,
        "--rank": settings.lora_rank,
        "--target-modules": targets if isinstance(targets, str) else ",".join(targets),
        "--max-seq-length": settings.max_seq_length,
        "--batch-size": settings.per_device_train_batch_size,
        "--quantization": settings.quantization,
    }
    given = [str(part) for option in options.items() for part in option]
    if settings.lora_dropout:
        given += ["--lora-dropout", f"{settings.lora_dropout:g}"]
    given += ["--gradient-checkpointing"] * settings.gradient_checkpointing
    given += ["--trust-remote-code"] * settings.trust_remote_code
    return shlex.join(["lorastudy", "estimate", *given])


def _longest_micro_batch(arm: StudyArm) -> int | None:
    """Tokens of the largest planned micro-batch; None without a prediction."""
    planned = [result.prediction.num_tokens for result in arm.completed if result.prediction is not None]
    return max(planned, default=None)


def _full_micro_batch(settings: Settings) -> int:
    return settings.per_device_train_batch_size * settings.max_seq_length
