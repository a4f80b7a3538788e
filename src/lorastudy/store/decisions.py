"""Decisions that a study made on its way, as rows: a study that goes on repeats them and never makes them again.

The racing decision at a rung is one, also where it stopped nobody.
"""

import json
from typing import Any

from sqlalchemy import Connection

from lorastudy.store import rows
from lorastudy.store.schema import suite_decisions
from lorastudy.store.views import Decision
from lorastudy.suite.experiment import canonical_json


def keep(connection: Connection, suite_name: str, *, decision: Decision, at: str) -> bool:
    """Write a decision of a registered suite; False where its key has one: the first counts."""
    key = {"suite_name": suite_name, "key": decision.key}
    if rows.exists(connection, suite_decisions, key=key):
        return False
    values: dict[str, Any] = {**key, "decision": canonical_json(decision.content), "decided_at": at}
    rows.add(connection, suite_decisions, rows=[values])
    return True


def kept(connection: Connection) -> dict[str, tuple[Decision, ...]]:
    """The decisions by suite, the oldest first."""
    found: dict[str, tuple[Decision, ...]] = {}
    for row in sorted(
        rows.intact(connection, suite_decisions), key=lambda row: (row["decided_at"], row["key"])
    ):
        decision = Decision(key=row["key"], content=json.loads(row["decision"]), decided_at=row["decided_at"])
        found[row["suite_name"]] = (*found.get(row["suite_name"], ()), decision)
    return found
