"""Whether a folder may be handed to transformers as a base model: only data is read from it, and only from it.

Checked before anything else looks at the folder, because what it names decides what transformers does: pickled
weights are programs, an index may point out of the folder, an adapter's configuration sends it to another
model, and an attention kernel may be code to be fetched. Sizes that no model has would take all memory.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lorastudy.suite.wording import shown

CONFIG_NAME = "config.json"
INDEX_NAME = "model.safetensors.index.json"
MAX_JSON_BYTES = 50_000_000

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
_OTHER_WEIGHTS = ("*.gguf", "*.h5", "*.msgpack", "*.onnx")
#: Far beyond any model there is.
_LARGEST = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers"), 1000),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head"), 100_000),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "head_dim"), 1_000_000),
    **dict.fromkeys(("intermediate_size", "n_inner", "vocab_size"), 100_000_000),
}


def model_folder_problem(folder: Path) -> str | None:
    """Why the folder cannot be a base model, without its name; None when it can, as far as its small files tell."""
    if not (folder / CONFIG_NAME).is_file():
        return f"holds no {CONFIG_NAME}, so it is not a transformers model"
    if (folder / "adapter_config.json").exists():
        return (
            "holds an adapter (adapter_config.json), not a base model; name the model that it was trained on, and "
            "score it with `lorastudy evaluate --checkpoint`"
        )
    config, problem = _json_object(folder / CONFIG_NAME)
    return problem or _config_problem(config) or _weights_problem(folder) or _index_problem(folder)


def _json_object(file: Path) -> tuple[Mapping[str, Any], str | None]:
    """The object in a small file, and why there is none."""
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            return {}, f"has a {file.name} of more than {MAX_JSON_BYTES} bytes"
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        return {}, f"has a {file.name} that cannot be read: {error.strerror}"
    except (ValueError, RecursionError):
        return {}, f"has a {file.name} that is not JSON"
    return (value, None) if isinstance(value, dict) else ({}, f"has a {file.name} that is not a JSON object")


def _config_problem(config: Mapping[str, Any]) -> str | None:
    for key, value in _pairs(config):
        largest = _LARGEST.get(key)
        if largest is not None and value is not None and not _is_size(value, largest):
            return f"has a {CONFIG_NAME} whose {key} is {shown(value)}; it must be a whole number from 1 to {largest}"
        if key.endswith("attn_implementation") and "/" in str(value):
            return f"has a {CONFIG_NAME} that asks for code to be fetched ({key}: {shown(value)}); remove that key"
    return None


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Keys and values of an object and of the objects in it, such as `text_config`."""
    for key, inner in value.items():
        yield key, inner
        if isinstance(inner, Mapping):
            yield from _pairs(inner)


def _is_size(value: Any, largest: int) -> bool:
    sizes = value if isinstance(value, list) else [value]  # some architectures have one for each layer
    return all(
        isinstance(size, int) and not isinstance(size, bool) and 1 <= size <= largest for size in sizes
    )


def _weights_problem(folder: Path) -> str | None:
    if next(folder.glob("*.safetensors"), None) is not None:
        return None
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        # DIR and not its name: a command that is offered for copying must not hold what a stranger wrote.
        return (
            f"holds pickled weights ({shown(pickles[0])}) and no *.safetensors; reading a pickle runs the code in it, so it "
            'is not read. Where you trust it: python -c "from transformers import AutoModelForCausalLM as M; '
            "M.from_pretrained('DIR').save_pretrained('DIR')\""
        )
    others = sorted(path.name for pattern in _OTHER_WEIGHTS for path in folder.glob(pattern))
    there = f" ({shown(others[0])} is another format)" if others else ""
    return f"holds no weights: no *.safetensors{there}"


def _index_problem(folder: Path) -> str | None:
    """Why the list of weight files names something else than safetensors of this folder."""
    if not (folder / INDEX_NAME).is_file():
        return None
    index, problem = _json_object(folder / INDEX_NAME)
    if problem is not None:
        return problem
    files = index.get("weight_map")
    if not isinstance(files, dict):
        return f"has a {INDEX_NAME} without a weight_map"
    for name in dict.fromkeys(map(str, files.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            return f"has a {INDEX_NAME} that names {shown(name)}; only *.safetensors of the folder itself are read"
        if not (folder / name).is_file():
            return f"has a {INDEX_NAME} that names {shown(name)}, which is not there"
    return None
