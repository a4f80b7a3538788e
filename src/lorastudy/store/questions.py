"""The questions of suites, as rows: each statement is kept, and none is changed."""

import json
from collections import defaultdict

from sqlalchemy import Connection, func, select

from lorastudy.store import rows
from lorastudy.store.schema import runs, suite_experiments, suite_questions
from lorastudy.store.views import StatedQuestion
from lorastudy.suite.experiment import canonical_json
from lorastudy.suite.question import Question


def state(
    connection: Connection, suite_name: str, *, question: Question, at: str, num_completed: int | None = None
) -> bool:
    """Write what a registered suite asks; False where it asked just that already.

    `num_completed` is for a statement that is made again; by default it is counted.
    """
    earlier = stated(connection).get(suite_name, ())
    if earlier and not question.differences(earlier[-1].question):
        return False
    values = {
        "suite_name": suite_name,
        "number": len(earlier) + 1,
        "question_id": question.id,
        "question": canonical_json(question.to_json()),
        "stated_at": at,
        "num_completed": _num_completed(connection, suite_name) if num_completed is None else num_completed,
    }
    rows.add(connection, suite_questions, rows=[values])
    return True


def stated(connection: Connection) -> dict[str, tuple[StatedQuestion, ...]]:
    """Every statement by suite, the oldest first; the last one counts."""
    found: dict[str, tuple[StatedQuestion, ...]] = defaultdict(tuple)
    for row in sorted(rows.intact(connection, suite_questions), key=lambda row: row["number"]):
        found[row["suite_name"]] += (
            StatedQuestion(
                question=Question.from_json(json.loads(row["question"])),
                stated_at=row["stated_at"],
                num_completed=row["num_completed"],
            ),
        )
    return dict(found)


def _num_completed(connection: Connection, suite_name: str) -> int:
    """Experiments of the suite that have a completed run, whichever suite it was made for."""
    statement = (
        select(func.count(suite_experiments.c.experiment_id.distinct()))
        .join(runs, runs.c.experiment_id == suite_experiments.c.experiment_id)
        .where(suite_experiments.c.suite_name == suite_name, runs.c.status == "completed")
    )
    return int(connection.execute(statement).scalar_one())
