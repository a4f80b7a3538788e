"""What a measured peak is about: the rows of the study's data, which are mostly shorter than `max_seq_length` allows.

`lorastudy recommend` and `lorastudy estimate` speak of rows of the full length, so one configuration has two peaks; a
report that shows one of them says which.
"""

import shlex

from lorastudy.report.document import Code, Text
from lorastudy.report.numbers import count
from lorastudy.stats.study import StudyArm
from lorastudy.suite.settings import Settings


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
    """What the arm's measured memory is about, and the command that predicts it for rows of the full length."""
    settings, longest = arm.typed_settings, _longest_micro_batch(arm)
    full = _full_micro_batch(settings)
    if longest is not None and longest >= full:
        return (
            f" Its rows are of the full length: {count(full)} tokens in the largest micro-batch of {arm.name}.",
        )
    known = "" if longest is None else f", at most {count(longest)} tokens in a micro-batch of {arm.name}"
    more = "need more" if longest is not None else "need more, unless all rows are as long"
    told = (
        f" It is about the rows of this data{known}. Rows of the full length (max_seq_length {settings.max_seq_length}, "
        f"{settings.per_device_train_batch_size} in a micro-batch: {count(full)} tokens) {more}, and those are what "
        "lorastudy recommend plans for."
    )
    if settings.layers_to_transform is not None:  # the command has no word for it
        return (told,)
    return (f"{told} To predict it: ", Code(estimate_command(settings)), ".")


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
    """Tokens of the largest micro-batch, as it was planned for; None where nothing was predicted."""
    planned = [result.prediction.num_tokens for result in arm.completed if result.prediction is not None]
    return max(planned, default=None)


def _full_micro_batch(settings: Settings) -> int:
    return settings.per_device_train_batch_size * settings.max_seq_length
