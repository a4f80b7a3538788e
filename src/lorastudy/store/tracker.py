"""`ExperimentTracker`: the only entrance to the store.

    tracker = ExperimentTracker()
    tracker.get_all_experiments(status="completed")
    tracker.get_experiments_by_type("rank_ablation")
    tracker.export_to_json("my_experiments.json")

Everybody may read. Only the runner writes: it registers suites, starts runs and stores the records of workers.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Connection, Table

from lorastudy.errors import StoreError
from lorastudy.places import DATABASE
from lorastudy.protocol.records import Environment, FailureKind, Generation, Outcome, PackStep, Record
from lorastudy.store import imported, ingest, queries, rows, schema, suites
from lorastudy.store.database import Database
from lorastudy.store.export import export_csv, export_json
from lorastudy.store.lock import Holder
from lorastudy.store.rows import Salvage
from lorastudy.store.views import (
    DamagedRow,
    ExperimentResult,
    ImportedResult,
    RunView,
    StepRow,
    StoredDecision,
    SuiteSummary,
)
from lorastudy.suite.experiment import Experiment
from lorastudy.suite.question import Question
from lorastudy.suite.safe_text import Privacy


def _now() -> datetime:
    return datetime.now(UTC)


class ExperimentTracker:
    """The store of all suites: `results/experiments.db`, another SQLite file, or a PostgreSQL URL.

    Use it in one thread. Several processes may read while one writes; a second writer is refused.

    Raises:
        StoreError: there is no store, it is not one of ours, a newer version wrote it, or another process writes it.
            Every method also raises it if the database fails: disk full, removed, damaged. A read returns what was
            written, or raises an error.
    """

    def __init__(
        self,
        database: str | Path = DATABASE,
        *,
        writable: bool = False,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        self._database = Database(database, writable=writable)
        self._clock = clock

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def left_behind(self) -> Holder | None:
        """The process that died while writing this store, if this tracker took over its lock; else None."""
        return self._database.left_behind

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    # --- writes: for the runner -----------------------------------------------------------------------

    def register(self, suite_name: str, experiments: Sequence[Experiment], *, description: str = "") -> None:
        """Write a suite and its experiments. Calling it again changes at most names, paths and order.

        Experiments that the suite has already stay in it, even if not given now.

        Raises:
            StoreError: imported results have the name.
        """
        if experiments:
            with self._database.writing() as connection:
                imported.refuse_name(connection, suite_name)
                suites.register(
                    connection, suite_name, members=experiments, description=description, at=self._time()
                )

    def keep_only(self, suite_name: str, experiments: Sequence[Experiment]) -> int:
        """Reduce the suite to these experiments; return how many left it.

        An experiment that left keeps its runs. It returns with them when the suite names it again.
        """
        with self._database.writing() as connection:
            return suites.keep_only(connection, suite_name, members=experiments)

    def state_question(
        self, suite_name: str, question: Question, *, num_completed: int | None = None
    ) -> bool:
        """Write a registered suite's question beside its earlier ones; False if it repeats the last one.

        `num_completed` is the number of experiments completed before the question; by default it is counted.
        """
        with self._database.writing() as connection:
            return suites.state_question(
                connection, suite_name, question=question, at=self._time(), num_completed=num_completed
            )

    def together(self) -> contextlib.AbstractContextManager[None]:
        """Within the block all writes are one transaction, on disk when the block ends. Do not read within it."""
        return self._database.together()

    def keep_design(self, suite_name: str, design: Mapping[str, Any]) -> None:
        """Write the content of a registered suite's file as plain JSON values; the newest counts."""
        with self._database.writing() as connection:
            suites.keep_design(connection, suite_name, design=design)

    def keep_decision(self, suite_name: str, decision: StoredDecision) -> bool:
        """Write a decision of a registered suite; False if it was decided already, because the first counts."""
        with self._database.writing() as connection:
            at = decision.decided_at or self._time()
            return suites.keep_decision(connection, suite_name, decision=decision, at=at)

    def start_run(
        self, experiment_id: str, *, attempt: int, pack_id: str, engine: str, run_folder: str | Path
    ) -> None:
        """Write a run that begins now; one that exists already stays unchanged.

        From now on, records of earlier attempts at this experiment are refused. `pack_id` and `attempt` together
        identify one run folder.
        """
        values = {
            "experiment_id": experiment_id,
            "attempt": attempt,
            "status": "running",
            "pack_id": pack_id,
            "engine": engine,
            "run_folder": str(run_folder),
            "started_at": self._time(),
        }
        with self._database.writing() as connection:
            ingest.start_run(connection, values)

    def next_attempt(self, experiment_ids: Sequence[str]) -> int:
        """The attempt number for a new pack of these experiments: one more than the highest of any of them."""
        with self._database.reading() as connection:
            return ingest.next_attempt(connection, experiment_ids)

    def take(self, record: Record, *, pack_id: str, attempt: int) -> bool:
        """Store one record of a worker. It is on disk when this returns (optimizer steps: soon after).

        Returns False and stores nothing if the record is not from the current attempt or is already stored.
        """
        origin = ingest.Origin(pack_id=pack_id, attempt=attempt, at=self._time())
        with self._database.writing(durable=not isinstance(record, PackStep)) as connection:
            return ingest.take(connection, record, origin=origin)

    def fail_run(self, experiment_id: str, *, attempt: int, kind: FailureKind, message: str) -> bool:
        """End a run whose worker died without an outcome; False if the run has ended already."""
        outcome = Outcome(experiment_id=experiment_id, status="failed", failure_kind=kind, message=message)
        with self._database.writing() as connection:
            return ingest.end_run(connection, outcome, attempt=attempt, at=self._time())

    def distrust(self, experiment_id: str, *, attempt: int) -> None:
        """Mark a completed run as failed because some of its results are lost, so that it runs again."""
        message = "a part of its results was damaged in the store, and there is no run folder to take it from"
        changes = {"status": "failed", "failure_kind": "crashed", "failure_message": message}
        with self._database.writing() as connection:
            rows.change(
                connection, schema.runs, key={"experiment_id": experiment_id, "attempt": attempt}, to=changes
            )

    def add_imported(self, results: Sequence[ImportedResult]) -> int:
        """Write results of other tools that are not there yet; return their number.

        Raises:
            StoreError: a suite of your own runs has the name.
        """
        with self._database.writing() as connection:
            return imported.add(connection, results, at=self._time())

    @contextlib.contextmanager
    def at(self, time: datetime) -> Iterator[None]:
        """Within the block, writes get this time."""
        clock, self._clock = self._clock, lambda: time
        try:
            yield
        finally:
            self._clock = clock

    # --- reads: for everybody -------------------------------------------------------------------------

    def get_all_experiments(
        self, status: str | None = None, suite_name: str | None = None
    ) -> list[ExperimentResult]:
        """Experiments ordered by suite and position. An experiment in two suites appears once for each.

        `status` is pending, running, paused, completed, failed or stopped.
        """
        with self._database.reading() as connection:
            found = _members(connection, suite_name)
        return [result for result in found if status in {None, result.status}]

    def get_experiments_by_type(self, experiment_type: str) -> list[ExperimentResult]:
        """Experiments of suites of this type: `rank_ablation`, `module_ablation`, or a type of your own."""
        with self._database.reading() as connection:
            return queries.results(connection, chosen=lambda row: row["experiment_type"] == experiment_type)

    def get_experiment(self, experiment_id: str) -> ExperimentResult:
        """One experiment, under its name in the first of its suites.

        Raises:
            StoreError: no suite has it.
        """
        with self._database.reading() as connection:
            found = queries.results(connection, chosen=lambda row: row["experiment_id"] == experiment_id)
        if not found:
            raise StoreError(f"{self._database.name} has no experiment {experiment_id}")
        return found[0]

    def get_results(self, experiment_ids: Sequence[str]) -> dict[str, ExperimentResult]:
        """The experiments that any suite has, each under its name in the first of its suites."""
        wanted = set(experiment_ids)
        with self._database.reading() as connection:
            found = queries.results(connection, chosen=lambda row: row["experiment_id"] in wanted)
        return {result.experiment_id: result for result in reversed(found)}

    def known_experiments(self) -> frozenset[str]:
        """The ids of all registered experiments."""
        with self._database.reading() as connection:
            return queries.known_experiments(connection)

    def completed(self, experiment_ids: Sequence[str]) -> dict[str, Environment]:
        """The experiments with a completed run, and the environment of the latest one.

        The caller decides whether that environment is comparable to the present one. A run of an unknown environment is
        comparable to none, so it is left out.
        """
        with self._database.reading() as connection:
            return queries.completed(connection, experiment_ids)

    def get_runs(self, experiment_ids: Sequence[str]) -> list[RunView]:
        """All attempts at these experiments, the newest first."""
        with self._database.reading() as connection:
            return queries.attempts(connection, experiment_ids)

    def get_items(
        self, experiment_id: str, *, split: str, metric: str
    ) -> tuple[tuple[float | None, ...], tuple[int, ...] | None]:
        """A score's value for every item of the current run, and the weights (None: all weigh one).

        Raises:
            StoreError: the current run has no such score.
        """
        with self._database.reading() as connection:
            found = queries.items(connection, experiment_id, split=split, metric=metric)
        if found is None:
            there = ", ".join("/".join(key) for key in self.get_experiment(experiment_id).scores) or "none"
            raise StoreError(f"{experiment_id} has no score {split}/{metric}; it has: {there}")
        return found

    def get_all_items(
        self, experiment_ids: Sequence[str], *, split: str, metric: str
    ) -> dict[str, tuple[tuple[float | None, ...], tuple[int, ...] | None]]:
        """The same as `get_items`, by experiment, without those that have no such score or no items."""
        with self._database.reading() as connection:
            return queries.items_of(connection, experiment_ids, split=split, metric=metric)

    def get_steps(self, experiment_id: str) -> list[StepRow]:
        """The optimizer steps of the current run, in order."""
        with self._database.reading() as connection:
            return queries.steps(connection, experiment_id)

    def get_all_steps(self, experiment_ids: Sequence[str]) -> dict[str, list[StepRow]]:
        """The same as `get_steps`, by experiment, in a few queries for all of them."""
        with self._database.reading() as connection:
            return queries.steps_of(connection, experiment_ids)

    def get_generations(self, experiment_id: str) -> list[Generation]:
        """The generated answers of the current run, in order."""
        with self._database.reading() as connection:
            return queries.generations(connection, experiment_id)

    def get_suites(self) -> list[SuiteSummary]:
        """All suites, the oldest first."""
        with self._database.reading() as connection:
            return queries.suite_summaries(connection)

    def get_designs(self) -> dict[str, Any]:
        """The content of each suite's file, as `keep_design` wrote it; missing for suites of an older version."""
        with self._database.reading() as connection:
            return suites.kept_designs(connection)

    def get_decisions(self, suite_name: str) -> tuple[StoredDecision, ...]:
        """The suite's decisions, the oldest first."""
        with self._database.reading() as connection:
            return suites.kept_decisions(connection).get(suite_name, ())

    def get_imported(self, suite_name: str | None = None) -> list[ImportedResult]:
        """Results of other tools in the order of their import. No other read returns them."""
        with self._database.reading() as connection:
            return imported.results(connection, suite_name)

    def export_to_json(self, path: str | Path, *, suite_name: str | None = None) -> None:
        """Write all suites, or one, as one JSON file: the measurements of the current runs, and imported results."""
        with self._database.reading() as connection:
            suites, experiments = queries.suite_summaries(connection), _members(connection, suite_name)
            from_elsewhere = imported.results(connection, suite_name)
        named = [suite for suite in suites if suite_name in {None, suite.suite_name}]
        export_json(
            Path(path),
            suites=named,
            experiments=experiments,
            imported=from_elsewhere,
            privacy=Privacy.of_this_machine(),
        )

    def export_to_csv(self, path: str | Path, *, suite_name: str | None = None) -> None:
        """Write the experiments as one CSV file, a line for each, for a spreadsheet or a data frame."""
        with self._database.reading() as connection:
            experiments = _members(connection, suite_name)
        export_csv(Path(path), experiments=experiments, privacy=Privacy.of_this_machine())

    def salvage(self, old: Self, *, tables: Sequence[Table]) -> Salvage:
        """Copy the intact rows of another store that this one lacks; used to rebuild a damaged store."""
        with (
            old._database.undecoded(),
            old._database.reading(checked=False) as source,
            self._database.writing() as target,
        ):
            return rows.salvage(source, target, tables=tables)

    def holds(self, row: DamagedRow) -> bool:
        """Whether this store has a row with this key."""
        with self._database.reading() as connection:
            return bool(row.key) and rows.exists(connection, schema.metadata.tables[row.table], key=row.key)

    def problems(self) -> list[str]:
        """The findings of SQLite's check of the file, not of its rows; empty for a sound one."""
        with self._database.reading(checked=False):
            return self._database.problems()

    def verify(self) -> list[DamagedRow]:
        """Rows that differ from their hash; empty for a sound store."""
        with self._database.undecoded(), self._database.reading(checked=False) as connection:
            return rows.damaged_rows(connection)

    def _time(self) -> str:
        return self._clock().isoformat()


def _members(connection: Connection, suite_name: str | None) -> list[ExperimentResult]:
    """The experiments of one suite, or of all."""
    return queries.results(connection, chosen=lambda row: suite_name in {None, row["suite_name"]})
