"""Keeps a store of this revision for later ones: run `python tests/unit/store/stores/make.py` after adding a revision.

Writes `<revision>.sql`, a small store with a row in every table, and `<revision>.json`, its export. It never overwrites
a file: these are the stores that users have.
"""

import contextlib
import sqlite3
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from lorastudy.protocol.scoring import AddedScore, FailedRow
from lorastudy.store import ExperimentTracker
from lorastudy.store.schema import HEAD_REVISION
from lorastudy.store.views import ExperimentResult, ImportedResult, ImportedScore, StoredDecision
from torture import studies

HERE = Path(__file__).resolve().parent
IMPORTED = ImportedResult(
    suite_name="elsewhere",
    arm="r8",
    seed=0,
    settings={"lora_rank": 8},
    sources={"base_model": "org/model"},
    scores=(ImportedScore(metric="accuracy", value=0.5, unit="share", lower_is_better=False, num_items=100),),
    costs={"num_trainable_parameters": 1000.0},
    tool="another tool",
    file="results.csv",
    file_sha256="00ff",
    location="results.csv:2",
)


def added_score(result: ExperimentResult) -> AddedScore:
    """A score of a stored adapter, of a metric that failed for one of three rows."""
    assert result.attempt is not None
    return AddedScore(
        experiment_id=result.experiment_id,
        attempt=result.attempt,
        split="eval",
        metric="right_number@0123456789ab",
        version=1,
        unit="points",
        value=0.75,
        items=(1.0, None, 0.5),
        failed_rows=(FailedRow(where="rows.jsonl:2", message="ValueError: no number"),),
        source_sha256="0123456789ab" + 52 * "0",
    )


def main() -> None:
    """Write the two files of the newest revision."""
    target = HERE / f"{HEAD_REVISION}.sql"
    if target.exists():
        sys.exit(f"{target} is there already")
    # run from inside, so that no path of this machine is stored
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder = Path()
        studies.run_study(folder, studies.experiments(num_packs=1))
        with ExperimentTracker(folder / studies.DATABASE, writable=True) as tracker:
            tracker.add_imported([IMPORTED])
            tracker.keep_design(tracker.get_suites()[0].suite_name, {"arms": []})
            for result in tracker.get_all_experiments(status="completed")[:1]:
                tracker.take(added_score(result), pack_id="score-1", attempt=1)
            tracker.keep_decision(studies.SUITE, StoredDecision(key="decision-1", content={"pruned": {}}))
        connection = sqlite3.connect(folder / studies.DATABASE)
        dump = "\n".join(connection.iterdump())
        connection.close()
        target.write_text(dump + "\n", encoding="utf-8")
        restored = folder / "restored.db"
        restore(target, restored)
        with ExperimentTracker(restored, writable=True) as tracker:
            tracker.export_to_json(target.with_suffix(".json"))


def restore(dump: Path, database: Path) -> None:
    """The database that a dump is of."""
    connection = sqlite3.connect(database)
    connection.executescript(dump.read_text(encoding="utf-8"))
    connection.close()


if __name__ == "__main__":
    main()
