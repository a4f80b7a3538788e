"""The packed linear layer against the obvious loop of `oracle`."""

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorastudy.engine.lora import DropoutClock, LoraSlot, PackedLinear, SlotDropout, attach
from lorastudy.engine.oracle import ArmWeights, packed_linear

pytestmark = pytest.mark.usefixtures("one_thread")

#: Groups of neighbouring arms: (number of arms, rank), rank 0 where they do not adapt the layer.
GROUPS = st.lists(st.tuples(st.integers(1, 3), st.sampled_from([0, 1, 2, 5])), min_size=1, max_size=4)


def make_slot(start, num_arms, *, r, sizes, generator, dtype, dropout=None):
    num_inputs, num_outputs = sizes

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    a, scaled_b = draw(num_arms, r, num_inputs), draw(num_arms, r, num_outputs)
    return LoraSlot(
        start=start,
        stop=start + num_arms,
        lora_A_GRD=a,
        scaled_B_GRO=scaled_b,
        grad_A_GRD=torch.zeros_like(a),
        grad_B_GRO=torch.zeros_like(scaled_b),
        dropout=dropout,
    )


def make_dropout(seeds, *, probability, clock):
    return SlotDropout(
        streams_G=tuple(map(str, seeds)),
        probabilities_G=(probability,) * len(seeds),
        factor_G11=torch.full((len(seeds), 1, 1), 1 / (1 - probability)),
        clock=clock,
    )


def make_base_layer(kind, *, sizes, dtype):
    num_inputs, num_outputs = sizes
    if kind == "Conv1D":
        layer = Conv1D(num_outputs, num_inputs)
        nn.init.normal_(layer.bias)
    else:
        layer = nn.Linear(num_inputs, num_outputs, bias=kind == "Linear")
    return layer.to(dtype).requires_grad_(requires_grad=False)


def oracle_arms(slots, num_arms, *, masks=None):
    """The slots' arms one by one, weights as leaves that collect gradients. s is 1.5, and a slot holds s B."""
    arms = [None] * num_arms
    for slot in slots:
        for row in range(slot.stop - slot.start):
            number = slot.start + row
            arms[number] = ArmWeights(
                lora_A_RD=slot.lora_A_GRD[row].clone().requires_grad_(),
                lora_B_OR=(slot.scaled_B_GRO[row].mT / 1.5).requires_grad_(),
                scaling=1.5,
                mask_ND=None if masks is None else masks[number],
            )
    return arms


def compare(layer, slots, x_KND, *, dy_KNO, arms, tolerance):
    """Outputs, and the gradients of the input and of every weight."""
    x = x_KND.clone().requires_grad_()
    y = layer(x)
    y.backward(dy_KNO)

    weight = layer.base_layer.weight
    weight_OD = weight.T if isinstance(layer.base_layer, Conv1D) else weight
    x_oracle = x_KND.clone().requires_grad_()
    expected = packed_linear(x_oracle, weight_OD=weight_OD, bias_O=layer.base_layer.bias, arms=arms)
    expected.backward(dy_KNO)

    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(y, expected, **close)
    torch.testing.assert_close(x.grad, x_oracle.grad, **close)
    for slot in slots:
        for row in range(slot.stop - slot.start):
            arm = arms[slot.start + row]
            torch.testing.assert_close(slot.grad_A_GRD[row], arm.lora_A_RD.grad, **close)
            torch.testing.assert_close(1.5 * slot.grad_B_GRO[row].mT, arm.lora_B_OR.grad, **close)


