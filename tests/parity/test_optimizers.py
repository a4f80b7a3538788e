"""The reference engine's optimizers and NEFTune against PEFT in a plain loop, with the optimizer that Trainer makes."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.integrations.neftune import activate_neftune

import tiny
from lorastudy.engine.arms import stream_seed
from lorastudy.engine.batch import assemble
from lorastudy.engine.full_fine_tuning import FullFineTuning
from lorastudy.engine.optimizers import optimizer_of, restore_state, saved_state
from lorastudy.engine.reference import ReferenceEngine
from lorastudy.errors import ModelError
from lorastudy.suite.methods import ArmMethod
from parity.test_methods import make_arm, peft_alone
from parity.test_peft import losses_of_training, row_steps

pytestmark = pytest.mark.usefixtures("one_thread")

CUDA = torch.device("cuda")
OF_BITSANDBYTES = ("adamw_8bit", "paged_adamw_8bit")


def made_by_trainer(arm, parameters):
    """The optimizer of transformers' Trainer for the arm's settings, with the weight decay in its group of parameters."""
    kind, arguments = class_of_trainer(arm)
    return kind([{"params": parameters, "weight_decay": arm.weight_decay}], **arguments)


def class_of_trainer(arm):
    asked = TrainingArguments(
        output_dir="unused", optim=arm.method.optim, learning_rate=arm.learning_rate, adam_beta1=arm.adam_beta1,
        adam_beta2=arm.adam_beta2, adam_epsilon=arm.adam_epsilon, use_cpu=True, report_to="none",
    )  # fmt: skip
    return Trainer.get_optimizer_cls_and_kwargs(asked)


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor", "sgd"])
def test_an_optimizer_equals_peft_with_trainers_own(optim):
    base = tiny.make_base()
    arm = make_arm(base, ArmMethod(optim=optim), learning_rate=3e-2 if optim == "sgd" else 3e-3)
    steps, log = row_steps(), tiny.Log()
    ids = torch.tensor([tiny.make_rows(1, seed=9)[0].input_ids])
    with tiny.opened(ReferenceEngine(base, [arm])) as engine:
        batches = [[assemble(rows, device=tiny.CPU) for rows in micro_batches] for micro_batches in steps]
        engine.train(batches, on_step=log)
        with torch.no_grad():
            logits = base.model(ids).logits

    model = peft_alone("llama", base, arm, {}).eval()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    losses = losses_of_training(model, arm, steps, optimizer=made_by_trainer(arm, parameters))
    assert len(losses) == arm.num_steps
    assert tiny.largest_relative(log.losses["a"], losses) <= 1e-5
    with torch.no_grad():
        torch.testing.assert_close(logits, model(ids).logits, rtol=0, atol=1e-4)
        assert (logits - tiny.make_model("llama").eval()(ids).logits).abs().max() > 1e-3


@pytest.mark.parametrize("optim", ["adamw_torch", *OF_BITSANDBYTES, "adafactor", "sgd"])
def test_every_optimizer_is_the_class_of_trainer_with_its_arguments(optim):
    arm = replace(
        tiny.make_arm(("m",), adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-7),
        method=ArmMethod(optim=optim),
    )
    kind, arguments = optimizer_of(arm, device=CUDA)
    theirs, their_arguments = class_of_trainer(arm)
    assert kind is theirs
    assert {**arguments, "lr": arm.learning_rate} == their_arguments


@pytest.mark.parametrize("optim", OF_BITSANDBYTES)
def test_an_optimizer_of_bitsandbytes_is_refused_without_a_gpu(optim):
    base = tiny.make_base()
    with pytest.raises(ModelError, match=f"optim: {optim} runs on NVIDIA GPUs alone.*set optim: adamw_torch"):
        ReferenceEngine(base, [make_arm(base, ArmMethod(optim=optim))])


@pytest.mark.parametrize(
    "method",
    [
        ArmMethod(optim="adafactor"),
        ArmMethod(optim="sgd"),
        ArmMethod(use_dora=True, optim="adafactor"),
        ArmMethod(loraplus_lr_ratio=4.0, optim="sgd"),
        ArmMethod(neftune_noise_alpha=5.0),
        ArmMethod(is_full=True, optim="adafactor", neftune_noise_alpha=5.0),
        ArmMethod(is_full=True, optim="sgd"),
    ],
    ids=lambda method: method.title,
)
def test_a_resumed_arm_has_the_bits_of_an_uninterrupted_one(method):
    base = tiny.make_base()
    arm = make_arm(base, method, lora_dropout=0.1)
    kind = FullFineTuning if method.is_full else ReferenceEngine
    steps, whole, log = tiny.make_steps(8, accumulation=2), tiny.Log(), tiny.Log()
    with tiny.opened(kind(base, [arm])) as engine:
        engine.train(steps, on_step=whole)
        (uninterrupted,) = engine.state().arms
    with tiny.opened(kind(base, [arm])) as engine:
        engine.train(steps[:3], on_step=log)
        state = engine.state()
    with tiny.opened(kind(base, [arm])) as engine:
        engine.restore(state)
        engine.train(steps[3:], on_step=log)
        (resumed,) = engine.state().arms
    assert log.losses == whole.losses
    assert resumed.tensors.keys() == uninterrupted.tensors.keys()
    for name, value in uninterrupted.tensors.items():
        assert torch.equal(resumed.tensors[name], value), name


@pytest.mark.parametrize("optim", OF_BITSANDBYTES)
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_a_restored_state_of_bitsandbytes_goes_on_with_the_same_bits(optim):
    """On parameters of fewer than 4096 numbers, whose state is fp32: without a GPU bitsandbytes has no other kernels."""
    arm = replace(tiny.make_arm(("m",)), method=ArmMethod(optim=optim))
    kind, arguments = optimizer_of(arm, device=CUDA)
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(7, 5, generator=generator), torch.randn(3, generator=generator)]
    grads = [[torch.randn(weight.shape, generator=generator) for weight in start] for _ in range(6)]

    def fresh(weights):
        parameters = [nn.Parameter(weight.clone()) for weight in weights]
        return parameters, kind(parameters, lr=1e-2, weight_decay=0.1, **arguments)

    def take(parameters, optimizer, steps):
        for own in steps:
            for parameter, grad in zip(parameters, own, strict=True):
                parameter.grad = grad.clone()
            optimizer.step()

    parameters, optimizer = fresh(start)
    take(parameters, optimizer, grads[:3])
    saved = [
        {name: value.clone() for name, value in saved_state(optimizer, parameter).items()}
        for parameter in parameters
    ]
    others, other = fresh(parameters)
    for parameter, own in zip(others, saved, strict=True):
        restore_state(other, parameter, saved=own, num_steps_taken=3)
    for pair in ((parameters, optimizer), (others, other)):
        take(*pair, grads[3:])
    assert all(torch.equal(one, two) for one, two in zip(parameters, others, strict=True))


def test_neftune_equals_peft_with_the_hook_of_transformers():
    """Rows one by one: the noise depends on the padded length, and our rows of a batch come in another order."""
    base = tiny.make_base()
    arm = make_arm(base, ArmMethod(neftune_noise_alpha=5.0))
    steps, log = [[[row]] for row in tiny.make_rows(8)], tiny.Log()
    with tiny.opened(ReferenceEngine(base, [arm])) as engine:
        batches = [[assemble(rows, device=tiny.CPU) for rows in micro_batches] for micro_batches in steps]
        before = engine.score(batches[0][0]).nll_KM
        assert torch.equal(before, engine.score(batches[0][0]).nll_KM)  # no noise where nothing trains
        engine.train(batches, on_step=log)

    model = peft_alone("llama", base, arm, {}).eval()
    activate_neftune(model, 5.0)
    model.get_input_embeddings().train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.random.fork_rng():
        torch.manual_seed(stream_seed("dropout", arm.seed))
        losses = losses_of_training(model, arm, steps, optimizer=made_by_trainer(arm, parameters))
    assert tiny.largest_relative(log.losses["a"], losses) <= 1e-5
    embeddings = base.model.get_input_embeddings()
    assert not embeddings._forward_hooks
    assert not embeddings.training
