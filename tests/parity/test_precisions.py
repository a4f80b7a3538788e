"""Every precision on the CPU: packed against reference, an arm against itself in company, and the trap.

4-bit and 8-bit are bitsandbytes' own. What differs between the engines there is where rounding to bf16 takes
place: PEFT runs an adapter in fp32 and rounds the sum, the packed engine rounds the factors and multiplies in
bf16 (relative 2^-9 each). So losses agree to a few tenths of a percent and not to the bit.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tiny
from lorastudy.engine.loading import load_base
from lorastudy.suite.settings import Settings

PRECISIONS = {
    "fp32": {"quantization": "fp32"},
    "bf16": {"quantization": "bf16"},
    "fp16": {"quantization": "fp16"},
    "8bit": {"quantization": "8bit"},
    "nf4": {"quantization": "4bit", "bnb_4bit_quant_type": "nf4"},
    "fp4": {"quantization": "4bit", "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False},
}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_base(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module", params=PRECISIONS)
def precision(request):
    return request.param


@pytest.fixture(scope="module")
def base(folder, precision):
    return load_base(Settings(base_model=str(folder), **PRECISIONS[precision]), device=tiny.CPU)


def arms_for(base):
    attention, mlp = tiny.targets(base, "qkvo"), tiny.targets(base, "mlp")
    return [
        tiny.make_arm(attention, name="a", num_warmup_steps=0),
        tiny.make_arm(mlp, name="b", r=8, num_warmup_steps=0, seed=1, learning_rate=1e-3),
        tiny.make_arm(attention, name="c", num_warmup_steps=0, seed=2),
    ]


def test_the_weights_are_held_in_that_precision(base, precision):
    layer = base.linear_layers["model.layers.0.mlp.up_proj"]
    kind = {"8bit": "Linear8bitLt", "nf4": "Linear4bit", "fp4": "Linear4bit"}.get(precision, "Linear")
    assert type(layer).__name__ == kind
    dtype = {"fp32": torch.float32, "fp16": torch.float16}.get(precision, torch.bfloat16)
    assert base.dtype is base.model.get_input_embeddings().weight.dtype is dtype
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


def test_packed_stays_close_to_the_reference(base, precision, tmp_path):
    steps = tiny.make_steps(8, accumulation=2)
    packed, _ = tiny.train(tiny.PackedEngine, base, arms_for(base), steps=steps, folder=tmp_path)
    reference, _ = tiny.train(tiny.ReferenceEngine, base, arms_for(base), steps=steps, folder=tmp_path)
    tolerance = 1e-5 if precision == "fp32" else 2e-3  # seen: 8e-4 for 8-bit, 4e-4 for the others
    for name in "abc":
        assert tiny.largest_relative(packed.losses[name], reference.losses[name]) <= tolerance
        assert tiny.largest_relative(packed.norms[name][:1], reference.norms[name][:1]) <= 5 * tolerance


def test_an_arm_does_not_feel_its_company(base, tmp_path):
    steps = tiny.make_steps(6)
    arms = arms_for(base)
    together = tiny.train(tiny.PackedEngine, base, arms, steps=steps, folder=tmp_path)
    for arm in arms[:2]:
        alone = tiny.train(tiny.PackedEngine, base, [arm], steps=steps, folder=tmp_path)
        name = arm.experiment_id
        assert tiny.largest_relative(together[0].losses[name], alone[0].losses[name]) <= 1e-6
        assert tiny.largest_difference(together[1][name], alone[1][name]) <= 1e-6


@pytest.mark.parametrize("make_engine", tiny.ENGINES.values(), ids=tiny.ENGINES)
def test_gradients_are_the_same_after_an_evaluation_as_before(folder, precision, make_engine, tmp_path):
    """The trap: on CPUs with AVX512-BF16 a no-grad forward of a 4-bit layer repacks its weight for inference."""

    def fresh():
        return load_base(Settings(base_model=str(folder), **PRECISIONS[precision]), device=tiny.CPU)

    steps = tiny.make_steps(3)
    never_asked = fresh()
    arms = arms_for(never_asked)[:2]
    quiet = tiny.train(make_engine, never_asked, arms, steps=steps, folder=tmp_path)

    base = fresh()
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        base.model(ids)
    log = tiny.Log()
    with tiny.opened(make_engine(base, arms)) as engine:

        def ask(result):
            log(result)
            engine.score(steps[0][0])
            engine.generate([(3, 4, 5), (6, 7)], max_new_tokens=2)

        ask(tiny.EMPTY_RESULT)
        engine.train(steps, on_step=ask)
        adapters = tiny.adapters_of(engine, tmp_path)
    assert log.losses == quiet[0].losses
    assert log.norms == quiet[0].norms
    for name in "ab":
        assert any(tensor.any() for key, tensor in adapters[name].items() if "lora_B" in key)
        assert tiny.largest_difference(adapters[name], quiet[1][name]) == 0


def test_a_pack_dequantises_every_layer_by_itself(folder):
    """Adapted or not, with gradients and without: bitsandbytes would take another kernel for few rows than for many."""
    base = load_base(Settings(base_model=str(folder), **PRECISIONS["nf4"]), device=tiny.CPU)
    with tiny.opened(tiny.PackedEngine(base, [tiny.make_arm(tiny.targets(base, "q"))])) as engine:
        (batches,) = tiny.make_steps(1)
        with Operations() as seen:
            engine.train([batches], on_step=lambda _: None)
            engine.score(batches[0])
            engine.generate([[2, 3, 4]], max_new_tokens=2)
    quantised = {name for name in seen.names if name.startswith("bitsandbytes")}
    assert quantised == {"bitsandbytes::dequantize_4bit", "bitsandbytes::dequantize_blockwise"}


class Operations(TorchDispatchMode):
    """Keeps the names of all operations."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func._schema.name)
        return func(*args, **(kwargs or {}))
