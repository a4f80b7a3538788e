"""The user's own code that a suite names, as `path/to/file.py:Name`. It runs with the user's rights."""

import ast
import hashlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from lorastudy.errors import StudyError

#: Folders of installed packages. Their files are not the user's own.
_INSTALLED = frozenset({"site-packages", "dist-packages"})

_NAME_IN_FILE = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)")


def name_in_file(text: str) -> tuple[Path, str] | None:
    """The file and the name of `path/to/file.py:Name`; None for any other text."""
    match = _NAME_IN_FILE.fullmatch(text)
    return (Path(match["file"]), match["name"]) if match else None


def is_file(path: Path) -> bool:
    """Whether the file exists; false for a path that the system cannot have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def run_file(path: Path, *, package: str) -> ModuleType:
    """The module in the file, which is run as a module of `package`.

    Raises:
        StudyError: the file raises. The message names the file, its line and the error.
    """
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    name = f"{package}.user_{digest}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up while it runs
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        line = line_in(path, error)
        raise StudyError(f"{path}{line} cannot be loaded: {type(error).__name__}: {error}") from error
    return module


def imported_files(path: Path) -> tuple[Path, ...]:
    """The user's own files that a file which was run has imported, directly or through another of them; sorted.

    They lie under the file's folder. Imports in a function are not among them: whether they were made depends on its calls.
    """
    whole = path.resolve()
    found: set[Path] = set()
    unread = [(whole, "")]
    while unread:
        file, package = unread.pop()
        for name in _imported_names(file, package=package):
            module = sys.modules.get(name)
            own = Path(getattr(module, "__file__", None) or "/").resolve()
            if own in found | {whole} or own.suffix != ".py" or not own.is_relative_to(whole.parent):
                continue
            if name.partition(".")[0] == "lorastudy" or _INSTALLED & set(own.relative_to(whole.parent).parts):
                continue
            found.add(own)
            unread.append((own, getattr(module, "__package__", None) or ""))
    return tuple(sorted(found))


def _imported_names(file: Path, *, package: str) -> Iterator[str]:
    """The names of modules in the import statements outside functions, with those of the packages that they lie in."""
    unread: list[ast.AST] = [ast.parse(file.read_bytes())]
    while unread:
        node = unread.pop()
        if isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom) and (package or not node.level):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names = [f"{base}.{each.name}" for each in node.names]
        else:
            names = []
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                unread.extend(ast.iter_child_nodes(node))
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:length]) for length in range(1, len(parts) + 1))


def line_in(path: Path, error: BaseException) -> str:
    """`:12`, the last line of the file in the error's traceback; empty if there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == path.absolute()]
    if isinstance(error, SyntaxError) and error.lineno:
        lines.append(error.lineno)
    return f":{lines[-1]}" if lines else ""
