"""`lorastudy evaluate`: score, prompt and time trained adapters, several over one base."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorastudy.cli.options import QUANTIZATIONS, TrustRemoteCode
from lorastudy.cli.terminal import runs_own_code, say
from lorastudy.errors import StudyError

if TYPE_CHECKING:
    from lorastudy.cli.console import PlainConsole
    from lorastudy.protocol.jobs import AdapterOrigin


def evaluate(
    checkpoint: Annotated[
        list[Path],
        typer.Option(
            help="Adapter folder, such as output/<name>/final_model; give it several times for a table."
        ),
    ],
    base_model: Annotated[
        str | None, typer.Option(help="The base it was trained on; by default the one it names.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Rows to score: a file, or lab:<name>.")] = None,
    benchmark_only: Annotated[
        bool, typer.Option("--benchmark-only", help="Only answer the benchmark prompts.")
    ] = False,
    profile_inference: Annotated[
        bool, typer.Option("--profile-inference", help="Time generation and measure its memory.")
    ] = False,
    quantization: Annotated[
        str | None, typer.Option(help=f"{QUANTIZATIONS}; by default as in training.")
    ] = None,
    max_seq_length: Annotated[
        int | None, typer.Option(help="Tokens per row; by default as in training.", min=8)
    ] = None,
    max_samples: Annotated[int | None, typer.Option(help="Score only the first rows.", min=1)] = None,
    max_generation_samples: Annotated[
        int, typer.Option(help="Rows answered for exact match; 0 for none.", min=0)
    ] = 16,
    max_new_tokens: Annotated[int, typer.Option(help="Length limit of an answer.", min=1)] = 64,
    trust_remote_code: TrustRemoteCode = False,
    output: Annotated[Path | None, typer.Option(help="Also write the result as JSON.")] = None,
) -> None:
    """Evaluate adapters, loaded onto their base as any user of PEFT would. The base is loaded once for all of them."""
    from lorastudy.cli.console import PlainConsole
    from lorastudy.executors.process import run_job
    from lorastudy.protocol.jobs import AdapterOrigin, EvaluateJob
    from lorastudy.suite.base_model import check_base_model

    if benchmark_only and dataset is not None:
        raise StudyError(
            "--benchmark-only answers the benchmark prompts alone; leave out --dataset or --benchmark-only"
        )
    checkpoints = list(dict.fromkeys(checkpoint))
    origins = {each: AdapterOrigin.read(each) for each in checkpoints}

    def of_origin(name: str, option: str, *, without: object) -> Any:
        return _shared(origins, lambda origin: getattr(origin, name) if origin else without, option=option)

    job = EvaluateJob(
        checkpoints=tuple(map(str, checkpoints)),
        base_model=base_model
        or str(_shared({each: _named_base(each) for each in checkpoints}, str, option="--base-model")),
        quantization=_quantization(
            quantization or of_origin("quantization", "--quantization", without="bf16")
        ),
        dataset=dataset,
        benchmark=benchmark_only or (dataset is None and not profile_inference),
        profile_inference=profile_inference,
        max_seq_length=max_seq_length or of_origin("max_seq_length", "--max-seq-length", without=512),
        max_samples=max_samples,
        max_generation_samples=max_generation_samples,
        max_new_tokens=max_new_tokens,
        exact_match_pattern=of_origin("exact_match_pattern", "", without=None),
        prompt_format=of_origin("prompt_format", "", without="auto"),
        trust_remote_code=trust_remote_code,
    )
    if trust_remote_code:
        say(f"note: {runs_own_code(job.base_model)}", file=sys.stderr)
    check_base_model(job.base_model)
    for each, origin in origins.items():
        _check_same_base(job.base_model, each, origin=origin)
    results = run_job(job)["checkpoints"]
    console = PlainConsole()
    if len(results) > 1:
        _show_table(console, results)
    for result in results:
        if len(results) > 1:
            console.print(f"\n{result['checkpoint']}", style="bold")
        _show(console, result)
    if output is not None:
        # A single result is written without list and name; older output files have that form.
        body = {"checkpoints": results} if len(results) > 1 else _without_name(results[0])
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(body, indent=1), encoding="utf-8")


def _without_name(result: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key != "checkpoint"}


def _shared(values: Mapping[Path, Any], value_of: Callable[[Any], Any], *, option: str) -> Any:
    """The value that all adapters share, because they are scored alike.

    Raises:
        StudyError: they differ, and the user has not chosen one.
    """
    found = {value_of(value): checkpoint for checkpoint, value in values.items()}
    if len(found) > 1:
        (one, first), (other, second), *_ = found.items()
        remedy = f"give {option} for both" if option else "evaluate them one after another"
        raise StudyError(f"--checkpoint: {first} was trained with {one}, {second} with {other}; {remedy}")
    return next(iter(found))


def _show_table(console: "PlainConsole", results: Sequence[Mapping[str, Any]]) -> None:
    """A line for each adapter, a column for each metric."""
    from rich.table import Table

    metrics = list(dict.fromkeys(score["metric"] for result in results for score in result["scores"]))
    if not metrics:
        return
    table = Table(box=None, show_header=True, header_style="bold", pad_edge=False)
    table.add_column("checkpoint", overflow="fold")
    for metric in metrics:
        table.add_column(metric, justify="right")
    for result in results:
        values = {score["metric"]: f"{score['value']:.4f}" for score in result["scores"]}
        table.add_row(result["checkpoint"], *(values.get(metric, "") for metric in metrics))
    console.print(table)


def _check_same_base(base_model: str, checkpoint: Path, *, origin: "AdapterOrigin | None") -> None:
    """Refuse a base in a folder if its content differs from the base that the adapter was trained on."""
    from lorastudy.suite.base_model import base_model_fingerprint

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

    from lorastudy.suite.settings import Quantization

    if value not in get_args(Quantization):
        raise StudyError(f"--quantization: {value}: one of {', '.join(get_args(Quantization))}")
    return value


def _show(console: "PlainConsole", result: dict[str, Any]) -> None:
    for score in result["scores"]:
        unit = f" {score['unit']}" if score["unit"] else ""
        console.print(f"{score['metric']:<16} {score['value']:.4f}{unit}  ({score['num_items']} rows)")
    if result.get("num_refused_rows"):
        console.print(
            f"{result['num_refused_rows']} rows left out: their answer begins after --max-seq-length tokens"
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
