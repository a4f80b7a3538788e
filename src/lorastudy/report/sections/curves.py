"""Held-out loss during training: a figure, and one sentence for each arm on where it was best.

It tells an arm that is worse from an arm that trained too long. A sentence claims only what the seeds support.
"""

from collections.abc import Mapping, Sequence

from lorastudy.report.document import Block, Bullets, Code, Figure, Heading, Paragraph, Strong, Text
from lorastudy.report.numbers import listing, names, percent
from lorastudy.stats.held_out_curves import HeldOutCurve


def held_out_blocks(
    curves: Mapping[str, HeldOutCurve], *, figures: Sequence[Figure], level: int
) -> list[Block]:
    """The heading, what the sentences rest on, the figure, and a sentence for each arm; empty without curves."""
    if not curves:
        return []
    return [
        Heading(level=level, text="Held-out loss during training"),
        Paragraph((_what_this_is(curves),)),
        *figures,
        Bullets(tuple(_sentence(name, curve) for name, curve in curves.items())),
        *_what_it_means(curves),
    ]


def _what_this_is(curves: Mapping[str, HeldOutCurve]) -> str:
    chosen = any(curve.selected or curve.stopped for curve in curves.values())
    decided = (
        " They decided which adapter is kept or when training stops, so no verdict rests on them."
        if chosen
        else " They decided nothing: every verdict is about the end of training."
    )
    return (
        f"The validation rows were scored on the way.{decided} "
        "A rise after the lowest point is claimed only if a paired t test over the seeds shows it, with the lowest point of "
        "each seed chosen by the other seeds."
    )


def _sentence(name: str, curve: HeldOutCurve) -> Text:
    """Where the arm was best, and what came after."""
    kept = (
        f" Kept: the adapter of step {_steps(curve.selected)}{_by_seed(curve.selected)}."
        if curve.selected
        else ""
    )
    stopped = (
        f" It stopped early, after step {_steps(curve.stopped)}{_by_seed(curve.stopped)}, of {curve.num_planned_steps}."
        if curve.stopped
        else ""
    )
    return (Strong(name), f" {_where_best(curve)}{stopped}{kept}")


def _where_best(curve: HeldOutCurve) -> str:
    lowest, last = curve.lowest.step, curve.steps[-1]
    at = f"step {lowest} of {last}"
    if curve.shape == "one seed":
        return f"was lowest at {at}. One seed cannot tell that from noise."
    if curve.shape == "rose":
        return f"was best at {at}; after that its loss rose by {percent(curve.rise)}."
    if curve.shape == "still falling":
        return f"was still improving at its end, step {last}."
    if lowest == last:
        return f"was best at its end, step {last}, but had almost stopped improving."
    return f"was best at {at}. Whether it rose after that cannot be told from the noise of {curve.num_seeds} seeds."


def _what_it_means(curves: Mapping[str, HeldOutCurve]) -> list[Block]:
    """That some arms trained too long while others did not, so that their order at the end is partly one of time."""
    rose = [name for name, curve in curves.items() if curve.shape == "rose" and not curve.selected]
    if not rose or len(curves) < 2:
        return []
    others = [name for name in curves if name not in rose]
    trained = f"{names(rose)} trained too long for {'its' if len(rose) == 1 else 'their'} best result"
    compared = f"; of {names(others)} that is not shown" if others else ""
    text = (
        f"{trained}{compared}. So a difference at the end is partly one of when training stops. To compare every arm at its "
        "best step, set "
    )
    return [Paragraph((text, Code("select_checkpoint: best"), "."))]


def _steps(steps: Sequence[int]) -> str:
    distinct = sorted(set(steps))
    return str(distinct[0]) if len(distinct) == 1 else listing(map(str, steps))


def _by_seed(steps: Sequence[int]) -> str:
    return "" if len(set(steps)) == 1 else " by seed"
