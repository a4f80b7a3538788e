"""Disk space of a suite before it runs: adapters, checkpoints, records. Bytes."""

from lorastudy.protocol.records import ArmStep, PackStep, encode

FP32_BYTES = 4

#: safetensors' header has a line of about this length for each tensor (name, type, shape, offsets).
HEADER_BYTES_PER_TENSOR = 150

#: A checkpoint holds adapters and both moments of AdamW; two are kept.
TENSORS_IN_A_CHECKPOINT, CHECKPOINTS_KEPT = 3, 2

#: Adapters stay in the run folder, and a copy of each goes to the output folder.
COPIES_OF_AN_ADAPTER = 2


def adapter_file_bytes(num_trainable_parameters: int, *, num_modules: int) -> int:
    """4 p, and the header of two tensors for each module."""
    return FP32_BYTES * num_trainable_parameters + 2 * num_modules * HEADER_BYTES_PER_TENSOR


def adapters_bytes(num_trainable_parameters: int, *, num_modules: int) -> int:
    """What an experiment's adapter takes, its copy included."""
    return COPIES_OF_AN_ADAPTER * adapter_file_bytes(num_trainable_parameters, num_modules=num_modules)


def checkpoint_bytes(num_trainable_parameters: int) -> int:
    """The checkpoints that an experiment's arm takes part in while it trains."""
    return CHECKPOINTS_KEPT * TENSORS_IN_A_CHECKPOINT * FP32_BYTES * num_trainable_parameters


def records_bytes(*, num_steps: int, num_arms: int) -> int:
    """The records of a pack's steps: so many lines, each as long as one with ordinary numbers."""
    arm = ArmStep(experiment_id="exp-0123456789abcdef", loss=1.2345678901234567, learning_rate=1.2345678901234567e-4,
                  grad_norm=0.12345678901234567)  # fmt: skip
    line = encode(
        PackStep(
            step=num_steps, num_steps=num_steps, num_tokens=1234, num_completion_tokens=1234,
            seconds=0.1234567890123456, arms=(arm,) * num_arms,
        )
    )  # fmt: skip
    return num_steps * (len(line) + 1)
