"""A tokenizer that can be followed by hand, and a way to write small files."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BOS, EOS = 1, 2
_SPECIAL = {"<s>": BOS, "</s>": EOS}


class LetterTokenizer:
    """One token per character, its code point; `<s>` is 1, `</s>` is 2."""

    is_fast = True

    def __init__(self, *, adds_bos: bool = False, eos: str | None = "</s>") -> None:
        self.added_tokens_decoder = {number: text for text, number in _SPECIAL.items()}
        self.chat_template = None
        self._adds_bos = adds_bos
        self.eos_token = eos
        self.eos_token_id = None if eos is None else EOS

    def __call__(
        self, text: Any, /, *, add_special_tokens: bool, verbose: bool, return_offsets_mapping: bool = False
    ) -> dict[str, Any]:
        if not isinstance(text, list):
            return {"input_ids": self._ids(text, add_special_tokens)}
        pieces = [self._pieces(one) for one in text]
        return {
            "input_ids": [self._ids(one, add_special_tokens) for one in text],
            "offset_mapping": [[(at, at + len(piece)) for at, piece in one] for one in pieces],
        }

    def decode(self, token_ids: Any, /, *, skip_special_tokens: bool) -> str:
        return "".join(chr(i) for i in token_ids if not (skip_special_tokens and i in {BOS, EOS}))

    def _pieces(self, text: str) -> list[tuple[int, str]]:
        return [(match.start(), match[0]) for match in re.finditer(r"</?s>|.", text, re.DOTALL)]

    def _ids(self, text: str, add_special_tokens: bool) -> list[int]:
        ids = [_SPECIAL[piece] if piece in _SPECIAL else ord(piece) for _, piece in self._pieces(text)]
        return [BOS, *ids] if add_special_tokens and self._adds_bos else ids


@pytest.fixture
def letters() -> Callable[..., LetterTokenizer]:
    return LetterTokenizer


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, object], str]:
    """Writes text, bytes, or a list of rows (as JSON or JSONL by the file's ending); returns the path."""

    def write_file(name: str, content: object) -> str:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        elif name.endswith(".jsonl"):
            assert isinstance(content, list)
            path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
        else:
            path.write_text(json.dumps(content), encoding="utf-8")
        return str(path)

    return write_file
