"""Names, texts and files of somebody who means harm: nothing leaves its folder and nothing is run.

Every case has a canary, a file that only running it would make. Names must be refused; texts must be shown as
texts; folders must be refused, or used without what they smuggle.
"""

import contextlib
import csv
import io
import os
import random
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path

import jinja2

import tiny
from lorastudy.cli import main as command
from lorastudy.data.conversations import Conversation, ConversationError, Turn
from lorastudy.data.load import load_examples
from lorastudy.data.prompts import render_chat
from lorastudy.engine.chat_template import chat_template_of
from lorastudy.errors import StudyError, SuiteFileError
from lorastudy.executors import WorkerExit
from lorastudy.planning.packing import form_packs
from lorastudy.protocol.records import Environment, Outcome, Pack
from lorastudy.running.phase_runner import RunOptions
from lorastudy.store import ExperimentTracker
from lorastudy.store.export import export_csv
from lorastudy.suite.experiment import Experiment, Sources
from lorastudy.suite.safe_text import Privacy
from lorastudy.suite.settings import Settings
from lorastudy.suite.suite import expand
from lorastudy.suite.suite_file import load_suite, suite_from_values
from planned import run_experiments
from torture import hostile_folders, hostile_pages, hostile_terminal
from torture import hostile_strings as strings
from torture.harness import FaultResult, Row, counted, listed, tried

ROW = Row(
    fault="hostile names, files and strings",
    must="0 escapes, 0 executions",
    short=60,
    default=1000,
    kept=1000,
)

