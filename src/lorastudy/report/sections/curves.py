"""Held-out loss during training: a figure, and one sentence for each arm on where it was best.

It tells an arm that is worse from an arm that trained too long. A sentence claims only what the seeds support.
"""

from collections.abc import Mapping, Sequence

from lorastudy.report.document import Block, Bullets, Code, Heading, Paragraph, Strong, Text
from lorastudy.report.numbers import listing, names, number, percent
from lorastudy.stats.held_out_curves import HeldOutCurve


def held_out_blocks(
    curves: Mapping[str, HeldOutCurve], *, figures: Sequence[Block], level: int
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
    """Where the arm was best, and what came of that."""
    harmed = (
        ""
        if curve.was_ever_better_than_base
        else f" At no point was it better than the base model ({number(curve.base_loss, 3)})."
    )
    return (Strong(name), f" {_where_best(curve)}{harmed}{_stopped(curve)}{_kept(curve)}")


def _where_best(curve: HeldOutCurve) -> str:
    lowest, last = curve.lowest.step, curve.steps[-1]
    at = f"step {lowest} of {last}"
    end = (
        f"step {last}, the last one that all its seeds reached" if curve.stopped else f"its end, step {last}"
    )
    if curve.shape == "one seed":
        return f"was lowest at {at}. One seed cannot tell that from noise."
    if curve.shape == "rose":
        return f"was best at {at}; after that its loss rose by {percent(curve.rise)}."
    if curve.shape == "still falling":
        return f"was still improving at {end}."
    if lowest == last:
        return f"was best at {end}. It had almost stopped improving."
    return f"was best at {at}. Whether it rose after that cannot be told from the noise of {curve.num_seeds} seeds."


def _stopped(curve: HeldOutCurve) -> str:
    """After which steps it stopped early; empty if it did not."""
    if not curve.stopped:
        return ""
    by_seed = "" if len(set(curve.stopped)) == 1 else "by seed "
    return f" It stopped early: {by_seed}after step {_steps(curve.stopped)} of {curve.num_planned_steps}."


def _kept(curve: HeldOutCurve) -> str:
    """Which adapters were kept; empty if it is always the last one."""
    if not curve.selected:
        return ""
    if len(set(curve.selected)) == 1:
        return f" The adapter of step {_steps(curve.selected)} was kept."
    return f" By seed, the adapters of the steps {_steps(curve.selected)} were kept."


def _what_it_means(curves: Mapping[str, HeldOutCurve]) -> list[Block]:
    """That some arms trained too long, so that the order of the arms at the end is partly one of time.

    An arm that was never better than the base model has another fault than its length.
    """
    rose = [
        name
        for name, curve in curves.items()
        if curve.shape == "rose" and curve.was_ever_better_than_base and not curve.selected
    ]
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
    """One step if all seeds agree, else all of them in the order of the seeds."""
    return str(steps[0]) if len(set(steps)) == 1 else listing(map(str, steps))
