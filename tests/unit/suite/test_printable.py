"""What a terminal shows of text that it should not obey."""

import pytest

from lorastudy.suite.safe_text import odd_letter, printable, printable_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, caf\u00e9, \u4e2d\u6587", "plain text, caf\u00e9, \u4e2d\u6587"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\x00b\x07c\x9bd", "a\\x00b\\x07c\\x9bd"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("half \ud800", "half \\ud800"),
        ("tags \U000e0041", "tags \\U000e0041"),
        ("line\u2028break\rback", "line\\u2028break\\rback"),
    ],
)
def test_both_escape_what_moves_hides_or_reorders(text: str, shown: str) -> None:
    assert printable(text) == shown == printable_lines(text)


def test_one_is_for_lines_and_one_for_prose() -> None:
    text = "two\r\nlines\tand\u00a0spaces \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    assert printable_lines(text) == text.replace("\r", "")
    assert printable("a\tb\nc\u00a0d") == "a\\tb\\nc\\xa0d"


def test_a_letter_that_looks_like_another_is_named() -> None:
    assert odd_letter("lora_rank") == ""
    assert odd_letter("l\u043era") == "; '\u043e' in it is CYRILLIC SMALL LETTER O (U+043E)"
    assert odd_letter("lora\x85") == "; '\\x85' in it is not a letter of a key (U+0085)"
