"""Whether what a suite reads is there: data files and the folder of the base model.

Only what can be told without network and without opening the data; a hub id is taken at its word here.
"""

import difflib
import re
from pathlib import Path

from lorastudy.suite.model_folder import model_folder_problem

#: Settings that say where something lies.
SOURCE_KEYS = (
    "base_model", "dataset_path", "eval_dataset_path", "test_dataset_path", "forgetting_dataset_path",
)  # fmt: skip
#: What lies inside the package instead: its model, and its data sets as `lab:<name>`.
LAB_PREFIX = "lab:"
LAB_MODEL = "lab"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_ALPACA_SAMPLE = re.compile(r"data/alpaca_(\d+)_sample\.jsonl")


def expand_home(path: str) -> str:
    """The path with a leading `~` replaced; unchanged where there is no such home."""
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:
        return path


def source_problem(key: str, value: str) -> str | None:
    """Why what a key of `SOURCE_KEYS` names cannot be used; None when it can."""
    return base_model_problem(value) if key == "base_model" else dataset_problem(value)


def dataset_problem(path: str) -> str | None:
    """Why the data file cannot be read, and how to make it; None when it is there."""
    if path.startswith(LAB_PREFIX):
        return None if path.removeprefix(LAB_PREFIX) else "names no data set of the lab; write lab:<name>"
    if _is_file(path):
        return None
    if _is_folder(path):
        return f"{path!r} is a folder; name the file in it"
    return f"there is no file {path!r} (paths begin at the current folder){_way_out(path)}"


def base_model_problem(base_model: str) -> str | None:
    """Why this cannot be a base model; None when it can, as far as one can tell without network."""
    if base_model == LAB_MODEL:
        return None
    if _is_folder(base_model):
        problem = model_folder_problem(Path(base_model))
        return None if problem is None else f"the folder {base_model!r} {problem}"
    if _is_file(base_model):
        return f"{base_model!r} is a file; name the folder that holds config.json and the weights"
    if base_model.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(base_model):
        return (
            f"there is no model folder {base_model!r} (paths begin at the current folder); give a folder with "
            "config.json and weights, a hub id such as microsoft/phi-2, or lab for the model in the package"
        )
    return None


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
