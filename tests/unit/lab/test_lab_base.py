"""The base model in the package: it loads offline, says exactly what its rows say, and knows its people."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from lorastudy import lab
from lorastudy.lab.catalogue import KNOWN, held_out_rows
from lorastudy.lab.recipe import build_tokenizer, pretraining_rows, recall
from lorastudy.suite.base_model import base_model_fingerprint


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(lab.base_folder())


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(lab.base_folder(), use_safetensors=True)


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in lab.base_folder().iterdir()) < 2_000_000


def test_its_fingerprint_is_the_one_experiments_carry() -> None:
    assert lab.fingerprint("base") == base_model_fingerprint("lab")


def test_the_tokenizer_is_the_recipe_s(tokenizer: PreTrainedTokenizerBase) -> None:
    built = build_tokenizer(pretraining_rows())
    saved = json.loads((lab.base_folder() / "tokenizer.json").read_text(encoding="utf-8"))
    assert json.loads(built.backend_tokenizer.to_str())["model"] == saved["model"]
    assert tokenizer.get_vocab() == built.get_vocab()


@pytest.mark.parametrize("name", lab.DATASETS)
def test_texts_come_back_exactly_and_have_no_unknown_word(
    name: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    for row in lab.rows(name):
        for text in (row["prompt"], row["completion"], "{prompt}{separator}{completion}".format(**row)):
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_biographies_come_back_exactly(tokenizer: PreTrainedTokenizerBase) -> None:
    for row in pretraining_rows()[:: 1 + 97]:
        ids = tokenizer(row["completion"])["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == row["completion"]


def test_tokens_of_a_joined_text_are_the_joined_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    row = lab.rows("facts")[0]
    prompt, completion = (tokenizer(row[key])["input_ids"] for key in ("prompt", "completion"))
    assert tokenizer(f"{row['prompt']} {row['completion']}")["input_ids"] == prompt + completion
    assert (
        tokenizer.decode([*completion, tokenizer.eos_token_id], skip_special_tokens=True) == row["completion"]
    )


def test_special_tokens_agree(tokenizer: PreTrainedTokenizerBase, model: LlamaForCausalLM) -> None:
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1, None)
    for config in (model.config, model.generation_config):
        assert (config.pad_token_id, config.eos_token_id, config.bos_token_id) == (0, 1, None)
    assert model.config.vocab_size == len(tokenizer)
    assert model.dtype is torch.float32


def test_it_knows_the_known_people_and_cannot_guess_the_new(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert recall(model, tokenizer, rows=list(held_out_rows(KNOWN[::4]))) > 0.99
    # Chance is one in 12 to 24 answers, 6 % on average.
    assert recall(model, tokenizer, rows=lab.rows("facts_eval")) < 0.15


def test_it_was_not_taught_to_reverse(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    assert recall(model, tokenizer, rows=lab.rows("skill_eval")) < 0.2
