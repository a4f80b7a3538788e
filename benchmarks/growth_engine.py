"""Seconds of a training step as a pack, a step or a row grows, on a small Llama of random weights.

    python -m benchmarks.growth_engine        prints one JSON object: by quantity, points of (size, seconds)

All sizes are timed in turn, round after round, each step after a warm-up step on the same rows.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence

import torch
from transformers import LlamaConfig

from benchmarks.job import Job, Run
from benchmarks.parity import arms_of, token_row
from benchmarks.random_base import as_base, random_model, rows_of_lengths
from lorastudy.engine.batch import Batch, assemble
from lorastudy.engine.loading import BaseModel
from lorastudy.engine.packed import PackedEngine

VOCABULARY = 1024
CPU = torch.device("cpu")
#: Arms alone, tokens alone, length alone: what does not grow is held where a study might have it.
ARMS = (1, 2, 4, 8, 16, 32)
TOKENS = (512, 1024, 2048, 4096, 8192, 16384)
LENGTHS = (128, 256, 512, 1024, 2048, 4096)
ROW_LENGTH, TOKENS_PER_STEP, NUM_ARMS = 128, 4096, 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Time every size; print the points."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth_engine")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, help="only that many of the smallest sizes of each, for a trial")
    chosen = parser.parse_args(arguments)
    base = small_llama()
    short = [ROW_LENGTH]
    plans: dict[str, dict[int, tuple[int, list[int]]]] = {
        "arms": {n: (n, short * 8) for n in ARMS[: chosen.sizes]},
        "tokens": {n: (NUM_ARMS, short * (n // ROW_LENGTH)) for n in TOKENS[: chosen.sizes]},
        "length": {n: (NUM_ARMS, [n] * (TOKENS_PER_STEP // n)) for n in LENGTHS[: chosen.sizes]},
    }
    points: dict[str, dict[int, list[float]]] = {name: {n: [] for n in plan} for name, plan in plans.items()}
    for _ in range(chosen.rounds):
        for name, plan in plans.items():
            for size, (num_arms, lengths) in plan.items():
                points[name][size].append(step_seconds(base, num_arms=num_arms, lengths=lengths))
    print(json.dumps({name: [{"size": n, "seconds": s} for n, s in p.items()] for name, p in points.items()}))
    return 0


def small_llama() -> BaseModel:
    """Four layers of 128, with positions for the longest row."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=max(LENGTHS),
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = random_model(config, dtype=torch.float32, device=CPU)
    return as_base(model, name="small-llama", device=CPU, dtype=torch.float32)


def step_seconds(base: BaseModel, *, num_arms: int, lengths: Sequence[int]) -> float:
    """Seconds of the second of two steps on rows of these lengths."""
    rows = rows_of_lengths(lengths, vocabulary=VOCABULARY, seed=0)
    job = Job(
        model=base.name,
        random_weights=True,
        device="cpu",
        quantization="fp32",
        targets=("q_proj", "k_proj", "v_proj", "o_proj"),
        batch_size=len(rows),
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        warmup_ratio=0.0,
        runs=tuple(Run(name=f"s{seed}", rank=8, alpha=16.0, seed=seed) for seed in range(num_arms)),
        train=(*rows, *rows),
        scored={},
    )
    batches: list[Batch] = [assemble([token_row(row) for row in rows], device=CPU)]
    ends: list[float] = []
    engine = PackedEngine(base, arms_of(job, base=base))
    try:
        engine.train([batches, batches], on_step=lambda _: ends.append(time.perf_counter()))
    finally:
        engine.close()
    return ends[1] - ends[0]


if __name__ == "__main__":
    sys.exit(main())
