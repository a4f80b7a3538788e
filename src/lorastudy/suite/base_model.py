"""A base model before it is loaded: its folder, whether it can be used, the contents of its files, its fingerprint.

Nothing here needs torch. Only `check_base_model` asks whether the hub answers. A base model is `lab` (the one in the
package), a folder, or an id on the Hugging Face hub. A hub model is read from this machine's cache; a model that was
never fetched has no files to read.

Without network, huggingface_hub retries every request for 23 seconds, several times, before it looks into its cache.
Code that needs the hub therefore checks first whether it answers, and sets the libraries offline if it does not. A
cached model then loads at once, and a missing model fails at once.
"""

import hashlib
import json
import os
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from lorastudy.errors import ModelError
from lorastudy.suite.wording import shown
from lorastudy.version import LAB_BASE

LAB_MODEL = "lab"
Shape = tuple[int, ...]

SAMPLE_BYTES = 64 * 1024
CONFIG_NAME = "config.json"
INDEX_NAME = "model.safetensors.index.json"
MAX_JSON_BYTES = 50_000_000

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")

#: If this variable is set, the Hugging Face libraries use only their cache.
OFFLINE_VARIABLE = "HF_HUB_OFFLINE"
#: Several times longer than a slow connection needs for a name lookup and a handshake.
CONNECT_SECONDS = 4.0

_OFFLINE_VARIABLES = (OFFLINE_VARIABLE, "TRANSFORMERS_OFFLINE")
_TRUE = {"1", "true", "yes", "on"}
_PORTS = {"http": 80, "https": 443}


def base_folder(base_model: str) -> Path | None:
    """The folder with the model's files; None for a hub model that is not on this machine."""
    if base_model == LAB_MODEL:
        return LAB_BASE
    folder = Path(base_model)
    return folder if folder.is_dir() else cached_folder(base_model)


def is_hub_model(base_model: str) -> bool:
    """Whether a base model is looked up on the hub: it is neither the lab's nor a local folder."""
    return base_model != LAB_MODEL and not Path(base_model).is_dir()


# --- whether it can be used ---------------------------------------------------------------------------------


def check_base_model(base_model: str) -> None:
    """Refuse a base model that is neither on this machine nor available from the hub.

    Raises:
        ModelError: the model is not available. The message says what to do without network.
    """
    problem = base_model_problem(base_model)
    if problem is not None:
        raise ModelError(f"base_model: {problem}")
    if is_hub_model(base_model) and cached_commit(base_model) is None and not is_hub_reachable():
        raise ModelError(unreachable_message(base_model))


def base_model_problem(base_model: str) -> str | None:
    """Why this cannot be a base model; None if its name and its small files show no problem."""
    if base_model == LAB_MODEL:
        return None
    try:
        is_folder, is_file = Path(base_model).is_dir(), Path(base_model).is_file()
    except (OSError, ValueError):  # a name too long for the system, or with a NUL
        is_folder = is_file = False
    if is_folder:
        problem = model_folder_problem(Path(base_model))
        return None if problem is None else f"the folder {base_model!r} {problem}"
    if is_file:
        return f"{base_model!r} is a file; name the folder that holds config.json and the weights"
    if base_model.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(base_model):
        return (
            f"there is no model folder {base_model!r} (paths start at the current folder); give a folder with "
            "config.json and weights, a hub id such as microsoft/phi-2, or lab for the model in the package"
        )
    return None


def is_model_folder(folder: Path) -> bool:
    """Whether a folder of trained weights holds a whole model, as full fine-tuning saves it, and not an adapter."""
    return (folder / CONFIG_NAME).is_file() and not (folder / "adapter_config.json").exists()


def model_folder_problem(folder: Path) -> str | None:
    """Why transformers must not load the folder as a base model; None if it may. The text omits the folder's name.

    Check before transformers reads the folder, because its files decide what transformers does: pickled weights are
    programs, an index may point out of the folder, an adapter's configuration loads another model, and an attention
    kernel may be code to download. Absurd sizes would use up the memory.
    """
    if not (folder / CONFIG_NAME).is_file():
        return f"holds no {CONFIG_NAME}, so it is not a transformers model"
    if (folder / "adapter_config.json").exists():
        return (
            "holds an adapter (adapter_config.json), not a base model; name the model that it was trained on, and "
            "score it with `lorastudy evaluate --checkpoint`"
        )
    config, problem = _json_object(folder / CONFIG_NAME)
    return problem or _config_problem(config) or _weights_problem(folder) or _index_problem(folder)


