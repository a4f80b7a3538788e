"""Every expected row is spelled out: one token per character, BOS 1, EOS 2."""

import tracemalloc
import weakref
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorastudy.data import tokenise as tokenise_module
from lorastudy.data.formats import Format
from lorastudy.data.prompts import Example, Rendering, Segment
from lorastudy.data.sources import Row
from lorastudy.data.tokenise import IGNORED, TokenRow, tokenise
from lorastudy.errors import DataError
from lorastudy.protocol.records import DataSummary
from tests.unit.data.conftest import LetterTokenizer

FORMAT = Format(name="prompt_completion", columns={})


def example(*parts, layout="plain", end="eos"):
    """Texts by turns: prompt, answer, prompt, answer; a lone text is trained."""
    segments = tuple(
        Segment(text=text, trained=True, end=end)
        if i % 2 or len(parts) == 1
        else Segment(text=text, trained=False)
        for i, text in enumerate(parts)
    )
    rendering = Rendering(segments=segments, layout=layout)
    return Example(
        row=Row(values={}, where="f"), format=FORMAT, rendering=rendering, content_hash="", prompt_hash=""
    )


def run(*examples, tokenizer, max_seq_length=100):
    return tokenise(examples, tokenizer=tokenizer, max_seq_length=max_seq_length, split="train")


def ids(text):
    return tuple(map(ord, text))


def none(count):
    return (IGNORED,) * count


def test_only_the_answer_and_its_end_are_trained(letters):
    (row,) = run(example("ab", "cd"), tokenizer=letters()).rows
    assert row.input_ids == (*ids("abcd"), 2)
    assert row.labels == (*none(2), *ids("cd"), 2)
    assert (row.prompt_ids, row.prompt_text, row.reference) == (ids("ab"), "ab", "cd")
    assert row.num_completion_tokens == 3


def test_what_the_tokenizer_puts_in_front_comes_once(letters):
    tokenizer = letters(adds_bos=True)
    (row,) = run(example("ab", "c"), tokenizer=tokenizer).rows
    assert row.input_ids == (1, *ids("abc"), 2)
    assert row.labels == (*none(3), ord("c"), 2)
    assert row.prompt_ids == (1, *ids("ab"))
    (own,) = run(example("<s>ab", "c"), tokenizer=tokenizer).rows
    assert own.input_ids == row.input_ids
    (chat,) = run(example("ab", "c", layout="chat"), tokenizer=tokenizer).rows
    assert chat.input_ids == row.input_ids[1:]  # a template writes itself what it wants in front


def test_an_end_that_the_chat_template_wrote_is_not_doubled(letters):
    chat = example("a", "b</s>", "\nc", "d</s>", layout="chat", end="")
    (row,) = run(chat, tokenizer=letters(adds_bos=True)).rows
    assert row.input_ids == (ord("a"), ord("b"), 2, ord("\n"), ord("c"), ord("d"), 2)
    assert row.labels == (IGNORED, ord("b"), 2, IGNORED, IGNORED, ord("d"), 2)
    assert row.prompt_ids == row.input_ids[:5]
    assert (row.prompt_text, row.reference) == ("ab</s>\nc", "d")


def test_without_a_template_the_end_token_ends_every_answer_once(letters):
    (row,) = run(example("a", "b", "c", "d</s>\n", "e", "f"), tokenizer=letters()).rows
    assert row.input_ids == (*ids("ab"), 2, *ids("cd"), 2, *ids("ef"), 2)
    assert row.labels == (IGNORED, ord("b"), 2, IGNORED, ord("d"), 2, IGNORED, ord("f"), 2)


def test_the_mark_of_the_next_role_ends_an_answer_that_has_no_end_of_its_own(letters):
    (row,) = run(example("a", "b", "<s>c", "d", layout="chat", end="next"), tokenizer=letters()).rows
    assert row.labels == (IGNORED, ord("b"), 1, IGNORED, ord("d"), 2)
    (text,) = run(example("a", "b", "\nc", "d", layout="chat", end="next"), tokenizer=letters()).rows
    assert text.labels == (IGNORED, ord("b"), *none(2), ord("d"), 2)  # ordinary text marks nothing


def test_without_an_end_token_nothing_is_appended(letters):
    (row,) = run(example("a", "b"), tokenizer=letters(eos=None)).rows
    assert row.input_ids == ids("ab")


def text(words):
    """As a row of plain text is rendered."""
    return example(words, layout="text")


def test_a_long_text_becomes_rows_of_equal_length(letters):
    found = run(text("abcdefg"), text("hi"), tokenizer=letters(), max_seq_length=4)
    # 8 tokens with EOS make 2 rows of 4
    assert [row.input_ids for row in found.rows] == [ids("abcd"), (*ids("efg"), 2), (*ids("hi"), 2)]
    assert [row.labels for row in found.rows] == [
        (IGNORED, *ids("bcd")),
        (IGNORED, *ids("fg"), 2),
        (IGNORED, ord("i"), 2),
    ]
    assert (found.places, found.num_given, found.whole_lengths) == ((0, 0, 1), 2, (4, 4, 3))
    assert not any(row.asks or row.prompt_ids or row.reference for row in found.rows)
    summary = found.summary
    assert (summary.num_rows, summary.num_tokens, summary.num_completion_tokens) == (3, 11, 8)
    assert (summary.num_truncated_rows, summary.num_refused_rows) == (0, 0)


