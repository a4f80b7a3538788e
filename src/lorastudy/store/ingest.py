"""A worker's records as rows: each record once, and only from the current attempt.

A record does not name its run folder, so the runner passes that as an `Origin`. The key of a record is its subject, so
a file of records may be stored any number of times.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Select, Table, bindparam, select

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
from lorastudy.store import rows, schema
from lorastudy.store.runs import end
from lorastudy.store.schema import runs
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
    }
    weights = None if record.weights is None else canonical_json(record.weights)
    items = {"items": canonical_json(record.items), "weights": weights}
    # Write both rows, because one of the two may have been lost.
    is_new = _add_once(connection, schema.scores, values=values, key=key)
    return _add_once(connection, schema.score_items, values=items, key=key) or is_new


def _take_generation(connection: Connection, record: Generation, origin: Origin) -> bool:
    """Store an answer. Decoding is greedy, so an equal prompt has an equal answer, and the content can be the key."""
    key = _run_key(record.experiment_id, origin)
    if rows.exists(connection, schema.generations, key=asdict(record) | key):
        return False
    position = rows.count(connection, schema.generations, key=key)
    return _add_once(connection, schema.generations, values=asdict(record), key=key | {"position": position})


def _take_outcome(connection: Connection, record: Outcome, origin: Origin) -> bool:
    return end(connection, record, attempt=origin.attempt, at=origin.at)


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
