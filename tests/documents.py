"""The documents as a reader meets them: pages, fenced blocks, commands, links.

A block's fence may say more than its language: a file name (save it under that name), `norun` (needs what a test
has not: a network, a cluster, an installation), `broken` (shown for the error that it gives).
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TUTORIAL = ROOT / "docs" / "tutorial.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]

_BLOCK = re.compile(r"^```(?P<info>\w[^\n]*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
_FLAGS = {"norun", "broken"}


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of a page."""

    page: Path
    language: str
    words: tuple[str, ...]
    text: str

    @property
    def file_name(self) -> str | None:
        """What to save it as."""
        return next((word for word in self.words if word not in _FLAGS), None)

    def __str__(self) -> str:
        return f"{self.page.name}: {self.language} {' '.join(self.words)}"


def blocks(page: Path, *languages: str) -> list[Block]:
    """The page's blocks in these languages, in order."""
    found = []
    for match in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        language, *words = match["info"].split()
        if language in languages:
            found.append(Block(page=page, language=language, words=tuple(words), text=match["text"]))
    return found


def prose(page: Path) -> str:
    """The page without its blocks."""
    return _BLOCK.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> list[str]:
    """Targets of all links and images in the page's prose."""
    return [match["target"] for match in _LINK.finditer(prose(page))]


def anchors(page: Path) -> set[str]:
    """What `#...` may name in the page: its headings as GitHub spells them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the arguments of every `lorastudy ...` and `python scripts/...` in blocks and in code spans."""
    lines = [line for block in blocks(page, "bash", "console") for line in _lines(block.text)]
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(page))
    for line in [*lines, *spans]:
        if line.startswith(("lorastudy ", "python scripts/")):
            yield shlex.split(line, comments=True)


def _lines(text: str) -> list[str]:
    joined = text.replace("\\\n", " ")
    return [line.removeprefix("$ ").strip() for line in joined.splitlines()]
