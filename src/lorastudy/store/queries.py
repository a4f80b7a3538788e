"""Typed reads: experiments with the measurements of their current run.

The current run of an experiment is its highest attempt, but a failed or stopped attempt never hides an earlier
completed one. Many experiments are read table by table, not one by one.

Every row read is compared with its hash. A query that filters on a damaged value would silently leave the row out, so
queries select whole rows, and this module filters and joins them. Only the many rows of a single run are looked up by
their key; the store checks that index in its first transaction.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

from sqlalchemy import Connection, Table, select

from lorastudy.protocol.records import (
    ArmProfile,
    CheckpointProfile,
    DataSummary,
    Environment,
    Generation,
    Incident,
    MemoryPrediction,
    PackProfile,
    TrivialScore,
)
from lorastudy.protocol.scoring import FailedRow
from lorastudy.store import rows, schema, suites
from lorastudy.store.rows import HASH_COLUMN, Row
from lorastudy.store.schema import runs
from lorastudy.store.views import ExperimentResult, FailedRows, RunView, ScoreValue, StepRow, SuiteSummary

_Value = TypeVar("_Value")
_RunKey = tuple[str, int]
#: Experiments per query: databases limit the number of parameters.
_NUM_AT_ONCE = 200


def results(
    connection: Connection, *, chosen: Callable[[Row], bool] = lambda _: True
) -> list[ExperimentResult]:
    """One result per suite and experiment, ordered by the age of the suite and the position in it.

    `chosen` selects rows of `suite_experiments`.
    """
    ages = {row["suite_name"]: row["created_at"] for row in rows.intact(connection, schema.suites)}
    members = [row for row in rows.intact(connection, schema.suite_experiments) if chosen(row)]
    members.sort(key=lambda row: (ages[row["suite_name"]], row["suite_name"], row["position"]))
    experiments = {row["experiment_id"]: row for row in rows.intact(connection, schema.experiments)}
    current = _current_runs(rows.intact(connection, runs))
    measured, packs = _measured(connection), _packs(connection)
    return [
        _result(
            member,
            experiment=experiments[member["experiment_id"]],
            run=current.get(member["experiment_id"], _NO_RUN),
            measured=measured,
            packs=packs,
        )
        for member in members
    ]


def completed(connection: Connection, experiment_ids: Sequence[str]) -> dict[str, Environment]:
    """The environment of the latest completed run of each experiment that has one."""
    wanted = set(experiment_ids)
    environments = _environments(connection)
    found: dict[str, Environment] = {}
    for row in sorted(rows.intact(connection, runs), key=lambda row: row["attempt"]):
        environment = environments.get((row["pack_id"], row["attempt"]))
        if row["status"] == "completed" and row["experiment_id"] in wanted and environment is not None:
            found[row["experiment_id"]] = environment
    return found


def attempts(connection: Connection, experiment_ids: Sequence[str]) -> list[RunView]:
    """All runs of these experiments, the newest attempts first."""
    wanted = set(experiment_ids)
    found = [row for row in rows.intact(connection, runs) if row["experiment_id"] in wanted]
    found.sort(key=lambda row: (row["attempt"], row["started_at"]), reverse=True)
    columns = ("experiment_id", "attempt", "status", "pack_id", "run_folder", "started_at", "finished_at")
    return [RunView(**{name: row[name] for name in columns}) for row in found]


def known_experiments(connection: Connection) -> frozenset[str]:
    """The ids of all registered experiments."""
    return frozenset(row["experiment_id"] for row in rows.intact(connection, schema.experiments))


#: The tables that hold a score's values item by item.
_WITH_ITEMS = (schema.score_items, schema.added_scores)


def items(
    connection: Connection, experiment_id: str, *, split: str, metric: str
) -> tuple[tuple[float | None, ...], tuple[int, ...] | None] | None:
    """The item values of a score and their weights; None if the current run has no such score."""
    found = [
        row
        for table in _WITH_ITEMS
        for row in _of_current_run(connection, table, experiment_id=experiment_id)
    ]
    row = next((row for row in found if (row["split"], row["metric"]) == (split, metric)), None)
    return None if row is None else _item_values(row)


def items_of(
    connection: Connection, experiment_ids: Sequence[str], *, split: str, metric: str
) -> dict[str, tuple[tuple[float | None, ...], tuple[int, ...] | None]]:
    """The same as `items`, for each experiment whose current run has that score with items."""
    current = _current_runs(rows.intact(connection, runs))
    wanted = {(name, current[name]["attempt"]) for name in experiment_ids if name in current}
    found = [
        row
        for table in _WITH_ITEMS
        for row in rows.intact(
            connection,
            table,
            statement=select(table).where((table.c.split == split) & (table.c.metric == metric)),
        )
    ]
    return {
        row["experiment_id"]: _item_values(row)
        for row in found
        if (row["experiment_id"], row["attempt"]) in wanted
    }


def _item_values(row: Row) -> tuple[tuple[float | None, ...], tuple[int, ...] | None]:
    weights = None if row["weights"] is None else tuple(json.loads(row["weights"]))
    return tuple(json.loads(row["items"])), weights


def steps(connection: Connection, experiment_id: str) -> list[StepRow]:
    """The optimizer steps of the current run, in order."""
    return steps_of(connection, [experiment_id])[experiment_id]


def steps_of(connection: Connection, experiment_ids: Sequence[str]) -> dict[str, list[StepRow]]:
    """The same as `steps`, by experiment; empty for an experiment that was not started."""
    current = _current_runs(rows.intact(connection, runs))
    found: dict[str, list[StepRow]] = {name: [] for name in experiment_ids}
    table, columns = schema.steps, ("step", "loss", "learning_rate", "grad_norm")
    for start in range(0, len(experiment_ids), _NUM_AT_ONCE):
        some = [name for name in experiment_ids[start : start + _NUM_AT_ONCE] if name in current]
        of_these = select(table).where(table.c.experiment_id.in_(some))
        for row in rows.intact(connection, table, statement=of_these):
            if row["attempt"] == current[row["experiment_id"]]["attempt"]:
                found[row["experiment_id"]].append(StepRow(**{name: row[name] for name in columns}))
    return {name: sorted(of_run, key=lambda row: row.step) for name, of_run in found.items()}


def generations(connection: Connection, experiment_id: str) -> list[Generation]:
    """The generated answers of the current run, in order."""
    found = _of_current_run(connection, schema.generations, experiment_id=experiment_id)
    found.sort(key=lambda row: row["position"])
    return [_as_value(Generation, row, without=("attempt", "position")) for row in found]


def suite_summaries(connection: Connection) -> list[SuiteSummary]:
    """The suites, the oldest first."""
    members = [row["suite_name"] for row in rows.intact(connection, schema.suite_experiments)]
    found = sorted(
        rows.intact(connection, schema.suites), key=lambda row: (row["created_at"], row["suite_name"])
    )
    stated = suites.stated_questions(connection)
    return [
        _as_value(
            SuiteSummary,
            {
                **row,
                "num_experiments": members.count(row["suite_name"]),
                "questions": stated.get(row["suite_name"], ()),
            },
        )
        for row in found
    ]


def _current_runs(found: Iterable[Row]) -> dict[str, Row]:
    """The current run of each experiment that has one."""
    current: dict[str, Row] = {}
    for row in sorted(found, key=lambda row: row["attempt"]):
        before = current.get(row["experiment_id"])
        if row["status"] == "completed" or before is None or before["status"] != "completed":
            current[row["experiment_id"]] = row
    return current


def _of_current_run(connection: Connection, table: Table, *, experiment_id: str) -> list[Row]:
    """The table's rows of an experiment's current run."""
    of_experiment = select(runs).where(runs.c.experiment_id == experiment_id)
    run = _current_runs(rows.intact(connection, runs, statement=of_experiment)).get(experiment_id)
    if run is None:
        return []
    of_run = (table.c.experiment_id == experiment_id) & (table.c.attempt == run["attempt"])
    return list(rows.intact(connection, table, statement=select(table).where(of_run)))


#: The run columns of an experiment that was not started.
_NO_RUN: Row = {column.name: None for column in runs.c}


class _Measured:
    """The measurements of runs, by (experiment, attempt)."""

    def __init__(self) -> None:
        self.scores: dict[_RunKey, dict[tuple[str, str], ScoreValue]] = defaultdict(dict)
        self.failed_rows: dict[_RunKey, dict[tuple[str, str], FailedRows]] = defaultdict(dict)
        self.profiles: dict[_RunKey, ArmProfile] = {}
        self.predictions: dict[_RunKey, MemoryPrediction] = {}


def _measured(connection: Connection) -> _Measured:
    measured = _Measured()
    scores = rows.intact(connection, schema.scores)
    for row in sorted(scores, key=lambda row: (row["split"], row["metric"])):
        names = ("value", "unit", "version", "num_items", "step", "train_seconds")
        score = ScoreValue(**{name: row[name] for name in names})
        measured.scores[row["experiment_id"], row["attempt"]][row["split"], row["metric"]] = score
    added = rows.intact(connection, schema.added_scores)
    for row in sorted(added, key=lambda row: (row["split"], row["metric"])):
        of_run, key = (row["experiment_id"], row["attempt"]), (row["split"], row["metric"])
        failed, num_rows = _failed_rows(row), len(_numbers(row["items"]))
        if row["value"] is not None:
            measured.scores[of_run][key] = ScoreValue(
                value=row["value"],
                unit=row["unit"],
                version=row["version"],
                num_items=num_rows - len(failed),
            )
        if failed:
            measured.failed_rows[of_run][key] = FailedRows(
                num_rows=num_rows, version=row["version"], rows=failed
            )
    for row in rows.intact(connection, schema.profiles):
        profile = _arm_profile(row)
        measured.profiles[row["experiment_id"], row["attempt"]] = profile
    for row in rows.intact(connection, schema.predictions):
        prediction = _as_value(MemoryPrediction, row, without=("attempt",))
        measured.predictions[row["experiment_id"], row["attempt"]] = prediction
    return measured


def _failed_rows(row: Row) -> tuple[FailedRow, ...]:
    return tuple(FailedRow(**failed) for failed in json.loads(row["failed_rows"]))


class _Packs:
    """The measurements of whole packs, by (pack, attempt)."""

    def __init__(self) -> None:
        self.environments: dict[_RunKey, Environment] = {}
        self.profiles: dict[_RunKey, PackProfile] = {}
        self.data: dict[_RunKey, tuple[DataSummary, ...]] = defaultdict(tuple)
        self.trivial: dict[_RunKey, tuple[TrivialScore, ...]] = defaultdict(tuple)
        self.incidents: dict[_RunKey, tuple[Incident, ...]] = defaultdict(tuple)
        self.checkpoints: dict[_RunKey, CheckpointProfile] = {}


def _packs(connection: Connection) -> _Packs:
    packs = _Packs()
    packs.environments = _environments(connection)
    pack_key = ("pack_id", "attempt")
    for row in rows.intact(connection, schema.pack_profiles):
        packs.profiles[row["pack_id"], row["attempt"]] = _as_value(PackProfile, row, without=pack_key)
    for row in sorted(rows.intact(connection, schema.data_summaries), key=lambda row: row["split"]):
        packs.data[row["pack_id"], row["attempt"]] += (_data_summary(row),)
    trivial = rows.intact(connection, schema.trivial_scores)
    for row in sorted(trivial, key=lambda row: (row["split"], row["predictor"], row["metric"])):
        packs.trivial[row["pack_id"], row["attempt"]] += (_trivial_score(row),)
    for row in sorted(rows.intact(connection, schema.incidents), key=lambda row: row["position"]):
        incident = _as_value(Incident, row, without=(*pack_key, "position"))
        packs.incidents[row["pack_id"], row["attempt"]] += (incident,)
    for row in rows.intact(connection, schema.checkpoint_profiles):
        profile = _as_value(CheckpointProfile, row, without=pack_key)
        packs.checkpoints[row["pack_id"], row["attempt"]] = profile
    return packs


def _arm_profile(row: Row) -> ArmProfile:
    by_role, without = row["modules_by_role"], row["modules_left_out"]
    values = {
        **row,
        "modules_by_role": None if by_role is None else json.loads(by_role),
        "modules_left_out": () if without is None else tuple(json.loads(without)),
    }
    return _as_value(ArmProfile, values, without=("attempt",))


def _data_summary(row: Row) -> DataSummary:
    lists = {name: row[name] for name in schema.LISTS_OF_A_DATA_SUMMARY}
    read = {name: None if text is None else tuple(json.loads(text)) for name, text in lists.items()}
    return _as_value(DataSummary, {**row, **read}, without=("pack_id", "attempt"))


def _trivial_score(row: Row) -> TrivialScore:
    values = {
        **row,
        "items": _numbers(row["items"]),
        "weights": None if row["weights"] is None else _numbers(row["weights"]),
    }
    return _as_value(TrivialScore, values, without=("pack_id", "attempt"))


@lru_cache(maxsize=32)
def _numbers(text: str) -> tuple[Any, ...]:
    """The list in a text column. Packs of a suite have the same rows and so equal texts; each is parsed once."""
    return tuple(json.loads(text))


def _environments(connection: Connection) -> dict[_RunKey, Environment]:
    by_id = {
        row["environment_id"]: _as_value(Environment, row, without=("environment_id",))
        for row in rows.intact(connection, schema.environments)
    }
    links = rows.intact(connection, schema.pack_environments)
    return {(row["pack_id"], row["attempt"]): by_id[row["environment_id"]] for row in links}


def _result(
    member: Row, *, experiment: Row, run: Row, measured: _Measured, packs: _Packs
) -> ExperimentResult:
    values = {
        **{key: run[key] for key in run if key != HASH_COLUMN},
        **{key: member[key] for key in member if key not in {"position", HASH_COLUMN}},
        "seed": experiment["seed"],
        "status": run["status"] or "pending",
    }
    of_run, of_pack = (member["experiment_id"], run["attempt"]), (run["pack_id"], run["attempt"])
    pack_profile, scores = packs.profiles.get(of_pack), measured.scores.get(of_run, {})
    if pack_profile is not None:
        values["engine"] = (
            pack_profile.engine
        )  # the engine that trained; the run holds only the requested one
    return ExperimentResult(
        **json.loads(experiment["config"]),
        **values,
        train_seconds=_train_seconds(run, pack_profile, scores=scores),
        scores=scores,
        failed_rows=measured.failed_rows.get(of_run, {}),
        profile=measured.profiles.get(of_run),
        prediction=measured.predictions.get(of_run),
        pack_profile=pack_profile,
        data=packs.data.get(of_pack, ()),
        trivial=packs.trivial.get(of_pack, ()),
        environment=packs.environments.get(of_pack),
        incidents=packs.incidents.get(of_pack, ()),
        checkpoint_profile=packs.checkpoints.get(of_pack),
    )


def _train_seconds(
    run: Row, pack: PackProfile | None, *, scores: Mapping[tuple[str, str], ScoreValue]
) -> float | None:
    """The experiment's share of the pack's training time; up to its last step if it stopped early."""
    if pack is None:
        return None
    if run["num_planned_steps"] is not None and run["num_steps"] < run["num_planned_steps"]:
        at_the_stop = (score.train_seconds for score in scores.values() if score.step == run["num_steps"])
        return next(at_the_stop, None)
    return pack.train_seconds / pack.num_arms


def _as_value(cls: type[_Value], row: Row, *, without: Sequence[str] = ()) -> _Value:
    """The frozen value of a row: its columns without the hash and other keys."""
    return cls(**{name: value for name, value in row.items() if name not in {HASH_COLUMN, *without}})
