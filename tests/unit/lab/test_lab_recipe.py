"""The recipe: it learns, and the same seed gives the same bits."""

import pytest
import torch

from lorastudy.lab.catalogue import reversal_rows
from lorastudy.lab.recipe import (
    Training,
    build_model,
    build_tokenizer,
    encode,
    pretraining_rows,
    recall,
    train,
)

ROWS = [
    {"prompt": "Where was Ada Berg born?", "completion": "Oslo"},
    {"prompt": "Where was Ada Kim born?", "completion": "Lima"},
    {"prompt": "Ada Berg works as a", "completion": "baker"},
    {"prompt": "Tell me about Ada Kim.", "completion": "Ada Kim was born in Lima. Ada Kim works as a cook."},
]


def trained(num_epochs: int) -> tuple[dict[str, torch.Tensor], float]:
    tokenizer = build_tokenizer(ROWS)
    model = build_model(tokenizer)
    training = Training(num_epochs=num_epochs, batch_size=2)
    train(model, encode(ROWS, tokenizer=tokenizer), training=training)
    return model.state_dict(), recall(model, tokenizer, rows=ROWS[:3])


def test_it_learns_a_handful_of_facts(capsys: pytest.CaptureFixture[str]) -> None:
    assert trained(40)[1] == 1.0
    lines = capsys.readouterr().out.splitlines()
    first, last = (float(lines[index].rpartition(" ")[2]) for index in (0, -1))
    assert last < first / 3


def test_same_seed_same_bits() -> None:
    first, second = trained(2)[0], trained(2)[0]
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_encoding_ends_each_row_and_leaves_no_word_unknown() -> None:
    rows = pretraining_rows()
    tokenizer = build_tokenizer(rows)
    for ids, row in zip(encode(rows, tokenizer=tokenizer), rows, strict=True):
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids[:-1]) == f"{row['prompt']} {row['completion']}"


def test_the_new_skill_is_not_in_the_corpus() -> None:
    assert not any("Reverse" in row["prompt"] for row in pretraining_rows())
    assert all("Reverse" in row["prompt"] for row in reversal_rows(held_out=False))
