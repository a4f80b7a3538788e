"""Base models before they are loaded: folders that hold one, their files, and the hub that may not answer."""

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorastudy.errors import ModelError
from lorastudy.suite import base_model
from lorastudy.suite.base_model import (
    MAX_JSON_BYTES,
    base_model_problem,
    check_base_model,
    is_hub_model,
    is_hub_reachable,
    model_folder_problem,
    read_config,
    weight_shapes,
)


def write_weights(file: Path, shapes: dict[str, list[int]]) -> None:
    header = json.dumps(
        {"__metadata__": {"format": "pt"}}
        | {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    ).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header)


def test_the_labs_own_model():
    config, shapes = read_config("lab"), weight_shapes("lab")
    assert config is not None
    assert (config["model_type"], config["hidden_size"]) == ("llama", 96)
    assert shapes is not None
    assert shapes["model.layers.2.mlp.down_proj.weight"] == (96, 256)


def test_shapes_come_from_every_file_of_a_folder(tmp_path):
    write_weights(tmp_path / "model-00001-of-00002.safetensors", {"a": [2, 3]})
    write_weights(tmp_path / "model-00002-of-00002.safetensors", {"b": [4]})
    assert weight_shapes(str(tmp_path)) == {"a": (2, 3), "b": (4,)}


def test_a_hub_model_is_read_from_the_cache_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert read_config("org/model") is None
    assert weight_shapes("org/model") is None
    snapshot = tmp_path / "models--org--model" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--org--model" / "refs").mkdir()
    (tmp_path / "models--org--model" / "refs" / "main").write_text("c0ffee")
    (snapshot / "config.json").write_text('{"text_config": {"model_type": "qwen3", "hidden_size": 64}}')
    write_weights(snapshot / "model.safetensors", {"a": [1]})
    assert read_config("org/model") == {"model_type": "qwen3", "hidden_size": 64}
    assert weight_shapes("org/model") == {"a": (1,)}


def test_damaged_files_are_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "model.safetensors").write_bytes(b"\x10" + bytes(7) + b"not json")
    with pytest.raises(ModelError, match=r"config\.json is not valid JSON"):
        read_config(str(tmp_path))
    with pytest.raises(ModelError, match=r"model\.safetensors: its safetensors header cannot be read"):
        weight_shapes(str(tmp_path))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2}'
    )
    (tmp_path / "model.safetensors").touch()
    return tmp_path


def test_a_model_with_pickles_beside_its_weights_may_be_read(folder):
    (folder / "pytorch_model.bin").touch()
    (folder / "evil.py").touch()
    assert model_folder_problem(folder) is None


def test_shards_that_are_there_may_be_read(folder):
    (folder / "model.safetensors").rename(folder / "model-1-of-1.safetensors")
    index = {"weight_map": {"a": "model-1-of-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert model_folder_problem(folder) is None


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "model.pkl"])
def test_pickles_alone_are_refused_with_the_way_out(folder, name):
    (folder / "model.safetensors").unlink()
    (folder / name).touch()
    problem = base_model_problem(str(folder))
    assert (
        f"holds pickled weights ('{name}') and no *.safetensors; reading a pickle runs the code in it"
        in problem
    )
    assert "M.from_pretrained('DIR').save_pretrained('DIR')" in problem


def test_the_command_that_is_offered_holds_nothing_that_a_stranger_wrote(folder):
    hostile = folder / "x'); import os; os.system('y')#"
    hostile.mkdir()
    (hostile / "config.json").write_text("{}")
    (hostile / "a'.bin").touch()
    command = model_folder_problem(hostile).partition("python -c ")[2]
    assert "os.system" not in command
    assert "a'" not in command


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("config.json", None, "holds no config.json"),
        ("config.json", "{", "has a config.json that is not JSON"),
        ("config.json", b"\xff", "has a config.json that is not JSON"),
        ("config.json", "[" * 99_999, "has a config.json that is not JSON"),
        ("config.json", "[]", "has a config.json that is not a JSON object"),
        ("config.json", '{"hidden_size": 0}', "whose hidden_size is 0; it must be a whole number from 1 to 1000000"),
        ("config.json", '{"num_hidden_layers": 1001}', "whose num_hidden_layers is 1001"),
        ("config.json", '{"vocab_size": true}', "whose vocab_size is true"),
        ("config.json", '{"text_config": {"vocab_size": 1e99}}', "whose vocab_size is 1e+99"),
        ("config.json", '{"_attn_implementation": "some/kernel"}', "asks for code to be downloaded (_attn_implementation: 'some/kernel')"),
        ("adapter_config.json", "{}", "holds an adapter (adapter_config.json), not a base model"),
        ("model.safetensors", None, "holds no weights: no *.safetensors"),
        ("model.safetensors.index.json", "{}", "without a weight_map"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "../b.safetensors"}}', "names '../b.safetensors'; only"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "/b.safetensors"}}', "names '/b.safetensors'; only"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "b.bin"}}', "names 'b.bin'; only *.safetensors"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "b.safetensors"}}', "which is not there"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(folder, file, content, problem):
    if content is None:
        (folder / file).unlink()
    elif isinstance(content, bytes):
        (folder / file).write_bytes(content)
    else:
        (folder / file).write_text(content)
    assert problem in model_folder_problem(folder)


def test_sizes_by_layer_and_absent_sizes_are_sizes(folder):
    (folder / "config.json").write_text('{"intermediate_size": [64, 128], "head_dim": null, "n_inner": null}')
    assert model_folder_problem(folder) is None


def test_a_configuration_without_end_is_not_read(folder):
    with (folder / "config.json").open("wb") as file:
        file.truncate(MAX_JSON_BYTES + 1)
    assert "has a config.json of more than" in model_folder_problem(folder)


def test_another_format_is_named(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.gguf").touch()
    assert "no *.safetensors ('model.gguf' is another format)" in model_folder_problem(folder)


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

    monkeypatch.setattr(base_model.socket, "create_connection", look_up)
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
