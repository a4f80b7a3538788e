"""`lorastudy evaluate`: scores trained adapters, which PEFT loads one after another onto one base. Runs in a worker.

A folder of full fine-tuning holds a whole model: its weights take the place of the base's.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorastudy.data.conversations import Instruction
from lorastudy.data.load import load_examples
from lorastudy.data.prompts import alpaca_prompt
from lorastudy.data.tokenise import TokenSet, tokenise
from lorastudy.engine.arms import Scorer
from lorastudy.engine.chat_template import prompt_style
from lorastudy.engine.loading import BaseModel, default_device, load_base
from lorastudy.engine.meter import MemoryMeter, synchronise
from lorastudy.engine.padded_forward import greedy_answers
from lorastudy.engine.planning import answer
from lorastudy.errors import StudyError
from lorastudy.evaluation.evaluator import CompletionLoss, ExactMatch
from lorastudy.protocol.jobs import EvaluateJob
from lorastudy.protocol.records import Generation, Score
from lorastudy.suite.base_model import is_model_folder
from lorastudy.suite.settings import Settings

PROMPTS = (
    "Explain in two sentences why the sky is blue.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "Translate into French: The library opens at nine o'clock.",
    "A train travels 120 km in 1.5 hours. What is its average speed?",
    "Summarise in one sentence: The committee met on Tuesday, argued for four hours, and agreed on nothing.",
    "List three risks of storing passwords in plain text.",
)

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


def run_job(values: dict[str, Any]) -> dict[str, Any]:
    """Do a worker's job: evaluate adapters, or answer a plan's questions. Returns plain JSON values.

    Raises:
        StudyError: the base, the adapter or the data set cannot be used.
    """
    if "questions" in values:
        return answer(values["questions"])
    job = EvaluateJob(**{**values, "checkpoints": tuple(values["checkpoints"])})
    settings = Settings(
        base_model=job.base_model, quantization=job.quantization, trust_remote_code=job.trust_remote_code
    )
    base = load_base(settings, device=default_device())
    tokens = None if job.dataset is None else _tokens(job, base=base)
    return {
        "checkpoints": [
            {"checkpoint": checkpoint, **_evaluated(checkpoint, job, base=base, tokens=tokens)}
            for checkpoint in job.checkpoints
        ]
    }


def _evaluated(
    checkpoint: str, job: EvaluateJob, *, base: BaseModel, tokens: TokenSet | None
) -> dict[str, Any]:
    """All results of the job for one adapter. The base has no adapter before and after."""
    # These import PEFT, which plans and training do not need.
    from lorastudy.engine.full_fine_tuning import LoadedModel
    from lorastudy.engine.peft_model import LoadedAdapter

    result: dict[str, Any] = {
        "scores": [],
        "generations": [],
        "inference": None,
        "trust_remote_code": job.trust_remote_code,
    }
    folder = Path(checkpoint)
    scorer = (LoadedModel if is_model_folder(folder) else LoadedAdapter)(base, folder)
    try:
        if tokens is not None:
            result |= _scored(scorer, job, base=base, tokens=tokens)
        if job.benchmark:
            result["generations"] += _answers(base, max_new_tokens=job.max_new_tokens)
        if job.profile_inference:
            prompts = [_ids(base, prompt_text(prompt)) for prompt in PROMPTS]
            result["inference"] = asdict(profile_inference(base, prompts, max_new_tokens=job.max_new_tokens))
    finally:
        scorer.close()
    return result


def _tokens(job: EvaluateJob, *, base: BaseModel) -> TokenSet:
    assert job.dataset is not None
    _, examples = load_examples(
        job.dataset, max_samples=job.max_samples, style=prompt_style(base.tokenizer, job.prompt_format)
    )  # fmt: skip
    return tokenise(examples, tokenizer=base.tokenizer, max_seq_length=job.max_seq_length, split="eval")


def _scored(scorer: Scorer, job: EvaluateJob, *, base: BaseModel, tokens: TokenSet) -> dict[str, Any]:
    records: list[Score | Generation] = list(
        CompletionLoss().evaluate(scorer, tokens.rows, base=base, split="eval")
    )  # fmt: skip
    if job.max_generation_samples:
        exact_match = ExactMatch(
            max_new_tokens=job.max_new_tokens,
            max_rows=job.max_generation_samples,
            pattern=job.exact_match_pattern,
        )
        records += exact_match.evaluate(scorer, tokens.rows, base=base, split="eval")
    scores = [record for record in records if isinstance(record, Score)]
    return {
        "scores": [
            {"metric": score.metric, "value": score.value, "unit": score.unit, "num_items": len(score.items)}
            for score in scores
        ],
        "generations": [
            {"prompt": record.prompt, "reference": record.reference, "answer": record.answer}
            for record in records
            if isinstance(record, Generation)
        ],
        "num_refused_rows": tokens.summary.num_refused_rows,
    }


def _answers(base: BaseModel, *, max_new_tokens: int) -> list[dict[str, str]]:
    answers = greedy_answers(
        base, [_ids(base, prompt_text(prompt)) for prompt in PROMPTS], copies=1, max_new_tokens=max_new_tokens
    )  # fmt: skip
    return [
        {"prompt": prompt, "answer": str(base.tokenizer.decode(ids, skip_special_tokens=True))}
        for prompt, ids in zip(PROMPTS, answers, strict=True)
    ]


def _ids(base: BaseModel, text: str) -> list[int]:
    ids: list[int] = base.tokenizer(text)["input_ids"]
    if not ids:
        raise StudyError(f"base_model: {base.name}: its tokenizer knows none of the benchmark prompts' words")
    return ids


def prompt_text(instruction: str) -> str:
    """The instruction in the Alpaca layout, as in training on Alpaca data."""
    return alpaca_prompt(Instruction(prompt=instruction, answer=""))


def profile_inference(
    base: BaseModel, prompts: Sequence[Sequence[int]], *, max_new_tokens: int = 64
) -> InferenceProfile:
    """Times of the first token and of the following tokens, after a warm-up, with the model's current adapter."""
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
    (answer,) = greedy_answers(base, [prompt], copies=1, max_new_tokens=max_new_tokens)
    synchronise(base.device)
    return time.perf_counter() - started, len(answer) + (len(answer) < max_new_tokens)
