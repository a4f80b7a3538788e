"""How commands end that made or told results: what these came to, then where everything lies."""

import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

import lorastudy.report
from lorastudy.cli.report import say_report, say_results, say_summary
from lorastudy.cli.running import StopSignals, _print_outcome, exit_code
from lorastudy.errors import StudyError
from lorastudy.protocol.jobs import AdapterOrigin
from lorastudy.protocol.records import Outcome
from lorastudy.report.sections.front import StudySummary
from lorastudy.running.study import StudyOutcome
from lorastudy.store import ExperimentTracker
from lorastudy.suite.experiment import Experiment, Sources
from lorastudy.suite.rate_search import Design
from lorastudy.suite.settings import Settings


class Told:
    """A report as far as its end goes."""

    def __init__(self, *titles, imported_apart=()):
        self.summaries = tuple(summary(title) for title in titles)
        self.studies = tuple(None for _ in titles)
        self.imported_apart = imported_apart


def summary(title="study"):
    return StudySummary(
        title=title,
        answer=f"Use r2: {', '.join(f'an-arm-with-a-name-{n}' for n in range(12))} are each worse.",
        parts=(("How sure.", "r2 minus r1 is +1."), ("What it costs.", "r2 needs 1 MiB.")),
        limits=(("One data set.",), ("One base model.",)),
    )


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")


def test_lines_are_as_wide_as_the_terminal_and_break_no_name(capsys):
    say_summary(summary())
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 60 for line in lines)
    assert (
        sum(line.count("an-arm-with-a-name-11 are each") for line in [" ".join(map(str.strip, lines))]) == 1
    )
    assert [line for line in lines if line.startswith(("study", "Use", "How sure", "What"))] == [
        "study",
        next(line for line in lines if line.startswith("Use r2:")),
        "How sure. r2 minus r1 is +1.",
        "What it costs. r2 needs 1 MiB.",
    ]


def test_a_report_ends_with_its_files_and_names_the_other_studies(capsys):
    plots = [Path("results/plots") / f"pairs.{ending}" for ending in ("png", "svg")]
    say_report(Told("new", "old", imported_apart=("public",)), [Path("R.md"), Path("R.html"), *plots])
    out = capsys.readouterr().out
    assert "\nnew\nUse r2:" in out
    assert "\nold\n" not in out
    flat = " ".join(out.split())
    assert (
        "R.md also covers 1 suite from before: old. For a single one: lorastudy report --suite-name NAME"
        in flat
    )
    assert "imported results have reports of their own: public." in flat
    assert out.splitlines()[-3:] == [
        "wrote R.md",
        "wrote R.html",
        "wrote 1 plot (PNG and SVG) into results/plots",
    ]


