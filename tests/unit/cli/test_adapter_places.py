"""What a command says of adapters that do not lie where a user looks, and of those that made room."""

from pathlib import Path

import pytest

from lorastudy.cli.running import _say_moved_adapters
from lorastudy.protocol.jobs import AdapterOrigin
from lorastudy.running.study import StudyOutcome
from lorastudy.suite.experiment import Experiment, Sources
from lorastudy.suite.rate_search import Design
from lorastudy.suite.settings import Settings


def experiment(rank: int) -> Experiment:
    return Experiment(
        name=f"r{rank}", arm=f"r{rank}", experiment_type="custom", seed=0, settings=Settings(lora_rank=rank),
        sources=Sources(base_model="base", dataset="rows"),
    )  # fmt: skip


def published_at(place: Path, of: Experiment) -> Experiment:
    place.mkdir(parents=True)
    AdapterOrigin.of(of).write(place)
    return of


def said(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    *experiments: Experiment,
    replaced: tuple[tuple[Path, str], ...] = (),
) -> list[str]:
    ended = StudyOutcome(design=Design(experiments=(), rounds=()), replaced=replaced)
    _say_moved_adapters(ended, experiments, suite_name="mine", output=tmp_path)
    return capsys.readouterr().err.replace(str(tmp_path), "output").splitlines()


def test_nothing_is_said_where_all_lie_at_the_usual_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = published_at(tmp_path / "r1" / "final_model", experiment(1))
    assert said(tmp_path, capsys, usual, experiment(2)) == []


def test_adapters_elsewhere_are_named_with_their_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = published_at(tmp_path / "r1" / "final_model", experiment(1))
    apart = published_at(tmp_path / "mine" / "r2" / "final_model", experiment(2))
    note = (
        "note: output/<name>/final_model holds another experiment's adapter, or files of other origin, so these "
        "adapters are in output/mine/<name>/final_model: r2"
    )
    assert said(tmp_path, capsys, usual, apart) == [note]


def test_an_adapter_that_made_room_is_named_with_its_experiment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note = (
        "note: adapters that no suite uses any more were replaced; their run folders keep a copy: "
        "output/r1/final_model (exp-1)"
    )
    assert said(tmp_path, capsys, replaced=((tmp_path / "r1" / "final_model", "exp-1"),)) == [note]
