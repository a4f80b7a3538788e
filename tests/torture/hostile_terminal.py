"""Whether a text steers the terminal or is taken for markup, wherever commands print what others wrote.

Each function is given the text, a folder of its own, which is the working directory, and the canary; it says what went
wrong.
"""

import contextlib
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import tiny
from lorastudy.cli import evaluate, running
from lorastudy.cli import main as command
from lorastudy.cli.console import PlainConsole
from lorastudy.cli.plan_output import show_plan
from lorastudy.cli.previewing import show_preview
from lorastudy.errors import StudyError
from lorastudy.executors import WorkerExit
from lorastudy.planning import study_plan
from lorastudy.planning.predictions import Predictions
from lorastudy.planning.preview import Preview, PreviewedRow, TextPiece
from lorastudy.protocol.records import PACK_NAME, DataSummary, Environment, Outcome, Pack
from lorastudy.store import ExperimentTracker
from lorastudy.suite.experiment import Experiment, Sources
from lorastudy.suite.settings import Settings
from lorastudy.suite.suite_file import suite_from_values
from torture.harness import tried

_UNPRINTABLE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_STORE = ("--database", "store.db")


def on_a_terminal(text: str, folder: Path, canary: Path) -> str | None:
    """An answer, a row, a row as its model sees it, an error."""
    Path("rows.jsonl").write_text(json_rows(text), encoding="utf-8")
    answer = {"prompt": text, "reference": text, "answer": text}
    result = {"scores": [], "generations": [answer], "inference": None}

    answered = said(lambda: evaluate._show(PlainConsole(), result))
    previewed = said(lambda: show_preview(PlainConsole(), _preview(text), of="train"))
    refused = said(
        lambda: _commands(
            ["prepare", "--dataset", "rows.jsonl"],
            ["suite", f"{text}.yaml"],
            ["report", "--suite-name", text, *_STORE],
        )
    )
    return steered(answered, text) or steered(previewed, text) or steered(refused, text)


def _preview(text: str) -> Preview:
    counts = dict.fromkeys(("num_rows", "num_refused_rows", "num_truncated_rows", "num_tokens"), 1)
    summary = DataSummary(
        split="train", format="messages", num_completion_tokens=1, layout="chat", template_preamble=text, **counts
    )  # fmt: skip
    pieces = [
        TextPiece(text=text, is_cut_off=is_cut_off, is_trained=is_trained, is_special=is_trained)
        for is_cut_off, is_trained in ((False, False), (False, True), (True, False))
    ]
    row = PreviewedRow(
        where=text, is_refused=False, input_ids=(1,), labels=(1,), num_trained_tokens=1, num_whole_tokens=2,
        num_whole_trained_tokens=1, layout="chat", fell_back=True, unseen=(text,), pieces=tuple(pieces),
    )  # fmt: skip
    return Preview(
        summary=summary, max_seq_length=8, notes=(text,), rows=(row, replace(row, is_refused=True))
    )


def in_a_plan(text: str, folder: Path, canary: Path) -> str | None:
    """A dry run of a suite whose files and modules are called so."""
    name = _file_name(text)
    rows = "".join(json_rows(str(number)) for number in range(40))
    Path(f"{name}.jsonl").write_text(rows, encoding="utf-8")
    tiny.save_base(folder / name)
    values = {
        "base_model": f"./{name}",
        "dataset_path": f"{name}.jsonl",
        "target_modules": [text],
        "eval_fraction": 0.5,
    }
    suite = suite_from_values(values, where="run")

    def show() -> None:
        with patch.object(
            study_plan, "with_memory", lambda *_, **__: Predictions()
        ):  # no worker for a page of text
            show_plan(running.planned_only(suite, database="none.db"))

    return steered(said(show), text)


def in_a_store(text: str, folder: Path, canary: Path) -> str | None:
    """A store and run folders that somebody else made, whatever command reads them."""
    failed, under_way = _experiments(text, sources_of=lambda _: Sources(base_model="b", dataset="d"))
    with ExperimentTracker("store.db", writable=True) as tracker:
        tracker.register(text, [failed, under_way], description=text)
        for experiment in (failed, under_way):
            where = {"pack_id": text, "run_folder": f"runs/{text}"}
            tracker.start_run(experiment.id, attempt=1, engine=text, **where)
        tracker.fail_run(failed.id, attempt=1, kind="error", message=text)
    damaged = Path("runs", _file_name(text), "attempt-1")
    damaged.mkdir(parents=True)
    (damaged / PACK_NAME).write_text(json.dumps({"format": 1, text: text}), encoding="utf-8")
    output = said(
        lambda: _commands(
            ["status", *_STORE],
            ["doctor", *_STORE],
            ["resume", *_STORE],
            ["resume", "another", *_STORE],
            ["export", "--output", f"{_file_name(text)}.json", *_STORE],
            ["db", "upgrade", *_STORE],
            ["db", "rebuild", "--runs-dir", "runs", *_STORE],
        )
    )
    return steered(output, text)


