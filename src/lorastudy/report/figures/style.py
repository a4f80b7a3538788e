"""Colours and order that both drawings share.

Okabe and Ito's palette (2008) can be told apart with any common colour blindness; its yellow is left out
because it vanishes on white. Arms beyond the seventh repeat the colours with another dash.
"""

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)
PALETTE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
GREY = "#6B6B6B"
#: Lengths in points of line and gap; the empty one is solid.
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1, 1.5), (6, 2, 1, 2))


def colour(index: int) -> str:
    """The colour of the arm at that place."""
    return PALETTE[index % len(PALETTE)]


def dash(index: int) -> tuple[float, ...]:
    """The dash of the arm at that place."""
    return DASHES[index // len(PALETTE) % len(DASHES)]