def experiment(name, seed=0):
    return Experiment(
        name=name, arm=name, experiment_type="custom", seed=seed, settings=Settings(),
        sources=Sources(base_model="base", dataset="rows"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("places", "adapters"),
    [
        ({"r2": "r2"}, "Adapters. output/r2/final_model"),
        ({"r2": "my suite/r2"}, "Adapters. output/my suite/r2/final_model"),
        ({"r2": "r2", "r4": "r4"}, "Adapters. output/<name>/final_model, such as output/r2/final_model"),
        # the usual place of the first holds another experiment's adapter
        (
            {"r2": "my suite/r2", "r4": "r4"},
            "Adapters. output/<name>/final_model, such as output/r4/final_model",
        ),
        (
            {"r2": "my suite/r2", "r4": "my suite/r4"},
            "Adapters. output/my suite/<name>/final_model, such as output/my suite/r2/final_model",
        ),
        ({"r2": None}, ""),
    ],
)
def test_a_suite_ends_with_what_it_came_to_and_the_next_command(
    tmp_path, capsys, monkeypatch, places, adapters
):
    monkeypatch.chdir(tmp_path)
    ExperimentTracker("mine.db", writable=True).close()
    ran = [experiment(name) for name in places]
    for each in ran:
        stranger = Path("output", each.name, "final_model")
        if places[each.name] != each.name:
            stranger.mkdir(parents=True)
            AdapterOrigin.of(experiment(each.name, seed=1)).write(stranger)
        if places[each.name] is not None:
            own = Path("output", places[each.name], "final_model")
            own.mkdir(parents=True)
            AdapterOrigin.of(each).write(own)
    asked = {}

    def read_report(tracker, **options):
        asked.update(options)
        return Told("my suite (custom)")

    monkeypatch.setattr(lorastudy.report, "read_report", read_report, raising=False)
    asked_for = []

    def get_all_experiments(self, status=None, suite_name=None):
        asked_for.append(suite_name)
        return [
            SimpleNamespace(status="failed", name="r1"),
            *(SimpleNamespace(status="completed", name=n) for n in places),
        ]

    monkeypatch.setattr(ExperimentTracker, "get_all_experiments", get_all_experiments)
    say_results("my suite", experiments=ran, database="mine.db", output_dir=Path("output"))
    out = capsys.readouterr().out
    assert asked == {"suite_name": "my suite"}
    assert asked_for == ["my suite"]
    assert "\nUse r2:" in out
    assert ("Adapters." in out) == bool(adapters)
    assert f"{adapters}\n" in out
    assert out.splitlines()[-1] == "next: lorastudy report --suite-name 'my suite' --database mine.db"


def test_a_suite_of_which_nothing_completed_says_no_more(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ExperimentTracker("mine.db", writable=True).close()
    with pytest.raises(StudyError), ExperimentTracker("mine.db") as tracker:
        lorastudy.report.read_report(tracker, suite_name="none")
    say_results("none", experiments=[], database="mine.db", output_dir=Path("output"))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("kinds", "code"),
    [((), 0), (("user",), 2), (("user", "user"), 2), (("user", "diverged"), 1), (("crashed",), 1)],
)
def test_the_exit_code_is_2_where_all_that_failed_is_the_users_to_mend(kinds, code):
    ends = tuple(
        Outcome(experiment_id=f"exp-{number}", status="failed", failure_kind=kind, message="m")
        for number, kind in enumerate(kinds)
    )
    assert exit_code(StudyOutcome(design=Design(experiments=(), rounds=()), failed=ends)) == code


@pytest.mark.parametrize(
    ("pruned", "options", "said"),
    [
        (
            (0,),
            {"has_raced": True, "was_stopped": False},
            "stopped by racing, since clearly behind: r=2 (1 run)",
        ),
        (
            (),
            {"has_raced": True, "was_stopped": False},
            "racing stopped no arm: none was shown to be clearly behind",
        ),
        ((), {"has_raced": True, "was_stopped": True}, None),
        ((), {"has_raced": False, "was_stopped": False}, None),
    ],
)
def test_a_race_ends_with_whom_it_stopped_or_that_it_stopped_nobody(capsys, pruned, options, said):
    experiments = tuple(
        Experiment(
            name=f"zz_{rank}", arm=f"zz_{rank}", experiment_type="custom", seed=0, settings=Settings(lora_rank=rank),
            sources=Sources(base_model="b", dataset="d"),
        )
        for rank in (2, 4)
    )  # fmt: skip
    outcome = StudyOutcome(
        design=Design(experiments=experiments, rounds=(experiments,)),
        completed=(experiments[1].id,),
        pruned=tuple(experiments[number].id for number in pruned),
    )
    _print_outcome(outcome, experiments, **options)
    of_racing = [line for line in capsys.readouterr().out.splitlines() if "racing" in line]
    assert len(of_racing) == (said is not None)
    assert all(line.startswith(said) for line in of_racing)


def test_the_first_signal_says_how_to_continue_and_a_second_one_quits(capsys):
    """A second Ctrl-C leaves no time to print anything, so the first one says it for both."""
    left = []
    with StopSignals(resume_command="lorastudy resume study") as signals:
        signals.executor = SimpleNamespace(leave=lambda: left.append(True))
        signal.raise_signal(signal.SIGINT)
        assert capsys.readouterr().err.rstrip().endswith("to continue: lorastudy resume study")
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert left == [True]
