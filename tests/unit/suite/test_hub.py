"""Whether the hub can be reached is found out before anything depends on it, and quickly."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorastudy.errors import ModelError
from lorastudy.suite import hub
from lorastudy.suite.base_model import check_base_model, is_hub_model
from lorastudy.suite.hub import is_hub_reachable


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cache, no proxy, and nobody who has said that there is no network."""
    for name in (
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "HF_HUB_CACHE",
        "HF_ENDPOINT",
        "NO_PROXY",
        "no_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    for scheme in ("http", "https", "all"):
        monkeypatch.delenv(f"{scheme}_proxy", raising=False)
        monkeypatch.delenv(f"{scheme}_proxy".upper(), raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))


@pytest.fixture
def listener() -> Iterator[str]:
    """The address of something that takes connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def closed() -> str:
    """An address that refuses connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"127.0.0.1:{port}"


def test_an_endpoint_is_reachable_when_it_takes_connections(
    monkeypatch: pytest.MonkeyPatch, listener: str, closed: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://{listener}")
    assert is_hub_reachable()
    monkeypatch.setenv("HF_ENDPOINT", f"http://{closed}")
    assert not is_hub_reachable()


@pytest.mark.parametrize("prefix", ["http://", ""])
def test_with_a_proxy_it_is_the_proxy_that_has_to_answer(
    monkeypatch: pytest.MonkeyPatch, listener: str, prefix: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    assert not is_hub_reachable()
    monkeypatch.setenv("https_proxy", prefix + listener)
    assert is_hub_reachable()
    monkeypatch.setenv("no_proxy", "hub.invalid")
    assert not is_hub_reachable()


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_is_taken_at_its_word(monkeypatch: pytest.MonkeyPatch, listener: str, name: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://{listener}")
    monkeypatch.setenv(name, "1")
    assert not is_hub_reachable()
    monkeypatch.setenv(name, "0")
    assert is_hub_reachable()


def test_a_name_that_nobody_looks_up_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    answer, has_ended = threading.Event(), []

    def look_up(*_: object, **__: object) -> None:
        answer.wait(60)
        has_ended.append(None)
        raise TimeoutError

    monkeypatch.setattr(hub.socket, "create_connection", look_up)
    assert not is_hub_reachable(timeout_seconds=0.05)
    assert not has_ended
    answer.set()


def test_a_model_here_or_in_the_cache_needs_no_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, closed: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://{closed}")
    check_base_model("lab")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "model.safetensors").touch()
    check_base_model(str(tmp_path / "model"))
    commit = tmp_path / "cache/hub/models--org--name/refs/main"
    commit.parent.mkdir(parents=True)
    commit.write_text("abc")
    check_base_model("org/name")


def test_a_model_that_cannot_be_had_is_an_error_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, listener: str, closed: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://{closed}")
    with pytest.raises(ModelError, match="hf download org/name --local-dir DIR"):
        check_base_model("org/name")
    monkeypatch.setenv("HF_ENDPOINT", f"http://{listener}")
    check_base_model("org/name")  # whether the hub has it, the worker finds out
    with pytest.raises(ModelError, match=r"no model folder '\./name'"):
        check_base_model("./name")


def test_what_is_looked_up_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert [name for name in ("lab", "model", "org/name") if is_hub_model(name)] == ["org/name"]
