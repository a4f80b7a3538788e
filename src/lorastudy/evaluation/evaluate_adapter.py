"""`lorastudy evaluate`: trained adapters, loaded by PEFT onto one base in turn, as a job of its own process."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorastudy.data.load import load_examples
from lorastudy.data.tokenise import TokenSet, tokenise
from lorastudy.engine.chat_template import prompt_style
from lorastudy.engine.generation import greedy
from lorastudy.engine.loading import BaseModel, default_device, load_base
from lorastudy.engine.planning import answer
from lorastudy.errors import StudyError
from lorastudy.evaluation.benchmark import PROMPTS, prompt_text
from lorastudy.evaluation.exact_match import ExactMatch
from lorastudy.evaluation.inference import profile_inference
from lorastudy.evaluation.perplexity import CompletionLoss
from lorastudy.protocol.jobs import EvaluateJob
from lorastudy.protocol.records import Generation, Score
from lorastudy.suite.settings import Settings

if TYPE_CHECKING:
    from lorastudy.engine.loaded import LoadedAdapter


def run_job(values: dict[str, Any]) -> dict[str, Any]:
    """What `lorastudy evaluate` shows of each checkpoint, or the answers to what a plan asks, as plain JSON values.

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
    """All that is asked about one adapter; the base has none on it before and after."""
    from lorastudy.engine.loaded import LoadedAdapter  # and PEFT with it, which plans and training do without

    result: dict[str, Any] = {
        "scores": [],
        "generations": [],
        "inference": None,
        "trust_remote_code": job.trust_remote_code,
    }
    scorer = LoadedAdapter(base, Path(checkpoint))
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


def _scored(
    scorer: "LoadedAdapter", job: EvaluateJob, *, base: BaseModel, tokens: TokenSet
) -> dict[str, Any]:
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
    answers = greedy(
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
