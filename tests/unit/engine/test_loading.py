"""What a user meets whose base model cannot be used."""

import json
import shutil
import weakref
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

import tiny
from lorastudy.engine.loading import check_rows, load_base, load_tokenizer, num_positions
from lorastudy.errors import DataError, ModelError
from lorastudy.suite.settings import Settings


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return tiny.save_base(tmp_path_factory.mktemp("models") / "good")


@pytest.fixture
def folder(good, tmp_path):
    """A copy to damage."""
    return shutil.copytree(good, tmp_path / "model")


def load(folder, quantization="fp32"):
    return load_base(Settings(base_model=str(folder), quantization=quantization), device=tiny.CPU)


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_folder_is_loaded_frozen_with_its_tokenizer(good):
    base = load(good)
    assert base.name == str(good)
    assert (base.eos_token_id, base.pad_token_id) == (tiny.EOS, tiny.PAD)
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert next(iter(base.linear_layers)) == "model.layers.0.self_attn.q_proj"
    assert num_positions(base.model.config) == 128
    saved = load_file(good / "model.safetensors")
    assert torch.equal(
        base.linear_layers["model.layers.1.mlp.up_proj"].weight, saved["model.layers.1.mlp.up_proj.weight"]
    )


def test_without_a_pad_token_the_end_marker_pads(folder):
    for file in folder.glob("*token*.json"):
        text = json.loads(file.read_text())
        text.pop("pad_token", None)
        file.write_text(json.dumps(text))
    base = load(folder)
    assert base.tokenizer.pad_token_id is None
    assert base.pad_token_id == base.eos_token_id == tiny.EOS


def test_greedy_means_greedy_whatever_the_folder_recommends(folder):
    GenerationConfig(repetition_penalty=3.0, num_beams=2, min_new_tokens=3).save_pretrained(folder)
    base = load(folder)
    assert base.model.generation_config.repetition_penalty in (None, 1.0)
    assert base.model.generation_config.num_beams in (None, 1)


def test_rows_must_fit_the_models_positions():
    base = tiny.make_base("gpt2")
    fitting, too_long = (tiny.make_row([2] * length, prompt_tokens=1) for length in (128, 129))
    check = partial(check_rows, config=base.model.config, base_model="gpt2", tokenizer=base.tokenizer)
    check([fitting])
    with pytest.raises(
        DataError, match="max_seq_length: gpt2 has 128 positions, and the longest row has 129 tokens"
    ):
        check([fitting, too_long])


def test_rows_are_checked_one_at_a_time():
    """All of them at once would take ten times the memory of the arrays that they are made from."""
    base = tiny.make_base("gpt2")
    made = []

    def rows():
        for number in range(2, 9):
            assert sum(row() is not None for row in made) <= 1  # the one that was given last
            row = tiny.make_row([2, number], prompt_tokens=1)
            made.append(weakref.ref(row))
            yield row
            del row

    check_rows(rows(), config=base.model.config, base_model="gpt2", tokenizer=base.tokenizer)
    assert len(made) == 7


def test_a_token_that_only_the_tokenizer_knows_is_named():
    base = tiny.make_base("gpt2")
    base.tokenizer.add_tokens(["<extra>"])
    known, unknown = (tiny.make_row([2, number], prompt_tokens=1) for number in (127, 128))
    check = partial(check_rows, config=base.model.config, base_model="gpt2", tokenizer=base.tokenizer)
    check([known])
    with pytest.raises(
        DataError,
        match=r"1 of 2 rows .* '<extra>' is token 128, and the embeddings are those of 0 to 127\..*resize",
    ):
        check([known, unknown])


@pytest.mark.parametrize("name", ["nowhere/at-all", "./missing", "no such folder"])
def test_a_base_that_is_nowhere(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"base_model: .*neither a folder.*") as caught:
        load(name)
    assert name in str(caught.value)


def test_pickled_weights_are_not_read(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        ModelError, match=r"holds pickled weights \('pytorch_model.bin'\) and no \*.safetensors;"
    ):
        load(folder)


@pytest.mark.parametrize(
    ("file", "text"),
    [("config.json", None), ("config.json", "{"), ("config.json", '{"model_type": "no_such_type"}'),
     ("config.json", '{"model_type": "t5"}'), ("model.safetensors", "torn")],
)  # fmt: skip
def test_a_damaged_folder_is_the_users_to_mend(folder, file, text):
    if text is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(text)
    with pytest.raises(
        ModelError,
        match=r"base_model: .*/model: (cannot be loaded: |holds no config.json|has a config.json that)",
    ):
        load(folder)


def test_weights_that_are_missing_or_do_not_fit_are_not_made_up(folder):
    name = "model.layers.1.mlp.up_proj.weight"
    change_weights(folder, lambda weights: weights.update({name: torch.zeros(3, 3)}))
    with pytest.raises(ModelError, match=f"hold no weights that fit {name}"):
        load(folder)
    change_weights(folder, lambda weights: weights.pop(name))
    with pytest.raises(ModelError, match=f"hold no weights that fit {name}"):
        load(folder)


def test_a_tokenizer_without_an_end_marker_is_refused(folder):
    for file in folder.glob("*token*.json"):
        text = json.loads(file.read_text())
        text.pop("eos_token", None)
        file.write_text(json.dumps(text))
    with pytest.raises(ModelError, match="its tokenizer has no end-of-text token"):
        load_tokenizer(str(folder))


def test_the_lab_is_a_base_like_any_other():
    base = load("lab", "bf16")
    assert base.name == "lab"
    assert base.dtype is torch.bfloat16
