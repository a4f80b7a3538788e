"""What the files of a base model say of it without loading it: its configuration, and the shapes of its weights.

Nothing here needs torch. A hub model is read from the cache of this machine; one that was never fetched says nothing.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorastudy.errors import ModelError
from lorastudy.suite.hub import cached_folder
from lorastudy.suite.sources import LAB_MODEL
from lorastudy.version import LAB_BASE

Shape = tuple[int, ...]


def base_folder(base_model: str) -> Path | None:
    """The folder with the model's files; None for a hub model that is not on this machine."""
    if base_model == LAB_MODEL:
        return LAB_BASE
    folder = Path(base_model)
    return folder if folder.is_dir() else cached_folder(base_model)


def read_config(base_model: str) -> Mapping[str, Any] | None:
    """`config.json`, of a model of several parts that of the text part; None where it cannot be had here.

    Raises:
        ModelError: the file is not JSON.
    """
    folder = base_folder(base_model)
    path = None if folder is None else folder / "config.json"
    if path is None or not path.is_file():
        return None
    try:
        config: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    text: Mapping[str, Any] = config.get("text_config", config)
    return text


def has_chat_template(base_model: str) -> bool:
    """Whether the files beside a model's weights hold a chat template; of a model that is not on this machine, no.

    Raises:
        ModelError: `tokenizer_config.json` is not JSON.
    """
    folder = base_folder(base_model)
    if folder is None:
        return False
    if (folder / "chat_template.jinja").is_file() or any(folder.glob("additional_chat_templates/*.jinja")):
        return True
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return False
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")).get("chat_template"))
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error


def weight_shapes(base_model: str) -> dict[str, Shape] | None:
    """The shape of every tensor by name, from the headers of the safetensors files; None where there are none.

    Raises:
        ModelError: a header cannot be read.
    """
    folder = base_folder(base_model)
    files = [] if folder is None else sorted(folder.glob("*.safetensors"))
    shapes = {name: shape for file in files for name, shape in _header(file).items()}
    return shapes or None


def _header(file: Path) -> dict[str, Shape]:
    """Eight bytes say how long the header is; it is JSON, with a shape for each tensor."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
        return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file}: its safetensors header cannot be read: {error}") from error
