"""Lays out Alpaca rows so that the product visits them in the order in which the Trainer does.

    python -m benchmarks.alpaca_rows request.json        writes train.json, held_out.json and job.json beside it

The Trainer draws its order from the seed; here it is asked for it, through its own loader. The product orders rows
by a hash of their numbers. So the training file is laid out such that both orders meet: place `ours[i]` of the file
holds the row that the Trainer visits at place i. The product then runs as it is on exactly the Trainer's batches.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from transformers import Trainer, TrainingArguments

from benchmarks.job import AlpacaRequest, Job, Row, Run
from lorastudy.data.batches import row_order
from lorastudy.data.load import load_examples
from lorastudy.data.tokenise import TokenRow, tokenise
from lorastudy.engine.loading import load_tokenizer

DATA_SEED = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the three files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.alpaca_rows")
    parser.add_argument("request", type=Path, help="a file that `AlpacaRequest.write` wrote")
    path = parser.parse_args(arguments).request
    lay_out(AlpacaRequest(**json.loads(path.read_text(encoding="utf-8"))), folder=path.parent)
    return 0


def lay_out(request: AlpacaRequest, *, folder: Path) -> None:
    """Write `train.json`, `held_out.json` and `job.json`.

    Raises:
        ValueError: the steps see some row twice, for which one file cannot be laid out.
    """
    rows = json.loads(Path(request.data).read_text(encoding="utf-8"))
    train, rest = rows[: request.num_train], rows[request.num_train :]
    visited = trainer_order(
        len(train), num_steps=request.steps, batch_size=request.batch_size, seed=request.seed
    )
    _write_rows(folder / "train.json", laid_out(train, visited=visited))
    _write_rows(folder / "held_out.json", rest[: request.num_eval])
    # The job's rows are read back from the files, in the product's own order: what the suite will see.
    ours = row_order(len(train), data_seed=DATA_SEED, num_rows_needed=len(visited))
    tokens = _tokens(folder / "train.json", request=request)
    job = Job(
        model=request.model,
        random_weights=False,
        device="cpu",
        quantization=request.quantization,
        targets=tuple(request.targets),
        batch_size=request.batch_size,
        learning_rate=request.learning_rate,
        lr_scheduler_type="constant",
        warmup_ratio=0.0,
        runs=tuple(
            Run(name=f"r{rank}_s{request.seed}", rank=rank, alpha=request.alpha, seed=request.seed)
            for rank in request.ranks
        ),
        train=rows_of([tokens[number] for number in ours]),
        scored={"eval": rows_of(_tokens(folder / "held_out.json", request=request))},
    )
    job.write(folder / "job.json")


def trainer_order(num_rows: int, *, num_steps: int, batch_size: int, seed: int) -> list[int]:
    """Row numbers in the order in which a Trainer with this seed visits them, from its own loader.

    The order depends on nothing but the seed: neither on the model nor on what was drawn before.

    Raises:
        ValueError: there are more steps than one pass over the rows has.
    """
    needed = num_steps * batch_size
    if needed > num_rows:
        raise ValueError(
            f"{num_steps} steps of {batch_size} rows are more than one pass over {num_rows} rows"
        )
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=torch.nn.Linear(1, 1),
            args=TrainingArguments(
                output_dir=scratch,
                max_steps=num_steps,
                per_device_train_batch_size=batch_size,
                seed=seed,
                data_seed=seed,
                use_cpu=True,
                report_to="none",
                remove_unused_columns=False,
            ),
            train_dataset=list(range(num_rows)),
            data_collator=lambda numbers: {"numbers": torch.tensor(numbers)},
        )
        visited: list[int] = []
        for batch in trainer.get_train_dataloader():
            visited += batch["numbers"].tolist()
            if len(visited) >= needed:
                break
    return visited[:needed]


def laid_out(rows: Sequence[Any], *, visited: Sequence[int]) -> list[Any]:
    """The rows, placed such that the product's order over the file begins with those visited, in their order."""
    ours = row_order(len(rows), data_seed=DATA_SEED, num_rows_needed=len(rows))
    seen = set(visited)
    assert len(seen) == len(visited)
    sequence = [*visited, *(number for number in range(len(rows)) if number not in seen)]
    placed: dict[int, Any] = {place: rows[number] for place, number in zip(ours, sequence, strict=True)}
    return [placed[place] for place in range(len(rows))]


def rows_of(token_rows: Sequence[TokenRow]) -> tuple[Row, ...]:
    """The product's rows, without their texts."""
    return tuple(Row(input_ids=row.input_ids, labels=row.labels) for row in token_rows)


def _tokens(path: Path, *, request: AlpacaRequest) -> tuple[TokenRow, ...]:
    """The file's rows as the product tokenises them, none refused: a refused one would shift the order."""
    _, examples = load_examples(str(path))
    tokens = tokenise(
        examples,
        tokenizer=load_tokenizer(request.model),
        max_seq_length=request.max_length,
        split=path.stem,
    )
    if tokens.summary.num_refused_rows:
        raise ValueError(
            f"{path.name}: {tokens.summary.num_refused_rows} rows have no answer left at this length"
        )
    return tuple(tokens.rows)


def _write_rows(path: Path, rows: Sequence[Any]) -> None:
    path.write_text(json.dumps(rows), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
