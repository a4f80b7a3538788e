"""The start and end of runs as rows. The runner writes them.

The current attempt at an experiment is its highest. Every record of a worker is compared with it.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, func, select

from lorastudy.errors import StoreError
from lorastudy.protocol.records import Outcome
from lorastudy.store import rows
from lorastudy.store.schema import experiments, runs, steps


def start(connection: Connection, values: dict[str, Any]) -> None:
    """Write a run; one that exists already stays unchanged.

    Raises:
        StoreError: the experiment is unknown, a newer attempt has begun, or another run folder has the pack's id and
            attempt. The last would mix up the rows that are stored once for a whole pack.
    """
    key = {"experiment_id": values["experiment_id"], "attempt": values["attempt"]}
    if not rows.exists(connection, experiments, key={"experiment_id": values["experiment_id"]}):
        raise StoreError(f"{values['experiment_id']} is not registered")
    current = current_attempt(connection, values["experiment_id"])
    if current is not None and current > values["attempt"]:
        raise StoreError(
            f"{values['experiment_id']}: attempt {values['attempt']} is older than its attempt {current}"
        )
    where = (runs.c.pack_id == values["pack_id"]) & (runs.c.attempt == values["attempt"])
    folders = set(connection.execute(select(runs.c.run_folder).where(where)).scalars())
    if not folders <= {values["run_folder"]}:
        raise StoreError(
            f"attempt {values['attempt']} of pack {values['pack_id']} already runs in {folders.pop()}"
        )
    if not rows.exists(connection, runs, key=key):
        rows.add(connection, runs, rows=[values])
    elif not rows.exists(connection, runs, key=key | {"pack_id": values["pack_id"]}):
        raise StoreError(f"{key['experiment_id']}: attempt {key['attempt']} belongs to another pack")


def end(connection: Connection, outcome: Outcome, *, attempt: int, at: str) -> bool:
    """End a running run; False if it is not running, so the first end of a run is its only one.

    A paused or interrupted run is the exception: it waits to go on, and racing may still stop it.
    """
    key = {"experiment_id": outcome.experiment_id, "attempt": attempt}
    is_pruned = outcome.failure_kind == "pruned"
    if is_pruned and rows.exists(connection, runs, key=key | {"failure_kind": "pruned"}):
        return False
    may_end = ("running", "paused", "stopped") if is_pruned else ("running",)
    if not any(rows.exists(connection, runs, key=key | {"status": status}) for status in may_end):
        return False
    changes = {
        "status": outcome.status,
        "finished_at": at,
        "failure_kind": outcome.failure_kind,
        "failure_message": outcome.message,
        "traceback": outcome.traceback,
        "adapter_path": outcome.adapter_path,
        "num_steps": outcome.step if outcome.step is not None else _last_step(connection, key),
    }
    rows.change(connection, runs, key=key, to=changes)
    return True


def current_attempt(connection: Connection, experiment_id: str) -> int | None:
    """The highest attempt of an experiment; None before the first."""
    statement = select(func.max(runs.c.attempt)).where(runs.c.experiment_id == experiment_id)
    attempt: int | None = connection.execute(statement).scalar_one()
    return attempt


def next_attempt(connection: Connection, experiment_ids: Sequence[str]) -> int:
    """One more than the highest attempt of any of the experiments; 1 for new ones."""
    wanted = set(experiment_ids)
    statement = select(runs.c.experiment_id, func.max(runs.c.attempt)).group_by(runs.c.experiment_id)
    attempts = [
        attempt for experiment_id, attempt in connection.execute(statement) if experiment_id in wanted
    ]
    return max(attempts, default=0) + 1


def _last_step(connection: Connection, key: dict[str, Any]) -> int | None:
    where = (steps.c.experiment_id == key["experiment_id"]) & (steps.c.attempt == key["attempt"])
    last: int | None = connection.execute(select(func.max(steps.c.step)).where(where)).scalar_one()
    return last
