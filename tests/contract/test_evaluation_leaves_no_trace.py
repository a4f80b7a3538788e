"""Scoring and generating between two steps changes no weight and no later gradient, in every precision and engine.

On CPUs with AVX512-BF16 one evaluation of a 4-bit layer used to repack its weights, and training then went on with
wrong gradients and without an error.
"""

from pathlib import Path

import pytest
import torch

import tiny
from lorastudy.engine.loading import load_base
from lorastudy.suite.settings import Settings

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_base(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("engine", tiny.ENGINES)
@pytest.mark.parametrize("quantization", ["fp32", "bf16", "fp16", "4bit", "8bit"])
def test_weights_and_gradients_are_those_of_training_without_evaluation(
    model: Path, engine: str, quantization: str
) -> None:
    base = load_base(
        Settings.model_validate({"base_model": str(model), "quantization": quantization}), device=tiny.CPU
    )
    arms = [
        tiny.make_arm(tiny.targets(base, "all"), name=name, lora_dropout=0.1, seed=seed, num_warmup_steps=0)
        for seed, name in enumerate("ab")
    ]
    steps = tiny.make_steps(3)
    before = {
        name: value.clone() for name, value in base.model.state_dict().items() if torch.is_tensor(value)
    }
    logs, states = [], []
    for asks in (False, True):
        log = tiny.Log()
        with tiny.opened(tiny.ENGINES[engine](base, arms)) as made:

            def on_step(
                result: object, *, log: tiny.Log = log, made: object = made, asks: bool = asks
            ) -> None:
                log(result)
                if asks:
                    made.score(steps[0][0])
                    made.generate([(3, 4, 5), (6,)], max_new_tokens=2)

            on_step(tiny.EMPTY_RESULT)
            made.train(steps, on_step=on_step)
            states.append(made.state())
        logs.append(log)
    # The norm of a step's gradient stands for the gradient: one that changes in any number changes it.
    assert logs[0].norms == logs[1].norms
    assert logs[0].losses == logs[1].losses
    for one, other in zip(states[0].arms, states[1].arms, strict=True):
        assert one.numbers == other.numbers
        assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
        assert any("exp_avg" in name for name in one.tensors), "moments hold every gradient there was"
    after = base.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
