"""`lorastudy evaluate`: score, ask and time a trained adapter."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorastudy.cli.terminal import runs_own_code, say
from lorastudy.errors import StudyError

if TYPE_CHECKING:
    from lorastudy.cli.console import PlainConsole
    from lorastudy.jobs import AdapterOrigin


def evaluate(
    checkpoint: Annotated[Path, typer.Option(help="Adapter folder, such as output/<name>/final_model.")],
    base_model: Annotated[
        str | None, typer.Option(help="The base it was trained on; by default the one it names.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Rows to score: a file, or lab:<name>.")] = None,
    benchmark_only: Annotated[
        bool, typer.Option("--benchmark-only", help="Only ask the benchmark prompts.")
    ] = False,
    profile_inference: Annotated[
        bool, typer.Option("--profile-inference", help="Time generation and measure its memory.")
    ] = False,
    quantization: Annotated[
        str | None, typer.Option(help="4bit, 8bit, fp16, bf16 or fp32; by default as in training.")
    ] = None,
    max_seq_length: Annotated[
        int | None, typer.Option(help="Tokens per row; by default as in training.", min=8)
    ] = None,
    max_samples: Annotated[int | None, typer.Option(help="Score only the first rows.", min=1)] = None,
    max_generation_samples: Annotated[
        int, typer.Option(help="Rows answered for exact match; 0 for none.", min=0)
    ] = 16,
    max_new_tokens: Annotated[int, typer.Option(help="Length limit of an answer.", min=1)] = 64,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Let the base model's folder run its own Python code."),
    ] = False,
    output: Annotated[Path | None, typer.Option(help="Also write the result as JSON.")] = None,
) -> None:
    """Evaluate an adapter, loaded onto its base as any user of PEFT would."""
    from lorastudy.cli.console import PlainConsole
    from lorastudy.executors.job_worker import run_job
    from lorastudy.jobs import AdapterOrigin, EvaluateJob
    from lorastudy.spec.hub import check_base_model

    if benchmark_only and dataset is not None:
        raise StudyError(
            "--benchmark-only asks the benchmark prompts alone; leave out --dataset, or the flag"
        )
    origin = AdapterOrigin.read(checkpoint)
    job = EvaluateJob(
        checkpoint=str(checkpoint),
        base_model=base_model or _named_base(checkpoint),
        quantization=_quantization(quantization or (origin.quantization if origin else "bf16")),
        dataset=dataset,
        benchmark=benchmark_only or (dataset is None and not profile_inference),
        profile_inference=profile_inference,
        max_seq_length=max_seq_length or (origin.max_seq_length if origin else 512),
        max_samples=max_samples,
        max_generation_samples=max_generation_samples,
        max_new_tokens=max_new_tokens,
        exact_match_pattern=origin.exact_match_pattern if origin else None,
        trust_remote_code=trust_remote_code,
    )
    if trust_remote_code:
        say(f"note: {runs_own_code(job.base_model)}", file=sys.stderr)
    check_base_model(job.base_model)
    _check_same_base(job.base_model, checkpoint, origin=origin)
    result = run_job(job)
    _show(PlainConsole(), result)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=1), encoding="utf-8")


def _check_same_base(base_model: str, checkpoint: Path, *, origin: "AdapterOrigin | None") -> None:
    """Refuse a base in a folder whose content is not that of the base the adapter was trained on."""
    from lorastudy.spec.identity import base_model_fingerprint

    now = base_model_fingerprint(base_model)
    then = origin.base_model_fingerprint if origin else now
    if then != now and then.startswith("sha256:") and now.startswith("sha256:"):
        raise StudyError(
            f"--base-model: {base_model}: not the base that {checkpoint} was trained on: its files have other content"
        )


def _named_base(checkpoint: Path) -> str:
    config = checkpoint / "adapter_config.json"
    if not config.is_file():
        raise StudyError(
            f"--checkpoint: {checkpoint}: has no adapter_config.json; expected a folder such as output/<name>/final_model"
        )
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise StudyError(f"--checkpoint: {config}: is not JSON: {error}") from error
    named = values.get("base_model_name_or_path") if isinstance(values, dict) else None
    if not isinstance(named, str):
        raise StudyError(f"--checkpoint: {checkpoint}: does not name its base model; give --base-model")
    return named


def _quantization(value: str) -> Any:
    from typing import get_args

    from lorastudy.spec.settings import Quantization

    if value not in get_args(Quantization):
        raise StudyError(f"--quantization: {value}: one of {', '.join(get_args(Quantization))}")
    return value


def _show(console: "PlainConsole", result: dict[str, Any]) -> None:
    for score in result["scores"]:
        unit = f" {score['unit']}" if score["unit"] else ""
        console.print(f"{score['metric']:<16} {score['value']:.4f}{unit}  ({score['num_items']} rows)")
    if result.get("num_refused_rows"):
        console.print(
            f"{result['num_refused_rows']} rows left out: their answer lies beyond --max-seq-length"
        )
    for generation in result["generations"]:
        console.print(f"\n> {generation['prompt'].strip()}")
        if "reference" in generation:
            console.print(f"  expected: {generation['reference']}")
        console.print(f"  answer:   {generation['answer'].strip()}")
    if result["inference"] is not None:
        console.print("\ninference, one prompt at a time, greedy, medians:")
        for key, value in result["inference"].items():
            console.print(f"  {key:<22} {value:.4g}" if isinstance(value, float) else f"  {key:<22} {value}")