_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
_OTHER_WEIGHTS = ("*.gguf", "*.h5", "*.msgpack", "*.onnx")
#: Far beyond any existing model.
_LARGEST = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers"), 1000),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head"), 100_000),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "head_dim"), 1_000_000),
    **dict.fromkeys(("intermediate_size", "n_inner", "vocab_size"), 100_000_000),
}


def _json_object(file: Path) -> tuple[Mapping[str, Any], str | None]:
    """The JSON object in a small file, and None; or an empty object and the problem."""
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
            return f"has a {CONFIG_NAME} that asks for code to be downloaded ({key}: {shown(value)}); remove that key"
    return None


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Keys and values of an object and of the objects in it, such as `text_config`."""
    for key, inner in value.items():
        yield key, inner
        if isinstance(inner, Mapping):
            yield from _pairs(inner)


def _is_size(value: Any, largest: int) -> bool:
    sizes = value if isinstance(value, list) else [value]  # some architectures list a size for each layer
    return all(
        isinstance(size, int) and not isinstance(size, bool) and 1 <= size <= largest for size in sizes
    )


def _weights_problem(folder: Path) -> str | None:
    if next(folder.glob("*.safetensors"), None) is not None:
        return None
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        # DIR, not the folder's name: a command that users copy must not contain text from a stranger.
        return (
            f"holds pickled weights ({shown(pickles[0])}) and no *.safetensors; reading a pickle runs the code in it, so it "
            'is not read. If you trust it: python -c "from transformers import AutoModelForCausalLM as M; '
            "M.from_pretrained('DIR').save_pretrained('DIR')\""
        )
    others = sorted(path.name for pattern in _OTHER_WEIGHTS for path in folder.glob(pattern))
    there = f" ({shown(others[0])} is another format)" if others else ""
    return f"holds no weights: no *.safetensors{there}"


def _index_problem(folder: Path) -> str | None:
    """Why the list of weight files is not usable; None if it names only safetensors files of this folder."""
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


# --- the contents of its files ------------------------------------------------------------------------------


def read_config(base_model: str) -> Mapping[str, Any] | None:
    """`config.json`; for a multimodal model the text part. None if the model's files are not on this machine.

    Raises:
        ModelError: the file is not JSON.
    """
    folder = base_folder(base_model)
    path = None if folder is None else folder / CONFIG_NAME
    if path is None or not path.is_file():
        return None
    try:
        config: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    text: Mapping[str, Any] = config.get("text_config", config)
    return text


def has_chat_template(base_model: str) -> bool:
    """Whether the model's files hold a chat template; False for a model that is not on this machine.

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
    """The shape of every tensor by name, from the headers of the safetensors files; None without such files.

    Raises:
        ModelError: a header cannot be read.
    """
    folder = base_folder(base_model)
    files = [] if folder is None else sorted(folder.glob("*.safetensors"))
    shapes = {name: shape for file in files for name, shape in _header(file).items()}
    return shapes or None