def in_a_table(text: str, folder: Path, canary: Path) -> str | None:
    """Results of another tool, of which a first table is refused and a second one is taken."""
    rows = [{"name": text, "rank": rank, "seed": 0, "score": 0.5, text: 1} for rank in (4, 4)]
    mapping = {
        "tool": text,
        "columns": {"arm": "name", "lora_rank": "rank", "seed": "seed"},
        "metrics": {text: {"column": "score", "direction": "higher", "unit": text}},
    }
    for name, count in (("twice.jsonl", 2), ("once.jsonl", 1)):
        lines = (json.dumps(row) + "\n" for row in rows[:count])
        Path(name).write_text("".join(lines), encoding="utf-8")
    Path("mapping.yaml").write_text(json.dumps(mapping), encoding="utf-8")
    result = json.dumps({"run_info": {text: text}, "train_info": text})
    Path(f"{_file_name(text)}.json").write_text(result, encoding="utf-8")
    named = ["--suite-name", "theirs", *_STORE]
    output = said(
        lambda: _commands(
            ["import", "twice.jsonl", "--mapping", "mapping.yaml", *named],
            ["import", "once.jsonl", "--mapping", "mapping.yaml", *named],
            ["import", "once.jsonl", "--metric", "absent:higher", *named],
            ["import", ".", *named],
            ["status", *_STORE],
        )
    )
    return steered(output, text)


def of_a_worker(text: str, folder: Path, canary: Path) -> str | None:
    """A suite taken up from a store, and what its worker says of its device, of a failure and of its end."""
    rows = "".join(json_rows(str(number)) for number in range(40))
    Path("rows.jsonl").write_text(rows, encoding="utf-8")
    experiment, _ = _experiments(text, sources_of=study_plan.sources_of())
    with ExperimentTracker("store.db", writable=True) as tracker:
        tracker.register(text, [experiment])
    executor = _Speaking(text)
    with (
        patch.object(study_plan, "with_memory", lambda *_, **__: Predictions(problems=(text,))),
        patch.object(running, "local_executor", lambda _: executor),
        patch.object(study_plan, "local_executor", lambda _: executor),
    ):
        output = said(lambda: _commands(["resume", *_STORE]))
    if not executor.has_run:
        return f"the worker was not asked: {output[-200:]!r}"
    on_its_device = "\n".join(
        line for line in output.splitlines() if "loading the base model and the data on" in line
    )
    return steered(output, text) or steered(on_its_device, text)


class _Speaking:
    """An executor whose worker calls its device so, and fails with such a message."""

    num_packs_at_once = 1
    hands_over = False
    num_threads = None

    def __init__(self, text: str) -> None:
        self._text = text
        self.has_run = False

    def start_workers(self, base_models: object) -> None:
        """Nothing: there is no process."""

    def leave(self) -> None:
        """Nothing: nobody asks."""

    def close(self) -> None:
        """Nothing: there is no process."""

    def run(self, folders: Sequence[Path]) -> Iterator[tuple[Path, object]]:
        """One failure for each experiment."""
        for folder in folders:
            self.has_run = True
            yield folder, Environment(
                python="3", torch="2", transformers="5", peft="0", bitsandbytes="0", lorastudy="0", device="cpu",
                device_name=self._text, num_threads=1,
            )  # fmt: skip
            for experiment in Pack.read(folder).experiments:
                yield (
                    folder,
                    Outcome(
                        experiment_id=experiment.id, status="failed", failure_kind="user", message=self._text
                    ),
                )
            yield folder, WorkerExit(returncode=1, message=self._text)


def said(call: Callable[[], None]) -> str:
    """What a call prints; an error for the user is printed too, and any other is raised."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        error = tried(call)
    if isinstance(error, Exception) and not isinstance(error, StudyError):
        raise error
    return output.getvalue()


def steered(output: str, text: str) -> str | None:
    """What is wrong with an output that a text is part of."""
    found = _UNPRINTABLE.search(output)
    if found is not None:
        return f"{found[0]!r} reached the terminal: {output[max(0, found.start() - 30) : found.end() + 10]!r}"
    return None if not text.isprintable() or text in output else "Rich took it for its own language"


def json_rows(text: str = "", **values: str) -> str:
    """A row of these values, or of a question and an answer."""
    return json.dumps(values or {"prompt": f"{text} ?", "completion": f"{text} !"}) + "\n"


def _commands(*lines: Sequence[str]) -> None:
    for arguments in lines:
        with contextlib.suppress(SystemExit):
            command.main(arguments)


def _experiments(text: str, *, sources_of: Callable[[Settings], Sources]) -> list[Experiment]:
    settings = [
        Settings(
            lora_rank=rank,
            target_modules=modules,
            base_model="lab",
            dataset_path="rows.jsonl",
            eval_fraction=0.5,
        )
        for rank, modules in ((1, (text,)), (2, (text, "q_proj")))
    ]
    return [
        Experiment(
            name=f"{text} {each.lora_rank}", arm=text, experiment_type=text, seed=0, settings=each, sources=sources_of(each)
        )
        for each in settings
    ]  # fmt: skip


def _file_name(text: str) -> str:
    return re.sub(r"[/\x00]", "_", text)
