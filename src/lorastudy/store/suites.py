"""Suites as rows: their experiments, their questions, their designs, and their decisions. The runner writes them.

Every statement of a question is kept, and none is changed. A design is the content of a suite's file. It is kept so
that a suite can go on without its file: the next experiments of a growing suite follow from its arms and its results,
and the registered experiments alone do not show them. A report also prints the design, so that you can run the suite
again.

A resumed study repeats its stored decisions and never makes them again. Racing makes one decision at each rung, even if
it stops nobody.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, delete, func, select

from lorastudy.errors import StoreError
from lorastudy.store import rows
from lorastudy.store.schema import (
    experiments,
    runs,
    suite_decisions,
    suite_designs,
    suite_experiments,
    suite_questions,
    suites,
)
from lorastudy.store.views import StatedQuestion, StoredDecision
from lorastudy.suite.experiment import Experiment, canonical_json
from lorastudy.suite.question import Question


def register(
    connection: Connection, suite_name: str, *, members: Sequence[Experiment], description: str, at: str
) -> None:
    """Write a suite and its experiments. Existing ones stay and get the newest name and paths.

    Raises:
        StoreError: the same experiment appears under two names.
    """
    by_id = _by_id(members)
    if not rows.exists(connection, suites, key={"suite_name": suite_name}):
        values = {"suite_name": suite_name, "description": description, "created_at": at}
        rows.add(connection, suites, rows=[values])
    elif description:
        rows.change(connection, suites, key={"suite_name": suite_name}, to={"description": description})
    _write_experiments(connection, by_id)
    _write_members(connection, suite_name, by_id=by_id)


def keep_only(connection: Connection, suite_name: str, *, members: Sequence[Experiment]) -> int:
    """Remove all other experiments from the suite, but not from the store; return how many."""
    others = delete(suite_experiments).where(
        suite_experiments.c.suite_name == suite_name,
        suite_experiments.c.experiment_id.not_in([experiment.id for experiment in members]),
    )
    return connection.execute(others).rowcount


def _by_id(members: Sequence[Experiment]) -> dict[str, Experiment]:
    by_id: dict[str, Experiment] = {}
    for experiment in members:
        other = by_id.setdefault(experiment.id, experiment)
        if other is not experiment and other.name != experiment.name:
            raise StoreError(
                f"{other.name} and {experiment.name} are the same experiment: remove one of them"
            )
    return by_id


def _write_experiments(connection: Connection, by_id: Mapping[str, Experiment]) -> None:
    known = set(connection.execute(select(experiments.c.experiment_id)).scalars())
    new = []
    for experiment_id, experiment in by_id.items():
        key = {"experiment_id": experiment_id}
        settings = experiment.settings.model_dump(mode="json")
        config = canonical_json({"settings": settings, "sources": vars(experiment.sources)})
        if experiment_id in known:
            rows.change(connection, experiments, key=key, to={"config": config})
        else:
            new.append({**key, "seed": experiment.seed, "config": config})
    rows.add(connection, experiments, rows=new)


def _write_members(connection: Connection, suite_name: str, *, by_id: Mapping[str, Experiment]) -> None:
    of_suite = select(suite_experiments.c.experiment_id).where(suite_experiments.c.suite_name == suite_name)
    existing = list(connection.execute(of_suite.order_by(suite_experiments.c.position)).scalars())
    new = []
    for position, experiment_id in enumerate(_order(existing, list(by_id))):
        key = {"suite_name": suite_name, "experiment_id": experiment_id}
        values = {"position": position} | _names(by_id.get(experiment_id))
        if experiment_id in existing:
            rows.change(connection, suite_experiments, key=key, to=values)
        else:
            new.append(key | values)
    rows.add(connection, suite_experiments, rows=new)


def _names(experiment: Experiment | None) -> dict[str, Any]:
    if experiment is None:
        return {}
    return {"name": experiment.name, "arm": experiment.arm, "experiment_type": experiment.experiment_type}


def _order(existing: Sequence[str], given: Sequence[str]) -> list[str]:
    """The given order if it covers the suite. Else experiments were added one by one, and the new ones come last."""
    if set(existing) <= set(given):
        return list(given)
    return [*existing, *(member for member in given if member not in existing)]


def state_question(
    connection: Connection, suite_name: str, *, question: Question, at: str, num_completed: int | None = None
) -> bool:
    """Write a registered suite's question; False if the last one was the same.

    `num_completed` is for a restored statement; by default it is counted.
    """
    earlier = stated_questions(connection).get(suite_name, ())
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


def stated_questions(connection: Connection) -> dict[str, tuple[StatedQuestion, ...]]:
    """All statements by suite, the oldest first. The last one counts."""
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
    """The number of the suite's experiments with a completed run, for whichever suite it was made."""
    statement = (
        select(func.count(suite_experiments.c.experiment_id.distinct()))
        .join(runs, runs.c.experiment_id == suite_experiments.c.experiment_id)
        .where(suite_experiments.c.suite_name == suite_name, runs.c.status == "completed")
    )
    return int(connection.execute(statement).scalar_one())


def keep_design(connection: Connection, suite_name: str, *, design: Mapping[str, Any]) -> None:
    """Write a registered suite's design; it replaces an older one."""
    values = {"suite_name": suite_name, "design": canonical_json(design)}
    if rows.exists(connection, suite_designs, key={"suite_name": suite_name}):
        rows.change(connection, suite_designs, key={"suite_name": suite_name}, to=values)
    else:
        rows.add(connection, suite_designs, rows=[values])


def kept_designs(connection: Connection) -> dict[str, Any]:
    """The designs by suite."""
    return {row["suite_name"]: json.loads(row["design"]) for row in rows.intact(connection, suite_designs)}


def keep_decision(connection: Connection, suite_name: str, *, decision: StoredDecision, at: str) -> bool:
    """Write a decision of a registered suite; False if its key has one already, because the first counts."""
    key = {"suite_name": suite_name, "key": decision.key}
    if rows.exists(connection, suite_decisions, key=key):
        return False
    values: dict[str, Any] = {**key, "decision": canonical_json(decision.content), "decided_at": at}
    rows.add(connection, suite_decisions, rows=[values])
    return True


def kept_decisions(connection: Connection) -> dict[str, tuple[StoredDecision, ...]]:
    """The decisions by suite, the oldest first."""
    found: dict[str, tuple[StoredDecision, ...]] = {}
    for row in sorted(
        rows.intact(connection, suite_decisions), key=lambda row: (row["decided_at"], row["key"])
    ):
        decision = StoredDecision(
            key=row["key"], content=json.loads(row["decision"]), decided_at=row["decided_at"]
        )
        found[row["suite_name"]] = (*found.get(row["suite_name"], ()), decision)
    return found
