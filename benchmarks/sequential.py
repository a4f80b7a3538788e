"""The baseline: one Trainer + PEFT run for each configuration, one after another.

    python -m benchmarks.sequential job.json        prints one JSON object

What a careful user of transformers and peft writes: the base model is loaded once for each configuration, prompts
are masked, batches are padded to their longest row, the optimizer is the Trainer's own fused AdamW, answers are
generated in batches. Nothing is slowed down on purpose; rows come tokenised and in their order, which saves it the
work. It imports nothing of the product.
"""

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import SequentialSampler
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from benchmarks.job import Job, Row, Run

IGNORED = -100
#: Rows of a scoring batch, prompts of a generating one.
SCORE_BATCH, GENERATE_BATCH = 32, 128


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; print what came of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sequential")
    parser.add_argument("job", type=Path, help="a file that `Job.write` wrote")
    job = Job.read(parser.parse_args(arguments).job)
    runs = [run_one(run, job=job) for run in job.runs]
    print(json.dumps({"num_threads": torch.get_num_threads(), "runs": runs}))
    return 0


def run_one(run: Run, *, job: Job, base: Any = None) -> dict[str, Any]:
    """Load, train, score one configuration; the seconds of each part, and the losses.

    With a `base` that is loaded already, it is used, and given back without its adapter.
    """
    started = time.perf_counter()
    model = peft_model(run, job=job, base=base)
    synchronise(job.device)
    loaded = time.perf_counter()
    pace = train(model, job=job)
    trained = time.perf_counter()
    losses = {name: mean_loss(model, rows, job=job) for name, rows in job.scored.items()}
    answers = generate(model, job=job)
    done = time.perf_counter()
    if base is not None:
        model.unload()
    return {
        "name": run.name,
        "load_seconds": loaded - started,
        "train_seconds": trained - loaded,
        "eval_seconds": done - trained,
        "step_seconds": pace.median_step_seconds,
        "losses": losses,
        "step_losses": pace.losses,
        "num_answers": len(answers),
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if job.device == "cuda" else None,
    }


def peft_model(run: Run, *, job: Job, base: Any = None) -> Any:
    """The base with a fresh adapter; the same seed draws the same adapter."""
    if job.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    set_seed(run.seed)
    if base is None:
        base = load_base(job)
        if job.quantization == "4bit":
            base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    config = LoraConfig(
        r=run.rank,
        lora_alpha=int(run.alpha) if run.alpha.is_integer() else run.alpha,
        target_modules=list(job.targets),
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, config)


def load_base(job: Job) -> Any:
    """The frozen model, as `from_pretrained` gives it, or of random weights where only its shape matters."""
    dtype = getattr(torch, job.dtype)
    if job.random_weights:
        torch.manual_seed(0)
        with torch.device(job.device):
            return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(job.model), dtype=dtype)
    quantization = None
    if job.quantization == "4bit":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return AutoModelForCausalLM.from_pretrained(
        job.model, dtype=dtype, quantization_config=quantization, device_map={"": job.device}
    )


class Pace(TrainerCallback):  # type: ignore[misc]  # transformers is not typed here
    """When each step began and ended, and its loss: the Trainer reads the loss after each step, which waits for it."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self._seconds: list[float] = []
        self._last = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self._last = time.perf_counter()

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        """Take note of a step."""
        if "loss" in logs:
            now = time.perf_counter()
            self._seconds.append(now - self._last)
            self._last = now
            self.losses.append(float(logs["loss"]))

    @property
    def median_step_seconds(self) -> float:
        """Of all steps but the first, which warms up."""
        return statistics.median(self._seconds[1:] or self._seconds)


def train(model: Any, *, job: Job) -> Pace:
    """Train with the Trainer; losses and seconds of its steps."""
    pace = Pace()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = InOrder(
            model=model,
            args=TrainingArguments(
                output_dir=scratch,
                max_steps=job.num_steps,
                per_device_train_batch_size=job.batch_size,
                learning_rate=job.learning_rate,
                lr_scheduler_type=job.lr_scheduler_type,
                warmup_steps=math.ceil(job.warmup_ratio * job.num_steps),
                max_grad_norm=1.0,
                weight_decay=0.0,
                bf16=job.dtype == "bfloat16",
                use_cpu=job.device == "cpu",
                report_to="none",
                save_strategy="no",
                logging_steps=1,
                logging_nan_inf_filter=False,
                disable_tqdm=True,
                remove_unused_columns=False,
            ),
            train_dataset=[vars(row) for row in job.train],
            data_collator=collate,
            callbacks=[pace],
        )
        trainer.remove_callback(PrinterCallback)  # it prints to standard output, where the result belongs
        trainer.train()
    synchronise(job.device)
    return pace


class InOrder(Trainer):  # type: ignore[misc]  # transformers is not typed here
    """The Trainer over rows as they come: their order is given, the same for both sides."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pad to the longest row of the batch, as any collator does."""
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    labels = [torch.tensor(row["labels"]) for row in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
    }


@torch.no_grad()
def mean_loss(model: Any, rows: Sequence[Row], *, job: Job) -> float:
    """Nats per completion token over all rows, each token of equal weight."""
    model.eval()
    total, count = 0.0, 0
    for start in range(0, len(rows), SCORE_BATCH):
        part = [vars(row) for row in rows[start : start + SCORE_BATCH]]
        batch = {name: value.to(job.device) for name, value in collate(part).items()}
        target = batch.pop("labels")[:, 1:]
        logits = model(**batch).logits[:, :-1].float()
        total += torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), target.flatten(), ignore_index=IGNORED, reduction="sum"
        ).item()
        count += int((target != IGNORED).sum().item())
    return total / count


@torch.no_grad()
def generate(model: Any, *, job: Job) -> list[list[int]]:
    """Greedy answers in batches padded on the left."""
    model.eval()
    answers: list[list[int]] = []
    for start in range(0, len(job.prompts), GENERATE_BATCH):
        part = job.prompts[start : start + GENERATE_BATCH]
        longest = max(map(len, part))
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in part])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in part])
        out = model.generate(
            input_ids=ids.to(job.device),
            attention_mask=mask.to(job.device),
            max_new_tokens=job.max_new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        answers += out[:, longest:].tolist()
    return answers


def synchronise(device: str) -> None:
    """Wait for the device, so that a clock read after this counts all that was asked before."""
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
