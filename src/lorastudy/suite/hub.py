"""The Hugging Face hub as seen from here: whether it answers, and what was fetched from it before.

Without network huggingface_hub tries every request again for 23 seconds, several times over, before it looks
into its cache. So whoever needs the hub asks first whether anything answers there, and works offline if not:
what is in the cache loads at once, and what is not there fails at once.
"""

import os
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

from lorastudy.errors import ModelError
from lorastudy.suite.sources import LAB_MODEL, base_model_problem

#: Set for a process, it makes the Hugging Face libraries use their cache alone.
OFFLINE_VARIABLE = "HF_HUB_OFFLINE"
#: Several times what a slow line needs for a name and a handshake.
CONNECT_SECONDS = 4.0

_OFFLINE_VARIABLES = (OFFLINE_VARIABLE, "TRANSFORMERS_OFFLINE")
_TRUE = {"1", "true", "yes", "on"}
_PORTS = {"http": 80, "https": 443}


def is_hub_model(base_model: str) -> bool:
    """Whether a base model is looked up on the hub: neither the lab's nor a folder here."""
    return base_model != LAB_MODEL and not Path(base_model).is_dir()


def cached_commit(hub_id: str) -> str | None:
    """The commit that `main` stood at when the model was last fetched to this machine."""
    reference = _cache_of(hub_id) / "refs" / "main"
    return (reference.read_text(encoding="ascii").strip() or None) if reference.is_file() else None


def cached_folder(hub_id: str) -> Path | None:
    """The folder that holds what was fetched of the model at that commit; None where nothing was."""
    commit = cached_commit(hub_id)
    folder = _cache_of(hub_id) / "snapshots" / str(commit)
    return folder if commit is not None and folder.is_dir() else None


def _cache_of(hub_id: str) -> Path:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    return cache / f"models--{hub_id.replace('/', '--')}"


def check_base_model(base_model: str) -> None:
    """Nothing, if the base model can be had: it lies here, was fetched before, or the hub answers.

    Raises:
        ModelError: it cannot; says what to do without network.
    """
    problem = base_model_problem(base_model)
    if problem is not None:
        raise ModelError(f"base_model: {problem}")
    if is_hub_model(base_model) and cached_commit(base_model) is None and not is_hub_reachable():
        raise ModelError(unreachable_message(base_model))


def unreachable_message(base_model: str) -> str:
    """What to tell of a base model that is not here and cannot be fetched."""
    offline = (
        f" ({OFFLINE_VARIABLE} is set, by you or because the hub did not answer)" if is_offline() else ""
    )
    return (
        f"base_model: {base_model}: neither a folder here nor reachable on the Hugging Face hub{offline}. Without "
        f"network: download it elsewhere (`hf download {base_model} --local-dir DIR`), copy the folder, and "
        f"write its path as base_model; or use `base_model: lab`, the small model inside the package"
    )


def is_offline() -> bool:
    """Whether the environment forbids asking the hub."""
    return any(os.environ.get(name, "").lower() in _TRUE for name in _OFFLINE_VARIABLES)


def is_hub_reachable(*, timeout_seconds: float = CONNECT_SECONDS) -> bool:
    """Whether anything takes connections at the hub's address, or at the proxy that leads there.

    A proxy that answers may still not reach the hub; then the libraries' own tries decide.
    """
    if is_offline():
        return False
    connected = threading.Event()
    # In a thread, because looking up a name has no time limit of its own.
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
