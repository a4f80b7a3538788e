"""`lorastudy status`: how experiments stand, in the words of a reader."""

from pathlib import Path

import pytest

from lorastudy.cli.main import main
from lorastudy.protocol.records import FailureKind, Outcome
from lorastudy.store import ExperimentTracker
from lorastudy.suite.experiment import Experiment, Sources
from lorastudy.suite.settings import Settings


def test_interrupted_runs_are_told_from_those_that_racing_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ends: tuple[FailureKind | None, ...] = (None, "pruned")
    experiments = [
        Experiment(
            name=f"r{rank}", arm=f"r{rank}", experiment_type="custom", seed=0, settings=Settings(lora_rank=rank),
            sources=Sources(base_model="b", dataset="d"),
        )
        for rank in (4, 8, 16)
    ]  # fmt: skip
    with ExperimentTracker(writable=True) as tracker:
        tracker.register("ranks", experiments)
        for experiment, kind in zip(experiments, ends, strict=False):
            tracker.start_run(
                experiment.id, attempt=1, pack_id="pack-1", engine="packed", run_folder=tmp_path / "attempt-1"
            )
            outcome = Outcome(experiment_id=experiment.id, status="stopped", failure_kind=kind, message="m")
            tracker.take(outcome, pack_id="pack-1", attempt=1)
    with pytest.raises(SystemExit):
        main(["status"])
    assert capsys.readouterr().out == "ranks: 1 interrupted, 1 pending, 1 stopped by racing\n"
