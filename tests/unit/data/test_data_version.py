"""`DATA_VERSION` rises whenever equal rows give other tokens, masks or splits: a digest of all three holds it to that."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lorastudy.data.load import train_and_eval
from lorastudy.data.token_sets import token_sets
from lorastudy.engine.chat_template import prompt_style
from lorastudy.suite.experiment import DATA_VERSION
from lorastudy.suite.settings import Settings

#: By format and version. Where a digest changes on purpose, raise DATA_VERSION, unless the version was never released.
DIGESTS = {
    "alpaca": {2: "e5f7e3945bec5dee"},
    "pairs": {2: "e8dca768d0051296"},
    "messages": {2: "904a8ca92f74c214"},
    "text": {2: "bd15d742d0c0ccd9"},
    "long_text": {2: "ea5d7d0f9141d88c"},
}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    """One token per byte, and ChatML's markers."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = template
    return tokenizer


def rows(name: str) -> list[dict[str, Any]]:
    if name == "alpaca":
        return [
            {
                "instruction": f"Name {i} things",
                "input": "" if i % 3 else f"of kind {i}",
                "output": f"Thing {i * i}.",
            }
            for i in range(60)
        ]
    if name == "pairs":
        return [{"prompt": f"What is {i % 20} + {i}?", "completion": f" {i % 20 + i}"} for i in range(60)]
    if name == "messages":
        return [
            {
                "messages": [
                    {"role": "system", "content": "Be short."},
                    {"role": "user", "content": f"Question {i}?"},
                    {"role": "assistant", "content": f"Answer {i}."},
                    {"role": "user", "content": "And then?"},
                    {"role": "assistant", "content": f"Answer {i + 1}."},
                ]
            }
            for i in range(60)
        ]
    if name == "long_text":
        return [{"text": f"Page {i} says {'much ' * (70 * i % 401)}of {i * 7}."} for i in range(60)]
    return [{"text": f"Line {i} says {'much ' * (i % 7)}of {i * 7}."} for i in range(60)]


@pytest.mark.parametrize("name", DIGESTS)
def test_equal_rows_give_equal_tokens_masks_and_splits(name: str, write: Callable[[str, object], str]):
    settings = Settings(
        dataset_path=write(f"{name}.jsonl", rows(name)),
        eval_fraction=0.2,
        test_fraction=0.2,
        max_seq_length=512,
    )
    digests = []
    for template in (None, CHATML):
        tokenizer = byte_tokenizer(template)
        study = train_and_eval(settings, style=prompt_style(tokenizer, "auto"))
        sets = token_sets(study, settings, tokenizer=tokenizer, reach=None)
        digests.append(
            {
                split: [[row.input_ids, row.labels, row.prompt_ids] for row in tokens.rows]
                for split, tokens in sets.items()
            }
        )
    digest = hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:16]
    assert digest == DIGESTS[name][DATA_VERSION], "equal rows give other tokens: see DATA_VERSION"
