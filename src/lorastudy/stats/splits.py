"""Which rows report and which choose.

A study that has test rows reports on them; whatever is chosen (a learning rate, a checkpoint) is chosen on the
held-out rows, which then report nothing. Without test rows the held-out rows do both, and a choice among many
makes the chosen look slightly better than it is.
"""

from typing import Literal

from lorastudy.stats.study import Study

#: The split that choices are made on, as in `Score.split`.
CHOOSING_SPLIT: Literal["eval"] = "eval"

#: The metric by which one tells whether a run was scored on the test rows: every completed run has it.
_ALWAYS_MEASURED = "loss"


def reporting_split(study: Study) -> Literal["test", "eval"]:
    """`test` where every completed run was scored on test rows, else `eval`: one study reports on one split."""
    return "test" if ("test", _ALWAYS_MEASURED) in study.scored_throughout else "eval"


def stored_split(split: str, study: Study, *, choosing: bool = False) -> str:
    """Where the store holds what a `Metric` calls `eval` or `eval_before`; any other split stands as it is."""
    if choosing or split.removesuffix("_before") != CHOOSING_SPLIT:
        return split
    return reporting_split(study) + split.removeprefix(CHOOSING_SPLIT)
