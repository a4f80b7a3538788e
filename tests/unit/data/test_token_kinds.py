"""Rows have the tokens and labels that they must have, for kinds of tokenizers, chat templates and formats."""

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

import token_kinds
from lorastudy.data import tokenise as module

KINDS, TEMPLATES, FORMATS = token_kinds.KINDS, token_kinds.TEMPLATES, token_kinds.FORMATS


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_and_labels_are_those_of_the_twins(kind: str, template: str) -> None:
    kept = json.loads(token_kinds.KEPT.read_text(encoding="utf-8"))[kind][template]
    for fmt in FORMATS:
        cell = token_kinds.measured(kind, template, fmt)
        assert kept[fmt] == (
            [] if cell.refused else [cell.num_rows, cell.num_ids_equal, cell.num_labels_equal]
        )
        if (kind, template, fmt) == ("slow, without offsets", "none", "prompt_completion"):
            assert cell.refused is not None
            assert "a token reaches over the border between prompt and answer" in cell.refused
        else:
            assert cell.num_rows == cell.num_ids_equal == cell.num_labels_equal > 0, (cell, fmt)


def test_a_mask_that_is_a_token_off_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    overlapping = module._overlapping

    def shifted(answer: module.Span, spans: list[module.Span]) -> module.Span:
        start, stop = overlapping(answer, spans)
        return start - 1, stop - 1

    monkeypatch.setattr(module, "_overlapping", shifted)
    cell = token_kinds.measured("byte-level BPE", "chatml", "messages")
    assert cell.num_labels_equal == 0


def test_a_row_that_is_cut_into_prompt_and_answer_first_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was done once: every answer then begins with a word mark that the template has not."""
    of = module._ids_and_spans

    def apart(texts: Any, tokenizer: Any) -> Iterator[Any]:
        for text, (_, spans) in zip(texts, of(texts, tokenizer), strict=True):
            places = sorted({0, len(text.text), *(place for span in text.answers for place in span)})
            pieces = [text.text[start:end] for start, end in pairwise(places)]
            ids = [i for piece in pieces for i in tokenizer(piece, add_special_tokens=False)["input_ids"]]
            yield ids, (spans + spans)[: len(ids)]

    monkeypatch.setattr(module, "_ids_and_spans", apart)
    cell = token_kinds.measured("word mark at the beginning", "chatml", "messages")
    assert cell.num_ids_equal == 0
