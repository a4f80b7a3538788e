"""The designs of suites, as rows: what a suite's file asked for, so that a suite goes on without its file.

A suite that grows while it runs needs it: which experiments come next follows from its arms and from results, and the
experiments that were registered do not say it. And it is the file that a report prints to run the suite again.
"""

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection

from lorastudy.store import rows
from lorastudy.store.schema import suite_designs
from lorastudy.suite.experiment import canonical_json


def keep(connection: Connection, suite_name: str, *, design: Mapping[str, Any]) -> None:
    """Write a registered suite's design; a newer one takes the place of an older."""
    values = {"suite_name": suite_name, "design": canonical_json(design)}
    if rows.exists(connection, suite_designs, key={"suite_name": suite_name}):
        rows.change(connection, suite_designs, key={"suite_name": suite_name}, to=values)
    else:
        rows.add(connection, suite_designs, rows=[values])


def kept(connection: Connection) -> dict[str, Any]:
    """The designs by suite."""
    return {row["suite_name"]: json.loads(row["design"]) for row in rows.intact(connection, suite_designs)}