def _header(file: Path) -> dict[str, Shape]:
    """The shape of each tensor in a safetensors file. The first eight bytes give the length of the JSON header."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
        return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file}: its safetensors header cannot be read: {error}") from error


# --- its fingerprint ----------------------------------------------------------------------------------------

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


def base_model_fingerprint(base_model: str) -> str:
    """`sha256:<hex>` of a folder (`lab`: the package's own), or `hub:<id>@<commit>` of a hub id.

    A full hash of a 26 GB model takes minutes, too long for a dry run. So for each weight file the digest covers its
    name, its size, its header (names, types, shapes and offsets of all tensors) and two samples of 64 KiB, from the
    middle and from the end. Another model, precision, revision or training step changes all weights and so the digest.
    The digest misses a few bytes edited by hand elsewhere. The tokenizer's files are hashed whole, because they decide
    the tokens; so is Python code in the folder, because `trust_remote_code` runs it.

    The commit is that of the local Hugging Face cache. A model that was never fetched has the commit `unresolved`, so
    its experiments change their ids once it is fetched.

    Raises:
        ModelError: the folder holds no model.
    """
    folder = LAB_BASE if base_model == LAB_MODEL else Path(base_model)
    if is_hub_model(base_model):
        return f"hub:{base_model}@{cached_commit(base_model) or 'unresolved'}"
    if not (folder / CONFIG_NAME).is_file():
        raise ModelError(f"{folder} holds no config.json, so it is not a transformers model")
    return f"sha256:{_folder_digest(folder)}"


def _folder_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    whole = [folder / name for name in _WHOLE_FILES if (folder / name).is_file()]
    whole += sorted(folder.glob("additional_chat_templates/*.jinja"))
    whole += sorted(folder.glob("*.py"))
    for path in whole:
        digest.update(_length_prefixed(path.name.encode(), path.read_bytes()))
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(_length_prefixed(path.name.encode(), *_samples(path)))
    return digest.hexdigest()


def _length_prefixed(*parts: bytes) -> bytes:
    """The parts joined, each after its length, so that different parts never give the same bytes."""
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)


def _samples(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    yield str(size).encode()
    with path.open("rb") as file:
        yield _raw_header(file)
        for start in (size // 2, max(0, size - SAMPLE_BYTES)):
            file.seek(start)
            yield file.read(SAMPLE_BYTES)


def _raw_header(file: IO[bytes]) -> bytes:
    """The first 8 bytes, which give the header's length, then the header."""
    length = file.read(8)
    return length + file.read(min(int.from_bytes(length, "little"), _MAX_HEADER_BYTES))


def cached_commit(hub_id: str) -> str | None:
    """The commit of `main` when this machine last fetched the model; None if it never did."""
    reference = _cache_of(hub_id) / "refs" / "main"
    return (reference.read_text(encoding="ascii").strip() or None) if reference.is_file() else None


def cached_folder(hub_id: str) -> Path | None:
    """The cache folder of the model at that commit; None if nothing was fetched."""
    commit = cached_commit(hub_id)
    folder = _cache_of(hub_id) / "snapshots" / str(commit)
    return folder if commit is not None and folder.is_dir() else None


def _cache_of(hub_id: str) -> Path:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    return cache / f"models--{hub_id.replace('/', '--')}"


def unreachable_message(base_model: str) -> str:
    """The message for a base model that is not on this machine and cannot be fetched."""
    offline = (
        f" ({OFFLINE_VARIABLE} is set, by you or because the hub did not answer)" if is_offline() else ""
    )
    return (
        f"base_model: {base_model}: neither a folder here nor reachable on the Hugging Face hub{offline}. Without "
        f"network: download it elsewhere (`hf download {base_model} --local-dir DIR`), copy the folder, and "
        f"write its path as base_model; or use `base_model: lab`, the small model inside the package"
    )


def is_offline() -> bool:
    """Whether an environment variable forbids requests to the hub."""
    return any(os.environ.get(name, "").lower() in _TRUE for name in _OFFLINE_VARIABLES)


def is_hub_reachable(*, timeout_seconds: float = CONNECT_SECONDS) -> bool:
    """Whether the hub, or the proxy in front of it, accepts connections.

    A proxy that answers may still fail to reach the hub; then the libraries' own retries decide.
    """
    if is_offline():
        return False
    connected = threading.Event()
    # In a thread, because a name lookup has no timeout of its own.
    attempt = threading.Thread(target=_connect, args=(_first_hop(), connected), daemon=True)
    attempt.start()
    attempt.join(timeout_seconds)
    return connected.is_set()


def _connect(address: tuple[str, int], connected: threading.Event) -> None:
    try:
        with socket.create_connection(address, timeout=CONNECT_SECONDS):
            connected.set()
    except OSError:
        return


def _first_hop() -> tuple[str, int]:
    from urllib.request import getproxies, proxy_bypass

    endpoint = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    proxies = {} if proxy_bypass(endpoint.netloc) else getproxies()
    proxy = proxies.get(endpoint.scheme) or proxies.get("all")
    hop = urlsplit(proxy if "://" in proxy else f"http://{proxy}") if proxy else endpoint
    return hop.hostname or "", hop.port or _PORTS.get(hop.scheme, 443)
