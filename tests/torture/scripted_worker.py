"""A worker that trains nothing: it says what a real one would say, so that thousands of runs take minutes.

    python scripted_worker.py FOLDER [FOLDER ...]      or - for folders from standard input, as they come

What it writes depends on the experiment alone, hence is the same in every attempt and company.
"""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from lorastudy.protocol.files import exit_code_of
from lorastudy.protocol.jobs import AdapterOrigin, folders_to_serve
from lorastudy.protocol.parent_watch import end_with_parent
from lorastudy.protocol.records import (
    DONE_NAME,
    RECORDS_NAME,
    ArmProfile,
    ArmStep,
    DataSummary,
    Environment,
    Generation,
    Outcome,
    Pack,
    PackProfile,
    PackStep,
    Record,
    RecordWriter,
    Score,
    TrivialScore,
)

NUM_STEPS = 3
NUM_ITEMS = 4


def main(arguments: Sequence[str]) -> int:
    """Serve every folder."""
    end_with_parent()
    for folder in folders_to_serve(arguments):
        serve(folder)
    return 0


def serve(folder: Path) -> None:
    """Write every record of the pack in a folder, its adapters, and that it is done."""
    writer = RecordWriter(folder / RECORDS_NAME)
    pack = Pack.read(folder)
    for record in records(pack):
        if isinstance(record, Outcome):
            save(pack, record, folder=folder)
        writer.write(record)
    writer.close()
    (folder / DONE_NAME).touch()


def save(pack: Pack, outcome: Outcome, *, folder: Path) -> None:
    """An adapter of a few bytes."""
    assert outcome.adapter_path is not None
    adapter = folder / outcome.adapter_path
    adapter.mkdir(parents=True)
    (adapter / "adapter_model.safetensors").write_bytes(outcome.experiment_id.encode() * 9)
    experiment = next(e for e in pack.experiments if e.id == outcome.experiment_id)
    AdapterOrigin.of(experiment).write(adapter)


def records(pack: Pack) -> Iterator[Record]:
    """One of each kind, and some of those that come often."""
    ids = [experiment.id for experiment in pack.experiments]
    yield environment()
    yield DataSummary(
        split="train", format="alpaca", num_rows=90, num_refused_rows=1, num_truncated_rows=2, num_tokens=9000,
        num_completion_tokens=4000, num_duplicate_rows=3,
    )  # fmt: skip
    yield TrivialScore(
        predictor="constant", split="eval", metric="exact_match", version=2, unit="", value=0.25,
        items=(0.0, 1.0, 0.0, 0.0), answer="4",
    )  # fmt: skip
    for each in ids:
        yield ArmProfile(
            experiment_id=each, num_trainable_parameters=10, num_total_parameters=110, adapter_bytes=40,
            memory_kind="cpu_tensors", peak_memory_bytes=2**33, step_seconds=0.25, tokens_per_second=None,
            num_timed_steps=6, step_quartile_distance_seconds=0.03125, step_times_apart=0.015625,
        )  # fmt: skip
    for step in range(1, NUM_STEPS + 1):
        arms = tuple(
            ArmStep(experiment_id=each, loss=number(each, "loss", step), learning_rate=1e-3, grad_norm=None)
            for each in ids
        )
        yield PackStep(
            step=step, num_steps=NUM_STEPS, num_tokens=64, num_completion_tokens=32, seconds=0.125, arms=arms
        )
    for each in ids:
        for metric in ("loss", "token_accuracy"):
            items = tuple(number(each, metric, item) for item in range(NUM_ITEMS))
            yield Score(
                experiment_id=each, split="eval", metric=metric, version=1, unit="nats/token",
                value=sum(items) / NUM_ITEMS, items=items,
            )  # fmt: skip
        yield Generation(experiment_id=each, prompt="2+2=", reference="4", answer=f"{number(each, 'a', 0)}")
    yield PackProfile(
        engine="packed", num_arms=len(ids), memory_kind="cpu_resident", peak_memory_bytes=None,
        median_step_seconds=0.125, tokens_per_second=1000.0, load_seconds=1.0, train_seconds=30.0, eval_seconds=2.0,
    )  # fmt: skip
    for each in ids:
        path = f"adapters/{each}"
        yield Outcome(experiment_id=each, status="completed", step=NUM_STEPS, adapter_path=path)


def environment() -> Environment:
    """The one that counts as comparable here, so that what is done is not done again."""
    return Environment(
        python="3", torch=version("torch"), transformers=version("transformers"), peft=version("peft"),
        bitsandbytes=version("bitsandbytes"), lorastudy="0", device="cpu", device_name="a processor", num_threads=1,
    )  # fmt: skip


def number(*of: object) -> float:
    """Between 0 and 1, and the same whenever it is asked for."""
    return int.from_bytes(hashlib.sha256(repr(of).encode()).digest()[:6]) / 2**48


if __name__ == "__main__":
    sys.exit(exit_code_of(main, sys.argv[1:]))
