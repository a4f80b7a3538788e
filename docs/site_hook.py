"""A hook of mkdocs (`mkdocs.yml`): makes the site from pages that are written for GitHub.

Two things differ there. A fence may say more than its language, such as a file name; and links may lead out of `docs`, to a
suite or a program of the repository. Such files are copied into the site, so that every link is checked and works offline.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
_FENCE = re.compile(r"^```(?P<language>\w+) (?P<words>[^\n{]+)$", re.MULTILINE)
_LINK_OUT = re.compile(r"\]\((?P<target>(?:\.\./)+[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")
_FLAGS = {"norun", "broken"}


def on_files(files: Any, config: Any) -> Any:
    """Add the files outside `docs` that a page links to."""
    for page in list(files.documentation_pages()):
        for match in _LINK_OUT.finditer(Path(page.abs_src_path).read_text(encoding="utf-8")):
            target = _outside(match["target"], page=page.src_uri)
            if (
                target is not None
                and target != "README.md"
                and files.get_file_from_path(_copied(target)) is None
            ):
                content = (ROOT / target).read_bytes()
                files.append(File.generated(config, _copied(target), content=content))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Write fences and links for the site."""

    def link(match: re.Match[str]) -> str:
        target = _outside(match["target"], page=page.file.src_uri)
        if target is None:
            return match[0]
        copied = "index.md" if target == "README.md" else _copied(target)
        return f"]({posixpath.relpath(copied, posixpath.dirname(page.file.src_uri) or '.')})"

    return _LINK_OUT.sub(link, _FENCE.sub(_fence, markdown))


def _fence(match: re.Match[str]) -> str:
    name = next((word for word in match["words"].split() if word not in _FLAGS), None)
    return f"```{match['language']}" + (f' title="{name}"' if name else "")


def _outside(target: str, *, page: str) -> str | None:
    """The path in the repository, or None for a page of the site."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
    return None if path.startswith("docs/") else path


def _copied(target: str) -> str:
    """Where the site has the file; a page of another folder is plain text there, since its links lead elsewhere."""
    return f"repository/{target}" + (".txt" if target.endswith(".md") else "")
