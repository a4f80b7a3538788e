"""What keeps a folder from being handed to transformers, told from its small files."""

import json

import pytest

from lorastudy.suite.base_model import MAX_JSON_BYTES, base_model_problem, model_folder_problem


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
