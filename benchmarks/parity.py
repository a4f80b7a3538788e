"""Whether the product learns what the baseline learns: the packed engine from the baseline's own first weights.

    python -m benchmarks.parity job.json        prints one JSON object, in the form of `benchmarks.sequential`

The timed runs of the two sides start from different adapters (PEFT draws its own), so their losses differ by more
than arithmetic. Here all arms of the job train in one pack on the same batches, each from the very weights that PEFT
draws for it with the same seed; what then differs is the order of summation and where rounding takes place. Not
timed.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from torch import Tensor

from benchmarks.job import Job, Row, Run
from benchmarks.sequential import peft_model
from lorastudy.data.tokenise import TokenRow
from lorastudy.engine.arms import TrainingArm, make_arm
from lorastudy.engine.batch import assemble
from lorastudy.engine.loading import BaseModel, load_base
from lorastudy.engine.packed import PackedEngine
from lorastudy.evaluation.evaluator import CompletionLoss
from lorastudy.suite.experiment import Experiment, Sources
from lorastudy.suite.settings import Settings
from lorastudy.suite.targets import resolve_targets

_PREFIX, _SUFFIX = "base_model.model.", ".lora_A.default.weight"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the job's runs in one pack; print their losses."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity")
    parser.add_argument("job", type=Path, help="a file that `Job.write` wrote")
    job = Job.read(parser.parse_args(arguments).job)
    starts = {run.name: first_weights(peft_model(run, job=job)) for run in job.runs}
    base = load_base(settings_of(job, job.runs[0]), device=torch.device(job.device))
    print(json.dumps({"runs": train_from(starts, base=base, job=job)}))
    return 0


def first_weights(model: Any) -> dict[str, Tensor]:
    """`lora_A` by module name, as PEFT drew it; `lora_B` starts at zero on both sides."""
    return {
        name.removeprefix(_PREFIX).removesuffix(_SUFFIX): parameter.detach().float().cpu().clone()
        for name, parameter in model.named_parameters()
        if name.endswith(_SUFFIX)
    }


def settings_of(job: Job, run: Run) -> Settings:
    """One run as the product's settings."""
    return Settings(
        base_model=job.model,
        quantization=job.quantization,
        lora_rank=run.rank,
        lora_alpha=run.alpha,
        target_modules=job.targets,
        max_steps=job.num_steps,
        per_device_train_batch_size=job.batch_size,
        learning_rate=job.learning_rate,
        lr_scheduler_type=job.lr_scheduler_type,
        warmup_ratio=job.warmup_ratio,
    )


def token_row(row: Row) -> TokenRow:
    """A row as the product's engines take it; texts are not needed to train or to score."""
    return TokenRow(input_ids=row.input_ids, labels=row.labels, prompt_ids=(), prompt_text="", reference="")


def arms_of(job: Job, *, base: BaseModel) -> list[TrainingArm]:
    """The job's runs as arms, called as they are."""
    names = resolve_targets(base.target_layers, target_modules=job.targets, layers_to_transform=None)
    arms = []
    for run in job.runs:
        experiment = Experiment(
            name=run.name,
            arm=run.name,
            experiment_type="benchmark",
            seed=run.seed,
            settings=settings_of(job, run),
            sources=Sources(base_model=job.model, dataset="benchmark"),
        )
        arms.append(make_arm(experiment, module_names=names, num_steps=job.num_steps))
    return arms


def train_from(
    starts: Mapping[str, Mapping[str, Tensor]], *, base: BaseModel, job: Job
) -> list[dict[str, Any]]:
    """Step losses and scores of every run, trained together from these first weights."""
    arms = arms_of(job, base=base)
    name_of = {arm.experiment_id: run.name for arm, run in zip(arms, job.runs, strict=True)}
    assert len(name_of) == len(arms), "two runs of a job are the same experiment"
    step_losses: dict[str, list[float | None]] = {run.name: [] for run in job.runs}
    losses: dict[str, dict[str, float]] = {run.name: {} for run in job.runs}

    def on_step(result: Any) -> None:
        for arm in result.arms:
            step_losses[name_of[arm.experiment_id]].append(arm.loss)

    engine = PackedEngine(base, arms)
    try:
        for arm in engine.arms:
            _set_first_weights(engine, arm, starts[name_of[arm.experiment_id]])
        steps = [[assemble([token_row(row) for row in rows], device=base.device)] for rows in job.batches()]
        engine.train(steps, on_step=on_step)
        for split, rows in job.scored.items():
            token_rows = [token_row(row) for row in rows]
            for score in CompletionLoss().evaluate(engine, token_rows, base=base, split=split):
                if score.metric == "loss":
                    losses[name_of[score.experiment_id]][split] = score.value
    finally:
        engine.close()
    return [
        {"name": run.name, "step_losses": step_losses[run.name], "losses": losses[run.name]}
        for run in job.runs
    ]


def _set_first_weights(engine: PackedEngine, arm: TrainingArm, start: Mapping[str, Tensor]) -> None:
    for name, (lora_A, _) in engine._adapters.weights_of(arm).items():
        lora_A.copy_(start[name])


if __name__ == "__main__":
    sys.exit(main())
