"""`lorastudy run`: one experiment from flags."""

from typing import Annotated

import typer

from lorastudy.cli.options import (
    QUANTIZATIONS,
    TARGET_MODULES,
    Config,
    Database,
    OutputDir,
    RunsDir,
    target_modules_of,
)
from lorastudy.cli.terminal import say
from lorastudy.places import DATABASE, OUTPUT_DIR, RUNS_DIR


def run(
    dataset: Annotated[str | None, typer.Option(help="Training rows: a file, or lab:<name>.")] = None,
    base_model: Annotated[str | None, typer.Option(help="Folder, hub id, or `lab`.")] = None,
    experiment_type: Annotated[
        str,
        typer.Option(
            help="rank_ablation, module_ablation, parameter_matched_modules, quantization_study, custom, or file.py:Class."
        ),
    ] = "rank_ablation",
    lora_rank: Annotated[int | None, typer.Option(help="The adapter's rank.")] = None,
    lora_alpha: Annotated[str | None, typer.Option(help="A number, or a policy: r, 2r.")] = None,
    target_modules: Annotated[str | None, typer.Option(help=TARGET_MODULES)] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    num_epochs: Annotated[float | None, typer.Option(help="Passes over the training rows.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Optimizer steps, instead of --num-epochs.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows per forward pass.")] = None,
    max_seq_length: Annotated[int | None, typer.Option(help="Tokens per row.")] = None,
    quantization: Annotated[str | None, typer.Option(help=f"{QUANTIZATIONS}.")] = None,
    eval_dataset: Annotated[str | None, typer.Option(help="Held-out rows.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the adapter's first weights and of dropout.")] = 0,
    name: Annotated[str | None, typer.Option(help="Names the output folder.")] = None,
    config: Config = None,
    database: Database = DATABASE,
    runs_dir: RunsDir = RUNS_DIR,
    output_dir: OutputDir = OUTPUT_DIR,
) -> None:
    """Train and evaluate one configuration; the adapter goes to output/<name>/final_model."""
    from lorastudy.cli.running import run_experiments
    from lorastudy.running.adapters import published
    from lorastudy.running.phase_runner import RunOptions
    from lorastudy.suite.suite_file import suite_from_values

    values = {
        "experiment_type": experiment_type,
        "dataset_path": dataset,
        "base_model": base_model,
        "lora_rank": lora_rank,
        "lora_alpha": _number_or_text(lora_alpha),
        "target_modules": None if target_modules is None else target_modules_of(target_modules),
        "learning_rate": learning_rate,
        "num_train_epochs": num_epochs,
        "max_steps": max_steps,
        "per_device_train_batch_size": batch_size,
        "max_seq_length": max_seq_length,
        "quantization": quantization,
        "eval_dataset_path": eval_dataset,
        "seeds": seed,
        "name": name,
    }
    flags = {
        "per_device_train_batch_size": "--batch-size",
        "eval_dataset_path": "--eval-dataset",
        "seeds": "--seed",
    }
    suite = suite_from_values(values, where="run", flags=flags, defaults=config)
    options = RunOptions(runs=runs_dir, output=output_dir)
    ran = run_experiments(suite, database=database, options=options)
    for experiment in ran.reporting:
        place = published(experiment, suite_name=suite.name, output=output_dir)
        if place is not None:
            say(f"adapter: {place}")


def _number_or_text(value: str | None) -> float | str | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        return value
