"""Jobs for the baseline: the tokens that the product trains on, in the order in which it visits them.

    python -m benchmarks.baseline_jobs alpaca request.json        writes train.json, held_out.json and job.json beside it
    python -m benchmarks.baseline_jobs lab suite.yaml job.json    writes the job of a suite on the lab's model

For Alpaca rows the product must visit the rows in the order of the Trainer, which draws it from the seed; the Trainer's own
loader is run to learn it. The product orders rows by a hash of their numbers. So the training file is laid out such that both
orders meet: place `ours[i]` of the file holds the row that the Trainer visits at place i. The product then trains on exactly
the Trainer's batches.
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
from benchmarks.processes import name_of
from lorastudy.data.batches import micro_batches, row_order
from lorastudy.data.load import load_examples, train_and_eval
from lorastudy.data.tokenise import TokenRow, tokenise
from lorastudy.engine.loading import load_base, load_tokenizer
from lorastudy.lab import base_folder
from lorastudy.planning.design import Designer
from lorastudy.suite.suite_file import load_suite
from lorastudy.suite.targets import peft_names, resolve_targets

DATA_SEED = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files of one benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.baseline_jobs")
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)
    alpaca = benchmarks.add_parser("alpaca")
    alpaca.add_argument("request", type=Path, help="a file that `AlpacaRequest.write` wrote")
    lab = benchmarks.add_parser("lab")
    lab.add_argument("suite", type=Path)
    lab.add_argument("job", type=Path)
    chosen = parser.parse_args(arguments)
    if chosen.benchmark == "alpaca":
        request = AlpacaRequest(**json.loads(chosen.request.read_text(encoding="utf-8")))
        lay_out(request, folder=chosen.request.parent)
    else:
        job_of(chosen.suite).write(chosen.job)
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


def job_of(suite: Path) -> Job:
    """Every experiment of a rank study on the lab's model as a run."""
    experiments = Designer(suite=load_suite(suite)).design().experiments
    settings = experiments[0].settings
    base = load_base(settings, device=torch.device("cpu"))
    study = train_and_eval(settings)
    assert study.forgetting is not None
    splits = {"train": study.train, "eval": study.held_out, "forgetting": study.forgetting}
    rows: dict[str, tuple[TokenRow, ...]] = {
        name: tuple(
            tokenise(part, tokenizer=base.tokenizer, max_seq_length=settings.max_seq_length, split=name).rows
        )
        for name, part in splits.items()
    }
    assert settings.max_steps is not None
    size = settings.per_device_train_batch_size
    order = row_order(
        len(rows["train"]), data_seed=experiments[0].data_seed, num_rows_needed=settings.max_steps * size
    )
    plan = micro_batches(order, batch_size=size, accumulation=1)
    chosen = resolve_targets(
        base.target_layers, target_modules=settings.target_modules, layers_to_transform=None
    )
    assert settings.quantization == "fp32"
    assert settings.lr_scheduler_type == "linear"
    return Job(
        model=str(base_folder()),
        random_weights=False,
        device="cpu",
        quantization=settings.quantization,
        targets=tuple(peft_names(chosen, modules=base.module_names)),
        batch_size=settings.per_device_train_batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler_type,
        warmup_ratio=settings.warmup_ratio,
        runs=tuple(
            Run(
                name=name_of(experiment.settings.lora_rank, experiment.seed),
                rank=experiment.settings.lora_rank,
                alpha=experiment.settings.lora_alpha_value,
                seed=experiment.seed,
            )
            for experiment in experiments
        ),
        train=rows_of([rows["train"][number] for (numbers,) in plan for number in numbers]),
        scored={name: rows_of(rows[name]) for name in ("eval", "forgetting")},
        prompts=tuple(row.prompt_ids for row in rows["eval"][: settings.max_generation_samples]),
        max_new_tokens=settings.max_new_tokens,
    )


if __name__ == "__main__":
    sys.exit(main())