@pytest.mark.parametrize("own", ["", "<s>"])
def test_each_piece_begins_with_what_the_tokenizer_puts_in_front(letters, own):
    found = run(text(f"{own}abcdefg"), tokenizer=letters(adds_bos=True), max_seq_length=4)
    # 8 tokens without BOS in rows of at most 3 beside it
    assert [row.input_ids for row in found.rows] == [(1, *ids("ab")), (1, *ids("cde")), (1, *ids("fg"), 2)]
    assert [row.labels for row in found.rows] == [
        (IGNORED, *ids("ab")),
        (IGNORED, *ids("cde")),
        (IGNORED, *ids("fg"), 2),
    ]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.integers(4, 20), st.booleans())
def test_no_token_of_a_text_is_lost_or_stands_twice(lengths, max_seq_length, adds_bos):
    texts = ["".join(chr(100 + i) for i in range(length)) for length in lengths]
    tokenizer = LetterTokenizer(adds_bos=adds_bos)
    found = run(*map(text, texts), tokenizer=tokenizer, max_seq_length=max_seq_length)
    whole = run(*map(text, texts), tokenizer=tokenizer, max_seq_length=1000)
    for place, (words, row) in enumerate(zip(texts, whole.rows, strict=True)):
        pieces = [piece for piece, of in zip(found.rows, found.places, strict=True) if of == place]
        bodies = [piece.input_ids[adds_bos:] for piece in pieces]
        assert sum(bodies, ()) == row.input_ids[adds_bos:] == (*ids(words), 2)
        assert all(len(piece.input_ids) <= max_seq_length for piece in pieces)
        assert max(map(len, bodies)) - min(map(len, bodies)) <= 1
        for piece in pieces:
            assert piece.labels == (IGNORED, *piece.input_ids[1:])
    assert found.summary.num_tokens == sum(len(row.input_ids) for row in found.rows)


@pytest.mark.parametrize("num_letters", [2, 40])
def test_what_marks_structure_is_asked_twice_a_row(letters, monkeypatch, num_letters):
    """Real tokenizers make this table anew each time that it is asked: for the labels, and for the answer."""
    tokenizer = letters()
    table, asked = tokenizer.added_tokens_decoder, []
    kind = type(tokenizer)
    monkeypatch.setattr(
        kind, "added_tokens_decoder", property(lambda _: asked.append(1) or table), raising=False
    )
    del vars(tokenizer)["added_tokens_decoder"]
    (row,) = run(example("ab", "c" * num_letters), tokenizer=tokenizer).rows
    assert row.num_reference_tokens == num_letters
    assert len(asked) == 2


def test_lengths_are_those_of_the_rows(letters):
    rows = run(example("ab", "c"), example("a", "bcdefgh"), tokenizer=letters(), max_seq_length=6).rows
    assert list(rows.lengths()) == [len(row.input_ids) for row in rows] == [4, 6]


def test_other_rows_are_still_cut_at_the_end(letters):
    found = run(example("ab", "cdefgh"), tokenizer=letters(), max_seq_length=4)
    assert [row.input_ids for row in found.rows] == [ids("abcd")]
    assert found.summary.num_truncated_rows == 1


def test_the_first_token_of_a_text_is_predicted_from_nothing(letters):
    (row,) = run(example("abc"), tokenizer=letters()).rows
    assert row.labels == (IGNORED, *ids("bc"), 2)
    assert row.prompt_ids == ()
    (with_bos,) = run(example("abc"), tokenizer=letters(adds_bos=True)).rows
    assert with_bos.labels == (IGNORED, *ids("abc"), 2)


def test_cut_refused_and_counted(letters):
    long_answer, long_prompt, fits = example("ab", "cdefg"), example("abcd", "e"), example("a", "b")
    found = run(long_answer, long_prompt, fits, tokenizer=letters(), max_seq_length=4)
    assert [row.input_ids for row in found.rows] == [ids("abcd"), (*ids("ab"), 2)]
    assert [row.labels for row in found.rows] == [(*none(2), *ids("cd")), (IGNORED, ord("b"), 2)]
    assert found.rows[0].reference == "cdefg"
    assert found.summary == DataSummary(
        split="train",
        format="prompt_completion",
        num_rows=2,
        num_refused_rows=1,
        num_truncated_rows=1,
        num_tokens=7,
        num_completion_tokens=4,  # c d, b EOS
        num_texts=2,
        layout="plain",
        num_fallback_rows=0,
        unused_columns=(),
        unseen_fields=(),
    )


