"""Typed reads: experiments with what their current run measured.

The current run of an experiment is its highest attempt, except that attempts which failed or were stopped
never hide an earlier completed one. Everything of many experiments is read table by table, not one by one.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Select, Subquery, Table, and_, func, select
from sqlalchemy.sql import ColumnElement

from lorastudy.records import (
    ArmProfile,
    CheckpointProfile,
    DataSummary,
    Environment,
    Generation,
    Incident,
    MemoryPrediction,
    PackProfile,
)
from lorastudy.tracker import rows, schema
from lorastudy.tracker.rows import HASH_COLUMN
from lorastudy.tracker.schema import experiments, runs, suite_experiments, suites
from lorastudy.tracker.views import ExperimentResult, RunView, ScoreValue, StepRow, SuiteSummary

_Value = TypeVar("_Value")
_RunKey = tuple[str, int]


def results(connection: Connection, where: Sequence[ColumnElement[bool]] = ()) -> list[ExperimentResult]:
    """One result per suite and experiment, in the order of suites (by age) and positions in them.

    `where` holds conditions on `suite_experiments`.
    """
    current = _current_runs()
    members = (
        select(suite_experiments, experiments.c.seed, experiments.c.config, *_run_columns())
        .join(suites, suites.c.suite_name == suite_experiments.c.suite_name)
        .join(experiments, experiments.c.experiment_id == suite_experiments.c.experiment_id)
        .outerjoin(current, current.c.experiment_id == suite_experiments.c.experiment_id)
        .outerjoin(
            runs,
            and_(runs.c.experiment_id == current.c.experiment_id, runs.c.attempt == current.c.attempt),
        )
        .where(*where)
        .order_by(suites.c.created_at, suite_experiments.c.suite_name, suite_experiments.c.position)
    )
    chosen = select(suite_experiments.c.experiment_id).where(*where)
    measured = _measured(connection, chosen)
    packs = _packs(connection)
    return [_result(row, measured, packs=packs) for row in rows.read(connection, members)]


def completed(connection: Connection, experiment_ids: Sequence[str]) -> dict[str, Environment]:
    """The environment of the latest completed run of each experiment that has one."""
    wanted = set(experiment_ids)
    statement = (
        select(runs.c.experiment_id, runs.c.pack_id, runs.c.attempt)
        .where(runs.c.status == "completed")
        .order_by(runs.c.attempt)
    )
    environments = _environments(connection)
    found: dict[str, Environment] = {}
    for experiment_id, pack_id, attempt in connection.execute(statement):
        environment = environments.get((pack_id, attempt))
        if experiment_id in wanted and environment is not None:
            found[experiment_id] = environment
    return found


def attempts(connection: Connection, experiment_ids: Sequence[str]) -> list[RunView]:
    """All runs of these experiments, the newest attempts first."""
    columns = [runs.c[name] for name in ("experiment_id", "attempt", "status", "pack_id", "run_folder")]
    statement = select(*columns).order_by(runs.c.attempt.desc(), runs.c.started_at.desc())
    wanted = set(experiment_ids)
    return [RunView(**row) for row in rows.read(connection, statement) if row["experiment_id"] in wanted]


def known_experiments(connection: Connection) -> frozenset[str]:
    """The ids of all registered experiments."""
    return frozenset(connection.execute(select(experiments.c.experiment_id)).scalars())


def items(
    connection: Connection, experiment_id: str, *, split: str, metric: str
) -> tuple[tuple[float, ...], tuple[int, ...] | None] | None:
    """The values of a score item by item and their weights, None where the current run has no such score."""
    table = schema.score_items
    statement = _of_current_run(table, experiment_id).where(table.c.split == split, table.c.metric == metric)
    row = next(rows.read(connection, statement), None)
    if row is None:
        return None
    weights = None if row["weights"] is None else tuple(json.loads(row["weights"]))
    return tuple(json.loads(row["items"])), weights


def steps(connection: Connection, experiment_id: str) -> list[StepRow]:
    """The optimizer steps of the current run, in order."""
    statement = _of_current_run(schema.steps, experiment_id).order_by(schema.steps.c.step)
    columns = ("step", "loss", "learning_rate", "grad_norm")
    return [StepRow(**{name: row[name] for name in columns}) for row in rows.read(connection, statement)]


def generations(connection: Connection, experiment_id: str) -> list[Generation]:
    """The generated answers of the current run, in the order in which they were made."""
    statement = _of_current_run(schema.generations, experiment_id).order_by(schema.generations.c.position)
    found = rows.read(connection, statement)
    return [_as_value(Generation, row, without=("attempt", "position")) for row in found]


def suite_summaries(connection: Connection) -> list[SuiteSummary]:
    """The suites, the oldest first."""
    num_experiments = (
        select(func.count())
        .where(suite_experiments.c.suite_name == suites.c.suite_name)
        .scalar_subquery()
        .label("num_experiments")
    )
    statement = select(suites, num_experiments).order_by(suites.c.created_at, suites.c.suite_name)
    return [_as_value(SuiteSummary, row) for row in rows.read(connection, statement)]


def _current_runs(*of_which: ColumnElement[bool]) -> Subquery:
    """(experiment_id, attempt) of the current runs, under conditions on `runs`."""
    earlier = runs.alias("earlier")
    has_completed_before = (
        select(earlier.c.attempt)
        .where(
            earlier.c.experiment_id == runs.c.experiment_id,
            earlier.c.attempt < runs.c.attempt,
            earlier.c.status == "completed",
        )
        .exists()
    )
    has_no_result = runs.c.status != "completed"
    return (
        select(runs.c.experiment_id, func.max(runs.c.attempt).label("attempt"))
        .where(~(has_no_result & has_completed_before), *of_which)
        .group_by(runs.c.experiment_id)
        .subquery("current_runs")
    )


def _run_columns() -> list[ColumnElement[Any]]:
    shared = {"experiment_id", HASH_COLUMN}
    return [column for column in runs.c if column.name not in shared]


def _of_current_runs(table: Table, *of_which: ColumnElement[bool]) -> Select[Any]:
    current = _current_runs(*of_which)
    return select(table).join(
        current,
        and_(table.c.experiment_id == current.c.experiment_id, table.c.attempt == current.c.attempt),
    )


def _of_current_run(table: Table, experiment_id: str) -> Select[Any]:
    return _of_current_runs(table, runs.c.experiment_id == experiment_id)


class _Measured:
    """What runs measured, by (experiment, attempt)."""

    def __init__(self) -> None:
        self.scores: dict[_RunKey, dict[tuple[str, str], ScoreValue]] = defaultdict(dict)
        self.profiles: dict[_RunKey, ArmProfile] = {}
        self.predictions: dict[_RunKey, MemoryPrediction] = {}


def _measured(connection: Connection, chosen: Select[Any]) -> _Measured:
    measured = _Measured()
    scores = _of_current_runs(schema.scores, runs.c.experiment_id.in_(chosen))
    for row in rows.read(connection, scores.order_by(schema.scores.c.split, schema.scores.c.metric)):
        names = ("value", "unit", "version", "num_items")
        score = ScoreValue(**{name: row[name] for name in names})
        measured.scores[row["experiment_id"], row["attempt"]][row["split"], row["metric"]] = score
    profiles = _of_current_runs(schema.profiles, runs.c.experiment_id.in_(chosen))
    for row in rows.read(connection, profiles):
        profile = _as_value(ArmProfile, row, without=("attempt",))
        measured.profiles[row["experiment_id"], row["attempt"]] = profile
    predictions = _of_current_runs(schema.predictions, runs.c.experiment_id.in_(chosen))
    for row in rows.read(connection, predictions):
        prediction = _as_value(MemoryPrediction, row, without=("attempt",))
        measured.predictions[row["experiment_id"], row["attempt"]] = prediction
    return measured


class _Packs:
    """What was measured once for a whole pack, by (pack, attempt)."""

    def __init__(self) -> None:
        self.environments: dict[_RunKey, Environment] = {}
        self.profiles: dict[_RunKey, PackProfile] = {}
        self.data: dict[_RunKey, tuple[DataSummary, ...]] = defaultdict(tuple)
        self.incidents: dict[_RunKey, tuple[Incident, ...]] = defaultdict(tuple)
        self.checkpoints: dict[_RunKey, CheckpointProfile] = {}


def _packs(connection: Connection) -> _Packs:
    packs = _Packs()
    packs.environments = _environments(connection)
    pack_key = ("pack_id", "attempt")
    for row in rows.read(connection, select(schema.pack_profiles)):
        packs.profiles[row["pack_id"], row["attempt"]] = _as_value(PackProfile, row, without=pack_key)
    summaries = select(schema.data_summaries).order_by(schema.data_summaries.c.split)
    for row in rows.read(connection, summaries):
        packs.data[row["pack_id"], row["attempt"]] += (_as_value(DataSummary, row, without=pack_key),)
    for row in rows.read(connection, select(schema.incidents).order_by(schema.incidents.c.position)):
        incident = _as_value(Incident, row, without=(*pack_key, "position"))
        packs.incidents[row["pack_id"], row["attempt"]] += (incident,)
    for row in rows.read(connection, select(schema.checkpoint_profiles)):
        profile = _as_value(CheckpointProfile, row, without=pack_key)
        packs.checkpoints[row["pack_id"], row["attempt"]] = profile
    return packs


def _environments(connection: Connection) -> dict[_RunKey, Environment]:
    by_id = {
        row["environment_id"]: _as_value(Environment, row, without=("environment_id",))
        for row in rows.read(connection, select(schema.environments))
    }
    links = rows.read(connection, select(schema.pack_environments))
    return {(row["pack_id"], row["attempt"]): by_id[row["environment_id"]] for row in links}


def _result(row: Mapping[str, Any], measured: _Measured, *, packs: _Packs) -> ExperimentResult:
    values = {key: row[key] for key in row if key not in {"config", "position", HASH_COLUMN}}
    run, pack = (row["experiment_id"], row["attempt"]), (row["pack_id"], row["attempt"])
    pack_profile = packs.profiles.get(pack)
    if pack_profile is not None:
        values["engine"] = pack_profile.engine  # the one that trained; the run only says which was asked for
    return ExperimentResult(
        **json.loads(row["config"]),
        **{**values, "status": row["status"] or "pending"},
        train_seconds=pack_profile.train_seconds / pack_profile.num_arms if pack_profile else None,
        scores=measured.scores.get(run, {}),
        profile=measured.profiles.get(run),
        prediction=measured.predictions.get(run),
        pack_profile=pack_profile,
        data=packs.data.get(pack, ()),
        environment=packs.environments.get(pack),
        incidents=packs.incidents.get(pack, ()),
        checkpoint_profile=packs.checkpoints.get(pack),
    )


def _as_value(cls: type[_Value], row: Mapping[str, Any], *, without: Sequence[str] = ()) -> _Value:
    """The frozen value that a row holds: its columns but for the hash and the keys that are not part of it."""
    return cls(**{name: value for name, value in row.items() if name not in {HASH_COLUMN, *without}})
