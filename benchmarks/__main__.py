"""`python -m benchmarks`: measure what this machine can, and write `results/<date>-<device>.json`."""

import argparse
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from benchmarks import machine
from benchmarks.growth import growth
from benchmarks.job import AlpacaRequest
from benchmarks.results import Row, free_path, write_results
from benchmarks.suite_rows import alpaca_row, lab_row

PARTS = ("lab", "alpaca", "growth")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure row after row; the file is written again after each, so that what is measured is kept."""
    chosen = _parser().parse_args(arguments)
    head = machine.head(now=datetime.now(UTC))
    path = free_path(chosen.into, stem=machine.stem(head))
    rows: list[Row] = []
    for measure in _measures(chosen):
        rows.append(measure())
        write_results(path, head, rows=rows)
        _say(f"wrote {rows[-1].id} into {path}")
    if "growth" in chosen.parts:
        name = "growth" if chosen.growth_sizes is None else "growth_trial"  # which no page shows
        write_results(path, head, rows=rows, **{name: growth(say=_say, num_sizes=chosen.growth_sizes)})
        _say(f"wrote growth into {path}")
    return 0


def _measures(chosen: argparse.Namespace) -> list[Callable[[], Row]]:
    measures: list[Callable[[], Row]] = []
    if "alpaca" in chosen.parts and None not in {chosen.model, chosen.data, chosen.baseline}:
        precisions: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")
        measures += [
            partial(
                alpaca_row,
                f"alpaca-{precision}",
                _request(chosen, quantization=precision),
                baseline=chosen.baseline,
                num_rounds=chosen.rounds,
                say=_say,
            )
            for precision in precisions
        ]
    elif "alpaca" in chosen.parts:
        _say("alpaca: left out; it needs --model, --data and --baseline")
    if "lab" in chosen.parts:
        measures.append(partial(lab_row, num_rounds=chosen.rounds, say=_say, **_lab_changes(chosen)))
    return measures


def _lab_changes(chosen: argparse.Namespace) -> dict[str, Any]:
    return {} if chosen.lab_steps is None else {"max_steps": chosen.lab_steps}


def _request(chosen: argparse.Namespace, *, quantization: Literal["fp32", "bf16"]) -> AlpacaRequest:
    return AlpacaRequest(
        model=str(chosen.model.resolve()),
        data=str(chosen.data.resolve()),
        num_train=900,
        num_eval=99,
        ranks=tuple(chosen.ranks),
        alpha=16.0,
        targets=("q_proj", "k_proj", "v_proj", "o_proj"),
        steps=chosen.steps,
        batch_size=4,
        max_length=512,
        learning_rate=2e-4,
        seed=0,
        quantization=quantization,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--model", type=Path, help="folder of a causal LM, for the rows on Alpaca data")
    parser.add_argument("--data", type=Path, help="Alpaca rows, a JSON list of at least 999")
    parser.add_argument("--baseline", type=Path, help="a script with the options of benchmarks.suite_rows")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each side")
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 8, 16, 32, 64])
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of the rows on Alpaca data")
    parser.add_argument("--lab-steps", type=int, help="instead of the suite's own number, for a trial")
    parser.add_argument("--growth-sizes", type=int, help="only that many of the smallest sizes, for a trial")
    parser.add_argument("--into", type=Path, default=machine.ROOT / "benchmarks" / "results")
    return parser


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
