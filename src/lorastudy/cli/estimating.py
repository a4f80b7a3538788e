"""Estimates as text: terms of memory, time, disk."""

from typing import Any

from rich.table import Table
from rich.text import Text

from lorastudy.cli.console import PlainConsole
from lorastudy.planning.disk import adapters_bytes, checkpoint_bytes, records_bytes
from lorastudy.planning.estimate import MARGIN, PackEstimate
from lorastudy.planning.time import Calibration
from lorastudy.report.numbers import count, duration, percent, size

#: How a term is called where a user reads it.
TERMS = {
    "base_weights": "base weights",
    "quantisation_constants": "quantisation constants",
    "adapters": "adapters",
    "gradients": "gradients",
    "optimizer": "optimizer (AdamW)",
    "activations": "activations",
    "loss": "loss",
    "workspace": "workspace",
    "allocator_slack": "allocator slack",
}


def pack_line(estimate: PackEstimate) -> str:
    """One line on what a pack will take."""
    batch = estimate.rows.batch
    parts = [
        str(estimate.engine),
        (
            f"predicted peak {size(estimate.prediction.terms.total)}, in the {estimate.prediction.phase} of its largest "
            f"micro-batch ({batch.num_tokens} tokens an arm)"
        ),
    ]
    if estimate.step_seconds is not None:
        parts.append(f"{duration(estimate.step_seconds)} a step")
    if estimate.train_seconds is not None:
        parts.append(f"{duration(estimate.train_seconds)} of training")
    parts.append(f"{size(disk_bytes(estimate))} of disk")
    return "; ".join(parts)


def disk_bytes(estimate: PackEstimate) -> int:
    """Adapters, checkpoints and records of a pack."""
    adapters = sum(
        adapters_bytes(p, num_modules=estimate.num_modules[key]) for key, p in estimate.num_trainable.items()
    )
    checkpoints = sum(checkpoint_bytes(p) for p in estimate.num_trainable.values())
    steps = estimate.rows.num_steps or 0
    return adapters + checkpoints + records_bytes(num_steps=steps, num_arms=len(estimate.num_trainable))


def show_terms(console: PlainConsole, estimate: PackEstimate) -> None:
    """A table of the terms and their sum."""
    table = Table(box=None, show_header=True, header_style="bold", pad_edge=False)
    table.add_column("held by")
    table.add_column("bytes", justify="right")
    table.add_column("share", justify="right")
    terms = estimate.prediction.terms
    for name, num_bytes in terms.named():
        if num_bytes:
            table.add_row(TERMS[name], size(num_bytes), percent(num_bytes / terms.total))
    table.add_row(
        Text("predicted peak", style="bold"),
        Text(size(terms.total), style="bold"),
        f"in the {estimate.prediction.phase}",
    )
    console.print(table)


def show_time(console: PlainConsole, estimate: PackEstimate, *, calibration: Calibration) -> None:
    """What a step and the whole training take, then what was timed, by the number of arms."""
    assert estimate.step_seconds is not None
    whole = ""
    if estimate.train_seconds is not None:
        whole = f"; {duration(estimate.train_seconds)} for {count(estimate.rows.num_steps or 0)} steps"
    console.print(
        f"\ntime: {duration(estimate.step_seconds)} a step of all arms{whole}, by the steps timed here:"
    )
    table = Table(box=None, show_header=True, header_style="bold", pad_edge=False)
    for title in ("arms together", "a step", "an arm's share", "tokens a second"):
        table.add_column(title, justify="right")
    for point in calibration.points:
        table.add_row(
            count(point.num_arms),
            duration(point.seconds),
            duration(point.seconds / point.num_arms),
            count(point.tokens_per_second),
        )
    console.print(table)


def terms_as_json(estimate: PackEstimate) -> dict[str, Any]:
    """The estimate as plain JSON values."""
    terms = estimate.prediction.terms
    return {
        "num_arms": len(estimate.num_trainable),
        "num_tokens": estimate.rows.batch.num_tokens,
        "engine": estimate.engine.name,
        "engine_reason": estimate.engine.reason,
        "peak_bytes": terms.total,
        "peak_phase": estimate.prediction.phase,
        "terms_bytes": dict(terms.named()),
        "num_trainable_parameters": sum(estimate.num_trainable.values()),
        "step_seconds": estimate.step_seconds,
        "disk_bytes": disk_bytes(estimate),
    }


def margin_words() -> str:
    """The margin as text."""
    return f"{percent(MARGIN, decimals=0)} of the memory is left free"
