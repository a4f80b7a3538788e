"""Which base model an experiment uses, by content where it lies on this disk.

A full hash of the weights would take minutes for a 26 GB model, and a dry run must not. So of every weight
file its name, its size, its header (for safetensors: the names, types, shapes and offsets of all tensors)
and two samples of 64 KiB enter, from the middle and from the end. Another model, another precision, another
revision or a further training step changes all weights and is seen; a few bytes edited by hand elsewhere
are not. The tokenizer's files enter whole, for they decide what the tokens are; so does Python code in the folder,
which `trust_remote_code` would run.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from lorastudy.errors import ModelError
from lorastudy.suite.hub import cached_commit
from lorastudy.suite.sources import LAB_MODEL
from lorastudy.version import LAB_BASE

SAMPLE_BYTES = 64 * 1024
#: The largest header that the safetensors library itself accepts.
_MAX_HEADER_BYTES = 100_000_000
_WHOLE_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "spiece.model",
)
_WEIGHT_FILES = ("*.safetensors",)


def base_model_fingerprint(base_model: str) -> str:
    """`sha256:<hex>` of a folder (`lab`: the package's own), or `hub:<id>@<commit>` of a hub id.

    The commit is that of the local Hugging Face cache; a model that was never fetched is `@unresolved`, so
    its experiments get another id once it is there.

    Raises:
        ModelError: the folder holds no model.
    """
    folder = LAB_BASE if base_model == LAB_MODEL else Path(base_model)
    if not folder.is_dir() and base_model != LAB_MODEL:
        return f"hub:{base_model}@{cached_commit(base_model) or 'unresolved'}"
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no config.json, so it is not a transformers model")
    return f"sha256:{_folder_digest(folder)}"


def _folder_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    whole = [folder / name for name in _WHOLE_FILES if (folder / name).is_file()]
    whole += sorted(folder.glob("additional_chat_templates/*.jinja"))
    whole += sorted(folder.glob("*.py"))
    weights = sorted(path for pattern in _WEIGHT_FILES for path in folder.glob(pattern))
    for path in whole:
        digest.update(_length_prefixed(path.name.encode(), path.read_bytes()))
    for path in weights:
        digest.update(_length_prefixed(path.name.encode(), *_samples(path)))
    return digest.hexdigest()


def _length_prefixed(*parts: bytes) -> bytes:
    """The parts joined so that no other parts join to the same bytes."""
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)


def _samples(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    yield str(size).encode()
    with path.open("rb") as file:
        yield _beginning(file, is_safetensors=path.suffix == ".safetensors")
        for start in (size // 2, max(0, size - SAMPLE_BYTES)):
            file.seek(start)
            yield file.read(SAMPLE_BYTES)


def _beginning(file: IO[bytes], *, is_safetensors: bool) -> bytes:
    """The header: 8 bytes that say its length, then JSON. Of any other file the first sample."""
    if not is_safetensors:
        return file.read(SAMPLE_BYTES)
    length = file.read(8)
    return length + file.read(min(int.from_bytes(length, "little"), _MAX_HEADER_BYTES))
