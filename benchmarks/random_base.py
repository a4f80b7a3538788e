"""Base models of random weights, and rows of random tokens in realistic lengths: where only shape and speed matter."""

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from benchmarks.job import Row
from lorastudy.engine.loading import BaseModel
from lorastudy.engine.quantised import keep_trainable_on_cpu
from lorastudy.engine.targets import linear_modules

SHAPES = Path(__file__).parent / "shapes"
#: Tokens of an instruction row, prompt included, with Alpaca's prompt: mean and spread of a log-normal, cut at the
#: length limit. With these the mean of what is left of 512 is about 230.
MEDIAN_LENGTH, LOG_SPREAD, SHORTEST = 205, 0.55, 24
#: Share of a row that is prompt, drawn evenly between these.
PROMPT_SHARE = (0.15, 0.6)


def config_of(shape: str) -> Any:
    """The configuration of a shape by its name, or of any folder with a `config.json`."""
    folder = SHAPES / shape
    return AutoConfig.from_pretrained(folder if folder.is_dir() else shape)


def random_model(config: Any, *, dtype: torch.dtype, device: torch.device) -> Any:
    """Weights as the architecture initialises them, drawn on the device from one seed."""
    torch.manual_seed(0)
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def as_base(model: Any, *, name: str, device: torch.device, dtype: torch.dtype) -> BaseModel:
    """The model frozen, as the engines take it. It has no tokenizer: training and scoring never ask for one."""
    model.requires_grad_(requires_grad=False).eval()
    keep_trainable_on_cpu(model)
    return BaseModel(
        name=name,
        model=model,
        tokenizer=cast("PreTrainedTokenizerBase", None),
        device=device,
        dtype=dtype,
        eos_token_id=1,
        pad_token_id=0,
        linear_layers=linear_modules(model),
    )


def rows_like_alpaca(count: int, *, vocabulary: int, longest: int, seed: int) -> tuple[Row, ...]:
    """Rows of random tokens whose lengths are spread as those of instruction data are."""
    draw = random.Random(seed)
    lengths = [draw.lognormvariate(math.log(MEDIAN_LENGTH), LOG_SPREAD) for _ in range(count)]
    return rows_of_lengths(
        [round(min(longest, max(SHORTEST, length))) for length in lengths], vocabulary=vocabulary, seed=seed
    )


def rows_of_lengths(lengths: Sequence[int], *, vocabulary: int, seed: int) -> tuple[Row, ...]:
    """Rows of random tokens, each with an untrained prompt in front."""
    draw = random.Random(seed)
    rows = []
    for length in lengths:
        ids = tuple(draw.randrange(2, vocabulary) for _ in range(length))
        num_prompt = max(1, round(length * draw.uniform(*PROMPT_SHARE)))
        rows.append(Row(input_ids=ids, labels=(-100,) * num_prompt + ids[num_prompt:]))
    return tuple(rows)


def length_summary(rows: Sequence[Row]) -> Mapping[str, float]:
    """What the rows' lengths came to."""
    lengths = [len(row.input_ids) for row in rows]
    return {"mean": sum(lengths) / len(lengths), "shortest": min(lengths), "longest": max(lengths)}


def tiny(config: Any) -> Any:
    """The same architecture in a few thousand parameters, to see whether a program works at all."""
    config.update(
        {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "vocab_size": 128,
            "bos_token_id": 1,
            "eos_token_id": 1,
        }
    )
    return config


def quantise(model: Any, *, quantization: str, dtype: torch.dtype) -> None:
    """Make every linear layer but the output head a 4-bit (NF4, double quantization) or an 8-bit one, in place.

    bitsandbytes quantises an 8-bit weight only on its way from the CPU to a device. 6 is transformers' threshold.
    """
    import bitsandbytes

    for name, layer in linear_modules(model).items():
        assert isinstance(layer, torch.nn.Linear)
        shape = {"input_features": layer.in_features, "output_features": layer.out_features, "device": "meta"}
        weight, device = layer.weight.detach(), layer.weight.device
        if quantization == "4bit":
            made = bitsandbytes.nn.Linear4bit(
                **shape, bias=False, compute_dtype=dtype, compress_statistics=True, quant_type="nf4"
            )
            made.weight = bitsandbytes.nn.Params4bit(
                weight, requires_grad=False, compress_statistics=True, quant_type="nf4"
            ).to(device)
        else:
            made = bitsandbytes.nn.Linear8bitLt(**shape, bias=False, has_fp16_weights=False, threshold=6.0)
            made.weight = bitsandbytes.nn.Int8Params(
                weight.cpu(), requires_grad=False, has_fp16_weights=False
            ).to(device)
        made.bias = layer.bias
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, made)
