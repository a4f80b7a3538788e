"""Rows that are shown are those that a run trains on: same rows, same ids, same labels, and their text whole."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

import token_kinds
from lorastudy.data.batches import usable_order
from lorastudy.data.load import train_and_eval
from lorastudy.data.token_sets import token_sets
from lorastudy.data.tokenise import IGNORED, TokenRows
from lorastudy.engine import rows as module
from lorastudy.engine.chat_template import prompt_style
from lorastudy.engine.loading import BaseCache, load_tokenizer
from lorastudy.engine.rows import rows_previewed
from lorastudy.errors import DataError
from lorastudy.protocol.jobs import PreviewQuestion
from lorastudy.protocol.records import Pack
from lorastudy.suite.experiment import Experiment, Sources
from lorastudy.suite.settings import Settings
from lorastudy.train.outcomes import PackRun
from lorastudy.train.train_pack import load

MakeModel = Callable[..., str]


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """A folder with a tokenizer, a chat template and a configuration; nobody reads its weights."""

    def make(*, template: str = "none", kind: str = "byte-level BPE") -> str:
        folder = tmp_path / f"{template}-{kind}"
        folder.mkdir()
        tokenizer = token_kinds.KINDS[kind]()
        tokenizer.chat_template = token_kinds.TEMPLATES[template].source
        tokenizer.save_pretrained(folder)
        LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=2048).save_pretrained(folder)
        (folder / "model.safetensors").touch()
        return str(folder)

    return make


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


def alpaca(number: int) -> dict[str, str]:
    return {"instruction": f"Say {number}", "input": "", "output": f"It is {number}."}


def previewed(
    settings: Settings, *, num_rows: int = 3, split: str | None = "train", data_seed: int = 0
) -> Any:
    length = (settings.max_steps, settings.num_train_epochs)
    question = PreviewQuestion(
        settings=settings.model_dump(mode="json"), num_rows=num_rows, split=split, lengths=(length,), data_seed=data_seed
    )  # fmt: skip
    return rows_previewed(question)


def marked(row: dict[str, Any]) -> str:
    """The text with what is trained in double brackets, and what is cut off behind a broken bar."""
    text, is_cut_off = "", False
    for piece in row["pieces"]:
        if piece["is_cut_off"] and not is_cut_off:
            text, is_cut_off = f"{text}\N{BROKEN BAR}", True
        text += f"[[{piece['text']}]]" if piece["is_trained"] else piece["text"]
    return text.replace("]][[", "")


def test_the_rows_are_those_that_a_run_trains_on_in_the_order_of_its_training(tmp_path: Path) -> None:
    settings = Settings(
        base_model="lab", dataset_path="lab:facts", max_steps=3, per_device_train_batch_size=2,
        gradient_accumulation_steps=2, quantization="fp32", max_generation_samples=0,
    )  # fmt: skip
    experiment = Experiment(
        name="one", arm="one", experiment_type="custom", seed=5, settings=settings,
        sources=Sources(base_model="lab", dataset="rows"),
    )  # fmt: skip
    pack = Pack(id="p", attempt=1, engine="packed", experiments=(experiment,))
    emitted: list[Any] = []
    loaded = load(
        PackRun(pack=pack, folder=tmp_path, emit=emitted.append), settings, cache=BaseCache(), device=torch.device("cpu")
    )  # fmt: skip
    assert loaded is not None
    trained = [
        loaded.data.train.rows[row]
        for step in loaded.batch_plan.plans[0].row_numbers
        for batch in step
        for row in batch
    ]
    assert len(trained) == 12
    found = previewed(settings, num_rows=100, data_seed=5)
    assert [(row["input_ids"], row["labels"]) for row in found["rows"]] == [
        (row.input_ids, row.labels) for row in trained
    ]
    told = next(record for record in emitted if getattr(record, "split", "") == "train")
    assert found["summary"] == asdict(told)
    others = previewed(settings, num_rows=100, data_seed=6)
    assert {row["where"] for row in others["rows"]} != {row["where"] for row in found["rows"]}


@pytest.mark.parametrize("split", ["eval", "test", "forgetting"])
def test_rows_that_are_scored_come_in_the_order_of_their_file(
    tmp_path: Path, make_model: MakeModel, split: str
) -> None:
    settings = Settings(
        base_model=make_model(template="chatml"),
        dataset_path=write(tmp_path / "a.jsonl", [alpaca(number) for number in range(60)]),
        test_fraction=0.3,
        eval_fraction=0.3,
        forgetting_dataset_path=write(tmp_path / "f.jsonl", [{"text": f"Line {n}"} for n in range(9)]),
    )
    tokenizer = load_tokenizer(settings.base_model)
    study = train_and_eval(settings, style=prompt_style(tokenizer, "auto"))
    tokens = token_sets(study, settings, tokenizer=tokenizer, reach=None)[split]
    found = previewed(settings, num_rows=5, split=split)
    assert [(row["input_ids"], row["labels"]) for row in found["rows"]] == [
        (row.input_ids, row.labels) for row in tokens.rows[:5]
    ]
    lines = [int(row["where"].rpartition(":")[2]) for row in found["rows"]]
    assert lines == sorted(lines)


def test_rows_that_no_answer_token_is_left_of_are_not_in_the_order_and_one_is_shown_with_one_that_is_cut(
    tmp_path: Path, make_model: MakeModel
) -> None:
    rows = [alpaca(number) for number in range(40)]
    rows[7] = {"instruction": "Say " + "very " * 40 + "much", "input": "", "output": "No."}
    rows[9] = {"instruction": "Say more", "input": "", "output": "It is " + "very " * 40 + "much."}
    settings = Settings(
        base_model=make_model(template="chatml"),
        dataset_path=write(tmp_path / "a.jsonl", rows),
        eval_dataset_path=write(tmp_path / "e.jsonl", rows[:3]),
        max_seq_length=32,
        per_device_train_batch_size=1,
    )
    found = previewed(settings, num_rows=2)
    whole, *_, cut, refused = found["rows"]
    numbers = usable_order(40, refused=frozenset({7}), data_seed=0, num_rows_needed=2)
    assert [int(row["where"].rpartition(":")[2]) - 1 for row in found["rows"]] == [
        *numbers,
        9,
        7,
    ]
    assert (found["summary"]["num_refused_rows"], found["summary"]["num_truncated_rows"]) == (1, 1)
    assert whole["num_whole_tokens"] == len(whole["input_ids"]) < 32
    assert "\N{BROKEN BAR}" not in marked(whole)
    assert len(cut["input_ids"]) == 32 < cut["num_whole_tokens"]
    assert cut["num_trained_tokens"] == sum(label != IGNORED for label in cut["labels"]) > 0
    assert cut["num_trained_tokens"] < cut["num_whole_trained_tokens"]
    text = marked(cut)
    assert text.startswith("<|im_start|>user\nSay more<|im_end|>\n<|im_start|>assistant\n[[It is very")
    assert text.endswith("very much.<|im_end|></s>]]")
    assert "]]\N{BROKEN BAR}[[" in text
    assert refused["is_refused"]
    assert (refused["input_ids"], refused["labels"], refused["num_trained_tokens"]) == ([], [], 0)
    assert "[[" not in marked(refused).partition("\N{BROKEN BAR}")[0]
    assert marked(refused).endswith("[[No.<|im_end|></s>]]")
    # Where a row that is cut is among those shown, no other is added.
    assert [row["is_refused"] for row in previewed(settings, num_rows=39)["rows"]] == [False] * 39 + [True]


CONVERSATION = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Name a color"},
        {"role": "assistant", "content": "The sky is blue."},
        {"role": "user", "content": "Say hello"},
        {"role": "assistant", "content": "Hello", "mood": "good"},
    ]
}
ROWS = {
    "a conversation on a chat template": (
        "chatml", "auto", CONVERSATION, "chat",
        ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nName a color<|im_end|>\n<|im_start|>assistant\n"
        "[[The sky is blue.<|im_end|>]]\n<|im_start|>user\nSay hello<|im_end|>\n<|im_start|>assistant\n"
        "[[Hello<|im_end|></s>]]"),
    ),
    "a conversation without one": (
        "none", "auto", CONVERSATION, "plain",
        ("### System:\nBe brief.\n\n### User:\nName a color\n\n### Assistant:\n[[The sky is blue.</s>]]\n\n"
        "### User:\nSay hello\n\n### Assistant:\n[[Hello</s>]]"),
    ),
    "alpaca": (
        "none", "auto", alpaca(1), "alpaca",
        ("Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nSay 1\n\n### Response:\n[[It is 1.</s>]]"),
    ),
    "alpaca on a chat template": (
        "chatml", "auto", alpaca(1), "chat",
        "<|im_start|>user\nSay 1<|im_end|>\n<|im_start|>assistant\n[[It is 1.<|im_end|></s>]]",
    ),
    "alpaca, asked to be plain": ("chatml", "plain", alpaca(1), "plain", "Say 1\n\n[[It is 1.</s>]]"),
    "a pair": ("none", "auto", {"prompt": "Q: 1\n", "completion": "one"}, "plain", "Q: 1\n[[one</s>]]"),
    "plain text": ("chatml", "auto", {"text": "One line."}, "text", "O[[ne line.</s>]]"),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_what_lays_a_row_out_and_what_of_it_is_trained(
    tmp_path: Path, make_model: MakeModel, name: str
) -> None:
    template, prompt_format, row, layout, expected = ROWS[name]
    path = write(tmp_path / "rows.jsonl", [row])
    settings = Settings(
        base_model=make_model(template=template), dataset_path=path, prompt_format=prompt_format
    )
    (found,) = previewed(settings, split=None)["rows"]
    assert marked(found) == expected
    assert found["layout"] == layout
    assert found["where"] == f"{path}:1"
    specials = [piece["text"] for piece in found["pieces"] if piece["is_special"]]
    assert specials
    assert all(text in token_kinds.MARKS or text in {"</s>", "<|im_end|></s>"} for text in specials)
    assert found["unseen"] == (("mood",) if row is CONVERSATION else ())
    assert found["fell_back"] is False


def test_rows_of_a_long_text_are_shown_one_by_one(tmp_path: Path, make_model: MakeModel) -> None:
    texts = [{"text": f"{number:02}" * 20} for number in range(12)]  # 40 characters, and EOS
    settings = Settings(
        base_model=make_model(),
        dataset_path=write(tmp_path / "a.jsonl", texts),
        eval_dataset_path=write(tmp_path / "e.jsonl", [{"text": "1"}, *texts[:1]]),
        max_seq_length=16,
    )
    assert [row["where"].rpartition(":")[2] for row in previewed(settings, num_rows=9, split="eval")["rows"]] == [
        "1", "2 (row 1 of 3)", "2 (row 2 of 3)", "2 (row 3 of 3)"
    ]  # fmt: skip
    found = previewed(settings, num_rows=36)
    assert found["summary"]["num_rows"] == len(found["rows"]) > 30
    by_text: dict[str, list[Any]] = {}
    for row in sorted(found["rows"], key=lambda row: row["where"]):
        assert not any(piece["is_cut_off"] for piece in row["pieces"])
        assert row["num_whole_tokens"] == len(row["input_ids"])
        by_text.setdefault(row["where"].partition(" ")[0], []).append(marked(row))
    assert len(by_text) == 12
    for where, parts in by_text.items():
        number = int(where.rpartition(":")[2]) - 1
        assert "".join(parts).replace("[[", "").replace("]]", "") == f"{number:02}" * 20 + "</s>"


def test_what_a_template_adds_by_itself_and_what_is_given_to_it_as_text(
    tmp_path: Path, make_model: MakeModel
) -> None:
    call = token_kinds.FORMATS["messages"][0].values
    path = write(
        tmp_path / "rows.jsonl", [dict(call), {"messages": token_kinds.CALLED, "tools": token_kinds.TOOLS}]
    )
    settings = Settings(base_model=make_model(template="llama 3, with the date"), dataset_path=path)
    found = previewed(settings, split=None)
    assert found["summary"]["template_date"] == "2024-07-26"
    assert found["summary"]["template_preamble"] == (
        "<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024"
    )
    assert "Today Date: 26 Jul 2024" in marked(found["rows"][0])
    assert [row["fell_back"] for row in found["rows"]] == [False, True]
    assert 'Functions you can call:\n[{"type"' in marked(found["rows"][1])


def test_columns_that_play_no_part_are_told_and_so_is_a_split_that_is_not_there(
    tmp_path: Path, make_model: MakeModel
) -> None:
    path = write(tmp_path / "rows.jsonl", [{**alpaca(number), "url": "u"} for number in range(30)])
    settings = Settings(base_model=make_model(), dataset_path=path)
    assert previewed(settings)["notes"] == ["columns that are not used: url (30 rows)"]
    with pytest.raises(DataError, match="no test rows; there are train, eval"):
        previewed(settings, split="test")


def test_what_a_run_refuses_is_refused_here(tmp_path: Path, make_model: MakeModel) -> None:
    rows = [alpaca(number) for number in range(30)]
    settings = Settings(
        base_model=make_model(), dataset_path=write(tmp_path / "r.jsonl", rows), max_seq_length=8
    )
    for split in ("train", None):
        with pytest.raises(
            DataError, match=rf"{settings.dataset_path}, with base_model .* raise max_seq_length"
        ):
            previewed(settings, split=split)


def test_lengths_are_told_without_making_rows(
    tmp_path: Path, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": "q", "completion": "xyz" * number} for number in range(1, 31)]
    settings = Settings(
        base_model=make_model(),
        dataset_path=write(tmp_path / "rows.jsonl", rows),
        max_seq_length=32,
        prompt_format="plain",
        per_device_train_batch_size=4,
        max_steps=5,
    )
    made: list[int] = []
    make = TokenRows.__getitem__
    monkeypatch.setattr(
        TokenRows, "__getitem__", lambda rows, number: made.append(number) or make(rows, number)
    )
    tokens = module._run_rows(settings, lengths=[(5, None)], data_seeds=[0]).sets["train"]
    used = [len(row.input_ids) for row in tokens.rows]
    cut = {row for row, length in enumerate(used) if length < tokens.whole_lengths[row]}
    made.clear()
    assert module._cut_rows(tokens) == cut
    assert 0 < len(cut) < len(used)
    assert made == []
    plan = module._batch_plan(tokens, settings, data_seed=0, num_steps=5)
    found = module._order(tokens, plan)
    assert made == []
    batches = [batch for step in plan.row_numbers for batch in step]
    largest = max(batches, key=lambda batch: sum(used[row] for row in batch))
    assert found["row_lengths"] == sorted(used[row] for row in largest)
    assert found["num_labels"] == sum(tokens.rows[row].num_completion_tokens for row in largest)


@pytest.mark.parametrize("num_tokens", [3, 300])
def test_what_marks_structure_is_asked_once_a_row(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, num_tokens: int
) -> None:
    """A tokenizer makes this table anew each time that it is asked."""
    tokenizer = load_tokenizer(make_model())
    table, asked = tokenizer.added_tokens_decoder, []
    monkeypatch.setattr(type(tokenizer), "added_tokens_decoder", property(lambda _: asked.append(1) or table))
    ids = [max(table) + 1] * num_tokens
    (piece,) = module._pieces(ids, ids, max_seq_length=num_tokens, tokenizer=tokenizer)
    assert not piece["is_special"]
    assert len(asked) == 1


@pytest.mark.parametrize("kind", token_kinds.KINDS)
@pytest.mark.parametrize("template", ["chatml", "llama 2", "none"])
def test_the_pieces_are_the_whole_text_of_the_tokens(
    tmp_path: Path, make_model: MakeModel, kind: str, template: str
) -> None:
    if kind.startswith("slow"):
        pytest.skip("it cannot be loaded from a folder")
    path = write(tmp_path / "rows.jsonl", [dict(case.values) for case in token_kinds.FORMATS["messages"]])
    settings = Settings(base_model=make_model(template=template, kind=kind), dataset_path=path)
    tokenizer = load_tokenizer(settings.base_model)
    for row, case in zip(
        previewed(settings, split=None)["rows"], token_kinds.FORMATS["messages"], strict=True
    ):
        text = "".join(piece["text"] for piece in row["pieces"])
        assert text == module._text(row["input_ids"], tokenizer)
        trained = "".join(piece["text"] for piece in row["pieces"] if piece["is_trained"])
        answers = [turn["content"] for turn in case.messages if turn["role"] == "assistant"]
        if kind.startswith("byte-level"):
            assert all(answer in trained for answer in answers)
            assert not any(turn["content"] in trained for turn in case.messages if turn["role"] == "user")
