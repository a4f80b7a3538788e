"""Suites, their experiments and the runs of these: what the runner decides, as rows.

The current attempt of an experiment is its highest. Every write of a worker is held against it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, delete, func, select

from lorastudy.errors import StoreError
from lorastudy.protocol.records import Outcome
from lorastudy.store import rows
from lorastudy.store.schema import experiments, runs, steps, suite_experiments, suites
from lorastudy.suite.experiment import Experiment, canonical_json


def register(
    connection: Connection, suite_name: str, *, members: Sequence[Experiment], description: str, at: str
) -> None:
    """Write a suite and its experiments; whatever is there already stays, with the newest name and paths.

    Raises:
        StoreError: two of the experiments are the same one under two names.
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
    """Take all other experiments out of the suite, not out of the store; return how many."""
    others = delete(suite_experiments).where(
        suite_experiments.c.suite_name == suite_name,
        suite_experiments.c.experiment_id.not_in([experiment.id for experiment in members]),
    )
    return connection.execute(others).rowcount


def start(connection: Connection, values: dict[str, Any]) -> None:
    """Write a run; one that is there already stays as it is.

    Raises:
        StoreError: the experiment is unknown, a newer attempt is under way, or the pack's id and attempt are
            those of another run folder. The last would mix up what is stored once for a whole pack.
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
    """End a run that is running; False where it is not, so the first end of a run is its only one.

    But one that pauses or was interrupted waits to go on, and may be stopped by racing instead.
    """
    key = {"experiment_id": outcome.experiment_id, "attempt": attempt}
    is_outraced = outcome.failure_kind == "outraced"
    if is_outraced and rows.exists(connection, runs, key=key | {"failure_kind": "outraced"}):
        return False
    may_end = ("running", "paused", "stopped") if is_outraced else ("running",)
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
    """The highest attempt of an experiment, None before the first."""
    statement = select(func.max(runs.c.attempt)).where(runs.c.experiment_id == experiment_id)
    attempt: int | None = connection.execute(statement).scalar_one()
    return attempt


def next_attempt(connection: Connection, experiment_ids: Sequence[str]) -> int:
    """One more than the highest attempt of any of the experiments, 1 for new ones."""
    wanted = set(experiment_ids)
    statement = select(runs.c.experiment_id, func.max(runs.c.attempt)).group_by(runs.c.experiment_id)
    attempts = [
        attempt for experiment_id, attempt in connection.execute(statement) if experiment_id in wanted
    ]
    return max(attempts, default=0) + 1


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
    """The given order where it covers the suite; else (experiments added one by one) the new come last."""
    if set(existing) <= set(given):
        return list(given)
    return [*existing, *(member for member in given if member not in existing)]


def _last_step(connection: Connection, key: dict[str, Any]) -> int | None:
    where = (steps.c.experiment_id == key["experiment_id"]) & (steps.c.attempt == key["attempt"])
    last: int | None = connection.execute(select(func.max(steps.c.step)).where(where)).scalar_one()
    return last