@settings(max_examples=60, deadline=None)
@given(
    GROUPS, st.integers(1, 6), st.integers(1, 5), st.integers(1, 5),
    st.sampled_from(["Linear", "without bias", "Conv1D"]), st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
def test_output_and_every_gradient_equal_the_oracle(groups, num_tokens, num_inputs, num_outputs, kind, dtype):
    generator = torch.Generator().manual_seed(num_tokens * 100 + num_inputs * 10 + num_outputs)
    sizes = (num_inputs, num_outputs)
    slots, num_arms = [], 0
    for count, r in groups:
        if r:
            slots.append(make_slot(num_arms, count, r=r, sizes=sizes, generator=generator, dtype=dtype))
        num_arms += count
    layer = PackedLinear(make_base_layer(kind, sizes=sizes, dtype=dtype))
    attach([layer], num_arms=num_arms, slots=[tuple(slots)])
    x = torch.randn(num_arms, num_tokens, num_inputs, generator=generator, dtype=dtype)
    dy = torch.randn(num_arms, num_tokens, num_outputs, generator=generator, dtype=dtype)
    tolerance = 1e-10 if dtype is torch.float64 else 1e-4
    compare(layer, slots, x, dy_KNO=dy, arms=oracle_arms(slots, num_arms), tolerance=tolerance)


def one_layer(*, dropout=None, dtype=torch.float64):
    """Three arms on a layer of 4 inputs and 3 outputs: one that does not adapt it, two of rank 2."""
    generator = torch.Generator().manual_seed(1)
    slot = make_slot(1, 2, r=2, sizes=(4, 3), generator=generator, dtype=dtype, dropout=dropout)
    layer = PackedLinear(make_base_layer("Linear", sizes=(4, 3), dtype=dtype))
    attach([layer], num_arms=3, slots=[(slot,)])
    x = torch.randn(3, 5, 4, generator=generator, dtype=dtype)
    return layer, slot, x, torch.randn(3, 5, 3, generator=generator, dtype=dtype)


def test_gradients_add_up_over_backward_passes():
    layer, slot, x, dy = one_layer()
    layer(x).backward(dy)
    once = slot.grad_A_GRD.clone(), slot.grad_B_GRO.clone()
    layer(x).backward(dy)
    torch.testing.assert_close(slot.grad_A_GRD, 2 * once[0])
    torch.testing.assert_close(slot.grad_B_GRO, 2 * once[1])


def test_arms_may_come_as_rows_of_a_batch_as_they_do_in_generation():
    layer, _, x, _ = one_layer()
    rows = x.view(3, 5, 1, 4).reshape(15, 1, 4)  # arms after one another, five rows each, one token
    torch.testing.assert_close(layer(rows).view(3, 5, 3), layer(x))


def test_without_slots_it_is_the_layer_itself():
    layer, _, x, _ = one_layer()
    attach([layer], num_arms=3, slots=[()])
    assert torch.equal(layer(x), layer.base_layer(x))


@pytest.mark.parametrize("contiguous", [True, False])
def test_dropout_uses_one_mask_in_forward_and_backward(contiguous):
    clock = DropoutClock(passes_K=[7] * 3, active=True)
    dropout = make_dropout((11, 12), probability=0.5, clock=clock)
    layer, slot, x, dy = one_layer(dropout=dropout)
    if not contiguous:  # as an attention output may come: the same values in another order of memory
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
        assert not x.is_contiguous()
    masks = [None, *dropout.mask_like(x[1:], passes_G=[7, 7])]
    assert set(masks[1].unique().tolist()) == {0.0, 1.0}
    arms = oracle_arms([slot], 3, masks=[None, *(mask / 0.5 for mask in masks[1:])])
    compare(layer, [slot], x, dy_KNO=dy, arms=arms, tolerance=1e-10)


def test_dropout_divides_by_what_it_keeps_as_peft_does_in_bf16():
    """1 / .75 in bf16 is 0.2 % too large. An input of 1 and a gradient of 3 make 3 / .75 = 4 for each token kept, exactly."""
    num_tokens, dy = 32, torch.full((1, 32, 1), 3.0).bfloat16()
    x = torch.ones(1, num_tokens, 1, dtype=torch.bfloat16)
    one = torch.ones(1, 1, 1)
    slot = LoraSlot(
        start=0, stop=1, lora_A_GRD=one.bfloat16(), scaled_B_GRO=one.bfloat16(),
        grad_A_GRD=torch.zeros_like(one), grad_B_GRO=torch.zeros_like(one),
        dropout=make_dropout((1,), probability=0.25, clock=DropoutClock(passes_K=[1], active=True)),
    )  # fmt: skip
    base_layer = make_base_layer("without bias", sizes=(1, 1), dtype=torch.bfloat16)
    nn.init.zeros_(base_layer.weight)
    ours = PackedLinear(base_layer)
    attach([ours], num_arms=1, slots=[(slot,)])
    y = ours(x)
    y.backward(dy)
    theirs = peft.inject_adapter_in_model(
        peft.LoraConfig(r=1, lora_alpha=1, lora_dropout=0.25, target_modules=["layer"]),
        nn.ModuleDict({"layer": base_layer}),
    )
    weights = {name.rpartition(".")[0]: p for name, p in theirs.named_parameters() if p.requires_grad}
    assert len(weights) == 2
    for weight in weights.values():
        weight.data = torch.ones(1, 1)  # fp32, as PEFT makes them on a model
    peft_y = theirs["layer"](x)
    peft_y.backward(dy)
    (peft_gradient,) = (p.grad for name, p in weights.items() if "lora_A" in name)
    kept, peft_kept = (int((out != 0).sum()) for out in (y, peft_y))
    assert 0 < kept < num_tokens
    assert slot.grad_A_GRD.item() / kept == peft_gradient.item() / peft_kept == 4.0


def test_dropout_gradients_are_those_of_finite_differences():
    clock = DropoutClock(passes_K=[3] * 3, active=True)
    layer, _, x, _ = one_layer(dropout=make_dropout((1, 2), probability=0.3, clock=clock))
    x = x.requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,))


def test_a_mask_is_a_function_of_the_arms_seed_and_the_forward_pass_alone():
    clock = DropoutClock(passes_K=[])
    x = torch.ones(2, 30, 8)
    pair = make_dropout((5, 6), probability=0.25, clock=clock).mask_like(x, passes_G=[4, 4])
    alone = make_dropout((6,), probability=0.25, clock=clock).mask_like(x[:1], passes_G=[4])
    later = make_dropout((6,), probability=0.25, clock=clock).mask_like(x[:1], passes_G=[5])
    assert torch.equal(pair[1], alone[0])
    assert not torch.equal(pair[0], pair[1])
    assert not torch.equal(later, alone)
    assert pair.unique().tolist() == [0.0, 1.0]
    # 480 draws: a share of .25 has a standard error of .02
    assert 0.17 < (pair == 0).double().mean() < 0.33


def test_masks_of_one_arm_and_layer_differ_from_those_of_others_at_any_pass():
    """A CPU's generator uses 32 bits of a seed. 60 masks of 240 draws: any two are equal with probability 2^-100 or less."""
    clock, x = DropoutClock(passes_K=[]), torch.ones(1, 30, 8)
    masks = {
        tuple(make_dropout((f"arm {arm}",), probability=0.25, clock=clock).mask_like(x, passes_G=[number]).flatten().tolist())
        for arm in range(6)
        for number in range(10)
    }  # fmt: skip
    assert len(masks) == 60


def test_dropout_is_off_while_the_clock_stands():
    clock = DropoutClock(passes_K=[1] * 3, active=False)
    layer, _, x, _ = one_layer(dropout=make_dropout((1, 2), probability=0.9, clock=clock))
    dry, *_ = one_layer()
    dry.base_layer = layer.base_layer
    assert torch.equal(layer(x), dry(x))
    clock.active = True
    assert not torch.equal(layer(x), dry(x))
