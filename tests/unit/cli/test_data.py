"""`lorastudy data preview` and `prepare --base-model`: rows as a user sees them, and with which exit code it ends."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest
from transformers import LlamaConfig

import token_kinds
from lorastudy.cli import previewing
from lorastudy.cli.console import PlainConsole
from lorastudy.cli.main import main
from lorastudy.cli.previewing import show_preview
from lorastudy.data.load import train_and_eval
from lorastudy.data.token_sets import token_sets
from lorastudy.engine.chat_template import prompt_style
from lorastudy.engine.loading import load_tokenizer
from lorastudy.engine.planning import answer
from lorastudy.planning.preview import Preview, PreviewedRow, TextPiece
from lorastudy.protocol.records import DataSummary
from lorastudy.suite.settings import Settings

SUITE = """
suite_name: s
base_model: model
dataset_path: rows.jsonl
max_steps: 4
max_seq_length: 64
seeds: [3]
experiments:
  - {name: as_it_comes, lora_rank: 4}
  - {name: larger, lora_rank: 8}
"""
FORMATS = SUITE.replace("rank: 8}", "rank: 8, prompt_format: plain}")
NUM_ROWS = 40


class SameProcess:
    """Answers as a worker does, without the seconds that it takes to start."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def do(self, job: Any) -> dict[str, Any]:
        folder = Path("job")
        folder.mkdir(exist_ok=True)
        job.write(folder)
        found = answer(json.loads((folder / "job.json").read_text(encoding="utf-8"))["questions"])
        return json.loads(json.dumps(found))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with rows and a chat model, of which nobody reads the weights."""
    tokenizer = token_kinds.KINDS["byte-level BPE"]()
    tokenizer.chat_template = token_kinds.TEMPLATES["chatml"].source
    tokenizer.save_pretrained(tmp_path / "model")
    LlamaConfig(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").touch()
    rows = [
        {"instruction": f"Say {n}", "input": "", "output": f"It is {n}.", "url": "u"} for n in range(NUM_ROWS)
    ]
    rows[11]["output"] += " Indeed." * 30
    rows[12]["instruction"] += ", please" * 30
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(previewing, "JobWorker", SameProcess)
    return tmp_path


@pytest.fixture
def typed(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """What a command prints and what it complains of."""

    def run(*arguments: str, suite: str = SUITE, expect: int = 0) -> tuple[str, str]:
        (folder / "suite.yaml").write_text(suite, encoding="utf-8")
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        assert ended.value.code == expect
        printed = capsys.readouterr()
        return printed.out, printed.err

    return run


def test_rows_are_shown_with_their_layout_their_lengths_and_what_is_trained_marked(typed):
    out, err = typed("data", "preview", "suite.yaml", "--rows", "2")
    assert err == "reading the rows with the tokenizer of model ...\n"
    assert "\x1b" not in out
    assert typed("data", "suite.yaml", "--rows", "2") == (out, err)  # the same without the verb
    head, note, legend, _, first, *text = out.splitlines()
    assert head.startswith("train: ")
    assert "1 cut at 64 tokens, 1 more refused, since nothing of the answer is left" in head
    assert head.endswith("The model's chat template lays them out.")
    assert note == f"Note: columns that are not used: url ({NUM_ROWS} rows)"
    assert legend.startswith("The part between [trained] and [/trained] is trained.")
    number = first.removeprefix("1. rows.jsonl:").partition(":")[0]
    said = int(number) - 1
    assert text[0] == "<|im_start|>user"
    assert text[1:4] == [
        f"Say {said}<|im_end|>",
        "<|im_start|>assistant",
        f"[trained]It is {said}.<|im_end|></s>[/trained]",
    ]
    cut = out[out.index("rows.jsonl:12:") :]
    assert "64 of " in cut.splitlines()[0]
    assert "; the rest is cut off" in cut.splitlines()[0]
    assert "[/trained][cut]" in cut
    refused = out[out.index("refused: rows.jsonl:13: only the first 64 of its ") :]
    assert "tokens are kept, and its answer begins after them" in refused
    assert "[trained]" not in refused


def test_ids_and_labels_of_the_json_are_those_of_a_run(typed):
    out, _ = typed("data", "preview", "suite.yaml", "--rows", "1000", "--json", "--split", "eval")
    found = json.loads(out)
    settings = Settings(base_model="model", dataset_path="rows.jsonl", max_seq_length=64, max_steps=4)
    tokenizer = load_tokenizer("model")
    study = train_and_eval(settings, style=prompt_style(tokenizer, "auto"))
    tokens = token_sets(study, settings, tokenizer=tokenizer, reach=None)["eval"]
    used = [row for row in found["rows"] if not row["is_refused"]]
    assert [(row["input_ids"], row["labels"]) for row in used] == [
        (list(row.input_ids), list(row.labels)) for row in tokens.rows
    ]
    assert found["summary"]["num_rows"] == len(tokens.rows) > 0


def test_arms_that_read_rows_differently_are_shown_by_name(typed):
    out, err = typed("data", "preview", "suite.yaml", suite=FORMATS)
    assert "note: these are the rows of as_it_comes; other arms read rows differently: --arm larger" in err
    assert "<|im_start|>" in out
    out, err = typed("data", "preview", "suite.yaml", "--arm", "larger", suite=FORMATS)
    assert "note" not in err
    assert "No chat template lays them out." in out
    assert "<|im_start|>" not in out
    _, err = typed("data", "preview", "suite.yaml", "--arm", "largest", suite=FORMATS, expect=2)
    assert err == "error: --arm largest: no such arm (did you mean larger?); arms are as_it_comes, larger\n"


def test_what_cannot_be_shown_ends_with_2_and_the_message_of_a_run(typed, folder):
    _, err = typed("data", "preview", "suite.yaml", "--split", "test", expect=2)
    assert err.splitlines()[-1] == "error: these settings name no test rows; there are train, eval"
    _, err = typed("data", "preview", "suite.yaml", suite=SUITE.replace("64", "8"), expect=2)
    assert "rows.jsonl, with base_model model: train: of all" in err
    assert "raise max_seq_length" in err
    _, err = typed("prepare", "--dataset", "rows.jsonl", "--base-model", "./missing", expect=2)
    assert "./missing" in err
    assert not (folder / "data").exists()


def test_prepare_shows_what_it_wrote_as_a_model_will_see_it(typed, folder):
    out, _ = typed("prepare", "--dataset", "rows.jsonl", "--base-model", "model", "--max-seq-length", "64")
    head = f"the first rows of {Path('data/rows.jsonl')} with model: {NUM_ROWS - 1} rows read (alpaca)"
    assert head in out
    assert "1. data/rows.jsonl:1: " in out
    assert "[trained]It is 0.<|im_end|></s>[/trained]" in out
    assert "3. data/rows.jsonl:3: " in out
    assert "refused: data/rows.jsonl:13: " in out
    assert "One example" not in out
    out, _ = typed("prepare", "--dataset", "rows.jsonl")
    assert "[trained]It is 0.[/trained]" in out


def piece(text: str, kind: str = "") -> TextPiece:
    return TextPiece(
        text=text, is_cut_off="cut" in kind, is_trained="trained" in kind, is_special="special" in kind
    )


ROW = PreviewedRow(
    where="a.jsonl:1", is_refused=False, input_ids=(1, 2, 3, 4), labels=(-100, -100, 3, 4), num_trained_tokens=2,
    num_whole_tokens=4, num_whole_trained_tokens=2, layout="chat", fell_back=False, unseen=(),
    pieces=(piece("<s>", "special"), piece("ask\n"), piece("say", "trained"), piece("</s>", "trained special")),
)  # fmt: skip
PREVIEW = Preview(
    summary=DataSummary(
        split="train", format="messages", num_rows=1, num_refused_rows=0, num_truncated_rows=0, num_tokens=4,
        num_completion_tokens=2, layout="chat",
    ),
    max_seq_length=8, notes=(), rows=(ROW,),
)  # fmt: skip


def drawn(row: PreviewedRow) -> str:
    file = io.StringIO()
    show_preview(PlainConsole(file=file), replace(PREVIEW, rows=(row,)), of="train")
    return file.getvalue()


def test_without_colour_marks_tell_what_is_trained_and_in_a_terminal_colour_too(monkeypatch):
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    assert drawn(ROW).endswith("1. a.jsonl:1: 4 tokens, 2 trained\n<s>ask\n[trained]say</s>[/trained]\n")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    coloured = drawn(ROW)
    green = "\x1b[1;32m"
    assert f"{green}[trained]" in coloured
    assert f"{green}say" in coloured
    assert "\x1b[36m<s>" in coloured
    assert "\x1b[2mask" in coloured
    assert "\x1b[1;7;32m</s>" in coloured


def test_what_a_row_holds_steers_no_terminal_and_what_is_cut_off_is_shown_in_part():
    rest = piece("x" * 500, "cut trained")
    row = replace(ROW, num_whole_tokens=600, num_whole_trained_tokens=598, unseen=("name",), fell_back=True)
    text = drawn(replace(row, pieces=(piece("\x1b[31mred"), piece("say", "trained"), rest)))
    assert "\x1b" not in text
    assert "8 of 600 tokens, 2 trained of 598; the rest is cut off" in text
    assert f"[trained]say[/trained][cut]{'x' * 200} [... 300 more characters]" in text
    assert "Nothing of these fields is shown to the model: name" in text
    assert "Its functions are given to the chat template as text." in text