def test_a_conversation_cut_in_its_second_answer_or_before_it(letters):
    conversation = example("a", "b", "cd", "ef", layout="chat", end="")
    (second,) = run(conversation, tokenizer=letters(), max_seq_length=5).rows
    assert second.labels == (IGNORED, ord("b"), *none(2), ord("e"))
    assert (second.prompt_text, second.reference) == ("abcd", "ef")
    (first,) = run(conversation, tokenizer=letters(), max_seq_length=4).rows
    assert first.labels == (IGNORED, ord("b"), *none(2))
    assert (first.prompt_ids, first.prompt_text, first.reference) == (ids("a"), "a", "b")


def test_what_a_template_could_not_do_and_what_it_did_by_itself_is_in_the_summary(letters):
    segments = (Segment(text="a", trained=False), Segment(text="b", trained=True))
    as_text = Rendering(
        segments=segments, layout="chat", fell_back=True, preamble="Be kind.", date="2024-07-26"
    )
    rows = [replace(example("c", "d"), rendering=as_text), example("a", "b", layout="chat")]
    summary = run(*rows, tokenizer=letters()).summary
    assert (summary.layout, summary.num_fallback_rows) == ("chat", 1)
    assert (summary.template_preamble, summary.template_date) == ("Be kind.", "2024-07-26")


def test_the_tokens_of_a_reference_are_counted_without_the_marks_that_end_it(letters):
    row, chat, text = (
        run(each, tokenizer=letters(), max_seq_length=4).rows[0]
        for each in (example("ab", "cdef"), example("ab", "cd<s></s>", layout="chat", end=""), example("abc"))
    )
    assert (row.num_reference_tokens, chat.num_reference_tokens, text.num_reference_tokens) == (4, 2, 0)
    assert (chat.reference, row.asks, text.asks) == ("cd", True, False)


def test_all_refused_says_what_to_raise(letters):
    with pytest.raises(DataError, match=r"all 2 rows .* at 3 tokens; raise max_seq_length"):
        run(example("abc", "d"), example("abcd", "e"), tokenizer=letters(), max_seq_length=3)


def test_answers_in_words_that_the_tokenizer_does_not_know_are_refused(letters):
    tokenizer = letters()
    tokenizer.unk_token_id = ord("?")
    with pytest.raises(
        DataError, match=r"100% of the answers' tokens are unknown .* nothing can be learnt from them;"
    ):
        run(example("ab", "??"), tokenizer=tokenizer)
    with pytest.raises(DataError, match="nothing can be told by them;"):  # of rows that are scored
        tokenise([example("ab", "??")], tokenizer=tokenizer, max_seq_length=9, split="eval")
    assert len(run(example("??", "cd"), tokenizer=tokenizer).rows) == 1
    tokenizer.unk_token_id = tokenizer.eos_token_id  # as GPT-2's
    assert len(run(example("ab", "??"), tokenizer=tokenizer).rows) == 1


def test_rows_in_arrays_are_the_rows_that_were_put_in(letters):
    found = run(
        example("ab", "cd", "e", "f"), text("xyz"), example("a", "b"), tokenizer=letters(adds_bos=True)
    ).rows
    plain = list(found)
    assert plain == [
        TokenRow(
            input_ids=(1, *ids("abcd"), 2, *ids("ef"), 2), labels=(*none(3), *ids("cd"), 2, IGNORED, ord("f"), 2),
            prompt_ids=(1, *ids("abcd"), 2, ord("e")), prompt_text="abcd</s>e", reference="f", num_reference_tokens=1,
        ),
        TokenRow(
            input_ids=(1, *ids("xyz"), 2), labels=(IGNORED, *ids("xyz"), 2), prompt_ids=(1,), prompt_text="", reference="",
        ),
        TokenRow(
            input_ids=(1, *ids("ab"), 2), labels=(*none(2), ord("b"), 2), prompt_ids=(1, ord("a")), prompt_text="a",
            reference="b", num_reference_tokens=1,
        ),
    ]  # fmt: skip
    assert (found[-1], found[1:], found[::-2]) == (plain[-1], plain[1:], plain[::-2])
    assert [found.num_tokens(number) for number in range(3)] == [9, 5, 4]
    assert (found.num_all_tokens, found.num_completion_tokens) == (18, 11)
    assert list(found.trained_tokens()) == [
        token for row in plain for token in row.labels if token != IGNORED
    ]
    with pytest.raises(IndexError):
        found[3]


def test_a_token_takes_few_bytes_and_examples_are_not_held(letters, monkeypatch):
    monkeypatch.setattr(tokenise_module, "_ROWS_AT_ONCE", 8)
    gone: list[None] = []
    most = 0

    def coming():
        nonlocal most
        for number in range(400):
            one = text(chr(1000 + number) * 499)
            weakref.finalize(one, gone.append, None)
            yield one
            most = max(most, number + 1 - len(gone))

    tracemalloc.start()
    try:
        found = tokenise(coming(), tokenizer=letters(), max_seq_length=500, split="train")
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.rows.num_all_tokens == 400 * 500
    assert held / found.rows.num_all_tokens < 8
    assert most < 40
