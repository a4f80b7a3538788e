"""How fast a model answers, and what it holds while it does."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from lorastudy.engine.generation import greedy
from lorastudy.engine.loading import BaseModel
from lorastudy.engine.meter import MemoryMeter, synchronise

NUM_WARMUP, NUM_TIMED = 1, 5


@dataclass(frozen=True, kw_only=True)
class InferenceProfile:
    """Greedy generation, one prompt at a time. Times are medians over the timed runs."""

    num_prompts: int
    prompt_tokens: int
    new_tokens: int
    first_token_seconds: float
    seconds_per_new_token: float | None
    new_tokens_per_second: float | None
    peak_memory_bytes: int | None
    memory_kind: str


def profile_inference(
    base: BaseModel, prompts: Sequence[Sequence[int]], *, max_new_tokens: int = 64
) -> InferenceProfile:
    """Time the first token and the rest apart, after a warm-up. Uses whatever adapter the model carries."""
    first, rest, counts = [], [], []
    with MemoryMeter(base.device) as memory:
        for prompt in [prompts[0]] * NUM_WARMUP + list(prompts[:NUM_TIMED]):
            first_seconds, _ = _timed(base, prompt, max_new_tokens=1)
            seconds, num_new = _timed(base, prompt, max_new_tokens=max_new_tokens)
            first.append(first_seconds)
            counts.append(num_new)
            if num_new > 1:
                rest.append((seconds - first_seconds) / (num_new - 1))
    timed_rest = rest[NUM_WARMUP:] or rest
    per_token = statistics.median(timed_rest) if timed_rest else None
    return InferenceProfile(
        num_prompts=len(prompts[:NUM_TIMED]),
        prompt_tokens=sum(len(prompt) for prompt in prompts[:NUM_TIMED]),
        new_tokens=sum(counts[NUM_WARMUP:]),
        first_token_seconds=statistics.median(first[NUM_WARMUP:]),
        seconds_per_new_token=per_token,
        new_tokens_per_second=1 / per_token if per_token else None,
        peak_memory_bytes=memory.peak_bytes,
        memory_kind=memory.kind,
    )


def _timed(base: BaseModel, prompt: Sequence[int], *, max_new_tokens: int) -> tuple[float, int]:
    synchronise(base.device)
    started = time.perf_counter()
    (answer,) = greedy(base, [prompt], copies=1, max_new_tokens=max_new_tokens)
    synchronise(base.device)
    return time.perf_counter() - started, len(answer) + (len(answer) < max_new_tokens)
