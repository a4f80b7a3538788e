"""The data files and the base model that a suite reads: which keys name them, and whether they exist.

The checks need no network and do not open data files. A hub id is not checked here.
"""

import difflib
import re
from pathlib import Path

from lorastudy.suite.base_model import base_model_problem

#: Settings that hold a path, a hub id or a name in the package.
SOURCE_KEYS = (
    "base_model", "dataset_path", "eval_dataset_path", "test_dataset_path", "forgetting_dataset_path",
)  # fmt: skip
#: Data sets inside the package are called `lab:<name>`.
LAB_PREFIX = "lab:"

_ALPACA_SAMPLE = re.compile(r"data/alpaca_(\d+)_sample\.jsonl")


def expand_home(path: str) -> str:
    """The path with a leading `~` expanded; unchanged if the home folder is not known."""
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:
        return path


def source_problem(key: str, value: str) -> str | None:
    """Why the value of a key of `SOURCE_KEYS` cannot be used; None if it can."""
    return base_model_problem(value) if key == "base_model" else dataset_problem(value)


def dataset_problem(path: str) -> str | None:
    """Why the data file cannot be read, and how to make it; None if it exists."""
    if path.startswith(LAB_PREFIX):
        return None if path.removeprefix(LAB_PREFIX) else "is not a data set of the package; write lab:<name>"
    if _is_file(path):
        return None
    if _is_folder(path):
        return f"{path!r} is a folder; name the file in it"
    return f"there is no file {path!r} (paths start at the current folder){_way_out(path)}"


def _way_out(path: str) -> str:
    sample = _ALPACA_SAMPLE.fullmatch(Path(path).as_posix()) if "\0" not in path else None
    if sample:
        return f"; make it: lorastudy prepare --dataset alpaca --num-samples {sample[1]}"
    if near := _nearest_file(path):
        return f" (did you mean {near}?)"
    if "alpaca" in path.casefold():
        return (
            "; `lorastudy prepare --dataset alpaca --num-samples 1000` makes data/alpaca_1000_sample.jsonl, "
            "name that"
        )
    return ""


def _nearest_file(path: str) -> str | None:
    folder = Path(path).parent
    try:
        names = [entry.name for entry in folder.iterdir() if entry.is_file()]
    except (OSError, ValueError):
        return None
    near = difflib.get_close_matches(Path(path).name, names, n=1, cutoff=0.6)
    return str(folder / near[0]) if near else None


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # a name too long for the system, or with a NUL
        return False


def _is_folder(path: str) -> bool:
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False
