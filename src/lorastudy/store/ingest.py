"""Runs and what their workers record, as rows: each record once, and only from the current attempt.

The runner writes the start and end of runs. The current attempt at an experiment is its highest. Every record of a worker is
compared with it. A record does not name its run folder, so the runner passes that as an `Origin`. The key of a record is its
subject, so a file of records may be stored any number of times.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Select, Table, bindparam, func, select

from lorastudy.errors import StoreError
from lorastudy.protocol.records import (
    ArmProfile,
    CheckpointProfile,
    DataSummary,
    Environment,
    Generation,
    Incident,
    MemoryPrediction,
    Outcome,
    PackProfile,
    PackStep,
    Record,
    Score,
    TrivialScore,
)
from lorastudy.protocol.scoring import AddedScore
from lorastudy.store import rows, schema
from lorastudy.store.schema import experiments, runs, steps
from lorastudy.suite.experiment import canonical_json, tagged_hash


def _current() -> Select[str]:
    newer = runs.alias("newer")
    is_superseded = (
        select(newer.c.attempt)
        .where(newer.c.experiment_id == runs.c.experiment_id, newer.c.attempt > runs.c.attempt)
        .exists()
    )
    return select(runs.c.experiment_id).where(
        runs.c.pack_id == bindparam("pack_id"), runs.c.attempt == bindparam("attempt"), ~is_superseded
    )


#: This query runs for every record. It is built once, because building it takes longer than running it.
_CURRENT = _current()


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The run folder that a record came from, and the time of storing it."""

    pack_id: str
    attempt: int
    at: str

    @property
    def key(self) -> dict[str, Any]:
        """The columns that identify the attempt at a pack."""
        return {"pack_id": self.pack_id, "attempt": self.attempt}


def take(connection: Connection, record: Record, *, origin: Origin) -> bool:
    """Store one record; False if it is stale or already stored, and then nothing changes."""
    if isinstance(record, AddedScore):
        return _take_added_score(connection, record)
    current = _current_experiments(connection, origin)
    experiment_id = getattr(record, "experiment_id", None)
    if not current or (experiment_id is not None and experiment_id not in current):
        return False
    if isinstance(record, PackStep):
        return _take_step(connection, record, origin=origin, current=current)
    return _TAKERS[type(record)](connection, record, origin)


def _current_experiments(connection: Connection, origin: Origin) -> frozenset[str]:
    """The experiments of the pack for which this attempt is the highest."""
    return frozenset(connection.execute(_CURRENT, origin.key).scalars())


def _take_step(connection: Connection, record: PackStep, *, origin: Origin, current: frozenset[str]) -> bool:
    values = asdict(record)
    arms = values.pop("arms")
    at_step = {"attempt": origin.attempt, "step": record.step}
    is_new = _add_once(
        connection, schema.pack_steps, values=values, key={"pack_id": origin.pack_id, **at_step}
    )
    fresh = [arm | at_step for arm in arms if arm["experiment_id"] in current]
    if not is_new:
        # The reference engine trains one arm after another, so the same step of a pack comes once for each arm.
        fresh = [arm for arm in fresh if not rows.exists(connection, schema.steps, key=_step_key(arm))]
    rows.add(connection, schema.steps, rows=fresh)
    return is_new or bool(fresh)


def _step_key(arm: dict[str, Any]) -> dict[str, Any]:
    return {key: arm[key] for key in ("experiment_id", "attempt", "step")}


def _take_environment(connection: Connection, record: Environment, origin: Origin) -> bool:
    environment_id = tagged_hash("env", asdict(record))
    key = {"environment_id": environment_id}
    if not rows.exists(connection, schema.environments, key=key):
        rows.add(connection, schema.environments, rows=[asdict(record) | key])
    return _add_once(connection, schema.pack_environments, values=key, key=origin.key)


def _take_data_summary(connection: Connection, record: DataSummary, origin: Origin) -> bool:
    lists = {name: getattr(record, name) for name in schema.LISTS_OF_A_DATA_SUMMARY}
    values = asdict(record) | {
        name: None if items is None else canonical_json(items) for name, items in lists.items()
    }
    return _add_once(
        connection, schema.data_summaries, values=values, key=origin.key | {"split": record.split}
    )


def _take_trivial_score(connection: Connection, record: TrivialScore, origin: Origin) -> bool:
    key = origin.key | {name: getattr(record, name) for name in ("split", "predictor", "metric")}
    values = asdict(record) | {
        "items": canonical_json(record.items),
        "weights": None if record.weights is None else canonical_json(record.weights),
    }
    return _add_once(connection, schema.trivial_scores, values=values, key=key)


def _take_pack_profile(connection: Connection, record: PackProfile, origin: Origin) -> bool:
    return _add_once(connection, schema.pack_profiles, values=asdict(record), key=origin.key)


