"""The Hugging Face hub: whether it answers, and which models this machine's cache holds.

Without network, huggingface_hub retries every request for 23 seconds, several times, before it looks into its cache.
Code that needs the hub therefore checks first whether it answers, and sets the libraries offline if it does not. A
cached model then loads at once, and a missing model fails at once.
"""

import os
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

#: If this variable is set, the Hugging Face libraries use only their cache.
OFFLINE_VARIABLE = "HF_HUB_OFFLINE"
#: Several times longer than a slow connection needs for a name lookup and a handshake.
CONNECT_SECONDS = 4.0

_OFFLINE_VARIABLES = (OFFLINE_VARIABLE, "TRANSFORMERS_OFFLINE")
_TRUE = {"1", "true", "yes", "on"}
_PORTS = {"http": 80, "https": 443}


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
