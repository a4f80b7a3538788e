"""`lorastudy evaluate`: score, prompt and time trained adapters, several over one base."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorastudy.cli.options import QUANTIZATIONS, TrustRemoteCode
from lorastudy.cli.terminal import runs_own_code, say

if TYPE_CHECKING:
    from lorastudy.cli.console import PlainConsole


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
    from lorastudy.planning.evaluation_request import EvaluationRequest

    request = EvaluationRequest(
        checkpoints=tuple(dict.fromkeys(checkpoint)),
        base_model=base_model,
        dataset=dataset,
        benchmark_only=benchmark_only,
        profile_inference=profile_inference,
        quantization=quantization,
        max_seq_length=max_seq_length,
        max_samples=max_samples,
        max_generation_samples=max_generation_samples,
        max_new_tokens=max_new_tokens,
        trust_remote_code=trust_remote_code,
    )
    job = request.job()
    if trust_remote_code:
        say(f"note: {runs_own_code(job.base_model)}", file=sys.stderr)
    request.check_base(job.base_model)
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