Check = Callable[[Path, Path], str | None]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One attempt. `check` gets a folder of its own and the canary, and says what went wrong."""

    kind: str
    what: str
    check: Check


def run(*, amount: int, seed: int, folder: Path) -> FaultResult:
    """Make every attempt, at most `amount`: one of each kind in turn, in an order by the seed."""
    cases = list(islice(_in_turn(all_cases(), seed=seed), amount))
    violations = []
    for number, case in enumerate(counted(cases, total=len(cases))):
        found = attempted(case, folder / str(number))
        if found is not None:
            violations.append(f"{case.kind}: {case.what[:80]!r}: {found}")
    kinds = sorted({case.kind for case in cases})
    unseen = "" if hostile_pages.browser() else "no browser is installed here, so no page was opened in one"
    return FaultResult(
        fault=ROW.fault,
        num_faults=len(cases),
        num_violations=len(violations),
        detail="; ".join(
            filter(None, [f"{len(kinds)} kinds: {', '.join(kinds)}", unseen, listed(violations)])
        ),
    )


def _in_turn(cases: Iterable[Case], *, seed: int) -> Iterator[Case]:
    by_kind: dict[str, list[Case]] = {}
    for case in cases:
        by_kind.setdefault(case.kind, []).append(case)
    draw = random.Random(seed)
    for same_kind in by_kind.values():
        draw.shuffle(same_kind)
    for round_of_kinds in zip_longest(*by_kind.values()):
        yield from (case for case in round_of_kinds if case is not None)


def attempted(case: Case, folder: Path) -> str | None:
    """What went wrong, an execution or an exception of no kind of ours included; None where nothing did."""
    inside, canary = folder / "inside", folder / "canary"
    inside.mkdir(parents=True)
    before = _files(folder)
    with contextlib.chdir(inside):
        found = tried(lambda: case.check(inside, canary))
    if canary.exists():
        return "was executed"
    if isinstance(found, Exception):
        return f"raised {found!r}"
    outside = {path for path in _files(folder) - before if not path.is_relative_to(inside)}
    shutil.rmtree(folder, ignore_errors=True)
    return found or (f"made {min(outside)} outside its folder" if outside else None)


def all_cases() -> Iterator[Case]:
    """The whole list."""
    for kind, texts, check in (
        ("name of an arm", strings.NAMES, _name_of_an_arm),
        ("name of a suite", strings.NAMES[:20], _name_of_a_suite),
        ("text in a report", strings.MARKUP, lambda text, folder, canary: hostile_pages.violation(text)),
        ("text on a terminal", strings.TERMINAL, hostile_terminal.on_a_terminal),
        ("text in a plan", strings.TERMINAL, hostile_terminal.in_a_plan),
        ("text in a store", strings.TERMINAL, hostile_terminal.in_a_store),
        ("text in an imported table", strings.TERMINAL, hostile_terminal.in_a_table),
        ("text of a worker", strings.TERMINAL, hostile_terminal.of_a_worker),
        ("formula in CSV", strings.FORMULAS, _in_a_spreadsheet),
        ("text in a query", strings.SQL, _in_a_query),
        ("YAML", strings.YAML, _in_yaml),
        ("chat template", strings.TEMPLATES, _as_template),
        ("row of data", strings.ROWS, _as_row),
    ):
        for text in texts:
            yield Case(kind=kind, what=text, check=partial(check, text))
    for what in hostile_folders.MODELS:
        yield Case(kind="model folder", what=what, check=partial(_model_folder, what))
    for what in hostile_folders.ADAPTERS:
        yield Case(kind="adapter folder", what=what, check=partial(_adapter_folder, what))
    for what, check in LINKS.items():
        yield Case(kind="link", what=what, check=check)
    if (program := hostile_pages.browser()) is not None:
        yield Case(kind="page in a browser", what="all texts at once", check=partial(_in_browser, program))


def _with_canary(text: str, canary: Path) -> str:
    return text.replace("CANARY", str(canary))


def _name_of_an_arm(text: str, folder: Path, canary: Path) -> str | None:
    return _accepted({"name": _with_canary(text, canary)})


def _name_of_a_suite(text: str, folder: Path, canary: Path) -> str | None:
    return _accepted({"suite_name": _with_canary(text, canary)})


def _accepted(values: dict[str, str]) -> str | None:
    try:
        suite = suite_from_values({"lora_rank": 4, **values}, where="run")
        expand(suite, fingerprint_dataset=lambda _: "d", fingerprint_base=lambda _: "b")
    except SuiteFileError as error:
        return None if str(error).isprintable() else f"an error that steers the terminal: {str(error)!r}"
    return "was accepted"


def _in_yaml(text: str, folder: Path, canary: Path) -> str | None:
    places = (
        "suite_name: X\nexperiments: [{lora_rank: 4}]\n",
        "experiments:\n  - name: X\n",
        "X: 1\nexperiments: [{lora_rank: 4}]\n",
        "X\n",
    )
    for place in places:
        (folder / "s.yaml").write_text(place.replace("X", _with_canary(text, canary)), encoding="utf-8")
        with contextlib.suppress(SuiteFileError):
            load_suite(Path("s.yaml"))
            return "was accepted"
    return None


def _in_a_spreadsheet(text: str, folder: Path, canary: Path) -> str | None:
    (result, *_) = hostile_pages.results(text)
    export_csv(Path("results.csv"), experiments=[result], privacy=Privacy())
    content = Path("results.csv").read_text(encoding="utf-8")
    for delimiter in ",;\t":
        for line in csv.reader(io.StringIO(content, newline=""), delimiter=delimiter):
            for cell in line:
                if re.match(r"[\s\"]*[=+@\uff1d|]|\s*-[^0-9]", cell):
                    return f"with {delimiter!r} between cells, one begins like a formula: {cell[:60]!r}"
    return None


def _in_a_query(text: str, folder: Path, canary: Path) -> str | None:
    text = _with_canary(text, canary)
    with ExperimentTracker("store.db", writable=True) as tracker:
        tracker.register("study", _experiments("one", "two"), description=text)
        found = [tracker.get_all_experiments(suite_name=text), tracker.get_experiments_by_type(text)]
        missing = tried(lambda: tracker.get_experiment(text))
        if any(found) or not isinstance(missing, StudyError):
            return "found something"
        if [suite.description for suite in tracker.get_suites()] != [text] or len(
            tracker.get_all_experiments()
        ) != 2:
            return "changed the store"
        return "damaged the store" if tracker.verify() else None


def _as_template(text: str, folder: Path, canary: Path) -> str | None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = _with_canary(text, canary)
    template = chat_template_of(tokenizer)
    assert template is not None
    conversation = Conversation(turns=(Turn(role="user", text="w2"), Turn(role="assistant", text="w3")))
    with contextlib.suppress(ConversationError, jinja2.TemplateError):
        segments = render_chat(conversation, chat_template=template).segments
        rendered = "".join(segment.text for segment in segments)
        return f"rendered {rendered[:80]!r}" if "class" in rendered or "root:" in rendered else None
    return None


def _as_row(text: str, folder: Path, canary: Path) -> str | None:
    text = _with_canary(text, canary)
    for row in ({"instruction": text, "input": text, "output": text}, {"prompt": text, "completion": text}):
        Path("rows.jsonl").write_text(hostile_terminal.json_rows(**row), encoding="utf-8")
        _, (example,) = load_examples("rows.jsonl")
        if "".join(segment.text for segment in example.segments).count(text) != len(row):
            return "was not trained on as it stands"
    return None


def _model_folder(what: str, folder: Path, canary: Path) -> str | None:
    spoil, must_be_refused = hostile_folders.MODELS[what]
    model = tiny.save_base(folder / "model")
    spoil(model, canary)
    return _refusal(lambda: hostile_folders.load_model(model), must_be_refused)


def _adapter_folder(what: str, folder: Path, canary: Path) -> str | None:
    spoil, must_be_refused = hostile_folders.ADAPTERS[what]
    adapter = hostile_folders.make_adapter(folder / "adapter")
    spoil(adapter, canary)
    return _refusal(lambda: hostile_folders.use_adapter(adapter), must_be_refused)


def _refusal(use: Callable[[], None], must_be_refused: bool) -> str | None:
    error = tried(use)
    if error is None:
        return "was accepted" if must_be_refused else None
    return None if isinstance(error, StudyError) else f"raised {error!r}"


def _in_browser(program: str, folder: Path, canary: Path) -> str | None:
    return hostile_pages.in_browser(strings.MARKUP, folder, program=program)


# --- links --------------------------------------------------------------------------------------------


def _output_leads_out(folder: Path, canary: Path) -> str | None:
    Path("output").mkdir()
    _outside(folder).mkdir()
    Path("output/one").symlink_to(_outside(folder))
    return _refused_run(folder)


def _final_model_leads_out(folder: Path, canary: Path) -> str | None:
    Path("output/one").mkdir(parents=True)
    _outside(folder).mkdir()
    Path("output/one/final_model").symlink_to(_outside(folder))
    return _refused_run(folder)


def _runs_lead_out(folder: Path, canary: Path) -> str | None:
    (pack,) = form_packs(_experiments("one"))
    Path("runs").mkdir()
    _outside(folder).mkdir()
    Path("runs", pack.id).symlink_to(_outside(folder))
    return _refused_run(folder)


def _adapter_path_leads_out(folder: Path, canary: Path) -> str | None:
    Path("elsewhere").mkdir()
    Path("elsewhere/secret").write_text("secret")
    return _refused_run(folder, adapter_path="../../../elsewhere")


def _adapter_holds_a_link(folder: Path, canary: Path) -> str | None:
    return _refused_run(folder, link_to=Path("/etc/hostname"))


def _unfinished_file_is_a_link(folder: Path, canary: Path) -> str | None:
    Path("mine").write_text("mine")
    Path("rows.csv").write_text("prompt,completion\n" + "".join(f"{n},x\n" for n in range(9)))
    Path("data").mkdir()
    Path("data/rows.jsonl.partial").symlink_to(folder / "mine")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        command.main(["prepare", "--dataset", "rows.csv"])
    return (
        None
        if Path("mine").read_text() == "mine" and Path("data/rows.jsonl").is_file()
        else "was written through"
    )


LINKS: dict[str, Check] = {
    "an output folder that leads out": _output_leads_out,
    "an adapter's folder that leads out": _final_model_leads_out,
    "a run folder that leads out": _runs_lead_out,
    "an adapter's path that leads out": _adapter_path_leads_out,
    "an adapter that holds a link": _adapter_holds_a_link,
    "a link in the place of an unfinished file": _unfinished_file_is_a_link,
}


class _Executor:
    """Says that every experiment completed, with an adapter where it is told."""

    num_packs_at_once = 1
    hands_over = False

    def __init__(self, *, adapter_path: str | None, link_to: Path | None) -> None:
        self.adapter_path, self.link_to = adapter_path, link_to

    def run(self, folders: list[Path]) -> Iterator[tuple[Path, object]]:
        for folder in folders:
            yield folder, _ENVIRONMENT
            for experiment in Pack.read(folder).experiments:
                path = self.adapter_path or "adapters/one"
                if self.adapter_path is None:
                    (folder / path).mkdir(parents=True)
                    (folder / path / "adapter_config.json").write_text("{}")
                if self.link_to is not None:
                    (folder / path / "weights").symlink_to(self.link_to)
                yield (
                    folder,
                    Outcome(experiment_id=experiment.id, status="completed", step=1, adapter_path=path),
                )
            yield folder, WorkerExit(returncode=None)


def _refused_run(folder: Path, *, adapter_path: str | None = None, link_to: Path | None = None) -> str | None:
    """A whole suite that meets a link: it must end with a message, and leave the outside as it was."""
    before = _files(folder.parent) - _files(folder)
    with ExperimentTracker("store.db", writable=True) as tracker:
        error = tried(
            lambda: run_experiments(
                _experiments("one"), suite_name="study", tracker=tracker,
                executor=_Executor(adapter_path=adapter_path, link_to=link_to),
                options=RunOptions(runs=Path("runs"), output=Path("output")),
            )
        )  # fmt: skip
    if not isinstance(error, StudyError):
        return "was followed" if not isinstance(error, Exception) else f"raised {error!r}"
    return "something was written outside" if _files(folder.parent) - _files(folder) != before else None


_ENVIRONMENT = Environment(
    python="3", torch="2", transformers="5", peft="0", bitsandbytes="0", lorastudy="0", device="cpu", device_name="cpu", num_threads=1,
)  # fmt: skip


def _experiments(*names: str) -> list[Experiment]:
    return [
        Experiment(
            name=name, arm=name, experiment_type="custom", seed=0, settings=Settings(lora_rank=rank),
            sources=Sources(base_model="b", dataset="d"),
        )
        for rank, name in enumerate(names, start=1)
    ]  # fmt: skip


def _outside(folder: Path) -> Path:
    return folder.parent / "outside"


def _files(folder: Path) -> set[Path]:
    """Every file under it, links not followed."""
    return {Path(root, name) for root, _, names in os.walk(folder) for name in names}
