"""The shapes have the parameters of the models that they stand for, and rows the lengths of instruction data."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.peak import peak_flops, products
from benchmarks.random_base import config_of, length_summary, rows_like_alpaca


@pytest.mark.parametrize(
    ("shape", "num_parameters"),
    # As counted by the models' own pages: microsoft/phi-2, meta-llama/Llama-2-7b-hf and -13b-hf.
    [("phi-2", 2_779_683_840), ("llama-7b", 6_738_415_616), ("llama-13b", 13_015_864_320)],
)
def test_a_shape_is_that_of_the_model(shape, num_parameters):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(shape))
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters


def test_rows_are_as_long_as_instruction_rows():
    rows = rows_like_alpaca(2000, vocabulary=1000, longest=512, seed=0)
    lengths = length_summary(rows)
    # 999 Alpaca rows with GPT-4's answers, cut at 512, have 252 with a vocabulary of 8,192; a larger one needs fewer.
    assert 215 <= lengths["mean"] <= 260
    assert lengths["longest"] == 512
    for row in rows[:50]:
        num_prompt = row.labels.count(-100)
        assert 0 < num_prompt < len(row.input_ids)
        assert row.labels[num_prompt:] == row.input_ids[num_prompt:]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_product_of_the_peak_is_the_same_product(dtype):
    left, right = (torch.randn(64, 64).to(getattr(torch, dtype)) for _ in range(2))
    for product in products("cpu", dtype=getattr(torch, dtype)):
        torch.testing.assert_close(
            product(left, right), left @ right.T, rtol=2e-2, atol=1e-1 if dtype == "bfloat16" else 1e-4
        )
    assert peak_flops(dtype, device="cpu", size=64) > 1e6
