"""The lab's suite as a job for the baseline: the same tokens, in the order in which the product visits them.

python -m benchmarks.lab_rows suite.yaml job.json
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from benchmarks.alpaca_rows import rows_of
from benchmarks.job import Job, Run
from benchmarks.suites import name_of
from lorastudy.data.batches import micro_batches, row_order
from lorastudy.data.load import train_and_eval
from lorastudy.data.tokenise import TokenRow, tokenise
from lorastudy.engine.loading import load_base
from lorastudy.lab import base_folder
from lorastudy.planning.design import Designer
from lorastudy.suite.suite_file import load_suite
from lorastudy.suite.targets import peft_names, resolve_targets


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the job."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lab_rows")
    parser.add_argument("suite", type=Path)
    parser.add_argument("job", type=Path)
    chosen = parser.parse_args(arguments)
    job_of(chosen.suite).write(chosen.job)
    return 0


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