def _take_checkpoint_profile(connection: Connection, record: CheckpointProfile, origin: Origin) -> bool:
    return _add_once(connection, schema.checkpoint_profiles, values=asdict(record), key=origin.key)


def _take_incident(connection: Connection, record: Incident, origin: Origin) -> bool:
    """Store an incident; False for a repetition after the same step."""
    if rows.exists(connection, schema.incidents, key=asdict(record) | origin.key):
        return False
    position = rows.count(connection, schema.incidents, key=origin.key)
    return _add_once(
        connection, schema.incidents, values=asdict(record), key=origin.key | {"position": position}
    )


def _take_profile(connection: Connection, record: ArmProfile, origin: Origin) -> bool:
    by_role = None if record.modules_by_role is None else canonical_json(record.modules_by_role)
    values = asdict(record) | {
        "modules_by_role": by_role,
        "modules_left_out": canonical_json(record.modules_left_out),
    }
    return _add_once(connection, schema.profiles, values=values, key=_run_key(record.experiment_id, origin))


def _take_prediction(connection: Connection, record: MemoryPrediction, origin: Origin) -> bool:
    return _add_once(
        connection, schema.predictions, values=asdict(record), key=_run_key(record.experiment_id, origin)
    )


def _take_score(connection: Connection, record: Score, origin: Origin) -> bool:
    key = _run_key(record.experiment_id, origin) | {"split": record.split, "metric": record.metric}
    values = {
        "version": record.version,
        "unit": record.unit,
        "value": record.value,
        "num_items": len(record.items),
        "step": record.step,
        "train_seconds": record.train_seconds,
    }
    weights = None if record.weights is None else canonical_json(record.weights)
    items = {"items": canonical_json(record.items), "weights": weights}
    # Write both rows, because one of the two may have been lost.
    is_new = _add_once(connection, schema.scores, values=values, key=key)
    return _add_once(connection, schema.score_items, values=items, key=key) or is_new


def _take_added_score(connection: Connection, record: AddedScore) -> bool:
    """Store a score of a completed run's adapter, whichever pack measured it. A newer version replaces an older one."""
    run = {"experiment_id": record.experiment_id, "attempt": record.attempt}
    if not rows.exists(connection, runs, key=run | {"status": "completed"}):
        return False
    table, key = schema.added_scores, run | {"split": record.split, "metric": record.metric}
    values = asdict(record) | {
        "items": canonical_json(record.items),
        "weights": None if record.weights is None else canonical_json(record.weights),
        "failed_rows": canonical_json([asdict(row) for row in record.failed_rows]),
    }
    if not rows.exists(connection, table, key=key):
        rows.add(connection, table, rows=[values])
        return True
    of_score = select(table).where(rows.matches(table, key))
    (stored,) = rows.intact(connection, table, statement=of_score)
    if stored["version"] >= record.version:
        return False
    rows.change(connection, table, key=key, to=values)
    return True


def _take_generation(connection: Connection, record: Generation, origin: Origin) -> bool:
    """Store an answer. Decoding is greedy, so an equal prompt has an equal answer, and the content can be the key."""
    key = _run_key(record.experiment_id, origin)
    if rows.exists(connection, schema.generations, key=asdict(record) | key):
        return False
    position = rows.count(connection, schema.generations, key=key)
    return _add_once(connection, schema.generations, values=asdict(record), key=key | {"position": position})


def _take_outcome(connection: Connection, record: Outcome, origin: Origin) -> bool:
    return end_run(connection, record, attempt=origin.attempt, at=origin.at)


def _run_key(experiment_id: str, origin: Origin) -> dict[str, Any]:
    return {"experiment_id": experiment_id, "attempt": origin.attempt}


def _add_once(
    connection: Connection, table: Table, *, values: Mapping[str, Any], key: Mapping[str, Any]
) -> bool:
    if rows.exists(connection, table, key=key):
        return False
    rows.add(connection, table, rows=[{**values, **key}])
    return True


_TAKERS: dict[type[Any], Callable[[Connection, Any, Origin], bool]] = {
    ArmProfile: _take_profile,
    CheckpointProfile: _take_checkpoint_profile,
    DataSummary: _take_data_summary,
    Environment: _take_environment,
    Generation: _take_generation,
    Incident: _take_incident,
    MemoryPrediction: _take_prediction,
    Outcome: _take_outcome,
    PackProfile: _take_pack_profile,
    Score: _take_score,
    TrivialScore: _take_trivial_score,
}


def start_run(connection: Connection, values: dict[str, Any]) -> None:
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


def end_run(connection: Connection, outcome: Outcome, *, attempt: int, at: str) -> bool:
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
        "num_planned_steps": outcome.num_planned_steps,
        "selected_step": outcome.selected_step,
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
