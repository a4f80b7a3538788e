"""All that is wrong with what is imported, told at once: nothing is stored until every row can be read."""

from collections.abc import Sequence

from lorastudy.errors import DataError

MAX_SHOWN = 20


def refuse(problems: Sequence[str]) -> None:
    """Nothing where there is no problem.

    Raises:
        DataError: names every bad row, as `file:line: cause`; of very many the first.
    """
    if problems:
        rest = len(problems) - MAX_SHOWN
        more = [f"... and {rest} more"] if rest > 0 else []
        raise DataError(
            "\n".join(
                [*problems[:MAX_SHOWN], *more, "nothing was imported; mend or remove these and try again"]
            )
        )
