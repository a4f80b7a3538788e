"""Results of other tools, read and labelled: PEFT's `method_comparison`, and any table with a mapping of its columns.

Nothing is stored unless every row can be read.
"""

from collections.abc import Sequence

from lorastudy.errors import DataError

MAX_SHOWN = 20


def refuse(problems: Sequence[str]) -> None:
    """Raise the problems, if there are any.

    Raises:
        DataError: lists every bad row as `file:line: cause`; of very many, only the first.
    """
    if problems:
        rest = len(problems) - MAX_SHOWN
        more = [f"... and {rest} more"] if rest > 0 else []
        fix = "nothing was imported; correct or remove these rows and try again"
        raise DataError("\n".join([*problems[:MAX_SHOWN], *more, fix]))
